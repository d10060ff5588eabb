//! Figures beside their ceilings and targets: a table for people, JSON for programs.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::noise::{self, Noise};
use super::stats::Series;

/// Above this spread (largest minus smallest, as a share of the median), figures on both sides of a target prove nothing.
const SPREAD: f64 = 0.15;

/// One thing that was measured several times.
#[derive(Clone, Debug, Default)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its unit, as printed.
    pub unit: &'static str,
    /// Every measurement.
    pub samples: Vec<Sample>,
    /// The name of the ceiling or floor that the ratio refers to, if there is one.
    pub against: String,
    /// What it should be.
    pub target: Option<Target>,
    /// Whether it is a count or a size that does not depend on a quiet machine.
    pub steady: bool,
    /// A remark that is needed to understand it.
    pub note: String,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// What was measured.
    pub value: f64,
    /// The value to compare it with, measured right before it, if there is one.
    pub ceiling: Option<f64>,
    /// How quiet the machine was.
    pub noise: Noise,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The median of the value, from and to.
    Value(f64, f64),
    /// The median of the ratio, from and to.
    Ratio(f64, f64),
}

/// What a figure says about its target.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// There is no target.
    NoTarget,
    /// The target is met.
    Met,
    /// The target is missed.
    Missed,
    /// The measurements are inconclusive, for this reason.
    Noisy(String),
}

/// What one part of the bench found.
#[derive(Clone, Debug, Default)]
pub struct Section {
    /// The part, in a word.
    pub name: &'static str,
    /// How it was measured.
    pub about: String,
    /// What was found.
    pub figures: Vec<Figure>,
    /// What could not be measured.
    pub problems: Vec<String>,
}

impl Figure {
    /// A figure without measurements yet.
    pub fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self { name: name.into(), unit, ..Self::default() }
    }

    /// Compares the figure with `name`.
    #[must_use]
    pub fn against(mut self, name: impl Into<String>) -> Self {
        self.against = name.into();
        self
    }

    /// Sets the target.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// Marks the figure as independent of a quiet machine.
    #[must_use]
    pub fn steady(mut self) -> Self {
        self.steady = true;
        self
    }

    /// Adds a measurement that has no ceiling.
    pub fn add(&mut self, value: f64, noise: Noise) {
        self.samples.push(Sample { value, ceiling: None, noise });
    }

    /// Adds a measurement beside its ceiling.
    pub fn add_beside(&mut self, value: f64, ceiling: f64, noise: Noise) {
        self.samples.push(Sample { value, ceiling: Some(ceiling), noise });
    }

    /// What was measured.
    pub fn values(&self) -> Series {
        Series(self.samples.iter().map(|sample| sample.value).collect())
    }

    /// Each measurement by its own ceiling.
    pub fn ratios(&self) -> Series {
        let ratio = |sample: &Sample| Some(sample.value / sample.ceiling.filter(|ceiling| *ceiling > 0.0)?);
        Series(self.samples.iter().filter_map(ratio).collect())
    }

    /// Whether the target is met.
    pub fn verdict(&self) -> Verdict {
        let noise: Vec<Noise> = self.samples.iter().map(|sample| sample.noise).collect();
        let noise = noise::verdict(&noise).filter(|_| !self.steady);
        let (judged, from, to) = match self.target {
            None => return noise.map_or(Verdict::NoTarget, Verdict::Noisy),
            Some(Target::Value(from, to)) => (self.values(), from, to),
            Some(Target::Ratio(from, to)) => (self.ratios(), from, to),
        };
        let met = |value: f64| (from..=to).contains(&value);
        let mixed = judged.0.iter().any(|value| met(*value)) && !judged.0.iter().all(|value| met(*value));
        match noise {
            Some(why) => Verdict::Noisy(why),
            None if judged.0.is_empty() => Verdict::Noisy("nothing was measured".to_owned()),
            None if mixed && judged.spread() > SPREAD => {
                Verdict::Noisy(format!("the repetitions differ by {:.0} %", judged.spread() * 100.0))
            }
            None if met(judged.median()) => Verdict::Met,
            None => Verdict::Missed,
        }
    }

    /// As it is written to the results.
    pub fn json(&self) -> Value {
        let (values, ratios) = (self.values(), self.ratios());
        let ceilings = Series(self.samples.iter().filter_map(|sample| sample.ceiling).collect());
        let summary = |series: &Series| json!({ "median": series.median(), "min": series.min(), "max": series.max() });
        let verdict = self.verdict();
        json!({
            "name": self.name,
            "unit": self.unit,
            "value": summary(&values),
            "values": values.0,
            "against": (!self.against.is_empty()).then_some(&self.against),
            "ceiling": (!ceilings.0.is_empty()).then(|| summary(&ceilings)),
            "ratio": (!ratios.0.is_empty()).then(|| summary(&ratios)),
            "ratios": ratios.0,
            "target": self.target.map(|target| target.json()),
            "verdict": verdict.word(),
            "noisy_because": if let Verdict::Noisy(why) = verdict { Some(why) } else { None },
            "note": (!self.note.is_empty()).then_some(&self.note),
            "noise": self.samples.iter().map(|sample| sample.noise.json()).collect::<Vec<_>>(),
        })
    }

    fn columns(&self) -> [String; 7] {
        let (values, ratios) = (self.values(), self.ratios());
        let ceilings = Series(self.samples.iter().filter_map(|sample| sample.ceiling).collect());
        let beside = match (self.against.as_str(), ceilings.0.is_empty()) {
            ("", _) => String::new(),
            (name, true) => name.to_owned(),
            (name, false) => format!("{name} {}", short(ceilings.median())),
        };
        let verdict = match self.verdict() {
            Verdict::Noisy(why) => format!("too noisy to tell: {why}"),
            other => other.word().to_owned(),
        };
        let [value, ratio] = [&values, &ratios].map(|series| match series.0.len() {
            0 => String::new(),
            _ => short(series.median()),
        });
        let unit = if values.0.is_empty() { "not measured" } else { self.unit };
        [
            self.name.clone(),
            format!("{value} {unit}"),
            span(&values),
            beside,
            if ratio.is_empty() { ratio } else { format!("× {ratio} {}", span(&ratios)) },
            self.target.map(Target::text).unwrap_or_default(),
            verdict,
        ]
    }
}

impl Target {
    /// A value of `from` or more.
    pub fn at_least(from: f64) -> Self {
        Self::Value(from, f64::INFINITY)
    }

    /// A value of `to` or less.
    pub fn at_most(to: f64) -> Self {
        Self::Value(f64::NEG_INFINITY, to)
    }

    /// A ratio of `from` or more.
    pub fn ratio_at_least(from: f64) -> Self {
        Self::Ratio(from, f64::INFINITY)
    }

    /// A ratio of `to` or less.
    pub fn ratio_at_most(to: f64) -> Self {
        Self::Ratio(f64::NEG_INFINITY, to)
    }

    fn text(self) -> String {
        let (sign, from, to) = match self {
            Self::Value(from, to) => ("", from, to),
            Self::Ratio(from, to) => ("× ", from, to),
        };
        match (from.is_finite(), to.is_finite()) {
            (true, true) => format!("{sign}{}–{}", short(from), short(to)),
            (true, false) => format!("≥ {sign}{}", short(from)),
            (false, _) => format!("≤ {sign}{}", short(to)),
        }
    }

    fn json(self) -> Value {
        let (of, from, to) = match self {
            Self::Value(from, to) => ("value", from, to),
            Self::Ratio(from, to) => ("ratio", from, to),
        };
        // An open end is null: JSON has no infinity.
        json!({ "of": of, "from": from.is_finite().then_some(from), "to": to.is_finite().then_some(to) })
    }
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Self::NoTarget => "",
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Noisy(_) => "noisy",
        }
    }
}

impl Section {
    /// As it is printed: figures in columns, then what is wrong with them.
    pub fn table(&self) -> String {
        let head = ["", "median", "min–max", "beside", "ratio", "target", ""].map(str::to_owned);
        let rows: Vec<[String; 7]> = std::iter::once(head).chain(self.figures.iter().map(Figure::columns)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        let mut text = format!("\n== {}: {}\n", self.name, self.about);
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        for figure in &self.figures {
            if !figure.note.is_empty() {
                let _ = writeln!(text, "   {}: {}", figure.name, figure.note);
            }
        }
        for problem in &self.problems {
            let _ = writeln!(text, "   PROBLEM: {problem}");
        }
        text
    }

    /// As it is written to the results.
    pub fn json(&self) -> Value {
        json!({
            "name": self.name,
            "about": self.about,
            "figures": self.figures.iter().map(Figure::json).collect::<Vec<_>>(),
            "problems": self.problems,
        })
    }
}

/// Smallest to largest; nothing for a single value.
fn span(series: &Series) -> String {
    if series.0.len() < 2 { String::new() } else { format!("{}–{}", short(series.min()), short(series.max())) }
}

/// A number with three significant digits.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Noise = Noise { spin: 900.0, others: 0.0, stolen: 0.0 };

    fn figure(values: &[f64], target: Target) -> Figure {
        let mut figure = Figure::new("mtu 1500", "Gbit/s").against("blast").target(target);
        values.iter().for_each(|value| figure.add_beside(*value, 2.0, QUIET));
        figure
    }

    #[test]
    fn targets_are_met_missed_or_undecided() {
        let least = Target::ratio_at_least(3.0);
        assert_eq!(figure(&[6.0, 6.1, 6.2], least).verdict(), Verdict::Met);
        assert_eq!(figure(&[5.0, 5.1, 5.2], least).verdict(), Verdict::Missed);
        assert_eq!(figure(&[5.9, 6.1, 6.2], least).verdict(), Verdict::Met, "close together");
        assert!(matches!(figure(&[5.0, 6.1, 7.0], least).verdict(), Verdict::Noisy(_)), "on both sides");
        assert!(matches!(figure(&[], least).verdict(), Verdict::Noisy(_)), "nothing measured");
        let mut noisy = figure(&[6.0, 6.1], least);
        noisy.samples[0].noise.others = 1.0;
        assert_eq!(noisy.verdict(), Verdict::Noisy("others used 1.00 cores".to_owned()));
        assert_eq!(noisy.steady().verdict(), Verdict::Met);
    }

    #[test]
    fn the_table_has_every_figure_in_columns() {
        let mut section = Section { name: "link", about: "whole daemons".to_owned(), ..Section::default() };
        section.figures.push(figure(&[5.0, 5.2, 5.1], Target::ratio_at_least(3.0)));
        section.problems.push("one did not arrive".to_owned());
        let table = section.table();
        assert!(
            table.contains("mtu 1500  5.10 Gbit/s  5.00–5.20  blast 2.00  × 2.55 2.50–2.60  ≥ × 3.00  missed"),
            "{table}"
        );
        assert!(table.contains("PROBLEM: one did not arrive"));
        let json = section.json();
        assert_eq!(json["figures"][0]["verdict"], "missed");
        assert_eq!(json["figures"][0]["target"]["to"], Value::Null);
    }
}
