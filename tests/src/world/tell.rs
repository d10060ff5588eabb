//! Scripts as one line of text: a seed, the events to keep, and the options to reset to their defaults.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::script::Script;
use super::shrink::{calm, calmed};

/// A line such as `17 keep=2,5 calm=loss,burst`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The seed.
    pub seed: u64,
    /// Numbers of the events to keep; None: all.
    pub keep: Option<Vec<usize>>,
    /// Options to reset to their defaults.
    pub calm: Vec<String>,
}

impl Line {
    /// The line that makes `script` from its seed.
    pub fn of(script: &Script) -> Self {
        let whole = Script::of(script.seed);
        let keep: Vec<usize> = script.events.iter().map(|event| event.number).collect();
        let calm = calmed(&whole.options, &script.options).into_iter().map(str::to_owned).collect();
        Self { seed: script.seed, keep: (keep.len() < whole.events.len()).then_some(keep), calm }
    }

    /// The script that the line describes.
    ///
    /// # Panics
    /// If it names an option that does not exist.
    pub fn script(&self) -> Script {
        let mut script = Script::of(self.seed);
        if let Some(keep) = &self.keep {
            script.events.retain(|event| keep.contains(&event.number));
        }
        for name in &self.calm {
            assert!(calm(&mut script.options, name), "there is no option {name}");
        }
        script
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.seed)?;
        if let Some(keep) = &self.keep {
            let keep: Vec<String> = keep.iter().map(ToString::to_string).collect();
            write!(f, " keep={}", keep.join(","))?;
        }
        if self.calm.is_empty() { Ok(()) } else { write!(f, " calm={}", self.calm.join(",")) }
    }
}

impl FromStr for Line {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let seed = words.next().and_then(|word| word.parse().ok()).ok_or("a line begins with a seed")?;
        let mut line = Self { seed, keep: None, calm: Vec::new() };
        for word in words {
            match word.split_once('=') {
                Some(("keep", list)) => {
                    let numbers = list.split(',').filter(|n| !n.is_empty()).map(str::parse);
                    line.keep = Some(numbers.collect::<Result<_, _>>().map_err(|_| format!("no numbers: {word}"))?);
                }
                Some(("calm", list)) => line.calm = list.split(',').map(str::to_owned).collect(),
                _ => return Err(format!("neither keep= nor calm=: {word}")),
            }
        }
        Ok(line)
    }
}

/// The lines of every file in a directory, without comments (`#`).
///
/// # Panics
/// If a file cannot be read or has an invalid line.
pub fn read_seeds(directory: &Path) -> Vec<Line> {
    let entries = std::fs::read_dir(directory).expect("the seeds are there");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a readable directory").path()).collect();
    paths.sort();
    let mut lines = Vec::new();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "txt")) {
        let text = std::fs::read_to_string(path).expect("a readable file");
        let texts = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let parsed =
            texts.filter(|line| !line.is_empty()).map(|l| l.parse().unwrap_or_else(|e| panic!("{path:?}: {e}")));
        lines.extend(parsed);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_makes_its_script_again() {
        for seed in 0..50 {
            let mut script = Script::of(seed);
            script.events.truncate(2);
            script.options.loss = 0;
            script.options.hook = None;
            let text = Line::of(&script).to_string();
            let again = text.parse::<Line>().unwrap().script();
            assert_eq!((again.events.len(), &again.options), (script.events.len(), &script.options), "{text}");
        }
        assert!(
            "x".parse::<Line>().is_err() && "1 keep=a".parse::<Line>().is_err() && "1 y=2".parse::<Line>().is_err()
        );
    }
}
