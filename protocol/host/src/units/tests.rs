use super::*;

fn error<T: FromStr<Err = UnitError> + fmt::Debug>(text: &str) -> String {
    text.parse::<T>().unwrap_err().to_string()
}

#[test]
fn reads_every_unit_with_and_without_a_space() {
    for (text, bits) in [
        ("1 bit/s", 1),
        ("64 kbit/s", 64_000),
        ("900 Mbit/s", 900_000_000),
        ("900Mbit/s", 900_000_000),
        ("  2.5 Gbit/s ", 2_500_000_000),
        ("0.001 kbit/s", 1),
        ("18446744073709551615 bit/s", u64::MAX),
    ] {
        assert_eq!(text.parse(), Ok(Rate(bits)), "{text}");
    }
    for (text, bytes) in [
        ("0 B", 0),
        ("1 KiB", 1 << 10),
        ("64 MiB", 64 << 20),
        ("1.5 GiB", 3 << 29),
        ("2 TiB", 2 << 40),
        ("1 kB", 1_000),
        ("1 MB", 1_000_000),
        ("1 GB", 1_000_000_000),
        ("1 TB", 1_000_000_000_000),
        ("0.5 KiB", 512),
    ] {
        assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
    }
    for (text, nanos) in [
        ("1 us", 1_000),
        ("1 µs", 1_000),
        ("0.001 us", 1),
        ("10 ms", 10_000_000),
        ("2s", 2_000_000_000),
        ("1.5 min", 90_000_000_000),
        ("1 h", 3_600_000_000_000),
        ("30 d", 30 * 86_400_000_000_000),
    ] {
        assert_eq!(text.parse(), Ok(Span(nanos)), "{text}");
    }
    for (text, millionths) in [
        ("5 %", 50_000),
        ("5%", 50_000),
        ("0.25 %", 2_500),
        ("0.0001%", 1),
        ("100 %", 1_000_000),
        ("1000 %", 10_000_000),
    ] {
        assert_eq!(text.parse(), Ok(Percent(millionths)), "{text}");
    }
    assert_eq!("forever".parse(), Ok(SpanOrForever::Forever));
    assert_eq!("1 s".parse(), Ok(SpanOrForever::Span(Span::from_secs(1))));
}

#[test]
fn says_what_to_write_instead() {
    assert_eq!(error::<Rate>("900"), r#""900" has no unit; write a unit, for example "900 Mbit/s""#);
    assert_eq!(error::<Size>("64"), r#""64" has no unit; write a unit, for example "64 MiB""#);
    assert_eq!(error::<Span>("10"), r#""10" has no unit; write a unit, for example "10 ms""#);
    assert_eq!(error::<Percent>("0.05"), r#""0.05" has no unit; write a unit, for example "5 %""#);
    assert_eq!(error::<Percent>("5"), r#""5" has no unit; write a unit, for example "5 %""#);
    assert_eq!(
        error::<Rate>("900 mbit/s"),
        r#""mbit/s" is not a unit that this takes; write bit/s, kbit/s, Mbit/s or Gbit/s, for example "900 Mbit/s""#
    );
    assert_eq!(error::<Rate>(""), r#"nothing is there; write a number and a unit, for example "900 Mbit/s""#);
    assert_eq!(
        error::<Rate>("0 Mbit/s"),
        r#""0 Mbit/s" would send nothing; write a rate above 0, for example "900 Mbit/s""#
    );
    assert_eq!(
        error::<Percent>("0.00001 %"),
        r#""0.00001 %" has too fine a fraction; write at most four digits after the point"#
    );
    assert_eq!(error::<Percent>("1000.0001 %"), r#""1000.0001 %" is too large; write at most "1000 %""#);
    assert!(error::<SpanOrForever>("never").contains("write digits and a unit"));
}

#[test]
fn refuses_what_is_not_plain() {
    for bad in [
        "-1 s", "+1 s", "1,000 s", "1e3 s", "1_000 s", ".5 s", "5. s", "1.2.3 s", "s", "1 s 2", "1h30min", "0x10 s",
        "١ s",
    ] {
        let error = bad.parse::<Span>().unwrap_err();
        assert!(error.to_string().contains("; write "), "{bad}: {error}");
    }
    let error = error::<Span>("1\n\x1b[31m s");
    assert!(!error.contains('\n') && !error.contains('\x1b'), "{error}");
}

#[test]
fn refuses_overflow() {
    let huge = "9".repeat(400);
    assert!(matches!("18446744073709551616 bit/s".parse::<Rate>(), Err(UnitError::TooLarge { .. })));
    assert!(matches!("18446744074 Gbit/s".parse::<Rate>(), Err(UnitError::TooLarge { .. })));
    assert!(matches!("16777216 TiB".parse::<Size>(), Err(UnitError::TooLarge { .. })));
    assert!(matches!("213504 d".parse::<Span>(), Err(UnitError::TooLarge { .. })));
    assert!(matches!(format!("{huge} Gbit/s").parse::<Rate>(), Err(UnitError::TooLarge { .. })));
    assert!(matches!(format!("1.{huge} Gbit/s").parse::<Rate>(), Err(UnitError::NotWhole { .. })));
    assert!(format!("1.{} Gbit/s", "0".repeat(400)).parse::<Rate>().is_ok());
    assert!(format!("{huge} Gbit/s").parse::<Rate>().unwrap_err().to_string().len() < 120);
    for max in [RATE.max_text, SIZE.max_text] {
        assert!(max.parse::<Rate>().is_ok() || max.parse::<Size>().is_ok(), "{max}");
    }
    assert!(SPAN.max_text.parse::<Span>().is_ok() && PERCENT.max_text.parse::<Percent>().is_ok());
}

#[test]
fn prints_short_and_reads_it_back() {
    for (value, text) in [
        (Rate(900_000_000), "900 Mbit/s"),
        (Rate(2_500_000_000), "2.5 Gbit/s"),
        (Rate(1_234_567), "1234.567 kbit/s"),
        (Rate(1), "1 bit/s"),
    ] {
        assert_eq!(value.to_string(), text);
    }
    assert_eq!(Size(0).to_string(), "0 B");
    assert_eq!(Size(192 << 20).to_string(), "192 MiB");
    assert_eq!(Size(1_000_000).to_string(), "1 MB");
    assert_eq!(Size(1_000_001).to_string(), "1000001 B");
    assert_eq!(Span(1).to_string(), "0.001 us");
    assert_eq!(Span::from_millis(1_500).to_string(), "1500 ms");
    assert_eq!(Span::from_secs(86_400).to_string(), "1 d");
    assert_eq!(Percent(2_500).to_string(), "0.25 %");
    assert_eq!(Percent(50_000).to_string(), "5 %");
    assert_eq!(SpanOrForever::Forever.to_string(), "forever");

    let mut value = 1_u64;
    while value < u64::MAX / 3 {
        for v in [value, value - 1, value + 1, value * 2] {
            assert_eq!(Size(v).to_string().parse(), Ok(Size(v)));
            assert_eq!(Span(v).to_string().parse(), Ok(Span(v)));
            if v > 0 {
                assert_eq!(Rate(v).to_string().parse(), Ok(Rate(v)));
            }
            if let Ok(v) = u32::try_from(v) {
                let percent = Percent::from_millionths(v);
                assert_eq!(percent.to_string().parse(), Ok(percent));
            }
        }
        value = value * 3 + value / 7;
    }
}

#[test]
fn toml_values_without_quotes_get_the_same_advice() {
    #[derive(Debug, serde::Deserialize)]
    struct Config {
        rate: Rate,
    }
    assert_eq!(toml::from_str::<Config>("rate = \"5 kbit/s\"").unwrap().rate, Rate(5_000));
    for (text, part) in [
        ("rate = 900", "for example \"900 Mbit/s\""),
        ("rate = 2.5", "for example \"2.5 Mbit/s\""),
        ("rate = -1", "write digits and a unit"),
        ("rate = true", "expected a rate, for example"),
    ] {
        let error = toml::from_str::<Config>(text).unwrap_err();
        assert!(error.message().contains(part), "{text}: {}", error.message());
    }
    assert_eq!(serde_json::to_string(&Rate(5_000)).unwrap(), "\"5 kbit/s\"");
}

#[test]
fn arithmetic_is_exact_and_does_not_overflow() {
    assert_eq!(Rate(8).bytes_in(Duration::from_secs(3)), 3);
    assert_eq!(Rate(u64::MAX).bytes_in(Duration::MAX), u64::MAX);
    assert_eq!(Rate(8_000_000).time_for(1), Duration::from_micros(1));
    assert_eq!(Rate(3).time_for(1), Duration::from_nanos(2_666_666_667));
    assert_eq!(Rate(1).time_for(u64::MAX), Duration::from_nanos(u64::MAX));
    assert_eq!(Percent::from_percent(5).of(101), 6);
    assert_eq!(Percent::MAX.of(u64::MAX), u64::MAX);
    assert_eq!(Percent::from_percent(u32::MAX), Percent::MAX);
}
