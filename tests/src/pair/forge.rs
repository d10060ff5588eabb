//! A sender that transmits whatever a test makes by hand, over the real link to the real receiver.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use checkvalve_protocol::crypto::{LinkKey, SigningKey};
use checkvalve_protocol::transmit::{Link as LinkShape, Parameters};

use super::Pair;
use crate::sim::bundle::{BLOCK_SYMBOLS, SYMBOL_SIZE};
use crate::sim::{Bundle, Low};

/// The forger: it has the link key and the signing key, as a sender gone bad would.
#[derive(Debug)]
pub struct Forger {
    /// The key that the receiver trusts.
    pub key: Arc<SigningKey>,
    low: Low,
    socket: UdpSocket,
}

impl Forger {
    /// Steals the keys of `pair` and begins a session.
    ///
    /// # Panics
    /// When a key cannot be read.
    pub fn new(pair: &Pair, session: u64) -> Self {
        let read = |name: &str| std::fs::read_to_string(pair.low.keys.join(name)).expect("a key can be read");
        let link_key = LinkKey::from_text(&read("link.key")).expect("a link key");
        let key = Arc::new(SigningKey::from_text(&read("signing.key")).expect("a signing key"));
        let shape = LinkShape {
            mtu: 1500,
            rate: 900_000_000,
            repair: 0.05,
            burst: Duration::from_millis(10),
            memory: 64 << 20,
        };
        let parameters = Parameters::derive(&shape).expect("a link that can be").with_block(SYMBOL_SIZE, BLOCK_SYMBOLS);
        Self { key, low: Low::new(link_key.as_bytes(), session, parameters), socket: pair.link.injector() }
    }

    /// Transmits one pass of `bundle`, at an easy pace.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn transmit(&mut self, bundle: &Bundle, pass: u32) {
        for (number, (_, datagram)) in self.low.transmit(bundle, pass).iter().enumerate() {
            self.socket.send(datagram).expect("the link takes datagrams");
            if number % 32 == 31 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
