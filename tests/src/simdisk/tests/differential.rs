//! The simulated disk and the real one get the same operations, and must give the same answers.

use checkvalve_host::disk::OsDisk;

use super::*;
use crate::rng::Rng;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// So deep that links with `..` stay in an empty part of each disk.
const SIM_ROOT: &str = "/x/y/z";

struct Both {
    real: OsDisk,
    sim: SimDisk,
    root: PathBuf,
    open: Vec<(Box<dyn DiskFile>, Box<dyn DiskFile>)>,
}

fn some_path(rng: &mut Rng) -> String {
    let depth = 1 + rng.below(3);
    (0..depth).map(|_| format!("/{}", NAMES[rng.below(5) as usize])).collect()
}

/// The part of an answer that must be the same on both disks.
fn answer<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn meta(meta: Meta) -> (Kind, u64, u32, Option<i64>, u64) {
    let file = meta.kind == Kind::File;
    let set = meta.mtime.secs < 1000;
    let size = if meta.kind == Kind::Directory { 0 } else { meta.size };
    (meta.kind, size, meta.mode, set.then_some(meta.mtime.secs), if file { meta.nlink } else { 0 })
}

impl Both {
    fn step(&mut self, rng: &mut Rng) -> (String, String, String) {
        let (one, two) = (some_path(rng), some_path(rng));
        let at = |root: &Path, path: &str| root.join(path.trim_start_matches('/'));
        let (real_one, real_two) = (at(&self.root, &one), at(&self.root, &two));
        let (sim_one, sim_two) = (&at(p(SIM_ROOT), &one), &at(p(SIM_ROOT), &two));
        let mode = 0o700 | u32::try_from(rng.below(0o100)).unwrap();
        let choice = rng.below(24);
        macro_rules! both {
            ($disk:ident, $one:ident, $two:ident, $body:expr) => {{
                let real = {
                    let ($disk, $one, $two): (&dyn Disk, &Path, &Path) = (&self.real, &real_one, &real_two);
                    answer($body)
                };
                let sim = {
                    let ($disk, $one, $two): (&dyn Disk, &Path, &Path) = (&self.sim, sim_one, sim_two);
                    answer($body)
                };
                (format!("{choice} {one} {two}"), real, sim)
            }};
        }
        match choice {
            0 | 1 => both!(d, a, _b, d.create_dir(a, mode)),
            2 => both!(d, a, _b, d.create_dir_all(a, mode)),
            3 | 4 => both!(d, a, _b, d.create_new(a, mode).map(drop)),
            5 => {
                let target = ["a", "../a", "a/b", "../../b", "none", "."][rng.below(6) as usize];
                both!(d, a, _b, d.symlink(target.as_bytes(), a))
            }
            6 | 7 => both!(d, a, b, d.rename(a, b)),
            8 => both!(d, a, b, d.rename_noreplace(a, b)),
            9 => both!(d, a, _b, d.remove_file(a)),
            10 => both!(d, a, _b, d.remove_dir(a)),
            // Only paths without a link on the way: if that link is in the tree, the real disk leaves the top behind.
            11 if rng.chance(300) && one.matches('/').count() == 1 => both!(d, a, _b, d.remove_tree(a)),
            12 => both!(d, a, _b, d.set_mode(a, mode)),
            13 => {
                let secs = rng.below(1000) as i64 - 500;
                both!(d, a, _b, d.set_mtime(a, secs, 5))
            }
            14 => both!(d, a, _b, d.read_dir(a)),
            15 => both!(d, a, _b, d.read_link(a)),
            16 => both!(d, a, _b, d.sync_dir(a)),
            17 => both!(d, a, _b, d.open_append_or_create(a).and_then(|f| f.append(b"log\n"))),
            18 | 19 => {
                let opened = (self.real.open_rw(&real_one), self.sim.open_rw(sim_one));
                let answers = (
                    answer(opened.0.as_ref().map(drop).map_err(same)),
                    answer(opened.1.as_ref().map(drop).map_err(same)),
                );
                if let (Ok(real), Ok(sim)) = opened {
                    self.open.push((real, sim));
                    if self.open.len() > 6 {
                        self.open.swap_remove(rng.below(6) as usize);
                    }
                }
                (format!("open {one}"), answers.0, answers.1)
            }
            20..22 if !self.open.is_empty() => {
                let (real, sim) = &self.open[rng.below(self.open.len() as u64) as usize];
                let (offset, len, what) = (rng.below(9000), rng.below(5000), rng.below(6));
                let bytes = rng.bytes(usize::try_from(len).unwrap());
                let act = |file: &dyn DiskFile| match what {
                    0 => answer(file.write_all_at(&bytes, offset)),
                    1 => answer(file.append(&bytes)),
                    2 => answer(file.set_len(offset)),
                    3 => answer(file.meta().map(meta)),
                    4 => answer(file.set_mode(mode)),
                    _ => {
                        let mut buf = vec![0; 3000];
                        answer(file.read_at(&mut buf, offset).map(|n| (n, crc(&buf[..n]))))
                    }
                };
                (format!("file {what} {offset} {len}"), act(real.as_ref()), act(sim.as_ref()))
            }
            _ => both!(d, a, _b, d.lstat(a).map(meta)),
        }
    }

    /// Every name, and what it names.
    fn tree(disk: &dyn Disk, path: &Path, below: &Path, found: &mut Vec<String>) {
        for name in disk.read_dir(path).unwrap() {
            let (path, below) = (path.join(&name), below.join(&name));
            let about = meta(disk.lstat(&path).unwrap());
            let bytes = match about.0 {
                Kind::File => crc(&checkvalve_host::disk::read_all(disk, &path, 1 << 20).unwrap()),
                Kind::Symlink => crc(disk.read_link(&path).unwrap().as_os_str().as_encoded_bytes()),
                _ => 0,
            };
            found.push(format!("{} {about:?} {bytes:x}", below.display()));
            if about.0 == Kind::Directory {
                Self::tree(disk, &path, &below, found);
            }
        }
    }
}

fn same(error: &io::Error) -> io::Error {
    error.kind().into()
}

fn crc(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(blake3::hash(bytes).as_bytes()[..8].try_into().unwrap())
}

#[test]
fn answers_as_the_real_disk_does() {
    for seed in 0..40 {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut rng = Rng::new(seed);
        let (sim, root) = (SimDisk::new(seed).as_root(), dir.path().join("x/y/z"));
        OsDisk.create_dir_all(&root, 0o755).unwrap();
        sim.create_dir_all(p(SIM_ROOT), 0o755).unwrap();
        let mut both = Both { real: OsDisk, sim, root, open: Vec::new() };
        let mut answers = std::collections::BTreeMap::new();
        for n in 0..1500 {
            let (what, real, sim) = both.step(&mut rng);
            assert_eq!(real, sim, "seed {seed}, step {n}: {what}");
            *answers.entry(if real.len() < 24 { real } else { "long".into() }).or_insert(0) += 1;
            if n % 50 == 0 {
                let (mut real, mut sim) = (Vec::new(), Vec::new());
                Both::tree(&both.real, &both.root, p("/"), &mut real);
                Both::tree(&both.sim, p(SIM_ROOT), p("/"), &mut sim);
                assert_eq!(real, sim, "seed {seed}, step {n}");
            }
        }
        assert!(answers.len() > 10, "too tame: {answers:?}");
    }
}
