//! The bundles that operators drop.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use checkvalve_host::disk::Disk;
use checkvalve_sender::spool::Seen;

use super::super::low;
use super::{World, channels};
use crate::rng::Rng;
use crate::simdisk::SimDisk;

impl World<'_> {
    pub(super) fn drop_bundle(&mut self, channel: usize, size: u64, files: u64, renamed: bool, told: bool) {
        let number = self.book.drops.len();
        let mut rng = Rng::new(self.script.seed ^ 0xd20b ^ (number as u64) << 32 ^ size << 8 ^ files);
        let channel = channels()[channel].clone();
        let name = name_of(number, &mut rng);
        let directory = PathBuf::from(low::SPOOL).join(channel.as_str());
        let place = if self.script.options.spool_mounted { "/spool/.place" } else { "/place" };
        let place = PathBuf::from(place).join(&name);
        let to = directory.join(&name);
        self.low.stamp(self.now);
        let disk = self.low.disk.clone();
        let at = if renamed { &place } else { &to };
        let made = disk.outside(|| {
            disk.create_dir_all(place.parent().expect("a directory"), 0o755)?;
            disk.create_dir_all(&directory, 0o755)?;
            make(&disk, at, size, files, &mut rng)?;
            disk.sync_fs(Path::new(low::SPOOL))?;
            disk.sync_fs(Path::new("/"))?;
            if renamed {
                disk.rename(&place, &to)?;
                disk.sync_fs(Path::new(low::SPOOL))?;
            }
            io::Result::Ok(())
        });
        if let Err(error) = made {
            self.note(|| format!("{name:?} cannot be dropped: {error}"));
            // Removed durably: whatever a power cut brought back would not be a bundle that anybody dropped.
            let parent = at.parent().expect("a directory");
            disk.outside(|| drop(disk.remove_tree(at).and_then(|()| disk.sync_fs(parent))));
            return;
        }
        self.book.dropped(&disk, channel.as_str(), &to);
        let clock = self.low.clock(self.now);
        if let (Some(process), true) = (&mut self.low.process, told) {
            let seen = if renamed { vec![Seen::Renamed] } else { vec![Seen::Created, Seen::Closed] };
            for seen in seen {
                process.engine.seen((channel.clone(), name.clone()), seen, clock);
            }
            self.low.next = self.now;
        }
    }

    pub(in crate::world) fn drop_again(&mut self, number: usize) {
        let channel = channels().iter().position(|c| c.as_str() == self.book.drops[number].channel);
        self.drop_bundle(channel.expect("a channel"), 500, 0, true, true);
    }
}

fn name_of(number: usize, rng: &mut Rng) -> OsString {
    let mut name = format!("b{number}").into_bytes();
    match rng.below(6) {
        0 => name.extend(b" with blank"),
        1 => name.extend("-gr\u{fc}\u{df}e".bytes()),
        2 => name.extend([0xff, b'\n']),
        _ => {}
    }
    OsString::from_vec(name)
}

/// Makes what an operator drops.
fn make(disk: &SimDisk, at: &Path, size: u64, files: u64, rng: &mut Rng) -> io::Result<()> {
    let file = |path: &Path, len: u64, rng: &mut Rng| -> io::Result<()> {
        let mode = [0o644, 0o600, 0o755, 0o444][usize::try_from(rng.below(4)).expect("small")];
        let file = disk.create_new(path, 0o600)?;
        file.write_all_at(&rng.bytes(usize::try_from(len).expect("small")), 0)?;
        disk.set_mode(path, mode)?;
        touch(disk, path, rng)
    };
    if files == 0 {
        return file(at, size, rng);
    }
    disk.create_dir(at, 0o755)?;
    let mut directories = vec![at.to_owned()];
    for number in 0..files {
        let parent = directories[usize::try_from(rng.below(directories.len() as u64)).expect("small")].clone();
        match rng.below(6) {
            0 => {
                let path = parent.join(format!("d{number}"));
                disk.create_dir(&path, 0o755)?;
                directories.push(path);
            }
            1 => {
                let path = parent.join(format!("l{number}"));
                disk.symlink(if rng.chance(30) { b"/etc".as_slice() } else { b"./f0" }, &path)?;
                touch(disk, &path, rng)?;
            }
            2 => file(&parent.join(format!("f{number}")), 0, rng)?,
            _ => file(&parent.join(format!("f{number}")), rng.below(2 * size / files + 1), rng)?,
        }
    }
    for (number, path) in directories.iter().enumerate().rev() {
        let mode = if number == 0 { 0o755 } else { [0o755, 0o700, 0o750, 0o555][number % 4] };
        touch(disk, path, rng)?;
        disk.set_mode(path, mode)?;
    }
    Ok(())
}

fn touch(disk: &SimDisk, path: &Path, rng: &mut Rng) -> io::Result<()> {
    let secs = [0, -86_400, 1_600_000_000, 4_102_444_800][usize::try_from(rng.below(4)).expect("small")];
    disk.set_mtime(path, secs, u32::try_from(rng.below(1_000_000_000)).expect("below a second"))
}
