//! Tells systemd how the daemon is: sd_notify(3) without libsystemd. Without systemd it does nothing.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager. It never blocks and never fails: a manager that does not listen is not our problem.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The manager that `$NOTIFY_SOCKET` names, and the watchdog of `$WATCHDOG_USEC` and `$WATCHDOG_PID`.
    #[must_use]
    pub fn from_env() -> Self {
        let var = |name| std::env::var(name).ok();
        let watchdog = watchdog(var("WATCHDOG_USEC").as_deref(), var("WATCHDOG_PID").as_deref(), std::process::id());
        Self { manager: std::env::var_os("NOTIFY_SOCKET").and_then(|name| manager(&name)), watchdog }
    }

    /// How often [`Notifier::watchdog`] is to be called, half of what the manager waits for; `None` if it does not wait.
    #[must_use]
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|timeout| timeout / 2)
    }

    /// `READY=1`: started, and everything that was configured works.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// `STATUS=`: a line for `systemctl status`. What would break the line is escaped.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={}", crate::log::escape(text)));
    }

    /// `WATCHDOG=1`: still alive. Called by the loop that has to be alive, not by a timer of its own.
    pub fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    /// `STOPPING=1`: asked to stop, and stopping.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.manager {
            drop(socket.send_to_addr(state.as_bytes(), address));
        }
    }
}

fn manager(name: &OsStr) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
        [b'/', ..] => SocketAddr::from_pathname(name).ok()?,
        _ => return None,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    Some((socket, address))
}

fn watchdog(usec: Option<&str>, pid: Option<&str>, own_pid: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own_pid)) {
        return None;
    }
    usec?.parse().ok().filter(|&usec| usec > 0).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buf = [0; 200];
        let n = socket.recv(&mut buf).unwrap();
        String::from_utf8(buf[..n].to_vec()).unwrap()
    }

    #[test]
    fn speaks_to_a_path_and_to_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("checkvalve-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).unwrap();
        let at_path = UnixDatagram::bind(&path).unwrap();
        let at_name = UnixDatagram::bind_addr(&abstract_address).unwrap();
        for (socket, name) in [(at_path, path.into_os_string()), (at_name, format!("@{name}").into())] {
            let notifier = Notifier { manager: manager(&name), watchdog: None };
            notifier.ready();
            notifier.status("2 bundles\nREADY=0");
            notifier.watchdog();
            notifier.stopping();
            let all = [heard(&socket), heard(&socket), heard(&socket), heard(&socket)];
            assert_eq!(all, ["READY=1", "STATUS=2 bundles\\nREADY=0", "WATCHDOG=1", "STOPPING=1"]);
        }
    }

    #[test]
    fn says_nothing_without_a_manager_and_does_not_mind_a_dead_or_deaf_one() {
        for name in ["", "relative", "@", "/nowhere/notify"] {
            Notifier { manager: manager(OsStr::new(name)), watchdog: None }.ready();
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier { manager: manager(path.as_os_str()), watchdog: None };
        (0..10_000).for_each(|_| notifier.watchdog());
    }

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let second = Duration::from_secs(1);
        assert_eq!(watchdog(Some("1000000"), None, 7), Some(second));
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), Some(second));
        for (usec, pid) in [(Some("1000000"), Some("8")), (None, Some("7")), (Some("0"), None), (Some("x"), None)] {
            assert_eq!(watchdog(usec, pid, 7), None);
        }
        let notifier = Notifier { manager: None, watchdog: Some(second) };
        assert_eq!(notifier.watchdog_interval(), Some(second / 2));
    }
}
