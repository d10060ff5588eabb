//! What is refused: its reasons, and what is moved out of the inbox.

use std::io;
use std::path::Path;

use checkvalve_host::disk::write_atomic;
use checkvalve_protocol::id::ChannelName;

use super::{ANNOUNCE, Address, Inbox, KEPT_ANNOUNCE, REASON, Reason, copy_tree};

impl Inbox {
    /// Removes what [`Inbox::quarantine`] wrote to a directory, and the directory; not if anything else is in it, such as a bundle that
    /// was published.
    pub fn forget_refusal(&self, dir: &Path) -> io::Result<()> {
        let names = match self.disk.read_dir(dir) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            names => names?,
        };
        if names.iter().any(|name| name != ANNOUNCE && name != REASON) {
            return Ok(());
        }
        names.iter().try_for_each(|name| self.remove_if_there(&dir.join(name)))?;
        self.disk.remove_dir(dir)
    }

    /// Writes `reason.json`, and the announce as it came. May be done again.
    pub fn quarantine(&self, place: &Address, reason: &Reason, announce: Option<&[u8]>) -> io::Result<()> {
        let dir = self.quarantine_path(place);
        let put = |name: &str, bytes: &[u8]| write_atomic(self.disk.as_ref(), &dir.join(name), bytes, 0o640);
        self.write_reason(&dir, reason, announce, &put)?;
        if let Some(parent) = dir.parent() {
            self.disk.sync_dir(parent)?;
        }
        self.disk.sync_dir(&self.quarantine)
    }

    /// The same, durable only after [`Inbox::sync_quarantine`]: for many bundles at once.
    pub fn quarantine_unsynced(&self, place: &Address, reason: &Reason, announce: Option<&[u8]>) -> io::Result<()> {
        let dir = self.quarantine_path(place);
        self.write_reason(&dir, reason, announce, &|name, bytes| {
            let (to, part) = (dir.join(name), dir.join(format!("{name}.part")));
            self.remove_if_there(&part)?;
            self.disk.create_new(&part, 0o640)?.write_all_at(bytes, 0)?;
            self.disk.rename(&part, &to)
        })
    }

    /// Makes durable what is in quarantine.
    pub fn sync_quarantine(&self) -> io::Result<()> {
        self.disk.sync_fs(&self.quarantine)
    }

    fn write_reason(
        &self,
        dir: &Path,
        reason: &Reason,
        announce: Option<&[u8]>,
        put: &dyn Fn(&str, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.disk.create_dir_all(dir, 0o750)?;
        if let Some(bytes) = announce {
            put(ANNOUNCE, &bytes[..bytes.len().min(KEPT_ANNOUNCE)])?;
        }
        let mut json = serde_json::to_vec_pretty(reason)?;
        json.push(b'\n');
        put(REASON, &json)
    }

    /// Undoes [`Inbox::withdraw`]: moves the bundle back to the inbox, and forgets why it was moved. False: there is
    /// nothing to move. May be done again.
    pub fn put_back(&self, place: &Address, channel: &ChannelName) -> io::Result<bool> {
        let (to, dir) = (self.path(channel, place.sequence), self.quarantine_path(place));
        let content = dir.join("content");
        let missing = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other.map(|()| true),
        };
        let moved = match self.disk.rename_noreplace(&content, &to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                // As large as it is: whoever watches the inbox sees all of it at once.
                let part = self.staging.join(format!("returning-{}", place.id));
                missing(self.disk.remove_tree(&part))?;
                copy_tree(self.disk.as_ref(), &content, &part)?;
                self.disk.sync_fs(&part)?;
                self.disk.rename_noreplace(&part, &to)?;
                true
            }
            result => missing(result)?,
        };
        if moved {
            self.keep_names(channel)?;
        }
        missing(self.disk.remove_tree(&dir))?;
        if let Some(parent) = dir.parent() {
            missing(self.disk.sync_dir(parent))?;
        }
        Ok(moved)
    }

    /// Moves a published bundle to `content` in its quarantine directory. May be done again.
    pub fn withdraw(&self, place: &Address, channel: &ChannelName) -> io::Result<()> {
        let (from, dir) = (self.path(channel, place.sequence), self.quarantine_path(place));
        let to = dir.join("content");
        self.disk.create_dir_all(&dir, 0o750)?;
        match self.disk.rename_noreplace(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.disk.remove_tree(&from)?,
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let part = dir.join("content.part");
                match self.disk.remove_tree(&part) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                copy_tree(self.disk.as_ref(), &from, &part)?;
                self.disk.sync_fs(&part)?;
                self.disk.rename(&part, &to)?;
                self.disk.sync_dir(&dir)?;
                // At once, so that no part of it is ever seen; the next start removes what is left there.
                let out = self.staging.join(format!("withdrawn-{}", place.id));
                match self.disk.remove_tree(&out) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                self.disk.rename(&from, &out)?;
                self.disk.remove_tree(&out)?;
            }
            other => other?,
        }
        self.disk.sync_dir(&dir)?;
        self.disk.sync_dir(&self.inbox.join(channel.as_str()))
    }
}
