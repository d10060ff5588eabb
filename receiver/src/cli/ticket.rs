//! `ticket`: what is lacking, as text that a person carries to the sender, or as a QR code.

mod picture;

use std::path::{Path, PathBuf};

use checkvalve_host::exit::Exit;
use checkvalve_host::input::{self, Typed};
use checkvalve_host::log::escape_path;
use checkvalve_host::progress::{counted, human_bytes, human_rate};
use checkvalve_protocol::ticket::{ParseError, Ticket};
use clap::{Args as ClapArgs, Subcommand};
use serde_json::json;

use super::{CommandError, ask, say, say_json};
use crate::config::Config;
use crate::control::{Request, Tickets};
use crate::delivery::ticket::TicketView;

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    /// CHANNEL/SEQUENCE, or the first digits of an id (`status` shows both).
    #[arg(required_unless_present = "all")]
    bundle: Vec<String>,
    /// Of every bundle that is incomplete or missing.
    #[arg(long, conflicts_with = "bundle")]
    all: bool,
    /// Show it as a QR code too, light on dark as terminals are.
    #[arg(long)]
    qr: bool,
    /// Write the QR code into a PNG picture; several tickets go to FILE-1.png, FILE-2.png …
    #[arg(long, value_name = "FILE")]
    png: Option<PathBuf>,
    /// Write the QR code into an SVG picture, likewise.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Most lines of a ticket. Where what is lacking does not fit, the ticket asks for more than that, and says so.
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(2..=1_023))]
    max_lines: u16,
    #[command(subcommand)]
    command: Option<TicketCommand>,
}

#[derive(Debug, Subcommand)]
enum TicketCommand {
    /// Print in words what a ticket asks for and what every bit of it means, for who reviews what leaves the high side. Needs
    /// neither daemon nor configuration.
    Explain {
        /// The ticket: its text, a file, or `-` for standard input.
        #[arg(value_name = "TICKET")]
        ticket: Vec<String>,
    },
}

pub(super) fn ticket(args: &Args, config: &Path, json: bool) -> Result<(), CommandError> {
    if let Some(TicketCommand::Explain { ticket }) = &args.command {
        return explain(ticket, json);
    }
    let config = Config::peek(config)?;
    let request = Request::Ticket { bundles: args.bundle.clone(), max_lines: args.max_lines.into() };
    let answer: Tickets = ask(&config, &request)?;
    if json {
        say_json(&answer)?;
    } else if answer.tickets.is_empty() {
        // A comment, as those of tickets, since it goes where a ticket would.
        match answer.receiving.join(", ") {
            _ if answer.silent => {
                let text = "nothing is known to be lacking, but no beacon of the sender is heard: what was sent meanwhile is not known of. \
                            After a start, ask again in a few seconds; else see `checkvalve-receiver status`";
                return Err(CommandError::new(Exit::TempFail, text));
            }
            none if none.is_empty() => say("# nothing is lacking"),
            some => say(format_args!("# nothing is lacking so far; not over yet: {some}")),
        }
    }
    let count = answer.tickets.len();
    for (number, view) in (1..).zip(&answer.tickets) {
        if !json {
            if number > 1 {
                say("");
            }
            say(text(view).trim_end());
        }
        if args.qr || args.png.is_some() || args.svg.is_some() {
            let code = picture::QrPicture::new(&view.text).map_err(|why| CommandError::new(Exit::DataErr, why))?;
            if args.qr && !json {
                say(code.terminal());
            }
            for (path, bytes) in
                [(&args.png, picture::QrPicture::png as fn(&_) -> _), (&args.svg, picture::QrPicture::svg)]
            {
                let Some(path) = path.as_ref().map(|path| numbered(path, number, count)) else { continue };
                let bytes: Vec<u8> = bytes(&code);
                std::fs::write(&path, bytes).map_err(|e| CommandError::io(escape_path(&path), &e))?;
            }
        }
    }
    Ok(())
}

/// Comments for people, which the sender passes over, and the ticket.
fn text(view: &TicketView) -> String {
    let TicketView { bundle, name, lacking, text, .. } = view;
    let space = if name.is_empty() { "" } else { " " };
    let mut out = format!("# {bundle}{space}{name} lacks {lacking}.\n");
    if let (Some(lacks), Some(asked), Some(total), Some(size)) =
        (view.symbols_lacking, view.symbols_asked, view.symbols_total, view.symbol_size)
    {
        let bytes = |symbols: u64| human_bytes(symbols * u64::from(size));
        out += &format!("# It asks for {} of {} to be sent again", bytes(asked), bytes(total));
        if view.rate_bits > 0 {
            let seconds = asked as f64 * (f64::from(size) + 130.0) * 8.0 / view.rate_bits as f64;
            let time = if seconds < 1.0 { "less than a second".to_owned() } else { format!("{seconds:.0} s") };
            out += &format!(", {time} at {}", human_rate(view.rate_bits));
        }
        out += ", and a margin.\n";
        if asked > lacks {
            out += &format!(
                "# That is {} more than is lacking, to fit into {} (--max-lines).\n",
                bytes(asked - lacks),
                counted(view.lines as u64, "line")
            );
        }
    }
    out += "# On the other side: checkvalve-sender resend --ticket\n";
    out + text
}

fn numbered(path: &Path, number: usize, count: usize) -> PathBuf {
    if count < 2 {
        return path.to_owned();
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn explain(values: &[String], json: bool) -> Result<(), CommandError> {
    let typed = |text: &str| match Ticket::parse(text) {
        Ok(_) => Typed::Last,
        Err(ParseError::Whole | ParseError::Empty) => Typed::More,
        Err(error) => Typed::Again(format!("{error}; type that line again.")),
    };
    let given = input::gather(values, typed).map_err(|error| CommandError::new(Exit::NoInput, error.to_string()))?;
    for given in given {
        let text = String::from_utf8_lossy(&given.bytes);
        let tickets = Ticket::parse(&text).map(|ticket| vec![ticket]);
        let tickets = tickets.or_else(|error| Ticket::parse_all(&text).map_err(|_| error));
        let wrong = |error| CommandError::new(Exit::DataErr, format!("{} is no ticket: {error}", given.from));
        for ticket in tickets.map_err(wrong)? {
            if json {
                say_json(&json!({ "ticket": ticket.to_text(), "lines": ticket.lines(), "words": ticket.explain() }))?;
            } else {
                say(ticket.explain());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pictures_have_numbers() {
        assert_eq!(numbered(Path::new("/a/t.png"), 1, 1), Path::new("/a/t.png"));
        assert_eq!(numbered(Path::new("/a/t.png"), 2, 3), Path::new("/a/t-2.png"));
        assert_eq!(numbered(Path::new("t"), 3, 3), Path::new("t-3"));
    }

    #[test]
    fn what_it_prints_is_read_back() {
        use checkvalve_protocol::id::BundleId;
        use checkvalve_protocol::ticket::{Data, Loss, Need, Subject};
        let data = Data::of_blocks((0..40).map(|i| (i * 31, Need::Symbols(3))));
        let subject = Subject::Bundle { bundle: BundleId(7), announce: false, hashes: true, data };
        let ticket = Ticket::new(subject, Loss::UNKNOWN).unwrap();
        let view = TicketView {
            bundle: "default/1".into(),
            name: "x".into(),
            text: ticket.to_text().unwrap(),
            lines: ticket.lines(),
            lacking: "things".into(),
            symbols_lacking: Some(120),
            symbols_asked: Some(130),
            symbols_total: Some(5_000_000),
            symbol_size: Some(1_408),
            rate_bits: 900_000_000,
            loss: "unknown".into(),
        };
        let said = text(&view);
        assert!(said.starts_with("# default/1 x lacks things.\n# It asks for "), "{said}");
        assert_eq!(Ticket::parse(&said).unwrap(), ticket);
        let code = picture::QrPicture::new(&view.text).unwrap();
        assert!(code.png().starts_with(b"\x89PNG") && code.svg().starts_with(b"<?xml"));
        assert!(code.terminal().lines().count() > 10);
    }
}
