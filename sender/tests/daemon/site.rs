//! Directories, keys, a config, and the daemon in a process of its own.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_checkvalve-sender");

pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) high: UdpSocket,
    pub(crate) daemon: Option<Child>,
}

impl Site {
    /// Directories, keys, a config with the channels `default` and `other`, and a socket to send to.
    pub(crate) fn new(extra: &str) -> Self {
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

    pub(crate) fn started(extra: &str) -> Self {
        let mut site = Self::new(extra);
        site.start();
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("--config").arg(self.path("sender.toml")).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn start(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.path("log")).unwrap();
        let child = self.command(&["run"]).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
        self.wait("the daemon to answer", || self.run(&["status"]).status.success().then_some(()));
    }

    pub(crate) fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// Ends the daemon as a service manager would; it ends well and soon.
    pub(crate) fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let begun = Instant::now();
        assert!(daemon.wait().unwrap().success(), "{}", fs::read_to_string(self.path("log")).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(5));
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&good(&self.run(&["status", "--json"]))).unwrap()
    }

    pub(crate) fn bundle(&self, name: &str) -> Option<Value> {
        self.status()["bundles"].as_array().unwrap().iter().find(|b| b["name"] == name).cloned()
    }

    pub(crate) fn wait_state(&self, name: &str, state: &str) -> Value {
        self.wait(&format!("{name} to be {state}"), || self.bundle(name).filter(|b| b["state"] == state))
    }

    pub(crate) fn wait<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
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

    pub(crate) fn drop_in(&self, name: &str, content: &[u8]) {
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

pub(crate) fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

pub(crate) fn failed(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}
