//! The part `curve`: how often a bundle of 1 GiB completes in one pass, by random loss and by length of a burst, for
//! several amounts of repair, beside a code that needs no symbol more than K in any block.
//!
//! There are no link and no daemons. The schedule says in which order symbols leave, a seeded generator loses some of them, and
//! the real decoder decides about blocks that got few more than K symbols.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use checkvalve_protocol::fec::{self, FecError, Plans};
use checkvalve_protocol::id::BundleId;
use checkvalve_protocol::time::Time;
use checkvalve_protocol::transmit::schedule::{Block, Schedule};
use checkvalve_protocol::transmit::{Link, Parameters, Selection, Task, Work, WorkShape};
use checkvalve_protocol::wire::ObjectKind;
use plotters::prelude::{
    ChartBuilder, IntoDrawingArea, IntoFont, LineSeries, PathElement, RGBColor, SVGBackend, SeriesLabelPosition, WHITE,
};
use plotters::style::Color as _;

use super::Plan;
use super::noise::{Noise, watched};
use super::report::{Figure, Section, Target};
use crate::rng::Rng;

const BUNDLE: u64 = 1 << 30;
const RATE: u64 = 900_000_000;
const BURST: Duration = Duration::from_millis(10);
const REPAIR: [u8; 4] = [2, 5, 10, 20];
/// Per cent of the datagrams.
const LOSS: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 8.5, 9.0, 9.5, 10.0];
/// Lengths of bursts, in milliseconds.
const BURSTS: [f64; 14] = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 11.0, 12.0, 13.0, 15.0, 20.0, 25.0, 30.0, 40.0];
/// T of the blocks given to the decoder. Whether a block decodes does not depend on T.
const SIZE: u16 = 64;
/// This many symbols beyond K always suffice, as far as a bench can tell (RFC 6330: each further one fails a hundredth as often).
const CERTAIN: u32 = 4;

/// One pass over a bundle: its symbols in the order in which they leave.
struct Pass {
    /// Block and ESI.
    order: Vec<(u32, u32)>,
    blocks: Vec<Shape>,
    parameters: Parameters,
}

struct Shape {
    source: u16,
    sent: u32,
    /// Positions in `order`.
    at: Vec<u32>,
}

/// Completed bundles, as a share, by what was lost.
struct Curve {
    repair: u8,
    points: Vec<Point>,
}

struct Point {
    lost: f64,
    complete: f64,
    ideal: f64,
}

/// The part `curve`. Pictures go to `plan.pictures`.
pub fn run(plan: &Plan) -> Section {
    let about = "bundles of 1 GiB that complete in one pass; mtu 1500, 900 Mbit/s, burst = \"10 ms\"; simulated losses";
    let mut section = Section { name: "curve", about: about.to_owned(), ..Section::default() };
    let trials = if plan.quick { 10 } else { 40 * u32::try_from(plan.repetitions).unwrap_or(1) };
    let plans = Plans::new();
    let (mut by_loss, mut by_burst) = (Vec::new(), Vec::new());
    for repair in REPAIR {
        let pass = Pass::new(repair);
        let mut rng = Rng::new(u64::from(repair));
        let mut points = Vec::new();
        for loss in LOSS {
            let (complete, noise) = watched(|| pass.share(trials, &plans, &mut |order| random(order, loss, &mut rng)));
            points.push(Point { lost: loss, complete, ideal: pass.ideal(loss / 100.0) });
            add(&mut section, &format!("repair {repair} %, {loss} % lost at random"), &points, noise);
        }
        by_loss.push(Curve { repair, points });
        let mut points = Vec::new();
        for burst in BURSTS {
            let length = pass.datagrams(burst);
            let (complete, noise) =
                watched(|| pass.share(trials, &plans, &mut |order| at_once(order, length, &mut rng)));
            let ideal = f64::from(u8::from(length <= pass.spare()));
            points.push(Point { lost: burst, complete, ideal });
            add(&mut section, &format!("repair {repair} %, one burst of {burst} ms"), &points, noise);
        }
        by_burst.push(Curve { repair, points });
    }
    let (extra, noise) = watched(|| beyond_k(if plan.quick { 300 } else { 3_000 }, &plans));
    let mut figure = Figure::new("symbols needed beyond K, 5 % lost", "").steady().target(Target::Value(0.0, 0.1));
    figure.add(extra, noise);
    section.figures.push(figure);
    if let Some(directory) = &plan.pictures {
        let drawn = draw(&directory.join("loss.svg"), "datagrams lost at random, %", &by_loss)
            .and_then(|()| draw(&directory.join("burst.svg"), "one burst, ms", &by_burst))
            .and_then(|()| {
                std::fs::write(directory.join("loss.md"), tables(&by_loss, &by_burst)).map_err(|e| e.to_string())
            });
        if let Err(error) = drawn {
            section.problems.push(format!("{}: {error}", directory.display()));
        }
    }
    section
}

fn add(section: &mut Section, name: &str, points: &[Point], noise: Noise) {
    let Some(point) = points.last() else { return };
    let mut figure = Figure::new(name, "% complete").steady().against("ideal");
    figure.add_beside(point.complete * 100.0, point.ideal * 100.0, noise);
    section.figures.push(figure);
}

impl Pass {
    fn new(repair: u8) -> Self {
        let link = Link { mtu: 1500, rate: RATE, repair: f64::from(repair) / 100.0, burst: BURST, memory: 96 << 20 };
        let parameters = Parameters::derive(&link).expect("a usual link");
        let shape = WorkShape {
            bundle: BundleId(1),
            announce_len: 400,
            data_len: BUNDLE,
            selection: Selection::All,
            first_esi: 0,
        };
        let mut work = Work::new(&parameters, &shape).expect("a usual bundle");
        let mut schedule = Schedule::new(BURST + BURST / 4);
        let stream = schedule.open(work.stream(0));
        let mut pass = Self { order: Vec::new(), blocks: Vec::new(), parameters };
        let mut numbers = BTreeMap::new();
        let (mut now, mut closing, mut closed) = (Time(1), false, false);
        // Nanoseconds for one datagram.
        let step = parameters.wire_len() as u64 * 8_000_000_000 / RATE;
        loop {
            while !closed && schedule.held() < parameters.depth() as usize + 8 {
                let task = if closing { work.next_closing() } else { work.next_task() };
                match task {
                    Some(task) => schedule.push(stream, pass.block(&task)),
                    None if !closing => {
                        closing = true;
                        work.hashes(400).expect("a usual length");
                    }
                    None => {
                        schedule.close(stream);
                        closed = true;
                    }
                }
            }
            let (order, blocks) = (&mut pass.order, &mut pass.blocks);
            let sent = schedule.next(now, None, |symbol, _| {
                let number = *numbers.entry((symbol.kind as u8, symbol.sbn)).or_insert_with(|| {
                    let source = symbol.oti.block_symbols(symbol.sbn).unwrap_or(0);
                    blocks.push(Shape { source, sent: 0, at: Vec::new() });
                    u32::try_from(blocks.len() - 1).expect("thousands")
                });
                let shape = &mut blocks[number as usize];
                shape.sent += 1;
                shape.at.push(u32::try_from(order.len()).expect("a million"));
                order.push((number, symbol.esi));
            });
            while schedule.poll_spent().is_some() {}
            match (sent, schedule.next_due()) {
                (true, _) => now = now + Duration::from_nanos(step),
                (false, Some(due)) => now = due,
                (false, None) => return pass,
            }
        }
    }

    /// A block to be sent; its bytes do not matter.
    fn block(&self, task: &Task) -> Block {
        let size = usize::from(self.parameters.symbol_size());
        let symbols = task.symbol.oti.block_symbols(task.symbol.sbn).unwrap_or(0);
        let source = if task.source { usize::from(symbols) * size } else { 0 };
        Block {
            symbol: task.symbol,
            source: vec![0; source],
            repair: vec![0; task.repair as usize * size],
            deferred: task.deferred,
            express: task.symbol.kind != ObjectKind::Data,
            repair_esi: if task.source { symbols.into() } else { task.symbol.esi },
        }
    }

    /// How many of the trials complete.
    fn share(&self, trials: u32, plans: &Plans, lose: &mut dyn FnMut(usize) -> Vec<bool>) -> f64 {
        let complete = (0..trials).filter(|_| self.completes(&lose(self.order.len()), plans)).count();
        complete as f64 / f64::from(trials)
    }

    fn completes(&self, lost: &[bool], plans: &Plans) -> bool {
        self.blocks.iter().all(|block| {
            let came = |at: &&u32| !lost[**at as usize];
            let received = u32::try_from(block.at.iter().filter(came).count()).expect("thousands");
            let needed = u32::from(block.source);
            if received < needed || received >= needed + CERTAIN {
                return received >= needed;
            }
            let esis: Vec<u32> = block.at.iter().filter(came).map(|at| self.order[*at as usize].1).collect();
            decodes(block.source, &esis, plans)
        })
    }

    /// How often all blocks would complete with a code that needs no symbol beyond K.
    fn ideal(&self, loss: f64) -> f64 {
        let mut known: BTreeMap<(u16, u32), f64> = BTreeMap::new();
        self.blocks
            .iter()
            .map(|b| *known.entry((b.source, b.sent)).or_insert_with(|| at_least(b.source.into(), b.sent, 1.0 - loss)))
            .product()
    }

    /// How many datagrams leave within `ms` milliseconds.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "thousands")]
    fn datagrams(&self, ms: f64) -> usize {
        (ms / 1e3 * RATE as f64 / 8.0 / self.parameters.wire_len() as f64).ceil() as usize
    }

    /// How many more symbols the pass has than its blocks have source symbols.
    fn spare(&self) -> usize {
        self.order.len() - self.blocks.iter().map(|block| usize::from(block.source)).sum::<usize>()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2³²")]
fn random(order: usize, per_cent: f64, rng: &mut Rng) -> Vec<bool> {
    let bound = (per_cent / 100.0 * f64::from(u32::MAX)) as u64;
    (0..order).map(|_| (rng.next_u64() >> 32) < bound).collect()
}

fn at_once(order: usize, length: usize, rng: &mut Rng) -> Vec<bool> {
    let from = usize::try_from(rng.below((order + length) as u64)).expect("a million");
    (0..order).map(|at| at + length > from && at <= from).collect()
}

/// Whether a block of `source` symbols can be decoded from the symbols with these ESIs.
fn decodes(source: u16, esis: &[u32], plans: &Plans) -> bool {
    let whole: Vec<u8> = (0..usize::from(source) * usize::from(SIZE)).map(|i| ((i * 31) >> 3) as u8).collect();
    let mut have = vec![false; source.into()];
    let mut repair = Vec::new();
    for &esi in esis {
        match have.get_mut(esi as usize) {
            Some(have) => *have = true,
            None => {
                let mut symbol = Vec::new();
                fec::encode(plans, &whole, SIZE, esi, 1, &mut symbol).expect("a repair symbol");
                repair.push((esi, symbol));
            }
        }
    }
    let mut block = whole.clone();
    for (symbol, _) in block.chunks_mut(SIZE.into()).zip(&have).filter(|(_, have)| !**have) {
        symbol.fill(0);
    }
    let received = repair.iter().map(|(esi, symbol)| (*esi, symbol.as_slice()));
    match fec::decode(plans, &mut block, SIZE, |esi| have[usize::from(esi)], received) {
        Ok(()) => {
            assert!(block == whole, "decoded to something else");
            true
        }
        Err(FecError::NotEnough) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Symbols beyond K that a block needs on average, when 5 % of its symbols are lost.
fn beyond_k(blocks: u32, plans: &Plans) -> f64 {
    const K: u16 = 256;
    let mut rng = Rng::new(5);
    let mut extra = 0;
    for _ in 0..blocks {
        let mut esis: Vec<u32> = (0..u32::from(K)).filter(|_| !rng.chance(50)).collect();
        let lacking = usize::from(K) - esis.len();
        let mut repair = (u32::from(K)..).filter(|_| !rng.chance(50));
        esis.extend(repair.by_ref().take(lacking));
        while !decodes(K, &esis, plans) {
            esis.extend(repair.next());
            extra += 1;
        }
    }
    f64::from(extra) / f64::from(blocks)
}

/// How likely `n` trials of probability `p` succeed `k` times or more.
fn at_least(k: u32, n: u32, p: f64) -> f64 {
    if p >= 1.0 {
        return f64::from(u8::from(n >= k));
    }
    // Sums from n successes downwards.
    let (mut term, mut sum) = (f64::from(n) * p.ln(), 0.0);
    for successes in (k..=n).rev() {
        sum += term.exp();
        term += (f64::from(successes) / f64::from(n - successes + 1)).ln() + ((1.0 - p) / p).ln();
    }
    sum.min(1.0)
}

/// Both curves as tables, for a document.
fn tables(by_loss: &[Curve], by_burst: &[Curve]) -> String {
    let mut text = String::new();
    for (curves, what, unit) in [(by_loss, "lost at random", "%"), (by_burst, "one burst", "ms")] {
        let _ = write!(text, "| {what} |");
        for curve in curves {
            let _ = write!(text, " repair {} % | ideal |", curve.repair);
        }
        let _ = write!(text, "\n| ---: |{}\n", " ---: | ---: |".repeat(curves.len()));
        for at in 0..curves[0].points.len() {
            let _ = write!(text, "| {} {unit} |", curves[0].points[at].lost);
            for point in curves.iter().map(|curve| &curve.points[at]) {
                let _ = write!(text, " {:.1} | {:.1} |", point.complete * 100.0, point.ideal * 100.0);
            }
            text.push('\n');
        }
        text.push('\n');
    }
    text
}

/// A line for each amount of repair, the ideal code's beside it.
fn draw(path: &Path, below: &str, curves: &[Curve]) -> Result<(), String> {
    let colours = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
    let area = SVGBackend::new(path, (800, 420)).into_drawing_area();
    let most = curves[0].points.iter().map(|point| point.lost).fold(0.0, f64::max);
    let drawn = || -> Result<(), Box<dyn std::error::Error + '_>> {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..most, 0.0..100.0)?;
        let font = ("sans-serif", 14).into_font();
        chart.configure_mesh().x_desc(below).y_desc("bundles complete, %").label_style(font.clone()).draw()?;
        for (curve, colour) in curves.iter().zip(colours) {
            let points = |of: fn(&Point) -> f64| curve.points.iter().map(move |p| (p.lost, of(p) * 100.0));
            chart
                .draw_series(LineSeries::new(points(|p| p.complete), colour.stroke_width(2)))?
                .label(format!("repair {} %", curve.repair))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
            chart.draw_series(LineSeries::new(points(|p| p.ideal), colour.mix(0.4).stroke_width(6)))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .label_font(font)
            .draw()?;
        area.present()?;
        Ok(())
    };
    drawn().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ideal_code_is_a_binomial() {
        assert!((at_least(1, 1, 0.25) - 0.25).abs() < 1e-12);
        assert!((at_least(1, 2, 0.5) - 0.75).abs() < 1e-12);
        assert!((at_least(0, 9, 0.3) - 1.0).abs() < 1e-12);
        assert!(at_least(256, 269, 0.99) > 0.999 && at_least(256, 269, 0.9) < 0.01);
    }

    #[test]
    fn every_symbol_of_a_pass_is_sent_once() {
        let pass = Pass::new(5);
        let mut sent = pass.order.clone();
        sent.sort_unstable();
        sent.dedup();
        assert_eq!(sent.len(), pass.order.len());
        let source: u64 = pass.blocks.iter().map(|block| u64::from(block.source)).sum();
        assert!(source > BUNDLE / u64::from(pass.parameters.symbol_size()) && pass.spare() as u64 > source / 21);
        assert!(pass.completes(&vec![false; pass.order.len()], &Plans::new()));
        assert!(!pass.completes(&random(pass.order.len(), 20.0, &mut Rng::new(1)), &Plans::new()));
    }
}
