//! Network namespaces of this process: made for one test, removed with it.

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

use crate::shell::{output, sh};

/// One network namespace, `cv-<pid>-<n>-<tag>`; removed when dropped, also when a test panics.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with its loopback up and IPv6 off.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn new(tag: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        remove_stale_once();
        let name = format!("cv-{}-{}-{tag}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        sh(&format!("ip netns add {name}"));
        let netns = Self { name };
        netns.run("ip link set lo up");
        for scope in ["all", "default", "lo"] {
            let path = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
            output(netns.command("sh").args(["-c", &format!("[ ! -e {path} ] || echo 1 > {path}")]));
        }
        netns
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `program`, to be run inside. It is exec'ed, so the child's process id is the program's own.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Runs a command line inside; returns its standard output.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, line: &str) -> String {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line has a program"));
        output(command.args(words))
    }

    /// A UDP socket of this test process inside the namespace, bound to `local` and with large kernel buffers.
    ///
    /// # Panics
    /// When the namespace cannot be entered or the address not be bound.
    pub fn udp_socket(&self, local: SocketAddr) -> UdpSocket {
        let handle = File::open(format!("/run/netns/{}", self.name)).expect("the namespace has a handle");
        // Only a thread that ends right after enters the namespace; the socket stays in it.
        let opened = std::thread::spawn(move || {
            move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
            let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_recv_buffer_size(64 << 20)?;
            socket.set_send_buffer_size(4 << 20)?;
            socket.bind(&local.into())?;
            std::io::Result::Ok(UdpSocket::from(socket))
        });
        opened.join().expect("no panic").unwrap_or_else(|error| panic!("a socket on {local} in {}: {error}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Whether a namespace with a veth pair and netdev rules on both directions can be made; the first failure otherwise.
pub fn probe() -> Result<(), String> {
    static RESULT: OnceLock<Result<(), String>> = OnceLock::new();
    RESULT.get_or_init(|| std::panic::catch_unwind(|| drop(crate::link::Link::new(1500, true))).map_err(said)).clone()
}

/// What a caught panic said.
fn said(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Removes namespaces of test processes that were killed before they could.
fn remove_stale_once() {
    static ONCE: Once = Once::new();
    static SERIAL: Mutex<()> = Mutex::new(());
    let _guard = SERIAL.lock();
    ONCE.call_once(|| {
        let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
        for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
            let owner = name.strip_prefix("cv-").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
                let _ = Command::new("ip").args(["netns", "del", &name]).output();
            }
        }
    });
}
