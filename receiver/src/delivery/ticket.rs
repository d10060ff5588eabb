//! Tickets: what is lacking, as the text that a person carries to the sender.

use std::collections::BTreeMap;
use std::sync::Arc;

use checkvalve_host::log::escape_bytes;
use checkvalve_host::progress::counted;
use checkvalve_protocol::id::{BundleId, ChannelName, KeyTag};
use checkvalve_protocol::limits::MAX_TICKET_SEQUENCES;
use checkvalve_protocol::partition::Oti;
use checkvalve_protocol::ticket::{Data, Lack, Loss, Need, Subject, Ticket};
use checkvalve_protocol::wire::ObjectKind;
use serde::{Deserialize, Serialize};

use super::beacons::NewestBeacons;
use super::operator::find;
use super::spoilt::Clearing;
use super::staging::Staging;
use super::status::{Lacking, Status};
use super::{DecideError, Which};
use crate::ledger::file::LedgerFile;
use crate::ledger::{Entry, Live, State};
use crate::ranges::Ranges;
use crate::store::Store;

/// Most gaps of a channel that become a ticket each.
const MOST_GAPS: usize = 100;

/// A ticket, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketView {
    /// The bundle or bundles, as people name them.
    pub bundle: String,
    /// Its name, escaped where it is no printable text; empty where it is not known.
    pub name: String,
    /// The ticket: lines of groups.
    pub text: String,
    /// How many lines.
    pub lines: usize,
    /// What is lacking, in words.
    pub lacking: String,
    /// Symbols of the data that are lacking; null where it is not known how long it is.
    pub symbols_lacking: Option<u64>,
    /// Symbols of the data that the ticket asks for: more than are lacking where that makes it shorter.
    pub symbols_asked: Option<u64>,
    /// Symbols of all of the data.
    pub symbols_total: Option<u64>,
    /// Bytes of a symbol.
    pub symbol_size: Option<u16>,
    /// The rate that its sender is set to, in bits a second; 0 while unknown.
    #[serde(default)]
    pub rate_bits: u64,
    /// The loss that it states.
    #[serde(default)]
    pub loss: String,
}

/// Why there is no ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// No such bundle.
    #[error("{0}: {1}")]
    Which(String, DecideError),
    /// Nothing of it is lacking.
    #[error("{0} is {state}: nothing is lacking", state = .1.as_str())]
    Complete(String, State),
    /// All of it is here, and the disk stands in its way.
    #[error("{0}: {1}")]
    Disk(String, String),
}

/// Which blocks of a bundle have some of their symbols in memory, and how many they lack.
pub type LackingOf<'a> = &'a dyn Fn(BundleId) -> Vec<(u32, u32)>;

/// What the link loses of what the sender with a key sends; without a key: of a sender that is not known.
pub type LossOf<'a> = &'a dyn Fn(Option<KeyTag>) -> Loss;

/// Writes tickets.
pub(super) struct Ticketing {
    pub(super) ledger: Arc<LedgerFile>,
    pub(super) store: Arc<Store>,
    pub(super) staging: Arc<Staging>,
    pub(super) clearing: Arc<Clearing>,
    pub(super) newest: Arc<NewestBeacons>,
}

impl Ticketing {
    /// The ticket of each bundle that `which` names, or with none named of all that lack something and whose transmission
    /// is over. Each has at most `max_lines` lines. Errors: [`TicketError`].
    pub(super) fn tickets(
        &self,
        which: &[String],
        loss: LossOf<'_>,
        max_lines: usize,
        lacking: LackingOf<'_>,
    ) -> Result<Vec<TicketView>, TicketError> {
        let mut views = Vec::new();
        if which.is_empty() {
            let open = self.ledger.lock().open();
            let mut entries: Vec<Entry> =
                open.into_iter().filter_map(|id| self.ledger.lock().entry(id).cloned()).collect();
            entries.retain(|entry| entry.state() != State::Receiving);
            entries.sort_by(|a, b| (&a.channel, a.sequence, a.id).cmp(&(&b.channel, b.sequence, b.id)));
            let mut gaps: BTreeMap<ChannelName, Ranges> = BTreeMap::new();
            for (name, channel) in self.ledger.lock().channels() {
                let of_channel =
                    channel.gaps(0, MOST_GAPS).into_iter().map(|(first, last)| first..last.saturating_add(1));
                of_channel.for_each(|gap| gaps.entry(name.clone()).or_default().insert(gap));
            }
            // Bundles of which nothing came are asked for by number: one ticket covers many of them.
            entries.retain(|entry| match self.is_untouched(entry) {
                Some(channel) => {
                    gaps.entry(channel).or_default().insert(entry.sequence..entry.sequence.saturating_add(1));
                    false
                }
                None => true,
            });
            views.extend(entries.iter().filter_map(|entry| self.ticket_of(entry, loss, max_lines, lacking)));
            for (name, gaps) in gaps {
                let key = self.key_of(&name);
                let view = |(first, last)| self.sequences(&name, first, last, key, loss);
                views.extend(gaps.iter().flat_map(parts).filter_map(view));
            }
        }
        for text in which {
            let wrong = |error| TicketError::Which(text.clone(), error);
            let named: Which = text.parse().map_err(wrong)?;
            let id = match (find(&self.ledger, &named), named) {
                (Ok(id), _) => id,
                (Err(DecideError::Unknown), Which::Sequence(channel, sequence)) => {
                    let gaps = self.ledger.lock().channel(&channel).map(|c| c.gaps(sequence, 1)).unwrap_or_default();
                    let is_gap = gaps.first().is_some_and(|(first, last)| (*first..=*last).contains(&sequence));
                    let key = self.key_of(&channel);
                    let view = is_gap.then(|| self.sequences(&channel, sequence, sequence, key, loss)).flatten();
                    views.push(view.ok_or_else(|| wrong(DecideError::Unknown))?);
                    continue;
                }
                (Err(error), _) => return Err(wrong(error)),
            };
            let entry = self.ledger.lock().entry(id).cloned().ok_or_else(|| wrong(DecideError::Unknown))?;
            let over = || match &entry.reason {
                Some(reason) if self.staging.is_all_here(id) => TicketError::Disk(text.clone(), reason.clone()),
                _ => TicketError::Complete(text.clone(), entry.state()),
            };
            if !entry.state().is_open() {
                return Err(TicketError::Complete(text.clone(), entry.state()));
            }
            views.push(self.ticket_of(&entry, loss, max_lines, lacking).ok_or_else(over)?);
        }
        Ok(views)
    }

    /// The channel of a bundle of which nothing came, and whose number no other claims.
    fn is_untouched(&self, entry: &Entry) -> Option<ChannelName> {
        let channel = entry.channel.clone().filter(|_| entry.state() == State::Missing)?;
        let is_alone = self.ledger.lock().channel(&channel)?.claims(entry.sequence) == [entry.id];
        let came = self.store.get(entry.id).is_some_and(|staged| staged.fill().1 > 0)
            || self.staging.live(entry.id, |live| live.announced || live.hashes || live.last_ms > 0) == Some(true);
        (is_alone && !came).then_some(channel)
    }

    /// Puts into a status what each incomplete bundle lacks, exactly.
    pub(super) fn count_lacking(&self, status: &mut Status, lacking: LackingOf<'_>) {
        for bundle in status.bundles.iter_mut().filter(|bundle| bundle.state == State::Incomplete) {
            let Ok(id) = bundle.id.parse() else { continue };
            if let Some((blocks, blocks_total, symbols)) = self.lacking_of(id, lacking) {
                bundle.lacking = Some(Lacking { blocks, blocks_total, symbols });
            }
        }
    }

    /// How many blocks of how many a bundle lacks, and how many symbols, if its blocks are known.
    fn lacking_of(&self, id: BundleId, lacking: LackingOf<'_>) -> Option<(u32, u32, u64)> {
        let signed = self.staging.live(id, |live| live.oti).flatten();
        let oti = signed.or_else(|| self.store.get(id)?.oti())?;
        let lacks = self.lacks(id, &oti, lacking(id));
        let blocks = lacks.iter().map(|lack| lack.blocks).sum();
        let symbols = |lack: &Lack| match lack.need {
            Need::Symbols(n) => u64::from(n) * u64::from(lack.blocks),
            Need::Whole => oti.symbols_of(lack.first..lack.end()),
        };
        Some((blocks, oti.blocks(), lacks.iter().map(symbols).sum()))
    }

    /// The key whose sender sends to a channel, as its newest bundle says.
    fn key_of(&self, channel: &ChannelName) -> Option<KeyTag> {
        let ledger = self.ledger.lock();
        let its = ledger.entries().filter(|entry| entry.channel.as_ref() == Some(channel));
        its.max_by_key(|entry| entry.sequence).map(|entry| entry.id.tag())
    }

    /// The ticket for bundles of which nothing came.
    fn sequences(
        &self,
        channel: &ChannelName,
        first: u64,
        last: u64,
        key: Option<KeyTag>,
        loss: LossOf<'_>,
    ) -> Option<TicketView> {
        let count = last.checked_sub(first)?.checked_add(1)?;
        let loss = loss(key);
        let ticket = Ticket::new(Subject::Sequences { channel: channel.clone(), first, count }, loss).ok()?;
        let bundle =
            if count == 1 { format!("{channel}/{first}") } else { format!("{channel}/{first} to {channel}/{last}") };
        Some(TicketView {
            bundle,
            name: String::new(),
            text: ticket.to_text()?,
            lines: ticket.lines(),
            lacking: "everything, even the announce".to_owned(),
            symbols_lacking: None,
            symbols_asked: None,
            symbols_total: None,
            symbol_size: None,
            rate_bits: key.map_or(0, |key| self.newest.rate_bits(key)),
            loss: loss.to_string(),
        })
    }

    fn ticket_of(
        &self,
        entry: &Entry,
        loss: LossOf<'_>,
        max_lines: usize,
        lacking: LackingOf<'_>,
    ) -> Option<TicketView> {
        let id = entry.id;
        // The data plane hears a moment later that it has nothing of what was thrown away.
        let cleared = self.clearing.clear(id, true);
        let facts = |live: &Live| (live.announced, live.hashes, live.data_len, live.oti);
        let (announced, hashes, data_len, signed) = self.staging.live(id, facts).unwrap_or_default();
        let staged = self.store.get(id);
        let (length, stored) = staged.as_ref().map_or((None, 0), |staged| staged.fill());
        let length = if announced { Some(data_len) } else { length };
        let oti = signed.or_else(|| staged?.oti());
        let data = match (length, oti) {
            (Some(length), _) if stored >= length => Data::Nothing,
            (_, Some(oti)) => {
                let lacks = self.lacks(id, &oti, if cleared { Vec::new() } else { lacking(id) });
                if lacks.is_empty() { Data::Nothing } else { Data::Ranges(lacks) }
            }
            _ => Data::All,
        };
        let subject = Subject::Bundle { bundle: id, announce: !announced, hashes: !hashes, data };
        let loss = loss(Some(id.tag()));
        let exact = Ticket::new(subject, loss).ok()?;
        let number = entry.channel.as_ref().map(|channel| format!("{channel}/{}", entry.sequence));
        let mut view = TicketView {
            bundle: number.unwrap_or_else(|| id.to_string()),
            name: escape_bytes(&entry.name),
            text: String::new(),
            lines: 0,
            lacking: String::new(),
            symbols_lacking: None,
            symbols_asked: None,
            symbols_total: None,
            symbol_size: None,
            rate_bits: self.newest.rate_bits(id.tag()),
            loss: loss.to_string(),
        };
        let mut ticket = exact.clone();
        let mut missing = Vec::new();
        if !announced {
            missing.push("its announce".to_owned());
        }
        if let Subject::Bundle { data, .. } = exact.subject() {
            match (data, &oti) {
                (Data::Nothing, _) => {}
                (Data::Ranges(lacks), Some(oti)) => {
                    let (fitted, cost) = exact.fit(oti, max_lines);
                    ticket = fitted;
                    view.symbols_lacking = Some(cost.lacking);
                    view.symbols_asked = Some(cost.asked);
                    view.symbols_total = Some(oti.symbols());
                    view.symbol_size = Some(oti.symbol_size());
                    let blocks: u64 = lacks.iter().map(|lack| u64::from(lack.blocks)).sum();
                    let symbols = counted(cost.lacking, "symbol");
                    missing.push(match oti.blocks() {
                        1 if cost.lacking == oti.symbols() => "its only source block".to_owned(),
                        1 => format!("{symbols} of its only source block"),
                        all if cost.lacking == oti.symbols() => format!("all of its {all} source blocks"),
                        all => format!("{symbols}, in {blocks} of its {all} source blocks"),
                    });
                }
                _ => missing.push("all of its data".to_owned()),
            }
        }
        if !hashes {
            missing.push("its hashes".to_owned());
        }
        view.text = ticket.to_text()?;
        view.lines = ticket.lines();
        view.lacking = missing.join(", ");
        Some(view)
    }

    /// What the blocks lack that are not stored: `partial` are those of which the data plane has something.
    fn lacks(&self, id: BundleId, oti: &Oti, partial: Vec<(u32, u32)>) -> Vec<Lack> {
        let have = self.store.have(id, ObjectKind::Data, oti);
        let mut lacking: std::collections::BTreeMap<u32, u32> = partial.into_iter().collect();
        for (sbn, kept) in self.store.parked(id, ObjectKind::Data, oti) {
            let source = u32::from(oti.block_symbols(sbn).unwrap_or(0));
            let less = source.saturating_sub(kept).max(1);
            lacking.entry(sbn).and_modify(|n| *n = (*n).min(less)).or_insert(less);
        }
        let mut lacks = Vec::new();
        let whole = |lacks: &mut Vec<Lack>, first: u32, end: u32| {
            if first < end {
                lacks.push(Lack { first, blocks: end - first, need: Need::Whole });
            }
        };
        for gap in have.gaps(0..oti.blocks()) {
            let mut at = gap.start;
            for (&sbn, &symbols) in lacking.range(gap.clone()) {
                whole(&mut lacks, at, sbn);
                let source = oti.block_symbols(sbn).unwrap_or(0);
                let need = match u16::try_from(symbols) {
                    Ok(symbols) if symbols < source => Need::Symbols(symbols.max(1)),
                    _ => Need::Whole,
                };
                lacks.push(Lack { first: sbn, blocks: 1, need });
                at = sbn + 1;
            }
            whole(&mut lacks, at, gap.end);
        }
        lacks
    }
}

/// The first and the last of as many as one ticket may name, [`MOST_GAPS`] times at most.
fn parts(range: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let last = range.end.saturating_sub(1);
    let firsts = range.step_by(usize::try_from(MAX_TICKET_SEQUENCES).unwrap_or(usize::MAX)).take(MOST_GAPS);
    firsts.map(move |first| (first, last.min(first.saturating_add(MAX_TICKET_SEQUENCES - 1))))
}
