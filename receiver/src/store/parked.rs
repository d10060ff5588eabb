//! Symbols of blocks that had to leave memory unfinished: a file a block, appended to, so that a later pass needs only
//! what is lacking, also after a restart.
//!
//! A file is records of ESI (`u32` big-endian), CRC-32 of ESI and symbol (`u32` big-endian) and the symbol; what is
//! damaged or torn is left out. Its name says which block under which OTI.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use checkvalve_host::disk::{Disk, DiskFile, read_to_end};
use checkvalve_protocol::limits::MAX_BLOCK_SYMBOLS;
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::receive::ReceivedBlock;
use checkvalve_protocol::wire::ObjectKind;

/// Bytes before each symbol.
const HEAD: usize = 8;

/// How many symbols are kept of which blocks.
#[derive(Default)]
pub(super) struct Parked(Mutex<HashMap<(ObjectKind, Oti), BTreeMap<u32, u32>>>);

impl Parked {
    /// The blocks of an object of which symbols are kept, and how many.
    pub(super) fn of(&self, kind: ObjectKind, oti: &Oti) -> Vec<(u32, u32)> {
        self.lock().get(&(kind, *oti)).map(|kept| kept.iter().map(|(&sbn, &n)| (sbn, n)).collect()).unwrap_or_default()
    }

    /// Finds what an earlier run kept in `dir`; gives its size in bytes.
    pub(super) fn find(&self, disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
        let names = match disk.read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            names => names?,
        };
        let mut bytes = 0;
        for name in names {
            let path = dir.join(&name);
            let Some((kind, oti, sbn)) = name.to_str().and_then(parse) else {
                disk.remove_tree(&path)?;
                continue;
            };
            let size = disk.lstat(&path)?.size;
            let symbols = u32::try_from(size / record(&oti) as u64).unwrap_or(u32::MAX);
            bytes += size;
            self.lock().entry((kind, oti)).or_default().insert(sbn, symbols);
        }
        Ok(bytes)
    }

    /// Keeps the symbols of `block` that are not kept yet. Gives how many are kept now, and how many bytes that took.
    pub(super) fn keep(&self, disk: &dyn Disk, dir: &Path, block: &ReceivedBlock) -> io::Result<(u32, u64)> {
        let path = dir.join(name(block.kind(), &block.oti(), block.sbn()));
        let file = match disk.open_rw(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match disk.create_dir(dir, 0o700) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => disk.create_new(&path, 0o600)?,
            },
            other => other?,
        };
        let (mut known, mut end) = (HashSet::new(), 0);
        records(file.as_ref(), &block.oti(), |esi, _| {
            known.insert(esi);
        })
        .map(|whole| end = whole)?;
        let mut new = Vec::new();
        for (esi, symbol) in block.received_symbols() {
            if known.insert(esi) {
                new.extend_from_slice(&esi.to_be_bytes());
                new.extend_from_slice(&checksum(esi, symbol).to_be_bytes());
                new.extend_from_slice(symbol);
            }
        }
        // What is after the whole records is torn, and would shift those that follow.
        file.set_len(end)?;
        file.write_all_at(&new, end)?;
        let symbols = u32::try_from(known.len()).unwrap_or(u32::MAX);
        self.lock().entry((block.kind(), block.oti())).or_default().insert(block.sbn(), symbols);
        Ok((symbols, new.len() as u64))
    }

    /// Adds to `block` what is kept of it.
    pub(super) fn give(&self, disk: &dyn Disk, dir: &Path, block: &mut ReceivedBlock) -> io::Result<()> {
        let path = dir.join(name(block.kind(), &block.oti(), block.sbn()));
        let oti = block.oti();
        let file = match disk.open_read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        records(file.as_ref(), &oti, |esi, symbol| {
            block.add(esi, symbol);
        })?;
        Ok(())
    }

    /// The block is stored: nothing need be kept of it. Gives how many bytes that frees.
    pub(super) fn drop_block(&self, disk: &dyn Disk, dir: &Path, kind: ObjectKind, oti: &Oti, sbn: u32) -> u64 {
        let kept = self.lock().get_mut(&(kind, *oti)).and_then(|kept| kept.remove(&sbn));
        let Some(symbols) = kept else { return 0 };
        if let Err(error) = disk.remove_file(&dir.join(name(kind, oti, sbn))) {
            tracing::debug!(%error, sbn, "symbols of a stored block stay until its bundle ends");
        }
        u64::from(symbols) * record(oti) as u64
    }

    /// Bytes of all that is kept.
    pub(super) fn bytes(&self) -> u64 {
        let kept = self.lock();
        kept.iter().map(|((_, oti), n)| n.values().map(|&n| u64::from(n)).sum::<u64>() * record(oti) as u64).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(ObjectKind, Oti), BTreeMap<u32, u32>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Goes through the undamaged records of a file; gives where the last whole one ends.
fn records(file: &dyn DiskFile, oti: &Oti, mut take: impl FnMut(u32, &[u8])) -> io::Result<u64> {
    let most = (record(oti) * usize::from(MAX_BLOCK_SYMBOLS) * 2) as u64;
    let bytes = read_to_end(file, most)?;
    let records = bytes.chunks_exact(record(oti));
    let torn = records.remainder().len();
    for record in records {
        if let Some((esi, rest)) = record.split_first_chunk::<4>()
            && let Some((crc, symbol)) = rest.split_first_chunk::<4>()
            && u32::from_be_bytes(*crc) == checksum(u32::from_be_bytes(*esi), symbol)
        {
            take(u32::from_be_bytes(*esi), symbol);
        }
    }
    Ok((bytes.len() - torn) as u64)
}

fn record(oti: &Oti) -> usize {
    HEAD + usize::from(oti.symbol_size())
}

fn checksum(esi: u32, symbol: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&esi.to_be_bytes());
    hasher.update(symbol);
    hasher.finalize()
}

fn name(kind: ObjectKind, oti: &Oti, sbn: u32) -> String {
    let (length, size, block) = (oti.transfer_length(), oti.symbol_size(), oti.max_block_symbols());
    format!("{}-{length}-{size}-{block}-{sbn}", kind as u8)
}

fn parse(name: &str) -> Option<(ObjectKind, Oti, u32)> {
    let mut parts = name.split('-').map(str::parse::<u64>);
    let mut next = || parts.next()?.ok();
    let kind = next()?;
    let kind = [ObjectKind::Announce, ObjectKind::Data, ObjectKind::Hashes]
        .into_iter()
        .find(|k| u64::from(*k as u8) == kind)?;
    let (length, size, block, sbn) = (next()?, next()?, next()?, next()?);
    let oti = Oti::new(length, u16::try_from(size).ok()?, u16::try_from(block).ok()?).ok()?;
    Some((kind, oti, u32::try_from(sbn).ok().filter(|&sbn| sbn < oti.blocks())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_host::disk::OsDisk;
    use checkvalve_protocol::id::{BundleId, SessionId};
    use checkvalve_protocol::receive::{Limits, Reassembly, Wanted};
    use checkvalve_protocol::time::Time;
    use checkvalve_protocol::wire::{Content, Header, Symbol};
    use std::time::Duration;

    fn oti() -> Oti {
        Oti::new(64 * 10, 64, 10).unwrap()
    }

    /// The only block of an object, with these source symbols.
    fn block(esis: &[u32]) -> ReceivedBlock {
        let limits =
            Limits { memory: 1 << 20, objects: 4, idle: Duration::from_secs(9), ask_again: Duration::from_secs(9) };
        let mut reassembly = Reassembly::new(limits);
        for (counter, &esi) in esis.iter().enumerate() {
            let symbol = Symbol { bundle: BundleId(1), kind: ObjectKind::Data, sbn: 0, esi, oti: oti() };
            let content = Content::Symbol(symbol);
            let header = Header { sealed: true, session: SessionId(1), counter: counter as u64, content };
            let mut want = |_: &Symbol| Wanted::Yes { have: Default::default(), parked: Vec::new() };
            reassembly.handle(Time(counter as u64), &header, &[esi as u8; 64], &mut want).unwrap();
        }
        reassembly.park_all();
        reassembly.poll_parked().unwrap()
    }

    #[test]
    fn symbols_come_back_each_once() {
        let dir = crate::testing::dir();
        let dir = dir.path().join("parked");
        let parked = Parked::default();
        assert_eq!(parked.keep(&OsDisk, &dir, &block(&[0, 1, 2])).unwrap(), (3, 3 * 72));
        assert_eq!(parked.keep(&OsDisk, &dir, &block(&[2, 5])).unwrap(), (4, 72));
        let found = Parked::default();
        assert_eq!(found.find(&OsDisk, &dir).unwrap(), 4 * 72);
        assert_eq!(found.of(ObjectKind::Data, &oti()), [(0, 4)]);
        assert!(found.of(ObjectKind::Announce, &oti()).is_empty());
        let mut again = block(&[3, 5]);
        found.give(&OsDisk, &dir, &mut again).unwrap();
        let mut esis: Vec<u32> =
            again.received_symbols().map(|(esi, bytes)| (esi, assert_eq!(bytes, [esi as u8; 64])).0).collect();
        esis.sort_unstable();
        assert_eq!(esis, [0, 1, 2, 3, 5]);
        assert_eq!(found.drop_block(&OsDisk, &dir, ObjectKind::Data, &oti(), 0), 4 * 72);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(found.drop_block(&OsDisk, &dir, ObjectKind::Data, &oti(), 0), 0);
    }

    #[test]
    fn what_is_torn_or_damaged_is_left_out() {
        let dir = crate::testing::dir();
        let dir = dir.path().join("parked");
        let parked = Parked::default();
        parked.keep(&OsDisk, &dir, &block(&[0, 1, 2])).unwrap();
        let path = dir.join(name(ObjectKind::Data, &oti(), 0));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[72 + 30] ^= 1;
        bytes.truncate(3 * 72 - 1);
        std::fs::write(&path, bytes).unwrap();
        let mut again = block(&[7]);
        parked.give(&OsDisk, &dir, &mut again).unwrap();
        assert_eq!(again.received_symbols().map(|(esi, _)| esi).collect::<Vec<_>>(), [0, 7]);
        assert_eq!(parked.keep(&OsDisk, &dir, &block(&[1, 8])).unwrap().0, 3);
        let mut again = block(&[7]);
        parked.give(&OsDisk, &dir, &mut again).unwrap();
        assert_eq!(again.received_symbols().map(|(esi, _)| esi).collect::<Vec<_>>(), [0, 1, 7, 8]);
        std::fs::write(dir.join("nonsense"), b"").unwrap();
        Parked::default().find(&OsDisk, &dir).unwrap();
        assert!(!dir.join("nonsense").exists());
    }
}
