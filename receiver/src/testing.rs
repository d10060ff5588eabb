//! What the unit tests of several modules share.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkvalve_host::disk::fault::FailNth;
use checkvalve_host::disk::{Disk, OsDisk};
use checkvalve_host::journal::{Journal, JournalError, Schema, Sync};
use checkvalve_host::version::PROGRAM;
use checkvalve_protocol::crypto::{SigningKey, TrustStore};
use checkvalve_protocol::id::{BundleId, ChannelName};
use checkvalve_protocol::manifest::{Announce, Entry, EntryKind, EntryRef, Hashes, Outcome, Timestamp};
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::path::{LinkTarget, SafePath};

pub(crate) const MTIME: Timestamp = Timestamp { secs: 1_600_000_000, nanos: 123_456_789 };

/// An empty directory, in memory where that is possible: what is tested here is no disk.
pub(crate) fn dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

pub(crate) fn default_channel() -> ChannelName {
    ChannelName::new("default").unwrap()
}

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed([3; 32])
}

pub(crate) fn trust() -> TrustStore {
    let mut trust = TrustStore::new();
    trust.insert(key().public(), "ci");
    trust
}

/// A bundle as a sender has it: what it announces, and all of its bytes.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) announce: Announce,
    pub(crate) data: Vec<u8>,
}

impl Sample {
    /// One file of `size` bytes.
    pub(crate) fn file(id: u64, sequence: u64, size: usize) -> Self {
        Self::new(id, sequence, "one file", vec![entry("one file", EntryKind::File { size: size as u64, mode: 0o640 })])
    }

    /// A tree of files of `sizes`, with a directory each, an empty directory and a symlink.
    pub(crate) fn tree(id: u64, sequence: u64, sizes: &[usize]) -> Self {
        let mut entries = vec![entry("tree", EntryKind::Directory { mode: 0o755 })];
        for (n, &size) in sizes.iter().enumerate() {
            entries.push(entry(&format!("tree/{n:04}"), EntryKind::Directory { mode: 0o750 }));
            let mode = [0o644, 0o600, 0o755, 0o444][n % 4];
            entries.push(entry(&format!("tree/{n:04}/a \"file\"\n"), EntryKind::File { size: size as u64, mode }));
        }
        entries.push(entry("tree/empty", EntryKind::Directory { mode: 0o700 }));
        let link = SafePath::new("tree/link").unwrap();
        let target = LinkTarget::new(&link, "empty").unwrap();
        entries.push(Entry { path: link, mtime: MTIME, kind: EntryKind::Symlink { target } });
        Self::new(id, sequence, "tree", entries)
    }

    pub(crate) fn new(id: u64, sequence: u64, name: &str, entries: Vec<Entry>) -> Self {
        let announce = Announce {
            bundle: BundleId::new(id, key().public().id()),
            channel: default_channel(),
            sequence,
            name: name.into(),
            created_ms: 1,
            symbol_size: 64,
            block_symbols: 8,
            entries: entries.into(),
        };
        let data = (0..announce.data_len()).map(|n| (n.wrapping_mul(2_654_435_761) >> 7) as u8).collect();
        Self { announce, data }
    }

    pub(crate) fn id(&self) -> BundleId {
        self.announce.bundle
    }

    pub(crate) fn signed(&self) -> Vec<u8> {
        self.announce.sign(&key()).unwrap()
    }

    pub(crate) fn digests(&self) -> Vec<[u8; 32]> {
        let hash = |offset: u64, size: u64| blake3::hash(&self.data[offset as usize..(offset + size) as usize]).into();
        self.announce.files().map(|f| hash(f.offset, f.size)).collect()
    }

    pub(crate) fn hashes(&self) -> Vec<u8> {
        self.hashes_as(Outcome::Complete { files: self.digests() })
    }

    pub(crate) fn hashes_as(&self, outcome: Outcome) -> Vec<u8> {
        let announce = blake3::hash(&self.signed()).into();
        Hashes { bundle: self.id(), announce, outcome }.sign(&key()).unwrap()
    }

    pub(crate) fn oti(&self) -> Oti {
        Oti::new(self.data.len() as u64, 64, 8).unwrap()
    }

    pub(crate) fn block(&self, sbn: u32) -> &[u8] {
        let oti = self.oti();
        let offset = oti.block_offset(sbn).unwrap() as usize;
        &self.data[offset..offset + oti.block_len(sbn).unwrap()]
    }

    /// Asserts that the bundle's own name in `dir` is exactly what was announced.
    pub(crate) fn assert_at(&self, dir: &Path) {
        let names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let mut found = 0;
        for (entry, span) in self.announce.entries.iter().map(|e| (e, self.span(e))) {
            let path = dir.join(entry.path.as_path());
            let meta = std::fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!((meta.mtime(), meta.mtime_nsec()), (entry.mtime.secs, i64::from(entry.mtime.nanos)), "{path:?}");
            match &entry.kind {
                EntryKind::File { mode, .. } => {
                    assert_eq!(meta.mode() & 0o7777, u32::from(*mode), "{path:?}");
                    assert_eq!(std::fs::read(&path).unwrap(), span, "{path:?}");
                }
                EntryKind::Directory { mode } => {
                    assert_eq!(meta.mode() & 0o7777, u32::from(*mode), "{path:?}");
                    found += std::fs::read_dir(&path).unwrap().count();
                }
                EntryKind::Symlink { target } => {
                    assert_eq!(std::fs::read_link(&path).unwrap().as_os_str().as_encoded_bytes(), target.as_bytes());
                }
            }
        }
        assert_eq!(found + 1, self.announce.entries.len(), "nothing else is there");
    }

    fn span(&self, entry: EntryRef<'_>) -> &[u8] {
        let at = self.announce.entries.iter().position(|e| e == entry).unwrap();
        let span = self.announce.files().find(|f| f.entry == at);
        span.map_or(&[], |f| &self.data[f.offset as usize..(f.offset + f.size) as usize])
    }
}

pub(crate) fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: SafePath::new(path).unwrap(), mtime: MTIME, kind }
}

/// A shuffled `0..n`, the same for the same seed.
pub(crate) fn shuffled(n: u32, seed: u64) -> Vec<u32> {
    let mut state = seed | 1;
    let mut order: Vec<u32> = (0..n).collect();
    for at in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(at, (state >> 33) as usize % (at + 1));
    }
    order
}

/// The file `name` of `tests/records`, which holds what is written now. `CHECKVALVE_WRITE_VECTORS=1 cargo test` makes it of
/// `made`; a file of an older layout is never made again.
pub(crate) fn vector(name: &str, made: &[u8]) -> Vec<u8> {
    if std::env::var_os("CHECKVALVE_WRITE_VECTORS").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records").join(name), made).unwrap();
    }
    records_of(name)
}

/// A journal with the bytes of a file in `tests/records`, in a directory of its own.
pub(crate) fn journal_of(name: &str) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let (dir, bytes) = (dir(), records_of(name));
    let path = dir.path().join("journal");
    std::fs::write(&path, &bytes).unwrap();
    (dir, path, bytes)
}

/// A journal of these records is what the file `name` holds, but for the version of the program and the checksum over it.
pub(crate) fn is_the_newest_layout(schema: Schema, name: &str, records: &[Vec<u8>]) {
    let dir = dir();
    let path = dir.path().join("journal");
    let (mut journal, _) = Journal::open(&os(), &path, schema).unwrap();
    journal.append_all(records, Sync::Yes).unwrap();
    let written = std::fs::read(&path).unwrap();
    let newest = vector(&format!("{name}-records{}", schema.version()), &written);
    assert_eq!((&written[..16], &written[32..]), (&newest[..16], &newest[32..]), "a layout is never changed");
}

/// A journal of a newer version, called `name`, is refused by `open` in one line, and left as it is.
pub(crate) fn refuses_newer(schema: Schema, name: &[u8; 6], open: impl Fn(&Path) -> Option<JournalError>) {
    let dir = dir();
    let path = dir.path().join("journal");
    let (newer, known) = (schema.version() + 1, schema.version());
    let (mut journal, _) = Journal::open(&os(), &path, Schema::new(name, newer)).unwrap();
    journal.append(b"whatever", Sync::Yes).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let expected = format!(
        "{}: written by checkvalve {PROGRAM} (records of version {newer}; this program reads up to {known}); \
         run that version or a newer one",
        path.display()
    );
    assert_eq!(open(&path).unwrap().to_string(), expected);
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

/// A file of container 1 is rewritten when it is opened, wherever a disk that is full fails, and before anything is appended.
/// `work` opens a journal and appends to it if that succeeds; `check` opens it, too, and looks at what it holds.
pub(crate) fn is_rewritten_once(name: &str, work: impl Fn(&Arc<dyn Disk>, &Path), check: impl Fn(&Path)) {
    for step in 0.. {
        let (_dir, path, older) = journal_of(name);
        let faulty = Arc::new(FailNth::new(os()));
        faulty.fail_once(step, 28);
        work(&(Arc::clone(&faulty) as Arc<dyn Disk>), &path);
        let steps = faulty.operations().len();
        let now = std::fs::read(&path).unwrap();
        assert!(now == older || now[6] == 2, "{step}");
        check(&path);
        let rewritten = std::fs::read(&path).unwrap();
        assert_eq!(rewritten[6], 2);
        check(&path);
        if step >= steps {
            assert!(step > 6, "{step}");
            return;
        }
    }
}

fn os() -> Arc<dyn Disk> {
    Arc::new(OsDisk)
}

/// The bytes of a file in `tests/records`.
pub(crate) fn records_of(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records").join(name)).unwrap()
}

/// How many warnings and errors `body` logs.
pub(crate) fn warnings(body: impl FnOnce()) -> usize {
    struct Counting(Arc<AtomicUsize>);
    impl tracing::Subscriber for Counting {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() <= tracing::Level::WARN
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            self.0.fetch_add(usize::from(self.enabled(event.metadata())), Ordering::Relaxed);
        }

        fn enter(&self, _: &tracing::span::Id) {}

        fn exit(&self, _: &tracing::span::Id) {}
    }
    let count = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::with_default(Counting(Arc::clone(&count)), body);
    count.load(Ordering::Relaxed)
}
