//! `link.destination` and `link.listen`: one address or several, each with as many ports as `link.lanes` says.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use super::ConfigError;
use crate::log::escape;

/// Most lanes: each is a thread and a socket.
const MOST_LANES: u16 = 64;

/// One address or several: `"10.0.0.2:7700"` or `["10.0.0.2:7700", "10.0.1.2:7700"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses(Vec<String>);

impl Addresses {
    /// The address of each lane: for each configured address, its port and the `ports` − 1 ports above it, in the order
    /// of the addresses.
    ///
    /// `key` is the config key that holds the addresses, and `hint` says what to write there; `unusable` gives the
    /// reason if an address cannot be used. Errors: one about `key` or `link.lanes`.
    pub fn lanes(
        &self,
        ports: u16,
        key: &str,
        hint: &str,
        unusable: impl Fn(&SocketAddr) -> Option<String>,
    ) -> Result<Vec<SocketAddr>, ConfigError> {
        let error = |problem: String| ConfigError::new(key, problem, hint);
        if !(1..=MOST_LANES).contains(&ports) {
            let hint = format!("write a number from 1 to {MOST_LANES}");
            return Err(ConfigError::new("link.lanes", format!("there cannot be {ports}"), hint));
        }
        let (mut lanes, mut seen) = (Vec::new(), BTreeSet::new());
        for text in &self.0 {
            let address: SocketAddr =
                text.parse().map_err(|_| error(format!("`{}` is not an address with a port", escape(text))))?;
            if let Some(problem) = unusable(&address) {
                return Err(error(problem));
            }
            for above in 0..ports {
                let Some(port) = address.port().checked_add(above) else {
                    return Err(error(format!("port {} has no {ports} ports from it upwards", address.port())));
                };
                let lane = SocketAddr::new(address.ip(), port);
                if !seen.insert(lane) {
                    return Err(error(format!("`{lane}` is there twice")));
                }
                lanes.push(lane);
            }
        }
        if lanes.is_empty() {
            return Err(error("there is no address".to_owned()));
        }
        if lanes.len() > usize::from(MOST_LANES) {
            return Err(error(format!("{} lanes are more than {MOST_LANES}", lanes.len())));
        }
        Ok(lanes)
    }
}

/// Addresses as people read them.
#[must_use]
pub fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Addresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E>(self, text: &str) -> Result<Addresses, E> {
                Ok(Addresses(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Addresses, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = list.next_element()? {
                    all.push(text);
                }
                Ok(Addresses(all))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(texts: &[&str], ports: u16) -> Result<Vec<String>, String> {
        let addresses = Addresses(texts.iter().map(|text| (*text).to_owned()).collect());
        let unusable = |address: &SocketAddr| (address.port() == 0).then(|| "it has no port".to_owned());
        let lanes = addresses.lanes(ports, "link.listen", "write one", unusable);
        lanes.map(|lanes| lanes.iter().map(ToString::to_string).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn each_address_has_as_many_ports() {
        assert_eq!(lanes(&["10.0.0.2:7700"], 1).unwrap(), ["10.0.0.2:7700"]);
        let all = ["10.0.0.2:7700", "10.0.0.2:7701", "10.0.1.2:7700", "10.0.1.2:7701"];
        assert_eq!(lanes(&["10.0.0.2:7700", "10.0.1.2:7700"], 2).unwrap(), all);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let many: Vec<String> = (0..65).map(|n| format!("10.0.0.{n}:7700")).collect();
        for (texts, ports, problem) in [
            (vec![], 1, "there is no address"),
            (vec!["receiver:7700"], 1, "`receiver:7700` is not an address"),
            (vec!["10.0.0.2:0"], 1, "it has no port"),
            (vec!["10.0.0.2:7700", "10.0.0.2:7701"], 2, "`10.0.0.2:7701` is there twice"),
            (vec!["10.0.0.2:65535"], 2, "port 65535 has no 2 ports"),
            (vec!["10.0.0.2:7700"], 0, "`link.lanes`: there cannot be 0; write a number from 1 to 64"),
            (vec!["10.0.0.2:7700"], 65, "there cannot be 65"),
            (many.iter().map(String::as_str).collect(), 1, "65 lanes are more than 64"),
        ] {
            let error = lanes(&texts, ports).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
