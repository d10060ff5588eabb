//! Open files.

use std::io;

use checkvalve_host::disk::{DiskFile, FileTime, Meta};

use super::SimDisk;
use super::fault::{Op, Verdict};
use super::world::{Body, PAGE, World, errno};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    Append,
}

pub(super) struct SimFile {
    disk: SimDisk,
    ino: u64,
    access: Access,
    epoch: u64,
}

impl SimFile {
    pub(super) fn new(disk: SimDisk, world: &mut World, ino: u64, access: Access) -> Self {
        world.node_mut(ino).handles += 1;
        Self { disk, ino, access, epoch: world.epoch }
    }

    fn op<T>(&self, op: Op, body: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        self.disk.op(op, |world| {
            self.check(world)?;
            body(world)
        })
    }

    fn torn_op<T>(&self, op: Op, body: impl FnOnce(&mut World, Verdict) -> io::Result<T>) -> io::Result<T> {
        self.disk.torn_op(op, |world, verdict| {
            self.check(world)?;
            body(world, verdict)
        })
    }

    fn check(&self, world: &World) -> io::Result<()> {
        // A process that is gone opened the file.
        if self.epoch == world.epoch { Ok(()) } else { Err(errno(errno::IO)) }
    }

    fn write(&self, op: Op, buf: &[u8], offset: Option<u64>) -> io::Result<()> {
        self.torn_op(op, |world, verdict| {
            if self.access == Access::Read {
                return Err(errno(errno::BADF));
            }
            if buf.is_empty() && verdict == Verdict::Pass {
                return Ok(());
            }
            world.writable(self.ino)?;
            let end = world.contents(self.ino).live.len() as u64;
            let offset = offset.filter(|_| self.access == Access::Write).unwrap_or(end);
            let (buf, result) = match verdict {
                Verdict::Pass => (buf, Ok(())),
                Verdict::Fail(code) => (part(world, buf), Err(errno(code))),
                Verdict::Cut => (part(world, buf), Err(errno(errno::IO))),
            };
            world.write(self.ino, offset, buf)?;
            result
        })
    }

    fn sync(&self, op: Op, times: bool) -> io::Result<()> {
        self.torn_op(op, |world, verdict| world.sync_file(self.ino, times, verdict))
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut world = self.disk.lock();
        if self.epoch == world.epoch {
            world.node_mut(self.ino).handles -= 1;
            world.release(self.ino);
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.op(Op::ReadAt, |world| {
            let live = &world.contents(self.ino).live;
            let rest = usize::try_from(offset).ok().and_then(|offset| live.get(offset..)).unwrap_or_default();
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            Ok(n)
        })
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(Op::WriteAllAt, buf, Some(offset))
    }

    fn append(&self, buf: &[u8]) -> io::Result<()> {
        self.write(Op::Append, buf, None)
    }

    fn len(&self) -> io::Result<u64> {
        self.op(Op::Len, |world| Ok(world.contents(self.ino).live.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.op(Op::SetLen, |world| {
            if self.access == Access::Read {
                return Err(errno(errno::INVAL));
            }
            world.writable(self.ino)?;
            world.set_len(self.ino, len);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(Op::SyncData, false)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(Op::SyncAll, true)
    }

    fn start_writeback(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.op(Op::StartWriteback, |_| Ok(()))
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.op(Op::FileSetMode, |world| world.set_mode(self.ino, mode))
    }

    fn set_mtime(&self, secs: i64, nanos: u32) -> io::Result<()> {
        self.op(Op::FileSetMtime, |world| world.set_mtime(self.ino, FileTime { secs, nanos }))
    }

    fn meta(&self) -> io::Result<Meta> {
        self.op(Op::FileMeta, |world| Ok(world.meta(self.ino)))
    }
}

/// The part of a write that was done before it failed.
fn part<'a>(world: &mut World, buf: &'a [u8]) -> &'a [u8] {
    let n = world.rng.below(buf.len() as u64 + 1);
    &buf[..usize::try_from(n).unwrap_or(0)]
}

impl World {
    /// Writes as much as there is room for. Errors: ENOSPC if that is not everything.
    fn write(&mut self, ino: u64, offset: u64, buf: &[u8]) -> io::Result<()> {
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let page = at / PAGE;
            let n = usize::try_from((page + 1) * PAGE - at).unwrap_or(0).min(rest.len());
            let free = self.free(ino) >= PAGE;
            let pages = &mut self.contents(ino).pages;
            if !pages.contains(&page) {
                if !free {
                    break;
                }
                pages.insert(page);
                let node = self.node_mut(ino);
                node.cost += PAGE;
                let dev = node.dev;
                self.devices[dev].used += PAGE;
            }
            at += n as u64;
            rest = &rest[n..];
        }
        let written = buf.len() - rest.len();
        if written > 0 {
            let offset = usize::try_from(offset).expect("a simulated file fits in memory");
            self.contents(ino).write(offset, &buf[..written]);
            self.touch(ino);
        }
        if rest.is_empty() { Ok(()) } else { Err(errno(errno::NOSPC)) }
    }

    fn set_len(&mut self, ino: u64, len: u64) {
        self.contents(ino).set_len(usize::try_from(len).expect("a simulated file fits in memory"));
        self.touch(ino);
        let node = self.node_mut(ino);
        let Body::File(contents) = &node.body else { unreachable!("only files are opened") };
        let cost = super::world::INODE_COST + contents.pages.len() as u64 * PAGE;
        let freed = node.cost.saturating_sub(cost);
        node.cost -= freed;
        let dev = node.dev;
        self.devices[dev].used -= freed;
    }
}
