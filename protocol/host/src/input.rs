//! Text that a person gives to a command: as arguments, in files, through standard input, or typed line by line.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use crate::log::escape_path;

/// Most bytes that are read from a file or standard input.
pub const MAX_INPUT: u64 = 64 << 20;

/// One text that was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// Where it comes from, for people: `the command line`, `standard input`, a path.
    pub from: String,
    /// What it is.
    pub bytes: Vec<u8>,
}

/// The verdict on a typed line, together with all lines before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Typed {
    /// It is right, and there is more to come.
    More,
    /// It is right, and the last one.
    Last,
    /// It is wrong: why, and what to do. It is asked for again.
    Again(String),
}

/// Why there is nothing to read. Each is one line.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Its path, escaped.
        path: String,
        /// What the system said.
        error: io::Error,
    },
    /// Standard input or the terminal cannot be read.
    #[error("standard input: {0}")]
    Stdin(io::Error),
    /// Larger than [`MAX_INPUT`].
    #[error("{0} is larger than 64 MiB; that is no ticket")]
    Long(String),
    /// It ended before the last line was typed.
    #[error("nothing more was typed; begin again with the first line")]
    Ended,
}

/// Reads the inputs that `values` name: `-` is standard input, and the path of an existing file is that file. All other
/// values, joined by blanks, are the text itself (a shell splits words at blanks). Without values it reads standard
/// input; on a terminal it asks for one line after the other until `check`, which gets all lines so far, says that the
/// last one came.
///
/// Errors: [`InputError`].
pub fn gather(values: &[String], check: impl FnMut(&str) -> Typed) -> Result<Vec<Given>, InputError> {
    if values.is_empty() {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(vec![standard_input()?]);
        }
        let text = prompt(&mut stdin.lock(), &mut io::stderr(), check)?;
        return Ok(vec![Given { from: "what was typed".to_owned(), bytes: text.into_bytes() }]);
    }
    let (mut given, mut words): (Vec<Given>, Vec<&str>) = (Vec::new(), Vec::new());
    for value in values {
        if value == "-" {
            given.push(standard_input()?);
        } else if Path::new(value).is_file() {
            given.push(file(Path::new(value))?);
        } else {
            words.push(value);
        }
    }
    if !words.is_empty() {
        given.insert(0, Given { from: "the command line".to_owned(), bytes: words.join(" ").into_bytes() });
    }
    Ok(given)
}

/// Asks for lines until `check` says that the last one came. Errors: [`InputError::Ended`], [`InputError::Stdin`].
pub fn prompt(
    from: &mut impl BufRead,
    to: &mut impl Write,
    mut check: impl FnMut(&str) -> Typed,
) -> Result<String, InputError> {
    let mut text = String::new();
    let mut number = 1;
    loop {
        drop(write!(to, "line {number}: "));
        drop(to.flush());
        let mut line = String::new();
        if from.read_line(&mut line).map_err(InputError::Stdin)? == 0 {
            return Err(InputError::Ended);
        }
        if line.trim().is_empty() {
            continue;
        }
        let before = text.len();
        text.push_str(line.trim());
        text.push('\n');
        match check(&text) {
            Typed::More => number += 1,
            Typed::Last => return Ok(text),
            Typed::Again(why) => {
                text.truncate(before);
                drop(writeln!(to, "  {why}"));
            }
        }
    }
}

fn standard_input() -> Result<Given, InputError> {
    let from = "standard input".to_owned();
    let bytes = limited(io::stdin().lock()).map_err(InputError::Stdin)?;
    if bytes.len() as u64 > MAX_INPUT { Err(InputError::Long(from)) } else { Ok(Given { from, bytes }) }
}

fn file(path: &Path) -> Result<Given, InputError> {
    let from = escape_path(path);
    let bytes = std::fs::File::open(path).and_then(limited);
    let bytes = bytes.map_err(|error| InputError::File { path: from.clone(), error })?;
    if bytes.len() as u64 > MAX_INPUT { Err(InputError::Long(from)) } else { Ok(Given { from, bytes }) }
}

fn limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_INPUT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_line_is_asked_for_again() {
        let typed = "one\n\nbad\ntwo\nend\nmore\n";
        let mut said = Vec::new();
        let check = |text: &str| match text.lines().last() {
            Some("bad") => Typed::Again("that is bad".to_owned()),
            Some("end") => Typed::Last,
            _ => Typed::More,
        };
        assert_eq!(prompt(&mut typed.as_bytes(), &mut said, check).unwrap(), "one\ntwo\nend\n");
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said, "line 1: line 2: line 2:   that is bad\nline 2: line 3: ");
        let ended = prompt(&mut "one\n".as_bytes(), &mut Vec::new(), |_| Typed::More);
        assert!(matches!(ended, Err(InputError::Ended)));
    }

    #[test]
    fn words_of_a_line_are_one_text_and_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ticket");
        std::fs::write(&path, "in a file").unwrap();
        let values = ["AB12".to_owned(), path.to_str().unwrap().to_owned(), "CD34".to_owned()];
        let given = gather(&values, |_| Typed::Last).unwrap();
        assert_eq!(given[0], Given { from: "the command line".to_owned(), bytes: b"AB12 CD34".to_vec() });
        assert_eq!(given[1].bytes, b"in a file");
    }
}
