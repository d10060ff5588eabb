use super::*;

const BUNDLE: BundleId = BundleId(0x0123_4567_89ab_cdef);

/// A small generator (xorshift64*), so that every run is the same.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }

    fn small(&mut self, n: u32) -> u32 {
        u32::try_from(self.below(n.into())).unwrap()
    }

    fn need(&mut self) -> Need {
        match self.below(4) {
            0 => Need::Whole,
            1 => Need::Symbols(1),
            _ => Need::Symbols(u16::try_from(1 + self.below(40)).unwrap()),
        }
    }

    fn ranges(&mut self, count: u64) -> Data {
        let mut end = 0;
        let ranges = (0..count).map(|_| {
            let (gap, blocks) = (self.small(1_000) * self.small(2), 1 + self.small(20) * self.small(2));
            let first = end + gap;
            end = first + blocks;
            Lack { first, blocks, need: self.need() }
        });
        Data::Ranges(ranges.collect())
    }

    fn ticket(&mut self, ranges: u64) -> Ticket {
        let loss = Loss::of(self.below(100), 100);
        let data = if ranges == 0 { Data::All } else { self.ranges(ranges) };
        let (announce, hashes) = (self.below(2) == 0, self.below(2) == 0);
        Ticket::new(Subject::Bundle { bundle: BundleId(self.below(u64::MAX)), announce, hashes, data }, loss).unwrap()
    }
}

fn of(data: Data) -> Ticket {
    Ticket::new(Subject::Bundle { bundle: BUNDLE, announce: false, hashes: false, data }, Loss::UNKNOWN).unwrap()
}

fn sequences(channel: &str, first: u64, count: u64) -> Result<Ticket, BuildError> {
    let channel = ChannelName::new(channel).unwrap();
    Ticket::new(Subject::Sequences { channel, first, count }, Loss::UNKNOWN)
}

fn one_block(sbn: u32, need: Need) -> Ticket {
    of(Data::of_blocks([(sbn, need)]))
}

/// About 20 GB in blocks of 256 symbols of 1,408 bytes: 55,487 blocks.
fn large() -> Oti {
    Oti::new(20_000_000_000, 1_408, 256).unwrap()
}

#[test]
fn a_ticket_has_one_text_and_the_text_one_ticket() {
    let mut random = Random(1);
    for i in 0..3_000 {
        let count = if i % 100 == 0 { 500 } else { random.below(12) };
        let ticket = random.ticket(count);
        let text = ticket.to_text().unwrap();
        assert_eq!(Ticket::parse(&text).as_ref(), Ok(&ticket), "{text}");
        assert_eq!(text.lines().count(), ticket.lines());
        for line in text.lines() {
            assert!(line.len() <= 39 && line.split(' ').all(|group| group.len() == 4), "{line}");
        }
    }
    let longest = "a".repeat(32);
    for (channel, first, count) in [("default", 1, 1), ("a_-9", u64::MAX, 1), (&longest, 1, u64::MAX), ("z", 40, 12)] {
        let ticket = sequences(channel, first, count).unwrap();
        assert_eq!(Ticket::parse(&ticket.to_text().unwrap()), Ok(ticket));
    }
}

#[test]
fn one_block_takes_two_lines_at_most_and_mostly_one() {
    for sbn in (0..32).map(|bit| (1_u32 << bit) - 1).chain([u32::MAX - 1, 55_486]) {
        for need in [Need::Whole, Need::Symbols(1), Need::Symbols(1_024)] {
            assert!(one_block(sbn, need).lines() <= 2, "{sbn} {need}");
        }
    }
    for need in [Need::Whole, Need::Symbols(1), Need::Symbols(100)] {
        assert_eq!(one_block(4_095, need).lines(), 1);
    }
    let three = [(17, Need::Symbols(3)), (30_000, Need::Whole), (55_486, Need::Symbols(250))];
    assert!(of(Data::of_blocks(three)).lines() <= 3);
}

#[test]
fn ten_thousand_scattered_blocks_fit_in_forty_lines_and_say_what_it_costs() {
    let mut random = Random(2);
    let oti = large();
    let mut lacking = std::collections::BTreeMap::new();
    while lacking.len() < 10_000 {
        lacking.insert(random.small(oti.blocks()), random.need());
    }
    let exact = of(Data::of_blocks(lacking.clone()));
    assert!(exact.lines() > 400);
    let truly: u64 = lacking.iter().map(|(&sbn, need)| u64::from(need.symbols(oti.block_symbols(sbn).unwrap()))).sum();
    let mut before = u64::MAX;
    for max in [2, 10, 40, 100, 1_000] {
        let (coarse, cost) = exact.fit(&oti, max);
        assert!(coarse.lines() <= max, "{}", coarse.lines());
        assert_eq!((cost.lacking, cost.asked), (truly, coarse.symbols(&oti)));
        assert!(cost.asked <= before && cost.asked <= oti.symbols(), "more lines cost no more");
        before = cost.asked;
        let asked = coarse.blocks(&oti).unwrap();
        for (&sbn, &need) in &lacking {
            let (_, given) = asked.iter().find(|(range, _)| range.contains(&sbn)).unwrap();
            assert!(*given >= need, "{sbn} lacks {need}, {given} asked");
        }
        println!("{max} lines: {} lacking, {} asked, {} extra", cost.lacking, cost.asked, cost.extra());
        assert_eq!(Ticket::parse(&coarse.to_text().unwrap()), Ok(coarse));
    }
    let (same, cost) = exact.fit(&oti, MAX_LINES);
    assert_eq!((same, cost.extra()), (exact, 0));
}

#[test]
fn many_blocks_that_lack_little_cost_little() {
    let mut random = Random(12);
    let oti = large();
    let scattered = (0..oti.blocks()).filter(|_| random.below(5) == 0).collect::<Vec<_>>();
    let lacking = scattered.into_iter().map(|sbn| (sbn, Need::Symbols(1 + u16::try_from(random.below(8)).unwrap())));
    let (coarse, cost) = of(Data::of_blocks(lacking)).fit(&oti, 40);
    assert!(coarse.lines() <= 40);
    assert!(cost.asked < oti.symbols() / 25, "{cost:?} of {}", oti.symbols());
}

#[test]
fn what_is_lost_in_bursts_fits_at_little_cost() {
    let mut random = Random(3);
    let oti = large();
    let mut lacking = std::collections::BTreeMap::new();
    for _ in 0..40 {
        let first = random.small(oti.blocks() - 30);
        lacking.extend((first..first + 30).map(|sbn| (sbn, random.need())));
    }
    let (coarse, cost) = of(Data::of_blocks(lacking)).fit(&oti, 40);
    assert!(coarse.lines() <= 40);
    assert!(cost.extra() < cost.lacking, "{cost:?}");
}

#[test]
fn a_wrong_symbol_is_found_in_its_line() {
    let text = Random(4).ticket(60).to_text().unwrap();
    let places: Vec<_> = text.char_indices().filter(|(_, c)| c.is_alphanumeric()).map(|(at, _)| at).collect();
    for at in places {
        let number = 1 + text[..at].matches('\n').count();
        for wrong in "0123456789ABCDEFGHJKMNPQRSTVWXYZ".chars().filter(|&c| !text[at..].starts_with(c)) {
            let mut typed = text.clone();
            typed.replace_range(at..=at, &wrong.to_string());
            let Err(ParseError::Lines(wrong)) = Ticket::parse(&typed) else { panic!("{typed}") };
            let [LineError { line, problem: Problem::Symbol { group, right, .. } }] = wrong[..] else {
                panic!("{wrong:?}")
            };
            let groups: Vec<_> = text.lines().nth(number - 1).unwrap().split(' ').collect();
            assert_eq!((line, String::from_iter(right)), (number, groups[group - 1].to_owned()));
        }
    }
}

#[test]
fn swapped_groups_are_found_in_their_line() {
    let mut random = Random(5);
    let mut swaps = 0;
    for _ in 0..100 {
        let text = random.ticket(20).to_text().unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
        for (n, line) in lines.iter().enumerate() {
            for group in 1..line.len() {
                let mut lines = lines.clone();
                lines[n].swap(group - 1, group);
                if lines[n] == *line {
                    continue;
                }
                let typed = lines.iter().map(|line| line.join(" ")).collect::<Vec<_>>().join("\n");
                let Err(ParseError::Lines(wrong)) = Ticket::parse(&typed) else { panic!("{typed}") };
                assert_eq!((wrong.len(), wrong[0].line), (1, n + 1));
                swaps += 1;
            }
        }
    }
    assert!(swaps > 1_000);
}

#[test]
fn lines_that_are_not_the_ticket_s_own_are_found() {
    let mut random = Random(6);
    let text = random.ticket(60).to_text().unwrap();
    let other = random.ticket(60).to_text().unwrap();
    let lines: Vec<_> = text.lines().collect();
    let refused = |lines: &[&str]| Ticket::parse(&lines.join("\n")).unwrap_err();
    assert!(lines.len() > 5 && other.lines().count() > 5);
    for n in 0..lines.len() {
        refused(&lines[..n]);
        refused(&lines[n + 1..]);
        refused(&[&lines[..n], &lines[n + 1..]].concat());
        refused(&[&lines[..=n], &lines[n..]].concat());
        if n + 1 < lines.len() {
            let mut mixed = lines.clone();
            mixed[n] = other.lines().nth(n).unwrap();
            assert_eq!(refused(&mixed), ParseError::Whole, "a right line of another ticket");
            let mut swapped = lines.clone();
            swapped.swap(n, n + 1);
            let ParseError::Lines(wrong) = refused(&swapped) else { panic!() };
            assert!(wrong.iter().any(|w| w.line == n + 1 || w.line == n + 2));
        }
    }
    refused(&[&lines[..], &["0000 0000"]].concat());
}

#[test]
fn it_is_read_however_it_was_typed() {
    let ticket = Random(7).ticket(30);
    let text = ticket.to_text().unwrap();
    let symbols: String = text.split_whitespace().collect();
    let wrapped = |width: usize| {
        let chars: Vec<_> = symbols.chars().collect();
        chars.chunks(width).map(String::from_iter).collect::<Vec<_>>().join("\n")
    };
    for typed in [
        text.to_lowercase(),
        text.replace('0', "O").replace('1', "l"),
        text.replace('0', "o").replace('1', "I"),
        text.replace('1', "i").replace('1', "L"),
        text.replace(' ', "-"),
        text.replace(' ', " \u{2013} "),
        text.replace(' ', ""),
        text.replace('\n', "\r\n\r\n"),
        text.replace('\n', "\n\n  \t"),
        text.replace('\n', " "),
        format!("# bundle default/7\n{text}# end\n"),
        symbols.clone(),
        wrapped(20),
        wrapped(33),
        wrapped(7),
    ] {
        assert_eq!(Ticket::parse(&typed).as_ref(), Ok(&ticket), "{typed}");
    }
}

#[test]
fn text_that_is_no_ticket() {
    for empty in ["", "\n", " - - ", "# a comment\n"] {
        assert_eq!(Ticket::parse(empty), Err(ParseError::Empty), "{empty:?}");
    }
    let text = Random(8).ticket(20).to_text().unwrap();
    let line = |line, problem| Err(ParseError::Lines(vec![LineError { line, problem }]));
    let typed = text.replacen(' ', " U", 1);
    assert_eq!(Ticket::parse(&typed), line(1, Problem::Character('U')));
    let second = text.match_indices('\n').next().unwrap().0 + 1;
    let mut typed = text.clone();
    typed.remove(second);
    assert_eq!(Ticket::parse(&typed), line(2, Problem::Length(31)));
    let long = "0000 0000 0000 0000 0000 0000 0000 0000\n".repeat(2_000);
    assert!(Ticket::parse(&long).is_err());
    let error = Ticket::parse(&text.replacen(' ', " é", 1)).unwrap_err();
    assert_eq!(error.to_string(), "line 1 has the character 'é', which no ticket has");
}

#[test]
fn random_text_and_forged_content_are_survived() {
    let mut random = Random(9);
    let alphabet: Vec<char> = "0123456789ABCDEFGHJKMNPQRSTVWXYZ \n-#U".chars().collect();
    for _ in 0..5_000 {
        let len = random.below(300);
        let text: String = (0..len).map(|_| alphabet[random.small(37) as usize]).collect();
        assert!(Ticket::parse(&text).is_err());
    }
    // Content that nobody checked, in lines that are right: refused, or the one text of what it says.
    let (mut read, mut refused) = (0, 0);
    for _ in 0..30_000 {
        let count = random.below(4);
        let mut bits = content::encode(&random.ticket(count));
        for _ in 0..=random.below(3) {
            let at = usize::try_from(random.below(bits.len() as u64)).unwrap();
            bits[at] = !bits[at];
        }
        if random.below(8) == 0 {
            bits.truncate(bits.len() / 2);
        }
        bits.extend(vec![random.below(2) == 0; random.small(25) as usize]);
        let text = lines::write(&bits).unwrap();
        match Ticket::parse(&text) {
            Ok(ticket) => {
                assert_eq!(ticket.to_text().unwrap(), text);
                read += 1;
            }
            Err(ParseError::NotCanonical | ParseError::Version(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(read > 1_000 && refused > 1_000, "{read} {refused}");
}

#[test]
fn ranges_are_put_in_their_one_form() {
    let lack = |first, blocks, need| Lack { first, blocks, need: Need::Symbols(need) };
    let ticket = of(Data::Ranges(vec![lack(9, 1, 2), lack(3, 2, 1), lack(5, 1, 1), lack(6, 1, 2)]));
    let Subject::Bundle { data: Data::Ranges(ranges), .. } = ticket.subject() else { panic!() };
    assert_eq!(ranges, &[lack(3, 3, 1), lack(6, 1, 2), lack(9, 1, 2)]);
    let build = |data| {
        let subject = Subject::Bundle { bundle: BUNDLE, announce: false, hashes: false, data };
        Ticket::new(subject, Loss::UNKNOWN).unwrap_err()
    };
    assert_eq!(build(Data::Nothing), BuildError::Nothing);
    assert_eq!(build(Data::of_blocks([])), BuildError::Nothing);
    assert_eq!(build(Data::Ranges(vec![])), BuildError::Nothing);
    assert_eq!(build(Data::Ranges(vec![lack(3, 0, 1)])), BuildError::Range);
    assert_eq!(build(Data::Ranges(vec![lack(u32::MAX, 1, 1)])), BuildError::Range);
    assert_eq!(build(Data::Ranges(vec![lack(3, 2, 1), lack(4, 1, 1)])), BuildError::Range);
    assert_eq!(build(Data::Ranges(vec![lack(3, 1, 0)])), BuildError::Need);
    assert_eq!(build(Data::Ranges(vec![lack(3, 1, MAX_BLOCK_SYMBOLS + 1)])), BuildError::Need);
    assert_eq!(sequences("a", 0, 1), Err(BuildError::Sequences));
    assert_eq!(sequences("a", 1, 0), Err(BuildError::Sequences));
    assert_eq!(sequences("a", u64::MAX, 2), Err(BuildError::Sequences));
}

#[test]
fn a_ticket_for_another_bundle_s_blocks_is_refused() {
    let oti = large();
    let last = oti.blocks() - 1;
    assert_eq!(one_block(last, Need::Whole).blocks(&oti), Ok(vec![(last..last + 1, Need::Whole)]));
    let error = OtherBundle { asked: last + 1, blocks: last + 1 };
    assert_eq!(one_block(last + 1, Need::Whole).blocks(&oti), Err(error));
    assert_eq!(of(Data::All).blocks(&oti), Ok(vec![(0..last + 1, Need::Whole)]));
    assert_eq!(sequences("a", 1, 1).unwrap().blocks(&oti), Ok(vec![]));
}

#[test]
fn explained_are_all_the_bits_and_what_they_ask_for() {
    let mut random = Random(10);
    for ranges in [0, 1, 9] {
        let ticket = random.ticket(ranges);
        let text = ticket.explain();
        let (_, table) = text.split_once("the line.\n\n").unwrap();
        let bits: String = table.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
        let content = content::encode(&ticket);
        assert_eq!(bits, content.iter().map(|&b| if b { '1' } else { '0' }).collect::<String>());
    }
    let text = of(Data::of_blocks([(17, Need::Symbols(1)), (20, Need::Whole), (21, Need::Whole)])).explain();
    for words in ["Bundle 0123456789abcdef", "- block 17: 1 symbol\n", "- blocks 20 to 21 (2): all symbols of each"] {
        assert!(text.contains(words), "{text}");
    }
    assert!(sequences("os-images", 7, 3).unwrap().explain().contains("os-images/7 to os-images/9 never came"));
}

#[test]
fn several_tickets_are_parted_by_empty_lines() {
    let mut random = Random(11);
    let tickets: Vec<_> = (0..5).map(|n| random.ticket(n * 7)).collect();
    let texts: Vec<_> = tickets.iter().map(|t| format!("# ticket\n{}", t.to_text().unwrap())).collect();
    assert_eq!(Ticket::parse_all(&texts.join("\n")).as_ref(), Ok(&tickets));
    assert_eq!(Ticket::parse_all(&format!("\n\n{}\n# end\n\n\n", texts.join("\n \n\n"))), Ok(tickets));
    assert_eq!(Ticket::parse_all("\n\n"), Ok(vec![]));
    let spoilt = texts.join("\n").replacen("# ticket\n", "", 1).replacen(' ', "?", 1);
    assert!(matches!(Ticket::parse_all(&spoilt), Err((0, ParseError::Lines(_)))));
}
