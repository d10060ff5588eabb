//! Numbers for people, and a progress bar: one line that is redrawn on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Bytes with three digits: `0 B`, `999 B`, `1.50 KiB`, `64.0 MiB`. Powers of 1,024.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Bits a second with three digits: `0 bit/s`, `900 Mbit/s`, `2.50 Gbit/s`. Powers of 1,000.
#[must_use]
pub fn human_rate(bits_per_second: u64) -> String {
    scaled(bits_per_second as f64, 1000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s"])
}

/// A time in its two largest units: `850 ms`, `4.2 s`, `2 min 05 s`, `3 h 07 min`, `12 d 03 h`.
#[must_use]
pub fn human_duration(duration: Duration) -> String {
    let (ms, s) = (duration.as_millis(), duration.as_secs());
    match s {
        0 => format!("{ms} ms"),
        1..=9 => format!("{s}.{} s", ms % 1000 / 100),
        10..=59 => format!("{s} s"),
        60..=3_599 => format!("{} min {:02} s", s / 60, s % 60),
        3_600..=86_399 => format!("{} h {:02} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {:02} h", s / 86_400, s / 3_600 % 24),
    }
}

/// How many of something: `1 block`, `2 blocks`, `0 entries`, `3 passes`. `one` is the word for one of them.
#[must_use]
pub fn counted(count: u64, one: &str) -> String {
    let (stem, plural) = match one.as_bytes() {
        [.., before, b'y'] if !b"aeiou".contains(before) => (&one[..one.len() - 1], "ies"),
        [.., b's' | b'x' | b'z'] | [.., b's' | b'c', b'h'] => (one, "es"),
        _ => (one, "s"),
    };
    if count == 1 { format!("1 {one}") } else { format!("{count} {stem}{plural}") }
}

fn scaled(value: f64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    // What would be printed as 1000 of a decimal unit is 1.00 of the next.
    while unit + 1 < units.len() && value >= if base == 1000.0 { 999.5 } else { 1023.5 } {
        value /= base;
        unit += 1;
        if base == 1000.0 && value < 1.0 {
            value = 1.0;
        }
    }
    let decimals = if unit == 0 || value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", units[unit])
}

/// A bar for one thing that goes from 0 to a known number of bytes. It is drawn to `W`, a terminal or not.
pub struct Bar<W: Write> {
    out: W,
    /// Columns of the terminal; `None` if it is none.
    columns: Option<usize>,
    label: String,
    drawn: Option<Duration>,
    rate: Option<Rate>,
}

#[derive(Clone, Copy)]
struct Rate {
    since: Duration,
    done: u64,
    bytes_per_second: f64,
}

impl Bar<io::Stderr> {
    /// A bar on standard error. `label` says what goes on; bytes from outside are escaped by the caller.
    #[must_use]
    pub fn stderr(label: impl Into<String>) -> Self {
        let terminal = io::stderr().is_terminal();
        let columns = || rustix::termios::tcgetwinsize(io::stderr()).ok().map(|size| usize::from(size.ws_col));
        let columns = terminal.then(|| columns().filter(|&columns| columns > 0).unwrap_or(80));
        Self::new(io::stderr(), columns, label)
    }
}

impl<W: Write> Bar<W> {
    /// How often it is redrawn on a terminal at most.
    const REDRAW: Duration = Duration::from_millis(100);
    /// How often a line is written elsewhere at most.
    const REPEAT: Duration = Duration::from_secs(10);
    /// Over how long the rate is averaged.
    const AVERAGE: f64 = 3.0;

    /// A bar on `out`, a terminal of `columns` or, with `None`, a pipe or file.
    #[must_use]
    pub fn new(out: W, columns: Option<usize>, label: impl Into<String>) -> Self {
        Self { out, columns, label: label.into(), drawn: None, rate: None }
    }

    /// Shows `done` of `total` bytes, `elapsed` after the beginning. May be called as often as one likes. A terminal that
    /// does not take it is not an error.
    pub fn update(&mut self, elapsed: Duration, done: u64, total: u64) {
        self.measure(elapsed, done);
        let pause = if self.columns.is_some() { Self::REDRAW } else { Self::REPEAT };
        if self.drawn.is_some_and(|drawn| elapsed.saturating_sub(drawn) < pause) {
            return;
        }
        // Nothing is known yet that would be worth a line of a log.
        if self.columns.is_none() && self.drawn.is_none() && elapsed < Self::REPEAT {
            return;
        }
        self.drawn = Some(elapsed);
        let line = self.line(done, total);
        self.put(&line, false);
    }

    /// Takes the bar's place by a last line.
    pub fn finish(&mut self, text: &str) {
        let text = text.to_owned();
        self.put(&text, true);
    }

    fn put(&mut self, line: &str, last: bool) {
        // Nobody waits for a bar: what cannot be drawn is left out.
        let _ = match self.columns {
            Some(_) if last => writeln!(self.out, "\r\x1b[K{line}"),
            Some(columns) => write!(self.out, "\r\x1b[K{}", line.chars().take(columns - 1).collect::<String>()),
            None => writeln!(self.out, "{line}"),
        };
        let _ = self.out.flush();
    }

    fn measure(&mut self, elapsed: Duration, done: u64) {
        let Some(last) = self.rate else {
            self.rate = Some(Rate { since: elapsed, done, bytes_per_second: 0.0 });
            return;
        };
        let seconds = elapsed.saturating_sub(last.since).as_secs_f64();
        if seconds < 0.2 {
            return;
        }
        let now = done.saturating_sub(last.done) as f64 / seconds;
        let first = last.bytes_per_second == 0.0;
        let weight = if first { 1.0 } else { 1.0 - (-seconds / Self::AVERAGE).exp() };
        let bytes_per_second = last.bytes_per_second + weight * (now - last.bytes_per_second);
        self.rate = Some(Rate { since: elapsed, done, bytes_per_second });
    }

    fn line(&self, done: u64, total: u64) -> String {
        let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).min(1.0) };
        // Never 100 before it is all.
        let percent = if done < total { (share * 100.0).min(99.0) as u32 } else { 100 };
        let rate = self.rate.map_or(0.0, |rate| rate.bytes_per_second);
        let mut tail = format!("{percent:3} %  {} / {}", human_bytes(done), human_bytes(total));
        if rate >= 1.0 {
            tail += &format!("  {}", human_rate((rate * 8.0) as u64));
            if done < total {
                let left = Duration::try_from_secs_f64((total - done) as f64 / rate).unwrap_or(Duration::MAX);
                tail += &format!("  {} left", human_duration(left));
            }
        }
        let room =
            self.columns.map_or(0, |columns| columns.saturating_sub(self.label.chars().count() + tail.len() + 7));
        let width = room.min(40);
        if width < 8 {
            return format!("{}  {tail}", self.label);
        }
        let filled = (share * width as f64) as usize;
        format!("{}  [{}{}]  {tail}", self.label, "#".repeat(filled), "-".repeat(width - filled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        for (count, one, text) in [
            (1, "block", "1 block"),
            (0, "block", "0 blocks"),
            (2, "entry", "2 entries"),
            (3, "pass", "3 passes"),
            (2, "key", "2 keys"),
            (2, "later bundle", "2 later bundles"),
        ] {
            assert_eq!(counted(count, one), text);
        }
    }

    #[test]
    fn numbers_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_023, "1023 B"),
            (1_024, "1.00 KiB"),
            (1_536, "1.50 KiB"),
            (10_239, "10.0 KiB"),
            (64 << 20, "64.0 MiB"),
            (1_047_552, "1023 KiB"),
            ((1 << 20) - 1, "1.00 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human_bytes(bytes), text, "{bytes}");
        }
        for (bits, text) in [
            (0, "0 bit/s"),
            (999, "999 bit/s"),
            (1_000, "1.00 kbit/s"),
            (900_000_000, "900 Mbit/s"),
            (999_600_000, "1.00 Gbit/s"),
            (2_500_000_000, "2.50 Gbit/s"),
            (u64::MAX, "18.4 Ebit/s"),
        ] {
            assert_eq!(human_rate(bits), text, "{bits}");
        }
        for (ms, text) in [
            (0, "0 ms"),
            (850, "850 ms"),
            (4_290, "4.2 s"),
            (59_999, "59 s"),
            (125_000, "2 min 05 s"),
            (11_260_000, "3 h 07 min"),
            (1_047_600_000, "12 d 03 h"),
        ] {
            assert_eq!(human_duration(Duration::from_millis(ms)), text);
        }
        assert!(human_duration(Duration::MAX).contains(" d "));
    }

    fn run(columns: Option<usize>, total: u64, steps: u64) -> String {
        let mut out = Vec::new();
        let mut bar = Bar::new(&mut out, columns, "default/7 image.iso");
        for step in 0..=steps {
            bar.update(Duration::from_millis(step * 50), total * step / steps, total);
        }
        bar.finish("transmitted");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_gets_one_line_that_fits_it() {
        for columns in [1, 2, 20, 60, 80, 300] {
            let text = run(Some(columns), 1 << 30, 400);
            let lines: Vec<_> = text.split("\r\x1b[K").skip(1).collect();
            assert_eq!(lines.len(), 202, "drawn every 100 ms and once at the end");
            assert!(lines[..201].iter().all(|line| line.chars().count() < columns), "{columns}");
            assert_eq!((lines[201], text.matches('\n').count()), ("transmitted\n", 1));
        }
        let text = run(Some(100), 1000 << 20, 400);
        let half = text.split("\r\x1b[K").nth(101).unwrap();
        assert_eq!(
            half,
            "default/7 image.iso  [#############-------------]   50 %  500 MiB / 1000 MiB  419 Mbit/s  10 s left"
        );
    }

    #[test]
    fn a_pipe_gets_a_line_now_and_then() {
        let text = run(None, 1000 << 20, 1000);
        assert_eq!(text.lines().count(), 6, "{text}");
        assert!(text.starts_with("default/7 image.iso   20 %  200 MiB / 1000 MiB  168 Mbit/s  40 s left\n"), "{text}");
        assert!(!text.contains(['\r', '\x1b']));
        assert_eq!(run(None, 5, 10), "transmitted\n");
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let mut bar = Bar::new(io::sink(), Some(80), "x");
        for (at, done, total) in [(0, 0, 0), (5, 9, 3), (3, u64::MAX, 1), (900, 1, u64::MAX), (901, 0, u64::MAX)] {
            bar.update(Duration::from_secs(at), done, total);
            assert!(!bar.line(done, total).is_empty());
        }
        assert!(bar.line(999, 1000).contains(" 99 %") && bar.line(1000, 1000).contains("100 %"));
    }
}
