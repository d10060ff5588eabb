//! What `status --json` says.

use std::process::Output;

use serde_json::Value;

/// One whole answer.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

/// What both daemons report about a bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Its channel.
    pub channel: String,
    /// Its number in the channel, from 1; 0 while it has none.
    pub sequence: u64,
    /// Its id, in hexadecimal digits.
    pub id: String,
    /// Its name, escaped where it is no plain text.
    pub name: String,
    /// Sum of its files' sizes.
    pub bytes: u64,
    /// `queued`, `transmitting` … `installed`, `failed` ….
    pub state: String,
    /// All that is said of it.
    pub all: Value,
}

impl Status {
    /// The answer that a command printed; `None` when it failed.
    ///
    /// # Panics
    /// When it succeeded and printed no JSON object.
    pub fn from_output(output: &Output) -> Option<Self> {
        if !output.status.success() {
            return None;
        }
        let value = serde_json::from_slice(&output.stdout);
        Some(Self(
            value.unwrap_or_else(|error| panic!("status --json: {error}: {}", String::from_utf8_lossy(&output.stdout))),
        ))
    }

    /// Every bundle.
    ///
    /// # Panics
    /// When a bundle lacks one of the fields that the design promises.
    pub fn bundles(&self) -> Vec<Bundle> {
        let bundles = self.0["bundles"].as_array().unwrap_or_else(|| panic!("no `bundles` in {:#}", self.0));
        bundles.iter().map(Bundle::from_value).collect()
    }

    /// Code and text of each alarm of a receiver.
    ///
    /// # Panics
    /// When an alarm is something else.
    pub fn alarms(&self) -> Vec<(String, String)> {
        let alarms = self.0["alarms"].as_array().unwrap_or_else(|| panic!("no `alarms` in {:#}", self.0));
        let text = |alarm: &Value, key: &str| {
            alarm[key].as_str().map_or_else(|| panic!("no text `{key}` in {alarm:#}"), str::to_owned)
        };
        alarms.iter().map(|alarm| (text(alarm, "code"), text(alarm, "text"))).collect()
    }

    /// The bundle with that name in that channel; the newest when there are several.
    pub fn find(&self, channel: &str, name: &str) -> Option<Bundle> {
        let found = self.bundles().into_iter().filter(|bundle| bundle.channel == channel && bundle.name == name);
        found.max_by_key(|bundle| bundle.sequence)
    }
}

impl Bundle {
    fn from_value(value: &Value) -> Self {
        let text = |key: &str| {
            let found = value[key].as_str().map(str::to_owned);
            found.unwrap_or_else(|| panic!("no text `{key}` in {value:#}"))
        };
        let number = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("no number `{key}` in {value:#}"));
        Self {
            channel: text("channel"),
            // It is `null` if the sender has only just claimed the bundle, or refused it.
            sequence: if value["sequence"].is_null() { 0 } else { number("sequence") },
            id: text("id"),
            name: text("name"),
            bytes: number("bytes"),
            state: text("state"),
            all: value.clone(),
        }
    }
}
