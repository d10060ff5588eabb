//! Inodes, the space they take, and how a path leads to one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use checkvalve_host::disk::{FileTime, Kind, Meta};

use super::Found;
use super::durable::{Contents, NameLog};
use super::fault::Faults;
use crate::rng::Rng;

/// An error of the kernel.
pub(super) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// The kernel's numbers on Linux.
pub(super) mod errno {
    pub(in super::super) const NOENT: i32 = 2;
    pub(in super::super) const IO: i32 = 5;
    pub(in super::super) const BADF: i32 = 9;
    pub(in super::super) const ACCES: i32 = 13;
    pub(in super::super) const BUSY: i32 = 16;
    pub(in super::super) const EXIST: i32 = 17;
    pub(in super::super) const XDEV: i32 = 18;
    pub(in super::super) const NOTDIR: i32 = 20;
    pub(in super::super) const ISDIR: i32 = 21;
    pub(in super::super) const INVAL: i32 = 22;
    pub(in super::super) const MFILE: i32 = 24;
    pub(in super::super) const NOSPC: i32 = 28;
    pub(in super::super) const ROFS: i32 = 30;
    pub(in super::super) const NAMETOOLONG: i32 = 36;
    pub(in super::super) const NOTEMPTY: i32 = 39;
    pub(in super::super) const LOOP: i32 = 40;
}

/// The space that an inode without contents takes, in bytes.
pub(super) const INODE_COST: u64 = 256;
/// The unit in which space is allocated to files, in bytes.
pub(super) const PAGE: u64 = 4096;
const ROOT: u64 = 1;
const OWNER: u32 = 1000;

pub(super) type Entries = BTreeMap<OsString, u64>;

pub(super) struct World {
    pub(super) nodes: BTreeMap<u64, Node>,
    pub(super) devices: Vec<Device>,
    /// For each mount point, the root of the file system mounted there.
    pub(super) mounts: BTreeMap<u64, u64>,
    pub(super) now: FileTime,
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) enforce_modes: bool,
    /// How often all open files were lost.
    pub(super) epoch: u64,
    next_ino: u64,
}

pub(super) struct Device {
    pub(super) root: u64,
    pub(super) capacity: Option<u64>,
    pub(super) used: u64,
    pub(super) read_only: bool,
    pub(super) names: NameLog,
}

pub(super) struct Node {
    pub(super) dev: usize,
    pub(super) body: Body,
    pub(super) attr: Attr,
    pub(super) durable_attr: Attr,
    pub(super) ctime: FileTime,
    /// How many names it has now.
    pub(super) links: u64,
    /// How many open files it has.
    pub(super) handles: u64,
    /// The space it takes on its device.
    pub(super) cost: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Attr {
    pub(super) mode: u32,
    pub(super) mtime: FileTime,
}

pub(super) enum Body {
    File(Contents),
    Directory(Entries),
    Symlink(Vec<u8>),
    Special(Kind),
}

impl Body {
    pub(super) fn file() -> Self {
        Self::File(Contents::default())
    }

    pub(super) fn directory() -> Self {
        Self::Directory(Entries::new())
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut world = Self {
            nodes: BTreeMap::new(),
            devices: Vec::new(),
            mounts: BTreeMap::new(),
            now: FileTime { secs: 1_700_000_000, nanos: 0 },
            rng: Rng::new(seed),
            faults: Faults::default(),
            enforce_modes: true,
            epoch: 0,
            next_ino: ROOT,
        };
        world.add_device();
        world
    }

    pub(super) fn mount(&mut self, path: &Path) {
        let at = self.resolve(path, true).expect("a directory to mount on");
        assert!(self.entries(at).is_ok_and(Entries::is_empty), "an empty directory to mount on");
        let root = self.add_device();
        self.mounts.insert(at, root);
    }

    fn add_device(&mut self) -> u64 {
        let dev = self.devices.len();
        let root = self.new_node(dev, 0o755, Body::directory());
        let names = NameLog::default();
        self.devices.push(Device { root, capacity: None, used: INODE_COST, read_only: false, names });
        let node = self.node_mut(root);
        (node.links, node.cost) = (1, INODE_COST);
        root
    }

    fn new_node(&mut self, dev: usize, mode: u32, body: Body) -> u64 {
        let ino = self.next_ino;
        self.next_ino += 1;
        let attr = Attr { mode: mode & 0o7777, mtime: self.now };
        let (durable_attr, ctime) = (attr, self.now);
        self.nodes.insert(ino, Node { dev, body, attr, durable_attr, ctime, links: 0, handles: 0, cost: 0 });
        ino
    }

    /// A new inode with a name.
    pub(super) fn create(&mut self, dir: u64, name: OsString, mode: u32, body: Body) -> io::Result<u64> {
        if self.entries(dir)?.contains_key(&name) {
            return Err(errno(errno::EXIST));
        }
        self.changeable(dir)?;
        let dev = self.node(dir).dev;
        if self.devices[dev].free() < INODE_COST {
            return Err(errno(errno::NOSPC));
        }
        let ino = self.new_node(dev, mode, body);
        self.node_mut(ino).cost = INODE_COST;
        self.devices[dev].used += INODE_COST;
        self.link(dir, name, ino);
        Ok(ino)
    }

    pub(super) fn node(&self, ino: u64) -> &Node {
        self.nodes.get(&ino).expect("a node that something names")
    }

    pub(super) fn node_mut(&mut self, ino: u64) -> &mut Node {
        self.nodes.get_mut(&ino).expect("a node that something names")
    }

    pub(super) fn device_mut(&mut self, path: &Path) -> &mut Device {
        let ino = self.resolve(path, true).expect("a path on the device");
        let dev = self.node(ino).dev;
        &mut self.devices[dev]
    }

    pub(super) fn kind(&self, ino: u64) -> Kind {
        match &self.node(ino).body {
            Body::File(_) => Kind::File,
            Body::Directory(_) => Kind::Directory,
            Body::Symlink(_) => Kind::Symlink,
            Body::Special(kind) => *kind,
        }
    }

    pub(super) fn entries(&self, ino: u64) -> io::Result<&Entries> {
        match &self.node(ino).body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(errno(errno::NOTDIR)),
        }
    }

    pub(super) fn contents(&mut self, ino: u64) -> &mut Contents {
        match &mut self.node_mut(ino).body {
            Body::File(contents) => contents,
            _ => unreachable!("only files are opened"),
        }
    }

    pub(super) fn meta(&self, ino: u64) -> Meta {
        let node = self.node(ino);
        let (size, nlink) = match &node.body {
            Body::File(contents) => (contents.live.len() as u64, node.links),
            Body::Symlink(target) => (target.len() as u64, node.links),
            Body::Directory(entries) => {
                let below = entries.values().filter(|ino| self.kind(**ino) == Kind::Directory).count();
                (PAGE, 2 + below as u64)
            }
            Body::Special(_) => (0, node.links),
        };
        Meta {
            kind: self.kind(ino),
            size,
            mode: node.attr.mode,
            mtime: node.attr.mtime,
            ctime: node.ctime,
            dev: node.dev as u64 + 1,
            ino,
            nlink,
            uid: OWNER,
        }
    }

    pub(super) fn set_mode(&mut self, ino: u64, mode: u32) -> io::Result<()> {
        if self.kind(ino) == Kind::Symlink {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link"));
        }
        self.writable(ino)?;
        let now = self.now;
        let node = self.node_mut(ino);
        (node.attr.mode, node.ctime) = (mode & 0o7777, now);
        Ok(())
    }

    pub(super) fn set_mtime(&mut self, ino: u64, mtime: FileTime) -> io::Result<()> {
        if mtime.nanos > 999_999_999 {
            return Err(errno(errno::INVAL));
        }
        self.writable(ino)?;
        let now = self.now;
        let node = self.node_mut(ino);
        (node.attr.mtime, node.ctime) = (mtime, now);
        Ok(())
    }

    /// Sets the times after a change of contents or entries.
    pub(super) fn touch(&mut self, ino: u64) {
        let now = self.now;
        let node = self.node_mut(ino);
        (node.attr.mtime, node.ctime) = (now, now);
    }

    /// EACCES unless the mode has all of these bits.
    pub(super) fn allow(&self, ino: u64, bits: u32) -> io::Result<()> {
        let allowed = !self.enforce_modes || self.node(ino).attr.mode & bits == bits;
        if allowed { Ok(()) } else { Err(errno(errno::ACCES)) }
    }

    /// EROFS if its device is read-only.
    pub(super) fn writable(&self, ino: u64) -> io::Result<()> {
        if self.devices[self.node(ino).dev].read_only { Err(errno(errno::ROFS)) } else { Ok(()) }
    }

    /// Whether names in a directory may change.
    pub(super) fn changeable(&self, dir: u64) -> io::Result<()> {
        self.writable(dir)?;
        self.allow(dir, 0o300)
    }

    pub(super) fn free(&self, ino: u64) -> u64 {
        self.devices[self.node(ino).dev].free()
    }

    /// Frees the space of an inode that has no name and is not open.
    pub(super) fn release(&mut self, ino: u64) {
        let node = self.node_mut(ino);
        if node.links == 0 && node.handles == 0 {
            let (dev, cost) = (node.dev, std::mem::take(&mut node.cost));
            self.devices[dev].used -= cost;
        }
    }

    /// The directory that `path` is or would be in, and its name there.
    pub(super) fn parent(&self, path: &Path) -> io::Result<(u64, OsString)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(errno(errno::BUSY));
        };
        let dir = self.resolve(parent, true)?;
        self.entries(dir)?;
        self.allow(dir, 0o100)?;
        if name.len() > 255 {
            return Err(errno(errno::NAMETOOLONG));
        }
        Ok((dir, name.to_owned()))
    }

    /// The inode at `path`. Follows symbolic links in its middle, and one at its end if `follow`.
    pub(super) fn resolve(&self, path: &Path, follow: bool) -> io::Result<u64> {
        assert!(path.is_absolute(), "{}: not absolute", path.display());
        if path.as_os_str().len() > 4095 {
            return Err(errno(errno::NAMETOOLONG));
        }
        let mut todo: VecDeque<&OsStr> = names(path).collect();
        let mut way = vec![ROOT];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            let here = way[way.len() - 1];
            let entries = self.entries(here)?;
            self.allow(here, 0o100)?;
            if name == ".." {
                way.truncate((way.len() - 1).max(1));
                continue;
            }
            if name.len() > 255 {
                return Err(errno(errno::NAMETOOLONG));
            }
            let ino = *entries.get(name).ok_or_else(|| errno(errno::NOENT))?;
            match &self.node(ino).body {
                Body::Symlink(target) if follow || !todo.is_empty() => {
                    links += 1;
                    if links > 40 {
                        return Err(errno(errno::LOOP));
                    }
                    let target = Path::new(OsStr::from_bytes(target));
                    if target.is_absolute() {
                        way.truncate(1);
                    }
                    names(target).collect::<Vec<_>>().into_iter().rev().for_each(|name| todo.push_front(name));
                }
                _ => way.push(self.mounts.get(&ino).copied().unwrap_or(ino)),
            }
        }
        Ok(way[way.len() - 1])
    }

    pub(super) fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        match &self.node(self.resolve(path, false)?).body {
            Body::Symlink(target) => Ok(OsString::from_vec(target.clone()).into()),
            _ => Err(errno(errno::INVAL)),
        }
    }

    pub(super) fn rot(&mut self, path: &Path, offset: usize, mask: u8) {
        let ino = self.resolve(path, true).expect("a file");
        self.contents(ino).rot(offset, mask);
    }

    pub(super) fn tree(&self, path: &Path) -> Vec<Found> {
        let mut found = Vec::new();
        if let Ok(ino) = self.resolve(path, true) {
            self.collect(path, ino, &mut found);
        }
        found
    }

    fn collect(&self, path: &Path, ino: u64, found: &mut Vec<Found>) {
        for (name, child) in self.entries(ino).into_iter().flatten() {
            let child = self.mounts.get(child).copied().unwrap_or(*child);
            let path = path.join(name);
            let node = self.node(child);
            let bytes = match &node.body {
                Body::File(contents) => contents.live.clone(),
                Body::Symlink(target) => target.clone(),
                _ => Vec::new(),
            };
            let Attr { mode, mtime } = node.attr;
            found.push(Found { path: path.clone(), kind: self.kind(child), mode, mtime, bytes });
            self.collect(&path, child, found);
        }
    }

    /// Drops inodes that are unreachable now and after any crash.
    pub(super) fn sweep(&mut self) {
        let mut live: BTreeSet<u64> = self.devices.iter().flat_map(|device| device.names.mentions()).collect();
        live.extend(self.devices.iter().map(|device| device.root));
        live.extend(self.nodes.values().flat_map(|node| match &node.body {
            Body::Directory(entries) => entries.values().copied().collect(),
            _ => Vec::new(),
        }));
        self.nodes.retain(|ino, node| live.contains(ino) || node.handles > 0);
    }
}

impl Device {
    pub(super) fn free(&self) -> u64 {
        self.capacity.map_or(1 << 50, |capacity| capacity.saturating_sub(self.used))
    }
}

/// The names on the path, including `..`.
fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name),
        Component::ParentDir => Some(component.as_os_str()),
        _ => None,
    })
}
