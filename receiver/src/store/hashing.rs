//! BLAKE3 of each file, in the order of the data object, fed with blocks as they come.

use super::tree::Files;

/// How far the files of a bundle are hashed.
#[derive(Default)]
pub struct Hashing {
    /// Hashes of the files before `file`.
    digests: Vec<[u8; 32]>,
    /// The file that is being hashed.
    file: usize,
    /// Bytes of it that are hashed.
    within: u64,
    /// Offset in the data object up to which all is hashed.
    next: u64,
    hasher: Box<blake3::Hasher>,
}

impl Hashing {
    /// The byte of the data object that is to be hashed next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Hashes the bytes that follow.
    pub fn feed(&mut self, files: &Files, mut buf: &[u8]) {
        self.next += buf.len() as u64;
        while let Some(span) = files.get(self.file) {
            let left = span.size - self.within;
            if left > buf.len() as u64 {
                if !buf.is_empty() {
                    self.hasher.update(buf);
                    self.within += buf.len() as u64;
                }
                return;
            }
            if self.digests.is_empty() {
                self.digests.reserve_exact(files.len());
            }
            let (part, rest) = buf.split_at(usize::try_from(left).unwrap_or(usize::MAX));
            self.digests.push(if self.within == 0 {
                blake3::hash(part).into()
            } else {
                self.hasher.update(part);
                self.hasher.finalize().into()
            });
            self.hasher.reset();
            (self.file, self.within, buf) = (self.file + 1, 0, rest);
        }
    }

    /// Forgets what was hashed from the beginning of the file on that holds byte `offset`.
    pub fn rewind(&mut self, files: &Files, offset: u64) {
        if offset >= self.next {
            return;
        }
        self.file = files.at(offset).min(self.digests.len());
        self.digests.truncate(self.file);
        self.within = 0;
        self.next = files.get(self.file).map_or(0, |span| span.offset);
        self.hasher.reset();
    }

    /// The hash of every file, once all are.
    pub fn finish(&mut self, files: &Files) -> Option<&[[u8; 32]]> {
        self.feed(files, &[]);
        (self.file == files.len()).then_some(&self.digests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Sample, entry};
    use checkvalve_protocol::manifest::EntryKind;

    fn spans(sizes: &[u64]) -> Files {
        let file = |(n, &size): (usize, &u64)| entry(&format!("t/{n:04}"), EntryKind::File { size, mode: 0o644 });
        let directory = entry("t", EntryKind::Directory { mode: 0o755 });
        let files = sizes.iter().enumerate().map(file);
        Files::new(&Sample::new(1, 1, "t", std::iter::once(directory).chain(files).collect()).announce)
    }

    #[test]
    fn hashes_each_file_however_it_is_cut() {
        let sizes = [0, 5, 0, 0, 1, 300, 4_096, 0];
        let files = spans(&sizes);
        let data: Vec<u8> = (0..sizes.iter().sum::<u64>()).map(|n| (n * 7) as u8).collect();
        let expected: Vec<[u8; 32]> =
            files.iter().map(|s| blake3::hash(&data[s.offset as usize..s.end() as usize]).into()).collect();
        for cut in [1, 2, 5, 6, 7, 299, 4_402] {
            let mut hashing = Hashing::default();
            for (n, part) in data.chunks(cut).enumerate() {
                assert_eq!(hashing.next(), (n * cut) as u64);
                assert!(hashing.finish(&files).is_none());
                hashing.feed(&files, part);
            }
            assert_eq!(hashing.finish(&files), Some(expected.as_slice()), "cut every {cut}");
        }
    }

    #[test]
    fn rewinds_to_the_beginning_of_a_file() {
        let files = spans(&[10, 0, 20, 5]);
        let data = [3_u8; 35];
        for at in 0..35 {
            for back in 0..=at {
                let mut hashing = Hashing::default();
                hashing.feed(&files, &data[..at]);
                hashing.rewind(&files, back as u64);
                let next = hashing.next() as usize;
                assert!(next <= back && files.iter().any(|s| s.offset == next as u64) || at == back);
                hashing.feed(&files, &data[next..]);
                let digests = hashing.finish(&files).unwrap();
                assert_eq!(digests[2], *blake3::hash(&data[10..30]).as_bytes());
                assert_eq!(digests.len(), 4);
            }
        }
    }

    #[test]
    fn a_bundle_without_bytes_has_hashes() {
        assert_eq!(Hashing::default().finish(&spans(&[0, 0])).map(<[_]>::len), Some(2));
        assert_eq!(Hashing::default().finish(&spans(&[])).map(<[_]>::len), Some(0));
    }
}
