//! Symbols of blocks that had to leave memory unfinished, so that a later pass needs only what is lacking, also after a
//! restart.
//!
//! A block of 64 KiB or more has a file of its own; smaller ones share one with their neighbours, about 1 MiB of blocks to a
//! file, so that small blocks do not cost a file each. A file is records of SBN, ESI and CRC-32 of these and the symbol (each
//! `u32` big-endian), then the symbol; what is damaged or torn is left out. A record with ESI 2³² − 1 says that nothing
//! before it counts of its block. The file's name says which blocks under which OTI, and its first word the layout: another one
//! gets another word, and files with a name that is not known are removed, since what is in them can come again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::{Disk, DiskFile, read_all, read_to_end};
use checkvalve_protocol::limits::MAX_BLOCK_SYMBOLS;
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::receive::ReceivedBlock;
use checkvalve_protocol::wire::ObjectKind;

use super::space::Cost;

/// Bytes before each symbol.
const HEAD: usize = 12;
/// A block of so many bytes has a file of its own.
const ALONE: u64 = 64 << 10;
/// Bytes of the blocks that share a file, about.
const SHARED: u64 = 1 << 20;
/// In the place of an ESI: what came before is dropped.
const DROPPED: u32 = u32::MAX;

/// How many symbols are kept of which blocks.
#[derive(Default)]
pub(super) struct Parked {
    /// Held by whoever changes or reads the files; taken before `kept`.
    files: Mutex<()>,
    kept: Mutex<KeptSymbols>,
}

#[derive(Default)]
struct KeptSymbols {
    objects: HashMap<(ObjectKind, Oti), Object>,
    cost: Cost,
}

#[derive(Default)]
struct Object {
    /// Symbols of each block.
    blocks: BTreeMap<u32, u32>,
    files: BTreeMap<u32, Group>,
}

/// A file.
#[derive(Clone, Copy, Default)]
struct Group {
    /// Bytes of its whole records.
    len: u64,
    /// Blocks of which it has symbols that are wanted.
    blocks: u32,
}

/// The symbols that a file has, by block: ESI and symbol.
type Records<'a> = BTreeMap<u32, Vec<(u32, &'a [u8])>>;

impl Parked {
    /// The blocks of an object of which symbols are kept, and how many.
    pub(super) fn of(&self, kind: ObjectKind, oti: &Oti) -> Vec<(u32, u32)> {
        let kept = self.kept();
        kept.objects
            .get(&(kind, *oti))
            .map(|o| o.blocks.iter().map(|(&sbn, &n)| (sbn, n)).collect())
            .unwrap_or_default()
    }

    /// The blocks of which symbols are kept that have bytes in `range` of the data object.
    pub(super) fn in_range(&self, range: &Range<u64>) -> Vec<(Oti, u32)> {
        let kept = self.kept();
        let data = kept.objects.iter().filter(|((kind, _), _)| *kind == ObjectKind::Data);
        data.flat_map(|((_, oti), object)| object.blocks.keys().map(move |&sbn| (*oti, sbn)))
            .filter(|(oti, sbn)| {
                let start = oti.block_offset(*sbn).unwrap_or(u64::MAX);
                let end = start.saturating_add(oti.block_len(*sbn).unwrap_or(0) as u64);
                start < range.end && range.start < end
            })
            .collect()
    }

    /// Finds what an earlier run kept in `dir`.
    pub(super) fn find(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        let names = match disk.read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        let mut kept = self.kept();
        kept.cost = Cost::files(1);
        for name in names {
            let path = dir.join(&name);
            let Some((kind, oti, number)) = name.to_str().and_then(parse) else {
                disk.remove_tree(&path)?;
                continue;
            };
            let (blocks, len) = count(disk, &path, &oti, number)?;
            if blocks.is_empty() {
                disk.remove_file(&path)?;
                continue;
            }
            let object = kept.objects.entry((kind, oti)).or_default();
            let group = Group { len, blocks: number_of(blocks.len()) };
            object.blocks.extend(blocks);
            object.files.insert(number, group);
            kept.cost = kept.cost + group.cost();
        }
        Ok(())
    }

    /// What keeping `block` may take at most beyond what is taken.
    pub(super) fn more(&self, block: &ReceivedBlock) -> Cost {
        let (oti, sbn) = (block.oti(), block.sbn());
        let bytes = Cost::bytes(u64::from(block.received()) * record(&oti) as u64 + 1);
        let kept = self.kept();
        let object = kept.objects.get(&(block.kind(), oti));
        let has_file = object.is_some_and(|object| object.files.contains_key(&(sbn / in_file(&oti))));
        let has_block = object.is_some_and(|object| object.blocks.contains_key(&sbn));
        let files = u64::from(!has_file) + u64::from(kept.cost.files == 0);
        Cost::files(files) + bytes + Cost { blocks: u64::from(!has_block), ..Cost::default() }
    }

    /// Keeps the symbols of `block` that are not kept yet. Gives how many are kept now.
    pub(super) fn keep(&self, disk: &dyn Disk, dir: &Path, block: &ReceivedBlock) -> io::Result<u32> {
        let _alone = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, oti, sbn) = (block.kind(), block.oti(), block.sbn());
        let number = sbn / in_file(&oti);
        let path = dir.join(name(kind, &oti, number));
        let (mut group, is_kept) = {
            let kept = self.kept();
            let object = kept.objects.get(&(kind, oti));
            let group = object.and_then(|object| object.files.get(&number)).copied().unwrap_or_default();
            (group, object.is_some_and(|object| object.blocks.contains_key(&sbn)))
        };
        let file = match disk.open_rw(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                group.len = 0;
                match disk.create_dir(dir, 0o700) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => disk.create_new(&path, 0o600)?,
                }
            }
            other => other?,
        };
        let mut known = HashSet::new();
        if is_kept {
            let bytes = read_to_end(file.as_ref(), longest(&oti))?;
            let (blocks, _) = records(&bytes, &oti);
            known.extend(blocks.get(&sbn).into_iter().flatten().map(|(esi, _)| *esi));
        }
        let mut new = Vec::new();
        for (esi, symbol) in block.received_symbols() {
            if known.insert(esi) {
                put(&mut new, sbn, esi, symbol);
            }
        }
        let file = if group.len + new.len() as u64 > most(&oti) {
            compact(disk, &path, file.as_ref(), &oti, &mut group.len)?
        } else {
            file
        };
        if group.len + new.len() as u64 > most(&oti) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // What is after the whole records is torn, and would shift those that follow.
        file.set_len(group.len)?;
        file.write_all_at(&new, group.len)?;
        group.len += new.len() as u64;
        let symbols = number_of(known.len());
        let mut kept = self.kept();
        let object = kept.objects.entry((kind, oti)).or_default();
        group.blocks += u32::from(object.blocks.insert(sbn, symbols).is_none());
        let before = object.files.insert(number, group).map_or(Cost::default(), Group::cost);
        if kept.cost == Cost::default() {
            kept.cost = Cost::files(1);
        }
        kept.cost = kept.cost.exchanged(before, group.cost());
        Ok(symbols)
    }

    /// Adds to `block` what is kept of it.
    pub(super) fn give(&self, disk: &dyn Disk, dir: &Path, block: &mut ReceivedBlock) -> io::Result<()> {
        let _alone = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let (oti, sbn) = (block.oti(), block.sbn());
        let path = dir.join(name(block.kind(), &oti, sbn / in_file(&oti)));
        let bytes = match read_all(disk, &path, longest(&oti)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            bytes => bytes?,
        };
        let (blocks, _) = records(&bytes, &oti);
        for (esi, symbol) in blocks.get(&sbn).into_iter().flatten() {
            block.add(*esi, symbol);
        }
        Ok(())
    }

    /// Nothing need be kept of a block any more. False: nothing was.
    pub(super) fn drop_block(&self, disk: &dyn Disk, dir: &Path, kind: ObjectKind, oti: &Oti, sbn: u32) -> bool {
        if !self.kept().objects.get(&(kind, *oti)).is_some_and(|object| object.blocks.contains_key(&sbn)) {
            return false;
        }
        let _alone = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let number = sbn / in_file(oti);
        let path = dir.join(name(kind, oti, number));
        let Some(mut group) = self.forget(kind, oti, sbn, number) else { return false };
        let done = if group.blocks == 0 {
            disk.remove_file(&path)
        } else {
            let mut bytes = Vec::new();
            put(&mut bytes, sbn, DROPPED, &vec![0; usize::from(oti.symbol_size())]);
            disk.open_rw(&path).and_then(|file| file.write_all_at(&bytes, group.len)).map(|()| {
                let mut kept = self.kept();
                let before = group.cost();
                group.len += bytes.len() as u64;
                if let Some(object) = kept.objects.get_mut(&(kind, *oti)) {
                    object.files.insert(number, group);
                    kept.cost = kept.cost.exchanged(before, group.cost());
                }
            })
        };
        if let Err(error) = done {
            tracing::debug!(%error, sbn, "symbols of a stored block stay until its bundle ends");
        }
        true
    }

    /// What all that is kept takes.
    pub(super) fn cost(&self) -> Cost {
        self.kept().cost
    }

    /// Takes a block out of what is known. Gives its file as it is without it; one without blocks is forgotten too.
    fn forget(&self, kind: ObjectKind, oti: &Oti, sbn: u32, number: u32) -> Option<Group> {
        let mut kept = self.kept();
        let object = kept.objects.get_mut(&(kind, *oti))?;
        object.blocks.remove(&sbn)?;
        let group = object.files.get_mut(&number)?;
        let before = group.cost();
        group.blocks = group.blocks.saturating_sub(1);
        let left = *group;
        if left.blocks == 0 {
            object.files.remove(&number);
        }
        if object.files.is_empty() {
            kept.objects.remove(&(kind, *oti));
        }
        kept.cost = kept.cost.exchanged(before, if left.blocks == 0 { Cost::default() } else { left.cost() });
        Some(left)
    }

    fn kept(&self) -> MutexGuard<'_, KeptSymbols> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    fn cost(self) -> Cost {
        Cost { blocks: self.blocks.into(), ..Cost::file(self.len) }
    }
}

/// How many symbols a file has of which blocks, and where its last whole record ends. A file of one block is not read for that.
fn count(disk: &dyn Disk, path: &Path, oti: &Oti, number: u32) -> io::Result<(Vec<(u32, u32)>, u64)> {
    if in_file(oti) == 1 {
        let symbols = disk.lstat(path)?.size / record(oti) as u64;
        let blocks = Vec::from_iter((symbols > 0).then(|| (number, u32::try_from(symbols).unwrap_or(u32::MAX))));
        return Ok((blocks, symbols * record(oti) as u64));
    }
    let bytes = match read_all(disk, path, longest(oti)) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Ok((Vec::new(), 0)),
        bytes => bytes?,
    };
    let (blocks, len) = records(&bytes, oti);
    Ok((blocks.iter().map(|(&sbn, symbols)| (sbn, number_of(symbols.len()))).collect(), len))
}

/// Writes a file anew with what still counts in it; `len` becomes its length.
fn compact(
    disk: &dyn Disk,
    path: &Path,
    file: &dyn DiskFile,
    oti: &Oti,
    len: &mut u64,
) -> io::Result<Box<dyn DiskFile>> {
    let bytes = read_to_end(file, longest(oti))?;
    let (blocks, _) = records(&bytes, oti);
    let mut live = Vec::new();
    for (sbn, symbols) in blocks {
        symbols.iter().for_each(|(esi, symbol)| put(&mut live, sbn, *esi, symbol));
    }
    let new = path.with_extension("new");
    match disk.remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = disk.create_new(&new, 0o600)?;
    file.write_all_at(&live, 0)?;
    disk.rename(&new, path)?;
    *len = live.len() as u64;
    Ok(file)
}

/// The undamaged records of a file that count; and where the last whole one ends.
fn records<'a>(bytes: &'a [u8], oti: &Oti) -> (Records<'a>, u64) {
    let mut blocks = Records::new();
    let records = bytes.chunks_exact(record(oti));
    let torn = records.remainder().len();
    for record in records {
        let Some((head, symbol)) = record.split_first_chunk::<HEAD>() else { continue };
        let [s0, s1, s2, s3, e0, e1, e2, e3, crc @ ..] = *head;
        let (sbn, esi) = (u32::from_be_bytes([s0, s1, s2, s3]), u32::from_be_bytes([e0, e1, e2, e3]));
        if u32::from_be_bytes(crc) != checksum(sbn, esi, symbol) {
            continue;
        }
        if esi == DROPPED {
            blocks.remove(&sbn);
        } else {
            blocks.entry(sbn).or_default().push((esi, symbol));
        }
    }
    (blocks, (bytes.len() - torn) as u64)
}

fn put(bytes: &mut Vec<u8>, sbn: u32, esi: u32, symbol: &[u8]) {
    bytes.extend_from_slice(&sbn.to_be_bytes());
    bytes.extend_from_slice(&esi.to_be_bytes());
    bytes.extend_from_slice(&checksum(sbn, esi, symbol).to_be_bytes());
    bytes.extend_from_slice(symbol);
}

fn record(oti: &Oti) -> usize {
    HEAD + usize::from(oti.symbol_size())
}

/// How many blocks share a file.
fn in_file(oti: &Oti) -> u32 {
    match oti.block_len(0).unwrap_or(1) as u64 {
        ALONE.. => 1,
        len => u32::try_from(SHARED / len.max(1)).unwrap_or(u32::MAX),
    }
}

/// A file of so many bytes is written anew: twice what its blocks need, since dropped ones stay in it for a while.
fn most(oti: &Oti) -> u64 {
    let symbols = u64::from(in_file(oti)) * u64::from(oti.block_symbols(0).unwrap_or(1));
    record(oti) as u64 * symbols.max(u64::from(MAX_BLOCK_SYMBOLS)) * 2
}

/// Longest file in bytes: that each of its blocks is dropped may come after the rest.
fn longest(oti: &Oti) -> u64 {
    most(oti) + record(oti) as u64 * u64::from(in_file(oti))
}

fn number_of(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn checksum(sbn: u32, esi: u32, symbol: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&sbn.to_be_bytes());
    hasher.update(&esi.to_be_bytes());
    hasher.update(symbol);
    hasher.finalize()
}

fn name(kind: ObjectKind, oti: &Oti, number: u32) -> String {
    let (length, size, block) = (oti.transfer_length(), oti.symbol_size(), oti.max_block_symbols());
    format!("blocks-{}-{length}-{size}-{block}-{number}", kind as u8)
}

fn parse(name: &str) -> Option<(ObjectKind, Oti, u32)> {
    let mut parts = name.strip_prefix("blocks-")?.split('-').map(str::parse::<u64>);
    let mut next = || parts.next()?.ok();
    let kind = next()?;
    let kind = [ObjectKind::Announce, ObjectKind::Data, ObjectKind::Hashes]
        .into_iter()
        .find(|k| u64::from(*k as u8) == kind)?;
    let (length, size, block, number) = (next()?, next()?, next()?, next()?);
    let oti = Oti::new(length, u16::try_from(size).ok()?, u16::try_from(block).ok()?).ok()?;
    let number = u32::try_from(number).ok().filter(|number| number.saturating_mul(in_file(&oti)) < oti.blocks())?;
    Some((kind, oti, number))
}

#[cfg(test)]
mod tests;
