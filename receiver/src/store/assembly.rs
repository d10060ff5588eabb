//! Announce and hashes, whole at last. What comes in one block is never stored; what does not grows in a file, so that
//! its size costs no memory.

use std::io;
use std::path::Path;

use checkvalve_host::disk::{Disk, DiskFile, read_to_end};
use checkvalve_protocol::limits::MAX_MANIFEST_LEN;
use checkvalve_protocol::partition::{BlockSet, Oti};
use checkvalve_protocol::wire::ObjectKind;

/// The signed objects of a bundle that are under way.
#[derive(Default)]
pub(super) struct Assembly {
    announce: Option<Part>,
    hashes: Option<Part>,
}

struct Part {
    oti: Oti,
    have: BlockSet,
    file: Box<dyn DiskFile>,
}

impl Assembly {
    /// Takes a block; gives the whole object once it is. A block under another OTI starts the object anew.
    pub(super) fn add(
        &mut self,
        disk: &dyn Disk,
        dir: &Path,
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
        let part = match slot {
            Some(part) if part.oti == *oti => part,
            _ => {
                let path = dir.join(name);
                match disk.remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => slot.insert(Part { oti: *oti, have: BlockSet::new(), file: disk.create_new(&path, 0o600)? }),
                }
            }
        };
        let offset = oti.block_offset(sbn).ok_or(io::ErrorKind::InvalidInput)?;
        part.file.write_all_at(buf, offset)?;
        part.have.insert(sbn);
        if part.have.len() < u64::from(oti.blocks()) {
            return Ok(None);
        }
        let whole = read_to_end(part.file.as_ref(), MAX_MANIFEST_LEN as u64)?;
        *slot = None;
        match disk.remove_file(&dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Some(whole)),
        }
    }

    /// The blocks of an object that are at hand.
    pub(super) fn have(&self, kind: ObjectKind, oti: &Oti) -> BlockSet {
        let part = match kind {
            ObjectKind::Announce => &self.announce,
            _ => &self.hashes,
        };
        part.as_ref().filter(|part| part.oti == *oti).map(|part| part.have.clone()).unwrap_or_default()
    }
}
