//! Namespace links with the properties that the bench needs.
//!
//! [`Offload::Kernel`] is the link as it is made: a super-datagram crosses as one buffer. [`Offload::Nic`] stands in for
//! a network card: the kernel segments on the sending side, each datagram crosses (and is lost) alone, and the
//! receiving side joins them again (GRO). Loss must come before GRO, but rules on an interface see the result of GRO,
//! so the datagrams take one more hop there:
//! ```text
//!   low                  high
//!   diode0 ═══════════▶ fibre0 ─ rule: lose, forward ─▶ fibre1 ═══▶ diode0 (GRO) ── receiver
//! ```

use serde_json::Value;

use crate::link::{HIGH, INTERFACE, Link};
use crate::shell::feed;

/// Who segments super-datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nobody until the receiving socket: segmentation offload on both sides.
    Kernel,
    /// The sending side before the link; GRO on the receiving side.
    Nic,
}

impl Offload {
    /// As it is named in the results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "GSO",
            Self::Nic => "GSO off, GRO on",
        }
    }
}

/// Makes a link of that MTU (bytes).
///
/// # Panics
/// When the kernel or the tools refuse.
pub fn make(mtu: u16, offload: Offload) -> Link {
    let link = Link::new(mtu, offload == Offload::Kernel);
    if offload == Offload::Nic {
        become_nic(&link, mtu);
    }
    link
}

/// Turns a link without segmentation offload into [`Offload::Nic`].
///
/// # Panics
/// When the kernel or the tools refuse.
pub fn become_nic(link: &Link, mtu: u16) {
    let high = &link.high;
    let shown = high.run(&format!("ip -json link show {INTERFACE}"));
    let shown: Value = serde_json::from_str(&shown).expect("ip prints JSON");
    let mac = shown[0]["address"].as_str().expect("an interface has an address");
    for line in [
        "nft delete table netdev checkvalve".to_owned(),
        format!("ip link set {INTERFACE} down"),
        format!("ip address flush dev {INTERFACE}"),
        format!("ip link set {INTERFACE} name fibre0"),
        format!("ip link add fibre1 mtu {mtu} type veth peer name {INTERFACE} mtu {mtu}"),
        "ip link set fibre0 arp off up".to_owned(),
        "ip link set fibre1 arp off up".to_owned(),
        // A veth pair does GRO only for what comes from an end without TSO.
        "ethtool -K fibre1 tcp-segmentation-offload off".to_owned(),
        format!("ethtool -K {INTERFACE} generic-receive-offload on"),
        format!("ip link set {INTERFACE} address {mac} arp off up"),
        format!("ip address add {HIGH}/24 dev {INTERFACE}"),
    ] {
        high.run(&line);
    }
    let rules = format!(
        "table netdev checkvalve {{
           counter lost {{ }}
           counter stopped {{ }}
           chain in {{ type filter hook ingress device fibre0 priority 0; policy accept; fwd to fibre1; }}
           chain out {{ type filter hook egress device {INTERFACE} priority 0; policy accept; counter name stopped drop; }}
         }}"
    );
    feed(high.command("nft").args(["-f", "-"]), &rules);
}

/// From now on, loses each datagram of an [`Offload::Nic`] link with a probability of `per_mille` in 1,000.
///
/// # Panics
/// When the rule is refused.
pub fn lose(link: &Link, per_mille: u32) {
    let lose = match per_mille {
        0 => String::new(),
        _ => format!("add rule netdev checkvalve in numgen random mod 1000 < {per_mille} counter name lost drop\n"),
    };
    let rules = format!("flush chain netdev checkvalve in\n{lose}add rule netdev checkvalve in fwd to fibre1\n");
    feed(link.high.command("nft").args(["-f", "-"]), &rules);
}

/// Loses, on a link without segmentation offload, `length` datagrams in a row, beginning with number `from` (counted
/// from 0 from now on), and no others.
///
/// # Panics
/// When the rule is refused.
pub fn lose_once(link: &Link, from: u32, length: u32) {
    let lose = match length {
        0 => String::new(),
        _ => format!(
            "add rule netdev checkvalve in numgen inc mod 4294967295 {from}-{} counter name lost drop\n",
            from + length - 1
        ),
    };
    feed(link.high.command("nft").args(["-f", "-"]), &format!("flush chain netdev checkvalve in\n{lose}"));
}
