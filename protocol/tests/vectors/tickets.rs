//! Tickets. Their files were made by another implementation, written from `SPEC.md` alone.

use std::fs;

use checkvalve_protocol::ticket::{Data, Need, ParseError, Subject, Ticket};
use toml::{Table, Value};

use crate::cases::{fields, number};
use crate::{folder, table, text};

/// What was read, every field of it.
fn describe(ticket: &Ticket) -> Table {
    let loss = (0..16).find(|&code| ticket.loss().at_most_ppm() == at_most_ppm(code)).unwrap();
    let mut value = match ticket.subject() {
        Subject::Sequences { channel, first, count } => fields([
            ("channel", Value::String(channel.to_string())),
            ("first", number(*first)),
            ("count", number(*count)),
        ]),
        Subject::Bundle { bundle, announce, hashes, data } => {
            let data = match data {
                Data::Nothing => Value::String("nothing".into()),
                Data::All => Value::String("all".into()),
                Data::Ranges(ranges) => {
                    let ranges = ranges.iter().map(|lack| {
                        let need = match lack.need {
                            Need::Whole => 0,
                            Need::Symbols(n) => n,
                        };
                        Value::Table(fields([
                            ("first", number(lack.first.into())),
                            ("blocks", number(lack.blocks.into())),
                            ("need", number(need.into())),
                        ]))
                    });
                    Value::Array(ranges.collect())
                }
            };
            fields([
                ("bundle", Value::String(bundle.to_string())),
                ("announce", Value::Boolean(*announce)),
                ("hashes", Value::Boolean(*hashes)),
                ("data", data),
            ])
        }
    };
    value.insert("loss".into(), Value::Integer(loss));
    value
}

/// The steps of loss as `SPEC.md` has them, in parts in a million.
fn at_most_ppm(code: i64) -> Option<u32> {
    let per_mille = [0, 1, 2, 5, 10, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1_000];
    usize::try_from(code - 1).ok().map(|step| per_mille[step] * 1_000)
}

#[test]
fn every_ticket_holds() {
    let mut count = 0;
    for file in fs::read_dir(folder().join("ticket")).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let file = table(&path);
        let typed = text(&file, "text");
        match Ticket::parse(typed) {
            Ok(ticket) => {
                assert_eq!((text(&file, "expect"), name.starts_with("good-")), ("ok", true), "{name}");
                assert_eq!(Some(&describe(&ticket)), file["value"].as_table(), "{name}");
                let written = ticket.to_text().unwrap();
                assert!(name == "good-typed" || written == typed, "{name}: {written}");
            }
            Err(error) => {
                assert_eq!(
                    (text(&file, "expect"), name.starts_with("good-")),
                    (error.rule(), false),
                    "{name}: {error}"
                );
                if let ParseError::Lines(wrong) = error {
                    let wrong = wrong.iter().map(|w| Value::Integer(w.line as i64)).collect();
                    assert_eq!(file["lines"], Value::Array(wrong), "{name}");
                }
            }
        }
        assert!(text(&file, "why").len() >= 8, "{name} says why");
        count += 1;
    }
    assert!(count > 30, "{count}");
}
