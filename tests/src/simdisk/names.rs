//! Names: creating, renaming, removing.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use checkvalve_host::disk::Kind;

use super::durable::NameChange;
use super::world::{Body, Entries, World, errno};

impl World {
    /// Gives a new inode its name.
    pub(super) fn link(&mut self, dir: u64, name: OsString, ino: u64) {
        self.change(vec![NameChange { dir, name, becomes: Some(ino) }], ino);
    }

    pub(super) fn create_dir_all(&mut self, path: &Path, mode: u32) -> io::Result<()> {
        let Some(parent) = path.parent() else { return Ok(()) };
        let make = |world: &mut Self| {
            let (dir, name) = world.parent(path)?;
            world.create(dir, name, mode, Body::directory()).map(drop)
        };
        let made = match make(self) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_dir_all(parent, mode)?;
                make(self)
            }
            other => other,
        };
        let there = |world: &Self| world.resolve(path, true).is_ok_and(|ino| world.kind(ino) == Kind::Directory);
        match made {
            Err(error) if matches!(error.raw_os_error(), Some(errno::EXIST | errno::ROFS)) && there(self) => Ok(()),
            other => other,
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path, replace: bool) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        if self.node(from_dir).dev != self.node(to_dir).dev {
            return Err(errno(errno::XDEV));
        }
        self.writable(from_dir)?;
        let moved = *self.entries(from_dir)?.get(&from_name).ok_or_else(|| errno(errno::NOENT))?;
        let target = self.entries(to_dir)?.get(&to_name).copied();
        if target.is_some() && !replace {
            return Err(errno(errno::EXIST));
        }
        if self.is_below(to_dir, moved) {
            return Err(errno(errno::INVAL));
        }
        if target.is_some_and(|target| self.is_below(from_dir, target)) {
            return Err(errno(errno::NOTEMPTY));
        }
        if target == Some(moved) {
            return Ok(());
        }
        self.changeable(from_dir)?;
        self.changeable(to_dir)?;
        if self.mounts.contains_key(&moved) || target.is_some_and(|target| self.mounts.contains_key(&target)) {
            return Err(errno(errno::BUSY));
        }
        if let Some(target) = target {
            match (self.kind(moved) == Kind::Directory, self.entries(target).map(Entries::is_empty)) {
                (true, Err(error)) => return Err(error),
                (true, Ok(false)) => return Err(errno(errno::NOTEMPTY)),
                (false, Ok(_)) => return Err(errno(errno::ISDIR)),
                _ => {}
            }
        }
        let gone = NameChange { dir: from_dir, name: from_name, becomes: None };
        let there = NameChange { dir: to_dir, name: to_name, becomes: Some(moved) };
        self.change(vec![gone, there], moved);
        let now = self.now;
        self.node_mut(moved).ctime = now;
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path, directory: bool) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        self.remove_at(dir, name, directory)
    }

    fn remove_at(&mut self, dir: u64, name: OsString, directory: bool) -> io::Result<()> {
        self.writable(dir)?;
        let ino = *self.entries(dir)?.get(&name).ok_or_else(|| errno(errno::NOENT))?;
        self.changeable(dir)?;
        match (directory, self.entries(ino).map(Entries::is_empty)) {
            _ if self.mounts.contains_key(&ino) => return Err(errno(errno::BUSY)),
            (true, Err(error)) => return Err(error),
            (true, Ok(false)) => return Err(errno(errno::NOTEMPTY)),
            (false, Ok(_)) => return Err(errno(errno::ISDIR)),
            _ => {}
        }
        self.change(vec![NameChange { dir, name, becomes: None }], ino);
        Ok(())
    }

    /// Removes a tree, but at most `most` of its names.
    pub(super) fn remove_tree(&mut self, path: &Path, most: u64) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let mut left = most;
        self.remove_below(dir, name, &mut left)
    }

    fn remove_below(&mut self, dir: u64, name: OsString, left: &mut u64) -> io::Result<()> {
        let ino = *self.entries(dir)?.get(&name).ok_or_else(|| errno(errno::NOENT))?;
        let directory = self.kind(ino) == Kind::Directory;
        if directory && !self.mounts.contains_key(&ino) {
            let names: Vec<OsString> = self.entries(ino)?.keys().cloned().collect();
            if !names.is_empty() {
                // Like the real disk, it grants itself the permission first.
                let mode = self.node(ino).attr.mode;
                self.set_mode(ino, mode | 0o700)?;
            }
            for name in names {
                self.remove_below(ino, name, left)?;
            }
        }
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        self.remove_at(dir, name, directory)
    }

    /// Changes names. A power cut keeps all of these changes or none. `subject` is the inode they are about.
    fn change(&mut self, changes: Vec<NameChange>, subject: u64) {
        let mut unnamed = Vec::new();
        for NameChange { dir, name, becomes } in &changes {
            self.touch(*dir);
            let Body::Directory(entries) = &mut self.node_mut(*dir).body else { unreachable!("checked by the caller") };
            let before = match becomes {
                Some(ino) => entries.insert(name.clone(), *ino),
                None => entries.remove(name),
            };
            if let Some(ino) = becomes {
                self.node_mut(*ino).links += 1;
            }
            unnamed.extend(before);
        }
        let now = self.now;
        for ino in unnamed {
            let node = self.node_mut(ino);
            node.links -= 1;
            node.ctime = now;
            self.release(ino);
        }
        let dev = self.node(changes[0].dir).dev;
        self.devices[dev].names.record(changes, subject);
    }

    /// Whether `dir` is `top` or below it.
    fn is_below(&self, dir: u64, top: u64) -> bool {
        if dir == top {
            return true;
        }
        match &self.node(top).body {
            Body::Directory(entries) => entries.values().any(|&child| self.is_below(dir, child)),
            _ => false,
        }
    }
}
