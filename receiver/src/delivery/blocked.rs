//! What keeps bundles that came from being stored or published, and what mends it: each cause once.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use checkvalve_host::disk::{Disk, Kind};
use checkvalve_host::log::escape_path;
use checkvalve_protocol::id::BundleId;
use serde::{Deserialize, Serialize};

use crate::ledger::Entry;

/// Bundles that are named for one cause.
const NAMED: usize = 5;

/// One cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// What the system said, with the path where it is known.
    pub cause: String,
    /// What to do.
    pub mend: String,
    /// Bundles that it keeps out, as people name them: some of them.
    pub bundles: Vec<String>,
    /// How many more there are.
    pub more: u64,
}

/// What is in the way of these bundles, by their troubles.
pub(super) fn of<'a>(
    disk: &dyn Disk,
    entries: impl Iterator<Item = &'a Entry>,
    trouble: impl Fn(BundleId) -> Option<String>,
) -> Vec<Blocked> {
    let mut all: BTreeMap<String, Blocked> = BTreeMap::new();
    let mut entries: Vec<&Entry> = entries.collect();
    entries.sort_by_key(|entry| (&entry.channel, entry.sequence));
    for entry in entries {
        let Some((what, said)) = trouble(entry.id).as_deref().and_then(of_disk).map(|(w, s)| (w, s.to_owned())) else {
            continue;
        };
        let Cause { about, mend } = diagnose(disk, &said, &user());
        let blocked = all.entry(format!("{what} {about}")).or_insert_with(|| Blocked {
            cause: said,
            mend,
            bundles: Vec::new(),
            more: 0,
        });
        if blocked.bundles.len() < NAMED {
            blocked.bundles.push(super::telling::number(entry));
        } else {
            blocked.more += 1;
        }
    }
    all.into_values().collect()
}

/// What kind of trouble it is, and what the system said. None: the disk is not in the way.
fn of_disk(trouble: &str) -> Option<(&'static str, &str)> {
    if let Some(said) = trouble.strip_prefix("disk: ") {
        return Some(("disk", said));
    }
    trouble.starts_with("sync failed").then_some(("sync", trouble))
}

/// What makes two troubles one, and what mends it.
pub(super) struct Cause {
    about: String,
    pub(super) mend: String,
}

/// What an error of the disk means for the one who has to mend it: `said` is its text, after the path where that is known.
pub(super) fn diagnose(disk: &dyn Disk, said: &str, user: &str) -> Cause {
    let said = said.find(" (os error").map_or(said, |end| &said[..end]);
    let (path, error) = match said.rsplit_once(": ") {
        Some((path, error)) if path.starts_with('/') => (Some(Path::new(path)), error),
        Some((_, error)) => (None, error),
        None => (None, said),
    };
    let found = path.map(|path| found(disk, path));
    let (about, mend) = match (error.to_ascii_lowercase().as_str(), found) {
        (_, Some(Found::NotADirectory(at))) => (
            escape_path(&at),
            format!(
                "{0} is not a directory: `mv {0} {0}.away && install -d -o {user} -m 750 {0}`",
                escape_path(&at)
            ),
        ),
        ("no such file or directory" | "entity not found", Some(Found::Missing(at))) => {
            let at = escape_path(&at);
            let mend = format!(
                "mount it if it is on a disk of its own (`findmnt -T {at}`), else make it again: `install -d -o {user} -m 750 {at}`"
            );
            (at, mend)
        }
        ("permission denied" | "operation not permitted", Some(Found::Missing(at) | Found::Directory(at))) => {
            let at = match at.parent() {
                Some(parent) if disk.lstat(&at).is_err() => parent.to_owned(),
                _ => at,
            };
            let at = escape_path(&at);
            (at.clone(), format!("user {user} has to be able to write there: `chown {user} {at} && chmod u+rwx {at}`"))
        }
        ("permission denied" | "operation not permitted", None) => (
            error.to_owned(),
            format!("user {user} has to own `state`, `inbox` and `quarantine` of the config: `chown -R {user} DIRECTORY`"),
        ),
        ("read-only file system" | "read-only filesystem or storage medium", _) => (
            error.to_owned(),
            "it is mounted read-only: after an error of the disk (`dmesg`) stop the receiver, check the disk and mount it for writing; if \
             it is not in `ReadWritePaths` of the unit, `systemctl edit checkvalve-receiver`"
                .to_owned(),
        ),
        _ => (error.to_owned(), "mend the disk: `dmesg` says what is wrong with it".to_owned()),
    };
    Cause { about, mend }
}

/// What there is of a path.
enum Found {
    /// A part of it is something else.
    NotADirectory(PathBuf),
    /// The first part of it that is not there.
    Missing(PathBuf),
    /// The directory that it is in.
    Directory(PathBuf),
}

fn found(disk: &dyn Disk, path: &Path) -> Found {
    let mut parents: Vec<&Path> = path.ancestors().skip(1).collect();
    parents.reverse();
    for parent in parents {
        match disk.lstat(parent) {
            Ok(meta) if matches!(meta.kind, Kind::Directory | Kind::Symlink) => {}
            Ok(_) => return Found::NotADirectory(parent.to_owned()),
            Err(_) => return Found::Missing(parent.to_owned()),
        }
    }
    Found::Directory(path.parent().unwrap_or(path).to_owned())
}

/// The user that this process runs as: its name, or else its number.
pub(super) fn user() -> String {
    let Ok(uid) = std::fs::metadata("/proc/self").map(|meta| meta.uid()) else { return "checkvalve".to_owned() };
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let known = fields.find(|fields| fields.get(2).and_then(|id| id.parse().ok()) == Some(uid));
    known.and_then(|fields| fields.first().map(|name| (*name).to_owned())).unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_host::disk::OsDisk;

    #[test]
    fn each_cause_has_what_mends_it() {
        let dir = crate::testing::dir();
        let inbox = dir.path().join("inbox");
        std::fs::create_dir_all(inbox.join("default")).unwrap();
        std::fs::write(inbox.join("file"), b"").unwrap();
        let at = |rest: &str| inbox.join(rest).display().to_string();
        let mend = |said: String| diagnose(&OsDisk, &said, "cv").mend;
        let denied = |rest: &str| mend(format!("{}: Permission denied (os error 13)", at(rest)));
        assert!(denied("default/00000001").contains(&format!("`chown cv {0} && chmod u+rwx {0}`", at("default"))));
        assert!(denied("new/00000001").contains(&format!("`chown cv {} &&", inbox.display())));
        let file = mend(format!("{}: Not a directory (os error 20)", at("file/00000001")));
        assert!(file.contains(&format!("`mv {0} {0}.away && install -d -o cv", at("file"))), "{file}");
        let gone = dir.path().join("gone");
        let none = mend(format!("{}/default/00000001: No such file or directory (os error 2)", gone.display()));
        assert!(none.contains(&format!("`install -d -o cv -m 750 {}`", gone.display())), "{none}");
        assert!(mend("Read-only file system (os error 30)".to_owned()).contains("ReadWritePaths"));
        assert!(mend("Input/output error (os error 5)".to_owned()).contains("dmesg"));
        assert!(mend("Permission denied (os error 13)".to_owned()).contains("chown -R cv"));
        assert!(!user().is_empty());
    }
}
