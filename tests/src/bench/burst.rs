//! The part `burst`: the longest outage that a bundle survives, by `fec.burst` and by where in the bundle it falls.

use std::fs::File;
use std::time::Duration;

use checkvalve_protocol::transmit::{Link, Parameters};

use super::Plan;
use super::noise::{Noise, watched};
use super::report::{Figure, Section, Target};
use super::transfer::put;
use super::wire::lose_once;
use crate::pair::Pair;
use crate::shell::wait_until;

/// Mbit/s: slow enough that nothing but the rule loses anything.
const RATE: u64 = 900;
const BUNDLE: u64 = 64 << 20;
/// Burst lengths to try, as multiples of the setting: upwards from 1 as long as the bundle survives, else downwards.
const UP: [f64; 8] = [1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0];
const DOWN: [f64; 5] = [0.9, 0.75, 0.5, 0.25, 0.1];

/// Where in a bundle's datagrams the burst is.
#[derive(Clone, Copy)]
enum Place {
    Start,
    Middle,
    End,
}

/// The part `burst`.
pub fn run(plan: &Plan) -> Section {
    let about = "longest outage survived, datagrams lost in a row, 64 MiB at 900 Mbit/s, 5 % repair, mtu 1500";
    let mut section = Section { name: "burst", about: about.to_owned(), ..Section::default() };
    let settings: &[u64] = if plan.quick { &[10] } else { &[1, 10, 50] };
    for &setting in settings {
        for (place, name) in
            [(Place::Start, "at the start"), (Place::Middle, "in the middle"), (Place::End, "at the end")]
        {
            let mut figure = Figure::new(format!("burst = \"{setting} ms\", {name}"), "ms").against("said");
            figure.target = Some(Target::ratio_at_least(1.0));
            match longest(setting, place) {
                Ok((survived, said, noise)) => figure.add_beside(survived, said, noise),
                Err(problem) => section.problems.push(format!("burst {setting} ms, {name}: {problem}")),
            }
            section.figures.push(figure);
        }
    }
    section
}

/// The milliseconds that a bundle survives, and those that `check-config` promises: fewer than the setting if `memory` limits it.
fn longest(setting: u64, place: Place) -> Result<(f64, f64, Noise), String> {
    let setup = Pair::setup().gso(false).on_tmpfs().rate(&format!("{RATE} Mbit/s"));
    let pair = setup.sender("fec.burst", format!("{setting} ms")).start();
    let checked = pair.sender_command(&["check-config", "--json"]).stdout;
    let checked: serde_json::Value = serde_json::from_slice(&checked).map_err(|error| error.to_string())?;
    let said = checked["survivable_burst_ms"].as_f64().ok_or("check-config says nothing of a burst")?;
    let before = pair.link.high_received();
    if !survives(&pair, 0, 0, 0) {
        return Err("the bundle does not arrive without any burst".to_owned());
    }
    // The number of the bundle's datagrams, without later beacons.
    let total = u32::try_from(pair.link.high_received() - before).map_err(|error| error.to_string())?;
    let (survived, noise) = watched(|| {
        let mut number = 0;
        let mut holds = |times: f64| {
            number += 1;
            let length = datagrams(said * times);
            let from = match place {
                Place::Start => 0,
                Place::Middle => total / 2,
                Place::End => total.saturating_sub(length),
            };
            survives(&pair, number, from, length)
        };
        let up = UP.iter().copied().take_while(|times| holds(*times)).last();
        up.or_else(|| DOWN.iter().copied().find(|times| holds(*times))).unwrap_or(0.0)
    });
    Ok((survived * said, said, noise))
}

/// Sends one bundle with that burst. Returns whether it arrives completely.
fn survives(pair: &Pair, number: u32, from: u32, length: u32) -> bool {
    let name = format!("bundle-{number}");
    let file = File::create(pair.place(&name)).expect("a file can be made");
    file.set_len(BUNDLE).expect("there is space");
    lose_once(&pair.link, from, length);
    put(pair, &name);
    let state = wait_until(Duration::from_secs(60), || {
        // Each status query takes processor time that the transfer needs.
        std::thread::sleep(Duration::from_millis(200));
        let state = pair.receiver_status()?.find("default", &name)?.state;
        // A lost bundle delays the hooks of later ones, but not their completion.
        ["complete", "installing", "installed", "incomplete"].contains(&state.as_str()).then_some(state)
    });
    state.is_some_and(|state| state != "incomplete")
}

/// How many datagrams leave within `ms` milliseconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
fn datagrams(ms: f64) -> u32 {
    let link = Link { mtu: 1500, rate: RATE * 1_000_000, repair: 0.05, burst: Duration::ZERO, memory: 128 << 20 };
    let bits = Parameters::derive(&link).expect("a usual link").wire_len() as f64 * 8.0;
    (as_float(RATE) * 1e3 * ms / bits).ceil() as u32
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn as_float(number: u64) -> f64 {
    number as f64
}
