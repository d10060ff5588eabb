//! Several lanes: one bundle's symbols over several ports, and over two fibres, either of which may fail.

use checkvalve_tests::link::{HIGH, INTERFACE, Link, PORT};
use checkvalve_tests::pair::Pair;
use checkvalve_tests::{require_link, tree};
use toml::Value;

/// The second fibre's interface, and its two ends.
const SECOND: &str = "diode1";
const LOW: &str = "10.78.0.1";
const FAR: &str = "10.78.0.2";

fn lay_second_fibre(link: &Link) {
    let (low, high) = (&link.low, &link.high);
    low.run(&format!("ip link add {SECOND} type veth peer name {SECOND} netns {}", high.name()));
    low.run(&format!("ip address add {LOW}/24 dev {SECOND}"));
    high.run(&format!("ip address add {FAR}/24 dev {SECOND}"));
    high.run(&format!("ip link set {SECOND} arp off up"));
    low.run(&format!("ip link set {SECOND} up"));
    know(link, SECOND);
}

/// The kernel's report about the high end of a fibre.
fn shown(link: &Link, interface: &str) -> serde_json::Value {
    let shown = link.high.run(&format!("ip -json -statistics link show {interface}"));
    serde_json::from_str::<serde_json::Value>(&shown).expect("ip prints JSON")[0].take()
}

/// Tells the low end of a fibre the address of the high end, as nobody answers ARP.
fn know(link: &Link, interface: &str) {
    let (to, shown) = (if interface == SECOND { FAR } else { HIGH }, shown(link, interface));
    let mac = shown["address"].as_str().expect("an interface has an address");
    link.low.run(&format!("ip neighbour replace {to} lladdr {mac} dev {interface} nud permanent"));
}

/// Bytes that have come out of a fibre.
fn received(link: &Link, interface: &str) -> u64 {
    shown(link, interface)["stats64"]["rx"]["bytes"].as_u64().expect("a counter")
}

fn two_fibres() -> Value {
    Value::from(vec![format!("{HIGH}:{PORT}"), format!("{FAR}:{PORT}")])
}

#[test]
fn several_ports_carry_one_bundle() {
    require_link!();
    let setup = Pair::setup().on_tmpfs().sender("link.lanes", 3).receiver("link.lanes", 3);
    let pair = setup.start();
    tree::odd(&pair.place("release"), 500, 1);
    let release = pair.drop("release");
    pair.wait_installed(&release);
    pair.assert_identical(&release);
    let status = String::from_utf8(pair.receiver_command(&["status", "--json"]).stdout).expect("JSON is text");
    for port in [PORT, PORT + 1, PORT + 2] {
        assert!(status.contains(&format!("{HIGH}:{port}")), "{status}");
    }
}

#[test]
fn two_fibres_share_the_rate_equally_and_either_may_be_cut() {
    require_link!();
    let setup = Pair::setup().on_tmpfs().rate("400 Mbit/s").repair("120 %");
    let setup = setup.sender("link.destination", two_fibres()).receiver("link.listen", two_fibres());
    let mut pair = setup.lay();
    lay_second_fibre(&pair.link);
    pair.start_receiver();
    pair.start_sender();

    tree::large(&pair.place("both"), 40 << 20, 1);
    let before = [received(&pair.link, INTERFACE), received(&pair.link, SECOND)];
    let both = pair.drop("both");
    pair.wait_installed(&both);
    pair.wait_sender_state(&both, &["transmitted"]);
    let [first, second] = [(INTERFACE, before[0]), (SECOND, before[1])]
        .map(|(interface, before)| received(&pair.link, interface) - before);
    assert!(first.abs_diff(second) * 20 < first + second, "{first} and {second} bytes are not the same");

    // Each fibre alone carries enough, and beacons still arrive.
    for (name, cut, whole, to) in [("first", INTERFACE, SECOND, HIGH), ("second", SECOND, INTERFACE, FAR)] {
        pair.link.low.run(&format!("ip link set {cut} down"));
        tree::large(&pair.place(name), 20 << 20, 2);
        let before = received(&pair.link, whole);
        let bundle = pair.drop(name);
        pair.wait_installed(&bundle);
        pair.assert_identical(&bundle);
        assert!(received(&pair.link, whole) - before > 20 << 20, "it came over the other one");
        pair.wait_for("the sender to name the lane", || {
            let status = String::from_utf8(pair.sender_command(&["status"]).stdout).ok()?;
            status.contains(&format!("! link: to {to}:{PORT}: send: ")).then_some(())
        });
        pair.link.low.run(&format!("ip link set {cut} up"));
        know(&pair.link, cut);
    }
}

#[test]
fn an_address_that_is_not_of_this_host_is_named() {
    require_link!();
    let pair = Pair::setup().on_tmpfs().receiver("link.listen", two_fibres()).lay();
    let (_, said) = pair.refuses_to_start("receiver");
    assert!(said.contains(&format!("{FAR}:{PORT}: cannot listen: ")), "{said}");
}
