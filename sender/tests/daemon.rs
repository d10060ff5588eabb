//! The daemon and its commands as processes, sending into a socket that nobody answers from.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_checkvalve-sender");

struct Site {
    dir: tempfile::TempDir,
    high: UdpSocket,
    daemon: Option<Child>,
}

impl Site {
    /// Directories, keys, a config with the channels `default` and `other`, and a socket to send to.
    fn new(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["spool", "state", "place"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let high = UdpSocket::bind("127.0.0.1:0").unwrap();
        high.set_nonblocking(true).unwrap();
        let site = Self { dir, high, daemon: None };
        for kind in ["link", "signing"] {
            good(&run(&["keygen", kind, "--out", site.path(kind).to_str().unwrap()]));
        }
        let path = site.dir.path().display();
        let config = format!(
            "spool = \"{path}/spool\"\nstate = \"{path}/state\"\ncontrol = \"{path}/control.sock\"\nsettle = \"100 ms\"\n\
             [channel.default]\n[channel.other]\n[link]\ndestination = \"{}\"\nrate = \"200 Mbit/s\"\n\
             [keys]\nlink = \"{path}/link\"\nsigning = \"{path}/signing\"\n{extra}",
            site.high.local_addr().unwrap()
        );
        fs::write(site.path("sender.toml"), config).unwrap();
        site
    }

    fn started(extra: &str) -> Self {
        let mut site = Self::new(extra);
        site.start();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.path("sender.toml")).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn start(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.path("log")).unwrap();
        let child = self.command(&["run"]).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        self.wait("the daemon to answer", || self.run(&["status"]).status.success().then_some(()));
    }

    fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Ends the daemon as a service manager would; it ends well and soon.
    fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begun = Instant::now();
        assert!(daemon.wait().unwrap().success(), "{}", fs::read_to_string(self.path("log")).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    fn status(&self) -> Value {
        serde_json::from_str(&good(&self.run(&["status", "--json"]))).unwrap()
    }

    fn bundle(&self, name: &str) -> Option<Value> {
        self.status()["bundles"].as_array().unwrap().iter().find(|b| b["name"] == name).cloned()
    }

    fn wait_state(&self, name: &str, state: &str) -> Value {
        self.wait(&format!("{name} to be {state}"), || self.bundle(name).filter(|b| b["state"] == state))
    }

    fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > end {
                panic!("waited in vain for {what}:\n{}", fs::read_to_string(self.path("log")).unwrap_or_default());
            }
            // What is sent goes somewhere.
            let mut buf = [0; 2_048];
            while self.high.recv(&mut buf).is_ok() {}
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn drop_in(&self, name: &str, content: &[u8]) {
        fs::write(self.path("place").join(name), content).unwrap();
        fs::rename(self.path("place").join(name), self.path("spool/default").join(name)).unwrap();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

fn failed(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

#[test]
fn send_waits_for_transmitted_and_never_says_more() {
    let site = Site::started("");
    let tree = site.path("place/tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    fs::write(tree.join("a/f"), vec![1; 300_000]).unwrap();
    let said = site.run(&["send", tree.to_str().unwrap(), "--wait"]);
    good(&said);
    let said = text(&said.stdout) + &text(&said.stderr);
    assert!(said.contains("transmitted default/1 tree (293 KiB in"), "{said}");
    assert!(!said.contains("deliver"), "{said}");
    let view: Value =
        serde_json::from_str(&good(&site.run(&["send", tree.to_str().unwrap(), "--wait", "--json"]))).unwrap();
    assert_eq!((&view["sequence"], &view["state"]), (&2.into(), &"transmitted".into()));
    let several =
        site.run(&["send", "--channel", "other", "--link", tree.join("a/f").to_str().unwrap(), "/etc/hostname"]);
    assert!(text(&several.stderr).contains("/etc/hostname") || several.status.success(), "hard links stay on one disk");
    site.wait_state("f", "transmitted");
    std::os::unix::fs::symlink("/etc", tree.join("out")).unwrap();
    let said = failed(&site.run(&["send", tree.to_str().unwrap(), "--wait"]), 65);
    assert!(said.contains("\"tree/out\" is a symlink whose target \"/etc\" is absolute"), "{said}");
    assert!(site.path("spool/default/.failed/tree.reason").exists());
    assert!(failed(&site.run(&["send", "/nowhere"]), 66).contains("/nowhere"));
    assert!(failed(&site.run(&["send", "--channel", "none", "/etc/hostname"]), 64).contains("no channel none"));
    assert!(failed(&site.run(&["send", "--name", "x.part", "/etc/hostname"]), 64).contains("leaves \"x.part\" alone"));
    good(&site.run(&["send", "--name", "named", "/etc/hostname"]));
    site.wait_state("named", "transmitted");
    let left: Vec<_> = fs::read_dir(site.path("spool/default")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".failed"]);
}

#[test]
fn a_killed_daemon_goes_on_and_numbers_on() {
    let mut site = Site::started("");
    site.drop_in("one", &vec![7; 8 << 20]);
    site.drop_in("two", b"2");
    let before = site.wait_state("one", "transmitting");
    assert_eq!(site.bundle("two").map(|b| b["state"].clone()), Some("queued".into()));
    site.kill();
    site.drop_in("three", b"3");
    site.start();
    let one = site.wait_state("one", "transmitted");
    assert_eq!((&one["id"], &one["sequence"]), (&before["id"], &before["sequence"]));
    assert_eq!(site.wait_state("two", "transmitted")["sequence"], 2);
    assert_eq!(site.wait_state("three", "transmitted")["sequence"], 3);
    let number = site.status()["session"]["number"].as_u64().unwrap();
    site.stop();
    site.start();
    assert!(site.status()["session"]["number"].as_u64().unwrap() > number);
    good(&site.run(&["resend", "default/1", "--blocks", "0-1", "--wait"]));
    assert_eq!(site.bundle("one").unwrap()["sent"], 2);
    let id = one["id"].as_str().unwrap();
    let resent: Value = serde_json::from_str(&good(&site.run(&["resend", &id[..10], "--json"]))).unwrap();
    assert_eq!((&resent["blocks"], &resent["of_blocks"]), (&one["blocks"], &one["blocks"]));
    assert!(failed(&site.run(&["resend", "default/77"]), 66).contains("default/77"));
    assert!(failed(&site.run(&["resend", "default/2", "--blocks", "1"]), 64).contains("1 source blocks"));
}

#[test]
fn only_one_daemon_has_a_state_directory() {
    let mut site = Site::started("");
    assert!(failed(&site.run(&["run"]), 75).contains("another daemon is running"));
    assert!(site.run(&["status"]).status.success(), "the first one did not notice");
    site.stop();
    assert!(failed(&site.run(&["status"]), 69).contains("not running"));
    site.start();
    site.kill();
    // Its lock and its socket are still there.
    site.start();
}

#[test]
fn the_service_manager_hears_of_the_start_and_the_end() {
    let mut site = Site::new("");
    let manager = UnixDatagram::bind(site.path("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = site.command(&["run"]);
    command.env("NOTIFY_SOCKET", site.path("notify")).env("WATCHDOG_USEC", "2000000").stderr(Stdio::null());
    site.daemon = Some(command.spawn().unwrap());
    let heard = |word: &str| {
        let mut buf = [0; 1_024];
        loop {
            let n = match manager.recv(&mut buf) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.unwrap(),
            };
            if text(&buf[..n]).starts_with(word) {
                return;
            }
        }
    };
    heard("READY=1");
    heard("STATUS=0 bundles to send");
    heard("WATCHDOG=1");
    heard("WATCHDOG=1");
    site.stop();
    heard("STOPPING=1");
}

#[test]
fn what_is_wrong_is_said_in_one_line_before_anything_is_touched() {
    let site = Site::new("[fec]\nrepair = \"5\"\n");
    for command in ["run", "check-config", "status"] {
        let said = failed(&site.run(&[command]), 78);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains("key `fec.repair`") && said.contains("write"), "{said}");
    }
    assert_eq!(fs::read_dir(site.path("state")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(site.path("spool")).unwrap().count(), 0);
    failed(&run(&["--nonsense"]), 64);
    failed(&run(&["status", "--config", "/nowhere.toml"]), 78);
    let said = good(&run(&["--help"]));
    assert!(said.contains("transmitted") && said.contains("Usage"), "{said}");
}

#[test]
fn check_config_says_what_follows_and_creates_nothing() {
    let site = Site::new("");
    let said = good(&site.run(&["check-config"]));
    for word in ["source block", "interleaved", "survives", "200 Mbit/s", "channel other"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let json: Value = serde_json::from_str(&good(&site.run(&["check-config", "--json"]))).unwrap();
    assert_eq!(json["symbol_bytes"], 1_408);
    assert!(Path::read_dir(&site.path("spool")).unwrap().next().is_none());
}
