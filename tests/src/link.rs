//! A one-way link: two namespaces, a veth pair, and rules in the kernel that lose what a test wants lost.
//!
//! ```text
//!   low namespace                          high namespace
//!   sender ── diode0 10.77.0.1 ═════════▶ diode0 10.77.0.2 ── receiver
//!             static neighbour entry        ingress hook: loses datagrams
//!             IPv6 off                      egress hook: drops every frame, counted
//! ```
//! With segmentation offload on, a whole super-datagram crosses as one buffer, so one lost "datagram" is a burst of up
//! to 64. Links for tests that need loss datagram by datagram switch it off on the sender's side (`gso = false`): the
//! kernel then segments in software before the link.

use std::net::{SocketAddr, UdpSocket};

use serde_json::Value;

use crate::netns::Netns;
use crate::shell::{feed, sh};

/// Address of the sender's end.
pub const LOW: &str = "10.77.0.1";
/// Address of the receiver's end.
pub const HIGH: &str = "10.77.0.2";
/// UDP port the receiver listens on.
pub const PORT: u16 = 7700;
/// Name of the interface, the same in both namespaces.
pub const INTERFACE: &str = "diode0";

/// What the link loses, decided in the receiver's ingress hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    None,
    /// Each datagram with a probability of so many in 1,000.
    Random(u32),
    /// The first `length` of every `every` datagrams, in a row.
    Burst {
        /// Datagrams from the beginning of one burst to that of the next.
        every: u32,
        /// Datagrams lost in a row.
        length: u32,
    },
    /// Everything: the fibre is cut.
    All,
}

/// The two namespaces and the link between them; removed when dropped.
#[derive(Debug)]
pub struct Link {
    /// The sender's namespace.
    pub low: Netns,
    /// The receiver's namespace.
    pub high: Netns,
}

impl Link {
    /// Makes the link. `mtu` in bytes; `gso` keeps segmentation offload on the sender's end.
    ///
    /// # Panics
    /// When the kernel or the tools refuse.
    pub fn new(mtu: u16, gso: bool) -> Self {
        let link = Self { low: Netns::new("low"), high: Netns::new("high") };
        let (low, high) = (link.low.name(), link.high.name());
        sh(&format!(
            "ip -n {low} link add {INTERFACE} mtu {mtu} type veth peer name {INTERFACE} mtu {mtu} netns {high}"
        ));
        for (netns, address) in [(&link.low, LOW), (&link.high, HIGH)] {
            netns.run(&format!("ip address add {address}/24 dev {INTERFACE}"));
        }
        link.high.run(&format!("ip link set {INTERFACE} arp off up"));
        link.low.run(&format!("ip link set {INTERFACE} up"));
        let mac = link.mac();
        link.low.run(&format!("ip neighbour replace {HIGH} lladdr {mac} dev {INTERFACE} nud permanent"));
        link.high.rules(&format!(
            "table netdev checkvalve {{
               counter lost {{ }}
               counter stopped {{ }}
               chain in {{ type filter hook ingress device {INTERFACE} priority 0; policy accept; }}
               chain out {{ type filter hook egress device {INTERFACE} priority 0; policy accept; counter name stopped drop; }}
             }}"
        ));
        link.set_gso(gso);
        link
    }

    /// Changes what the link loses, from the next datagram on.
    pub fn set_loss(&self, loss: Loss) {
        let rule = match loss {
            Loss::None => String::new(),
            Loss::Random(1_000..) => "counter name lost drop".to_owned(),
            Loss::Random(per_mille) => format!("numgen random mod 1000 < {per_mille} counter name lost drop"),
            Loss::Burst { every, length } => format!("numgen inc mod {every} < {length} counter name lost drop"),
            Loss::All => "counter name lost drop".to_owned(),
        };
        let add = if rule.is_empty() { rule } else { format!("add rule netdev checkvalve in {rule}\n") };
        self.high.rules(&format!("flush chain netdev checkvalve in\n{add}"));
    }

    /// Switches segmentation offload on the sender's end on or off.
    pub fn set_gso(&self, on: bool) {
        let word = if on { "on" } else { "off" };
        self.low.run(&format!("ethtool -K {INTERFACE} tx-udp-segmentation {word} generic-segmentation-offload {word}"));
    }

    /// Frames that the receiver's interface has transmitted, by the kernel's own counter.
    pub fn high_transmitted(&self) -> u64 {
        self.counter(&self.high, "tx")
    }

    /// Frames that the receiver's side tried to transmit and the one-way rule stopped.
    pub fn high_stopped(&self) -> u64 {
        self.nft_counter("stopped")
    }

    /// Frames that have come out of the link on the receiver's side, lost ones included.
    pub fn high_received(&self) -> u64 {
        self.counter(&self.high, "rx")
    }

    /// Frames that the loss rule has taken.
    pub fn lost(&self) -> u64 {
        self.nft_counter("lost")
    }

    /// A socket on the sender's side, connected to the receiver's address, to inject whatever a test likes.
    pub fn injector(&self) -> UdpSocket {
        let socket = self.low.udp_socket(SocketAddr::new(LOW.parse().expect("an address"), 0));
        socket.connect((HIGH, PORT)).expect("the receiver's address is routed");
        socket
    }

    /// A plain socket in the receiver's place, to record real datagrams while no receiver runs.
    pub fn recorder(&self) -> UdpSocket {
        self.high.udp_socket(SocketAddr::new(HIGH.parse().expect("an address"), PORT))
    }

    fn mac(&self) -> String {
        let shown = self.high.run(&format!("ip -json link show {INTERFACE}"));
        let shown: Value = serde_json::from_str(&shown).expect("ip prints JSON");
        shown[0]["address"].as_str().expect("an interface has an address").to_owned()
    }

    fn counter(&self, netns: &Netns, direction: &str) -> u64 {
        let shown = netns.run(&format!("ip -json -statistics link show {INTERFACE}"));
        let shown: Value = serde_json::from_str(&shown).expect("ip prints JSON");
        shown[0]["stats64"][direction]["packets"].as_u64().expect("an interface counts")
    }

    fn nft_counter(&self, name: &str) -> u64 {
        let shown = self.high.run(&format!("nft --json list counter netdev checkvalve {name}"));
        let shown: Value = serde_json::from_str(&shown).expect("nft prints JSON");
        let found =
            shown["nftables"].as_array().into_iter().flatten().find_map(|item| item["counter"]["packets"].as_u64());
        found.unwrap_or_else(|| panic!("no counter {name} in {shown}"))
    }
}

impl Netns {
    fn rules(&self, text: &str) {
        feed(self.command("nft").args(["-f", "-"]), text);
    }
}
