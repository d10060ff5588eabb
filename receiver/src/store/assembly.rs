//! Announce and hashes, whole at last. What comes in one block is never stored; what does not grows in a file, so that
//! its size costs no memory.

use std::io;

use checkvalve_host::disk::{Disk, read_to_end};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::wire::ObjectKind;

use super::Staged;
use super::space::Cost;
use super::staged::FLAT;

/// The signed objects of a bundle that are under way.
#[derive(Default)]
pub(super) struct Assembly {
    announce: Option<Part>,
    hashes: Option<Part>,
}

struct Part {
    oti: Oti,
    have: BlockSet,
    /// What its file takes.
    cost: Cost,
}

impl Assembly {
    /// Takes a block; gives the whole object once it is. A block under another OTI starts the object anew.
    pub(super) fn add(
        &mut self,
        disk: &dyn Disk,
        staged: &Staged,
        kind: ObjectKind,
        oti: &Oti,
        sbn: u32,
        buf: &[u8],
    ) -> io::Result<Option<Vec<u8>>> {
        if oti.blocks() == 1 {
            return Ok(Some(buf.to_vec()));
        }
        let (slot, name) = match kind {
            ObjectKind::Announce => (&mut self.announce, "announce.part"),
            _ => (&mut self.hashes, "hashes.part"),
        };
        let (number, path) = (FLAT + 1 + u32::from(kind as u8), staged.dir().join(name));
        let part = match slot {
            Some(part) if part.oti == *oti => part,
            _ => {
                staged.open.close(number);
                match disk.remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {
                        staged.open.get(number, || disk.create_new(&path, 0o600))?;
                        slot.insert(Part { oti: *oti, have: BlockSet::new(), cost: Cost::files(1) })
                    }
                }
            }
        };
        let offset = oti.block_offset(sbn).ok_or(io::ErrorKind::InvalidInput)?;
        let file = staged.open.get(number, || disk.open_rw(&path))?;
        file.write_all_at(buf, offset)?;
        if part.have.add(sbn) {
            let contents = part.cost + Cost::range(&(offset..offset + buf.len() as u64));
            part.cost = Cost { ranges: part.have.count() as u64, ..contents };
        }
        if part.have.len() < u64::from(oti.blocks()) {
            return Ok(None);
        }
        let whole = read_to_end(file.as_ref(), MAX_MANIFEST_LEN as u64)?;
        *slot = None;
        staged.open.close(number);
        match disk.remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Some(whole)),
        }
    }

    /// What the file of an object takes.
    pub(super) fn cost(&self, kind: ObjectKind) -> Cost {
        self.part(kind).map(|part| part.cost).unwrap_or_default()
    }

    fn part(&self, kind: ObjectKind) -> Option<&Part> {
        match kind {
            ObjectKind::Announce => self.announce.as_ref(),
            _ => self.hashes.as_ref(),
        }
    }

    /// The blocks of an object that are at hand.
    pub(super) fn have(&self, kind: ObjectKind, oti: &Oti) -> BlockSet {
        self.part(kind).filter(|part| part.oti == *oti).map(|part| part.have.clone()).unwrap_or_default()
    }
}
