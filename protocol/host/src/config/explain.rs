//! The words of `toml` and `serde`, put as one line that an operator can act on.

use serde_path_to_error::{Path as KeyPath, Segment};

use super::ConfigError;

/// The error for text that is not TOML.
pub(super) fn syntax(text: &str, error: &toml::de::Error) -> ConfigError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text.as_bytes()[..at];
    let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
    let problem = error.message();
    let (problem, hint) = match problem.split_once(", expected ") {
        _ if problem == "duplicate key" => {
            let key = error.span().and_then(|span| text.get(span)).unwrap_or_default();
            (format!("`{key}` is there twice"), "write it once".into())
        }
        Some((problem, expected)) => (problem.into(), format!("write {expected}")),
        None => (problem.into(), "write it as in https://toml.io".to_owned()),
    };
    ConfigError::new("", format!("line {line}: {problem}"), hint)
}

/// The error for TOML that does not fit this configuration.
pub(super) fn value(error: &serde_path_to_error::Error<toml::de::Error>) -> ConfigError {
    let key = dotted(error.path());
    let text = error.inner().message();
    if let Some(rest) = text.strip_prefix("unknown field ") {
        return unknown(key, "there is no such key", rest);
    }
    if let Some(rest) = text.strip_prefix("unknown variant ") {
        let what = quoted(rest).first().map_or_else(String::new, |name| format!("`{name}` is not one of its values"));
        return unknown(key, &what, rest);
    }
    if let Some(name) = text.strip_prefix("missing field ").and_then(|rest| quoted(rest).into_iter().next()) {
        let (table, key) = (key.clone(), join(key, name));
        let hint = if table.is_empty() {
            format!("write `{name} = …` at the top")
        } else {
            format!("write `{name} = …` in `[{table}]`")
        };
        return ConfigError::new(key, "it is missing", hint);
    }
    for (prefix, is) in
        [("invalid type: ", "it is "), ("invalid value: ", "it is "), ("invalid length ", "it has length ")]
    {
        if let Some((found, expected)) = text.strip_prefix(prefix).and_then(|rest| rest.rsplit_once(", expected ")) {
            return ConfigError::new(key, format!("{is}{found}"), format!("write {}", type_name(expected)));
        }
    }
    // The messages of our own types end with the advice, after the last semicolon.
    match text.rsplit_once("; write ") {
        Some((problem, hint)) => ConfigError::new(key, problem, format!("write {hint}")),
        None => ConfigError::new(key, text, ""),
    }
}

/// `rest` is `` `NAME`, expected one of `A`, `B` ``.
fn unknown(key: String, problem: &str, rest: &str) -> ConfigError {
    let names = quoted(rest);
    let (name, known) = names.split_first().map_or(("", &[][..]), |(name, known)| (*name, known));
    let near = known.iter().map(|known| (distance(name, known), known)).min();
    let hint = match near {
        Some((far, near)) if far <= 1 + name.chars().count() / 3 => format!("write `{near}`"),
        Some(_) => format!("write one of {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")),
        None => "remove it".into(),
    };
    ConfigError::new(key, problem, hint)
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn dotted(path: &KeyPath) -> String {
    path.iter().fold(String::new(), |key, segment| match segment {
        Segment::Map { key: name } => join(key, name),
        Segment::Seq { index } => format!("{key}[{index}]"),
        Segment::Enum { .. } | Segment::Unknown => key,
    })
}

fn join(table: String, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let name = if bare { name.into() } else { format!("{name:?}") };
    if table.is_empty() { name } else { format!("{table}.{name}") }
}

fn type_name(expected: &str) -> String {
    let integer = |min: i128, max: u128| format!("a whole number from {min} to {max}, without quotes");
    match expected {
        "i8" => integer(i8::MIN.into(), i8::MAX as u128),
        "i16" => integer(i16::MIN.into(), i16::MAX as u128),
        "i32" => integer(i32::MIN.into(), i32::MAX as u128),
        "u8" => integer(0, u8::MAX.into()),
        "u16" => integer(0, u16::MAX.into()),
        "u32" => integer(0, u32::MAX.into()),
        "i64" | "isize" => "a whole number, without quotes".into(),
        "u64" | "usize" => "a whole number, 0 or more, without quotes".into(),
        "f32" | "f64" => "a number, without quotes".into(),
        "a boolean" => "`true` or `false`, without quotes".into(),
        "a string" | "path string" => "text in quotes".into(),
        "a sequence" => "a list, `[…, …]`".into(),
        "a map" => "a table".into(),
        other if other.starts_with("struct ") => "a table".into(),
        other => other.into(),
    }
}

/// Edits (insert, remove, replace a character) from one word to another.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
