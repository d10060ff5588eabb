//! A case: some bytes, what becomes of them, and why; as a file of its own.

use std::fmt::Write;

use checkvalve_protocol::admit::Trust;
use checkvalve_protocol::crypto::{SigningKey, TrustStore};
use checkvalve_protocol::id::{BundleId, ChannelName};
use toml::{Table, Value};

#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) file: String,
    pub(crate) kind: &'static str,
    pub(crate) expect: &'static str,
    pub(crate) why: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) value: Option<Table>,
}

impl Case {
    pub(crate) fn to_toml(&self) -> String {
        let mut text = format!(
            "kind = \"{}\"\nexpect = \"{}\"\nwhy = {}\nhex = \"\"\"\n",
            self.kind,
            self.expect,
            Value::String(self.why.clone())
        );
        for line in self.bytes.chunks(48) {
            let _ = writeln!(text, "{}", hex(line));
        }
        text.push_str("\"\"\"\n");
        if let Some(value) = &self.value {
            let mut whole = Table::new();
            whole.insert("value".into(), Value::Table(value.clone()));
            let _ = write!(text, "\n{}", toml::to_string(&whole).unwrap());
        }
        text
    }
}

/// The name of the rule that was broken, or `ok` and what was read.
pub(crate) fn outcome<T, E>(
    result: Result<T, E>,
    rule: impl Fn(&E) -> &'static str,
    describe: impl Fn(&T) -> Table,
) -> (&'static str, Option<Table>) {
    match result {
        Ok(value) => ("ok", Some(describe(&value))),
        Err(error) => (rule(&error), None),
    }
}

/// The bundle of the vectors' manifests, which `trusted` signs.
pub(crate) fn bundle() -> BundleId {
    BundleId::new(0x01_2345_6789, signer("trusted").public().id())
}

/// What the receiver of the vectors trusts.
pub(crate) fn policy() -> Trust {
    let mut trust = Trust::new(trust());
    trust.keys.insert(signer("neighbour").public(), "neighbour");
    let only = [signer("neighbour").public().id()].into();
    trust.signers.insert(ChannelName::new("other").unwrap(), only);
    trust
}

/// The keys of `vectors/keys.toml`: the seed is the name's first byte 32 times.
pub(crate) fn signer(name: &str) -> SigningKey {
    SigningKey::from_seed([name.as_bytes()[0]; 32])
}

pub(crate) fn trust() -> TrustStore {
    let mut trust = TrustStore::new();
    trust.insert(signer("trusted").public(), "trusted");
    trust
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2));
    let digit = |d: u8| char::from(d).to_digit(16).unwrap() as u8;
    digits.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// A table of named values.
pub(crate) fn fields<const N: usize>(fields: [(&str, Value); N]) -> Table {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// TOML's integers are signed: larger ones stand as text.
pub(crate) fn number(n: u64) -> Value {
    i64::try_from(n).map_or_else(|_| Value::String(n.to_string()), Value::Integer)
}
