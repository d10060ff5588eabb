//! File systems that belong to one test, in memory or in an image file, and operations on them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell::sh;

/// A mounted file system; unmounted when dropped. Drop the daemons on it first, or stop them.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    image: Option<PathBuf>,
}

/// A frozen file system. Writers wait until this is dropped.
#[derive(Debug)]
pub struct Frozen(PathBuf);

impl Mount {
    /// An empty file system in memory, of at most that size, such as `64m`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn tmpfs(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).expect("a directory can be made");
        sh(&format!("mount -t tmpfs -o size={size},mode=0755 checkvalve-test {}", at.display()));
        Self { at: at.to_owned(), image: None }
    }

    /// An empty ext4 in a new image file, which grows as it is written to. It has no journal, so that the writer itself gets an
    /// error of the device.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    pub fn image(at: &Path, image: &Path, mebibytes: u64) -> Self {
        std::fs::create_dir_all(at).expect("a directory can be made");
        let file = std::fs::File::create(image).expect("an image can be made");
        file.set_len(mebibytes << 20).expect("an image can be made");
        sh(&format!("mkfs.ext4 -q -m 0 -O ^has_journal -E lazy_itable_init=0 {}", image.display()));
        let mount = Self { at: at.to_owned(), image: Some(image.to_owned()) };
        mount.mount();
        mount
    }

    /// Mounts an image (again).
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(&self) {
        let image = self.image.as_ref().expect("a file system in an image");
        sh(&format!("mount -o loop,errors=continue {} {}", image.display(), self.at.display()));
    }

    /// Unmounts it, for [`Mount::mount`].
    ///
    /// # Panics
    /// When somebody uses it.
    pub fn unmount(&self) {
        sh(&format!("umount {}", self.at.display()));
    }

    /// Checks and repairs the image, as an operator does before mounting it again.
    ///
    /// # Panics
    /// When it cannot be repaired.
    pub fn check(&self) {
        let image = self.image.as_ref().expect("a file system in an image");
        let out = Command::new("e2fsck").args(["-f", "-y"]).arg(image).output().expect("e2fsck runs");
        // 1: errors were corrected.
        assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stdout));
    }

    /// Remounts it with these options, such as `ro`.
    ///
    /// # Panics
    /// When the kernel refuses: `ro` is refused while a file on it is open for writing.
    pub fn remount(&self, options: &str) {
        sh(&format!("mount -o remount,{options} {}", self.at.display()));
    }

    /// Stops all writing to it until the returned value is dropped.
    ///
    /// # Panics
    /// When the file system does not support it.
    pub fn freeze(&self) -> Frozen {
        sh(&format!("fsfreeze --freeze {}", self.at.display()));
        Frozen(self.at.clone())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).output();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).output();
    }
}

/// Whether an ext4 in an image file can be mounted and frozen here, or why not.
pub fn can_mount_images() -> Result<(), String> {
    for (tool, args) in [("mkfs.ext4", ["-V"]), ("e2fsck", ["-V"]), ("fsfreeze", ["--version"])] {
        if Command::new(tool).args(args).output().is_err() {
            return Err(format!("{tool} is not installed"));
        }
    }
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let (at, image) = (dir.path().join("mounted"), dir.path().join("image"));
    let made = std::panic::catch_unwind(|| drop(Mount::image(&at, &image, 8).freeze()));
    made.map_err(|_| "this kernel or sandbox mounts no ext4 of an image file".to_owned())
}
