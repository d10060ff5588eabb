//! Tickets as a person gives them: typed, pasted, from files, standard input, or pictures of their QR codes; and `ticket
//! explain`.

mod picture;

use checkvalve_host::exit::Exit;
use checkvalve_host::input::{self, Given, Typed};
use checkvalve_protocol::ticket::{LineError, ParseError, Ticket};
use clap::Subcommand;
use serde_json::json;

use super::{CommandError, say, say_json};

#[derive(Debug, Subcommand)]
pub(super) enum TicketCommand {
    /// Print in words what a ticket asks for and what every bit of it means, for who reviews what leaves the high side. Needs
    /// neither daemon nor configuration.
    Explain {
        /// The ticket: its text, a file, a picture of its QR code (PNG or JPEG), or `-` for standard input; asked for line by
        /// line if nothing is given.
        #[arg(value_name = "TICKET")]
        ticket: Vec<String>,
    },
}

pub(super) fn ticket(command: &TicketCommand, json: bool) -> Result<(), CommandError> {
    let TicketCommand::Explain { ticket } = command;
    for ticket in read(ticket)? {
        if json {
            say_json(&json!({
                "ticket": ticket.to_text(),
                "lines": ticket.lines(),
                "loss": ticket.loss().to_string(),
                "words": ticket.explain(),
            }))?;
        } else {
            say(ticket.explain());
        }
    }
    Ok(())
}

/// The tickets that `values` give; at least one.
pub(super) fn read(values: &[String]) -> Result<Vec<Ticket>, CommandError> {
    if values.is_empty() {
        eprintln!("Type the ticket, a line at a time: 8 groups of 4, the last line may be shorter.");
    }
    let given = input::gather(values, typed).map_err(|error| CommandError::new(Exit::NoInput, error.to_string()))?;
    let mut tickets = Vec::new();
    for given in given {
        tickets.extend(parse(&given)?);
    }
    if tickets.is_empty() { Err(wrong("what was given", &ParseError::Empty)) } else { Ok(tickets) }
}

fn parse(given: &Given) -> Result<Vec<Ticket>, CommandError> {
    let Given { from, bytes } = given;
    if picture::is_picture(bytes) {
        let texts = picture::texts(bytes).map_err(|why| CommandError::new(Exit::DataErr, format!("{from}: {why}")))?;
        return texts.iter().map(|text| Ticket::parse(text).map_err(|error| wrong(from, &error))).collect();
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| CommandError::new(Exit::DataErr, format!("{from} is neither text nor a PNG or JPEG picture")))?;
    match Ticket::parse(text) {
        Ok(ticket) => Ok(vec![ticket]),
        Err(error) => match Ticket::parse_all(text) {
            Ok(tickets) if !tickets.is_empty() => Ok(tickets),
            // Several, of which one is wrong; or one with empty lines in it.
            Err((number, first)) if text.trim().contains("\n\n") && number > 0 => {
                Err(wrong(&format!("ticket {} of {from}", number + 1), &first))
            }
            _ => Err(unless_a_path(from, text, &error)),
        },
    }
}

/// What was meant as a file's name and is none reads like a wrong ticket.
fn unless_a_path(from: &str, text: &str, error: &ParseError) -> CommandError {
    let text = text.trim();
    let is_path = !text.contains(char::is_whitespace) && (text.contains('/') || text.contains('.'));
    if is_path { CommandError::new(Exit::NoInput, format!("{text}: no such file")) } else { wrong(from, error) }
}

fn wrong(from: &str, error: &ParseError) -> CommandError {
    let advice = match error {
        ParseError::Lines(_) => "compare that with the original and give the ticket again",
        ParseError::Whole => "check that all lines are there, and in their order",
        ParseError::Empty => "it has lines of 8 groups of 4 letters and digits",
        ParseError::TooManyLines => "is it one ticket? Part several by an empty line",
        ParseError::Version(_) => "update checkvalve-sender",
        ParseError::NotCanonical => "it was not made by checkvalve-receiver; do not use it",
    };
    CommandError::new(Exit::DataErr, format!("{from} is no ticket: {error}; {advice}"))
}

/// A line was typed: is it right, is it the last?
fn typed(text: &str) -> Typed {
    let last = text.lines().filter(|line| !line.trim_start().starts_with('#')).count();
    match Ticket::parse(text) {
        Ok(_) => Typed::Last,
        // Every line is right so far.
        Err(ParseError::Whole) => Typed::More,
        Err(ParseError::Lines(wrong)) => match wrong.iter().find(|wrong| wrong.line == last) {
            Some(error) => Typed::Again(again(error)),
            None => Typed::Again("That does not fit the lines before it; type it again.".to_owned()),
        },
        Err(error @ (ParseError::Version(_) | ParseError::NotCanonical | ParseError::TooManyLines)) => {
            Typed::Again(format!("This is {error}."))
        }
        Err(ParseError::Empty) => Typed::More,
    }
}

fn again(error: &LineError) -> String {
    format!("{error}; type line {} again.", error.line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkvalve_protocol::id::BundleId;
    use checkvalve_protocol::ticket::{Data, Loss, Need, Subject};

    fn ticket(blocks: u32) -> Ticket {
        let data = Data::of_blocks((0..blocks).map(|i| (i * 977, Need::Symbols(1 + (i % 7) as u16))));
        let subject = Subject::Bundle { bundle: BundleId(0x0123_4567_89ab_cdef), announce: false, hashes: true, data };
        Ticket::new(subject, Loss::of(1, 100)).unwrap()
    }

    #[test]
    fn typed_line_by_line_it_ends_by_itself_and_a_wrong_line_is_named() {
        let ticket = ticket(30);
        let text = ticket.to_text().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() > 3);
        let mut so_far = String::new();
        for (at, line) in lines.iter().enumerate() {
            if at == 2 {
                let mut bad: Vec<char> = line.chars().collect();
                bad[6] = if bad[6] == 'Z' { 'Y' } else { 'Z' };
                let bad = format!("{so_far}{}\n", bad.iter().collect::<String>());
                let Typed::Again(why) = typed(&bad) else { panic!() };
                assert!(why.starts_with("line 3 is wrong: group 2 is"), "{why}");
            }
            so_far += &line.to_lowercase();
            so_far.push('\n');
            assert_eq!(typed(&so_far), if at + 1 == lines.len() { Typed::Last } else { Typed::More }, "{at}");
        }
    }

    #[test]
    fn every_way_of_giving_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (ticket(1), ticket(9));
        let text = format!("# said by a person\n{}\n# and\n{}", one.to_text().unwrap(), two.to_text().unwrap());
        let path = dir.path().join("both");
        std::fs::write(&path, &text).unwrap();
        let path = path.to_str().unwrap().to_owned();
        assert_eq!(read(&[path]).unwrap(), [one.clone(), two]);
        let words: Vec<String> = one.to_text().unwrap().split_whitespace().map(str::to_owned).collect();
        assert_eq!(read(&words).unwrap(), std::slice::from_ref(&one));
        assert_eq!(read(&[words.join("-")]).unwrap(), [one]);
        let said = |value: &str| {
            let error = read(&[value.to_owned()]).unwrap_err();
            (error.exit(), error.to_string())
        };
        let (exit, text) = said("no/such.png");
        assert_eq!((exit, text.as_str()), (Exit::NoInput, "no/such.png: no such file"));
        let (exit, text) = said("AAAA BBBB");
        assert_eq!(exit, Exit::DataErr);
        assert!(text.starts_with("the command line is no ticket: line 1 "), "{text}");
        let noise = dir.path().join("noise");
        std::fs::write(&noise, [0xff; 100]).unwrap();
        assert!(said(noise.to_str().unwrap()).1.ends_with("is neither text nor a PNG or JPEG picture"));
        std::fs::write(&noise, b"\x89PNG\r\n\x1a\nbroken").unwrap();
        assert_eq!(said(noise.to_str().unwrap()).0, Exit::DataErr);
    }
}
