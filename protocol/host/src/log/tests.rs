use std::sync::Arc;

use super::*;

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl io::Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged(style: Style, filter: &str, body: impl FnOnce()) -> String {
    let sink = Sink::default();
    let writer = sink.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(parse_filter(filter).unwrap())
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .event_format(style)
        .finish();
    tracing::subscriber::with_default(subscriber, body);
    String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn journal_lines_carry_a_priority_and_no_time() {
    let text = logged(Style::Journal, "trace", || {
        tracing::error!(errno = 5, "disk failed");
        tracing::warn!("look");
        tracing::info!(bytes = 7_u64, name = "a b", "transmitted");
        tracing::debug!("block");
        let span = tracing::info_span!("bundle", id = %"00ab");
        let _in = span.enter();
        tracing::info!("queued");
    });
    assert_eq!(
        text,
        "<3>disk failed errno=5\n<4>look\n<6>transmitted bytes=7 name=\"a b\"\n<7>block\n<6>bundle{id=00ab}: queued\n"
    );
}

#[test]
fn nothing_in_a_field_breaks_a_line_or_reaches_the_terminal() {
    let text = logged(Style::Journal, "", || {
        tracing::info!(name = %"a\n<0>forged\x1b[2J\r\u{202e}x", "one\ntwo");
        let span = tracing::info_span!("s", name = %"b\nc");
        span.in_scope(|| tracing::info!("three"));
    });
    assert_eq!(text, "<6>one\\ntwo name=a\\n<0>forged\\x1b[2J\\r\\u{202e}x\n<6>s{name=b\\nc}: three\n");
}

#[test]
fn other_lines_begin_with_time_and_level() {
    let text = logged(Style::Plain, "info", || {
        tracing::debug!("no");
        tracing::info!("yes");
    });
    assert_eq!(text.lines().count(), 1);
    let (time, rest) = text.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.contains('T'), "{time}");
    assert_eq!(rest, " INFO yes\n");
    assert!(logged(Style::Colour, "info", || tracing::warn!("x")).contains("\x1b[33m WARN\x1b[0m x\n"));
}

#[test]
fn a_bad_filter_is_one_line() {
    let told = parse_filter("checkvalve=loud\n").unwrap_err().to_string();
    assert!(told.starts_with("CHECKVALVE_LOG: `checkvalve=loud\\n` is not a filter"), "{told}");
    assert!(!told.contains('\n'));
    assert_eq!(logged(Style::Journal, "off", || tracing::error!("x")), "");
}

#[test]
fn escaping_is_readable_and_tells_bytes_apart() {
    for (bytes, text) in [
        (&b"plain name.tar"[..], "plain name.tar"),
        ("Zürich \u{1f600} \"q\"".as_bytes(), "Zürich \u{1f600} \"q\""),
        (b"a\nb\tc\rd", "a\\nb\\tc\\rd"),
        (b"\x1b[31m\x07\x7f", "\\x1b[31m\\x07\\x7f"),
        (b"\xff\xc3(", "\\xff\\xc3("),
        (b"a\\nb", "a\\\\nb"),
        ("\u{202e}\u{200b}\u{85}".as_bytes(), "\\u{202e}\\u{200b}\\u{85}"),
        ("\u{180e}\u{3164}\u{34f}".as_bytes(), "\\u{180e}\\u{3164}\\u{34f}"),
        (b"", ""),
    ] {
        assert_eq!(escape_bytes(bytes), text);
    }
    let all: std::collections::HashSet<String> = (0..=255_u8).map(|b| escape_bytes(&[b])).collect();
    assert_eq!(all.len(), 256);
    assert!(all.iter().all(|text| text.chars().all(|c| !c.is_control())));
}

#[test]
fn the_throttle_lets_a_few_through_and_counts_the_rest() {
    let throttle = Throttle::new(2, 1000);
    let got: Vec<_> = [5, 5, 6, 1004, 1005, 1005, 1006, 5000].map(|now| throttle.allow(now)).into();
    assert_eq!(got, [Some(0), Some(0), None, None, Some(2), Some(0), None, Some(1)]);
    assert_eq!(throttle.allow(10), Some(0), "a clock that jumps back does not silence it");
    assert_eq!(Throttle::new(0, 10).allow(0), None);
}
