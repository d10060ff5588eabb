//! Everything known about one bundle, and its keys in the index.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use checkvalve_protocol::id::{BundleId, ChannelName};

use crate::bundle::Plan;
use crate::holding::Home;
use crate::ledger::{BundleRecord, State};
use crate::pipeline::Progress;
use crate::work::Loaded;

/// One bundle.
pub struct Record {
    channel: ChannelName,
    /// The state in the ledger. None: the bundle is claimed and has no sequence yet.
    saved: Option<BundleRecord>,
    /// The latest state, if the disk has not taken it yet.
    unsaved: Option<BundleRecord>,
    stage: Stage,
    content: Content,
    restoring: Option<Restoring>,
    /// Nothing is sent before this time of [`Now::mono_ms`](crate::engine::Now::mono_ms), because the disk refused something.
    wait_ms: Option<u64>,
}

/// How far a bundle is on its way to the wire.
pub enum Stage {
    /// It waits to be planned.
    Claimed(Claim),
    /// It is being planned.
    Planning(Claim),
    /// Nothing is being done. The ledger says when the bundle is due next.
    Idle,
    /// It was planned earlier and is being loaded to go on the wire again.
    Loading,
    /// It waits for nothing but its turn.
    Ready(Ready),
    /// The pipeline has it.
    Submitted(Submitted),
    /// The receiver has yet to be told that the bundle will not come.
    Withdrawing(Withdrawal),
}

/// What happens to a bundle's content. This is independent of [`Stage`]: a bundle that is given up is withdrawn on the wire and
/// moved to `.failed` at the same time.
pub enum Content {
    /// Nothing: the content is held, or gone.
    Kept,
    /// It is to be moved to `.failed`, for this reason.
    Failing(String),
    /// Content is left over at this place and must be removed.
    Leftover(Home),
    /// It is being removed.
    Removing,
}

/// The state of restoring a bundle that was no longer retained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restoring {
    /// The content is being read and compared.
    Proving,
    /// The content is the same, and is held again.
    Held,
    /// The content differs or cannot be read, for this reason.
    Refused(String),
}

/// Something that was dropped into the spool and claimed.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Where it is held.
    pub home: Home,
    /// Its name; any bytes.
    pub name: Vec<u8>,
    /// Its inode.
    pub inode: u64,
    /// When it was claimed, in milliseconds since 1970.
    pub claimed_ms: u64,
    /// Its turn among the claims of its channel; [`Bundles::claimed`](super::Bundles::claimed) sets it.
    pub turn: u64,
}

/// A bundle that waits for nothing but its turn.
pub struct Ready {
    /// What to send.
    pub loaded: Loaded,
    /// ESIs that are already reserved for it.
    pub reserved: Option<Range<u32>>,
}

/// A bundle that the pipeline has.
pub struct Submitted {
    kind: Kind,
    progress: Arc<Progress>,
    /// Whether it was seen on the wire. The pipeline may have other jobs to send first.
    begun: bool,
    announced: Announced,
}

/// What a withdrawal needs from a bundle.
#[derive(Clone)]
pub(crate) struct Announced {
    pub(crate) plan: Arc<Plan>,
    pub(crate) announce: Arc<Vec<u8>>,
}

/// What to tell the receiver about a bundle that will not come.
pub struct Withdrawal {
    pub(crate) announced: Announced,
    pub(crate) esis: Range<u32>,
    pub(crate) reason: String,
}

/// What a transmission is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A scheduled pass.
    Pass,
    /// A turn of the carousel.
    Carousel,
    /// An operator asked for it.
    Resend,
    /// It tells the receiver that the bundle will not come.
    Withdrawal,
}

/// When a bundle is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// False for a resend that an operator asked for: false sorts first.
    pub scheduled: bool,
    /// On the ledger's clock.
    pub at_ms: u64,
    /// Its number in the channel.
    pub sequence: u64,
    /// The bundle.
    pub id: BundleId,
}

/// A bundle's key in the index over all bundles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Waiting(BundleId),
    Ready(BundleId),
    Unsaved(BundleId),
    Withdrawing(BundleId),
    Failing(BundleId),
    Leftover(BundleId),
    Removing(BundleId),
    /// The start of its retention, its sequence, and its id.
    Releasable(u64, u64, BundleId),
    Wait(u64, BundleId),
}

/// A bundle's key in its channel's index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ChannelKey {
    Claimed(u64, BundleId),
    Planning(BundleId),
    UnderWay(BundleId),
    Due(Due),
    Sequence(u64, BundleId),
    /// It has no sequence. Holds when it was claimed.
    Refused(u64, BundleId),
}

impl Key {
    pub(super) fn id(&self) -> BundleId {
        match *self {
            Self::Waiting(id)
            | Self::Ready(id)
            | Self::Unsaved(id)
            | Self::Withdrawing(id)
            | Self::Failing(id)
            | Self::Leftover(id)
            | Self::Removing(id)
            | Self::Releasable(_, _, id)
            | Self::Wait(_, id) => id,
        }
    }
}

impl ChannelKey {
    pub(super) fn id(&self) -> BundleId {
        match *self {
            Self::Claimed(_, id)
            | Self::Planning(id)
            | Self::UnderWay(id)
            | Self::Sequence(_, id)
            | Self::Refused(_, id)
            | Self::Due(Due { id, .. }) => id,
        }
    }
}

impl Due {
    pub(super) const FIRST: Self = Self { scheduled: false, at_ms: 0, sequence: 0, id: BundleId(0) };
    pub(super) const LAST: Self = Self { scheduled: true, at_ms: u64::MAX, sequence: u64::MAX, id: BundleId(u64::MAX) };
}

impl Kind {
    /// What a bundle's next transmission is for.
    #[must_use]
    pub fn of(record: &BundleRecord) -> Self {
        match record.state {
            State::Transmitted if record.resends.is_empty() => Self::Carousel,
            State::Transmitted => Self::Resend,
            _ => Self::Pass,
        }
    }

    /// Its name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Carousel => "carousel",
            Self::Resend => "resend",
            Self::Withdrawal => "withdrawal",
        }
    }
}

impl Submitted {
    pub(crate) fn new(kind: Kind, progress: Arc<Progress>, announced: Announced) -> Self {
        Self { kind, progress, begun: false, announced }
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn into_announced(self) -> Announced {
        self.announced
    }

    /// The progress of the job, once it is on the wire.
    #[must_use]
    pub fn on_wire(&self) -> Option<&Progress> {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let begun = load(&self.progress.blocks_total) > 0 || load(&self.progress.datagrams) > 0;
        begun.then_some(&self.progress)
    }
}

impl Record {
    pub(super) fn new(channel: ChannelName) -> Self {
        Self {
            channel,
            saved: None,
            unsaved: None,
            stage: Stage::Idle,
            content: Content::Kept,
            restoring: None,
            wait_ms: None,
        }
    }

    pub(super) fn claimed(claim: Claim) -> Self {
        Self { stage: Stage::Claimed(claim.clone()), ..Self::new(claim.home.channel().clone()) }
    }

    /// Its channel.
    #[must_use]
    pub fn channel(&self) -> &ChannelName {
        &self.channel
    }

    /// The state in the ledger.
    #[must_use]
    pub fn saved(&self) -> Option<&BundleRecord> {
        self.saved.as_ref()
    }

    /// The latest state, if the disk has not taken it yet.
    #[must_use]
    pub fn unsaved(&self) -> Option<&BundleRecord> {
        self.unsaved.as_ref()
    }

    /// The latest state. None: the bundle is only claimed.
    #[must_use]
    pub fn latest(&self) -> Option<&BundleRecord> {
        self.unsaved.as_ref().or(self.saved.as_ref())
    }

    /// How far the bundle is on its way to the wire.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// What happens to the bundle's content.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// The state of restoring it. None: nobody asked for that in this run.
    #[must_use]
    pub fn restoring(&self) -> Option<&Restoring> {
        self.restoring.as_ref()
    }

    /// The claim, while the bundle has no sequence.
    #[must_use]
    pub fn claim(&self) -> Option<&Claim> {
        match &self.stage {
            Stage::Claimed(claim) | Stage::Planning(claim) => Some(claim),
            _ => None,
        }
    }

    /// What to send, while the bundle waits for its turn.
    #[must_use]
    pub fn ready(&self) -> Option<&Ready> {
        match &self.stage {
            Stage::Ready(ready) => Some(ready),
            _ => None,
        }
    }

    /// The progress of its transmission, once it is on the wire.
    #[must_use]
    pub fn on_wire(&self) -> Option<&Progress> {
        match &self.stage {
            Stage::Submitted(submitted) => submitted.on_wire(),
            _ => None,
        }
    }

    /// Whether it is being loaded or is in the pipeline.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        matches!(self.stage, Stage::Loading | Stage::Submitted(_))
    }

    /// Whether it is still to be withdrawn on the wire.
    #[must_use]
    pub fn is_withdrawing(&self) -> bool {
        match &self.stage {
            Stage::Withdrawing(_) => true,
            Stage::Submitted(submitted) => submitted.kind == Kind::Withdrawal,
            _ => false,
        }
    }

    pub(super) fn set_saved(&mut self, saved: Option<BundleRecord>) {
        (self.saved, self.unsaved) = (saved, None);
    }

    pub(super) fn set_unsaved(&mut self, unsaved: BundleRecord) {
        self.unsaved = Some(unsaved);
    }

    pub(super) fn set_stage(&mut self, stage: Stage) -> Stage {
        std::mem::replace(&mut self.stage, stage)
    }

    pub(super) fn set_content(&mut self, content: Content) {
        self.content = content;
    }

    pub(super) fn set_restoring(&mut self, restoring: Restoring) {
        self.restoring = Some(restoring);
    }

    pub(super) fn set_wait(&mut self, until_ms: Option<u64>) {
        self.wait_ms = until_ms;
    }

    pub(super) fn set_begun(&mut self) {
        if let Stage::Submitted(submitted) = &mut self.stage {
            submitted.begun = true;
        }
    }

    /// Whether nothing more will happen to it.
    pub(super) fn is_over(&self) -> bool {
        let settled = matches!((&self.stage, &self.content), (Stage::Idle, Content::Kept)) && self.unsaved.is_none();
        settled && self.restoring != Some(Restoring::Proving) && self.saved.as_ref().is_some_and(BundleRecord::is_over)
    }

    /// Whether the record is empty and can be dropped.
    pub(super) fn is_nothing(&self) -> bool {
        self.latest().is_none() && matches!((&self.stage, &self.content), (Stage::Idle, Content::Kept))
    }

    /// Whether its next transmission may begin as soon as it is due.
    fn is_free(&self) -> bool {
        matches!(self.stage, Stage::Idle | Stage::Ready(_)) && self.unsaved.is_none()
    }

    /// When it is to be sent next, if ever.
    fn due(&self) -> Option<Due> {
        let record = self.saved.as_ref().filter(|_| self.is_free() && self.wait_ms.is_none())?;
        let sequence = record.sequence.filter(|_| record.held && !record.has_failed())?;
        let due = |scheduled, at_ms| Due { scheduled, at_ms, sequence, id: record.id };
        match record.resends.first() {
            Some(_) if record.state == State::Transmitted => Some(due(false, 0)),
            _ => record.due_ms.map(|at| due(true, at)),
        }
    }

    fn is_releasable(&self, record: &BundleRecord) -> bool {
        record.held
            && record.state == State::Transmitted
            && record.due_ms.is_none()
            && record.resends.is_empty()
            && self.is_free()
    }

    /// Its keys in its channel's index, and in the index over all bundles.
    pub(super) fn keys(&self, id: BundleId) -> (Vec<ChannelKey>, Vec<Key>) {
        let (mut of_channel, mut of_all) = (Vec::new(), Vec::new());
        match &self.stage {
            Stage::Claimed(claim) => of_channel.push(ChannelKey::Claimed(claim.turn, id)),
            Stage::Planning(_) => of_channel.push(ChannelKey::Planning(id)),
            Stage::Idle => {}
            Stage::Loading => of_channel.push(ChannelKey::UnderWay(id)),
            Stage::Ready(_) => of_all.push(Key::Ready(id)),
            Stage::Submitted(submitted) => {
                of_channel.extend((submitted.kind != Kind::Withdrawal).then_some(ChannelKey::UnderWay(id)));
                of_all.extend((!submitted.begun).then_some(Key::Waiting(id)));
            }
            Stage::Withdrawing(_) => of_all.extend(self.unsaved.is_none().then_some(Key::Withdrawing(id))),
        }
        match &self.content {
            Content::Kept => {}
            Content::Failing(_) => of_all.push(Key::Failing(id)),
            Content::Leftover(_) => of_all.push(Key::Leftover(id)),
            Content::Removing => of_all.push(Key::Removing(id)),
        }
        if let Some(record) = &self.saved {
            of_channel.push(match record.sequence {
                Some(sequence) => ChannelKey::Sequence(sequence, id),
                None => ChannelKey::Refused(record.claimed_ms, id),
            });
            if self.is_releasable(record) {
                let since = record.retained_since_ms.unwrap_or(u64::MAX);
                of_all.push(Key::Releasable(since, record.sequence.unwrap_or_default(), id));
            }
        }
        of_channel.extend(self.due().map(ChannelKey::Due));
        of_all.extend(self.unsaved.as_ref().map(|_| Key::Unsaved(id)));
        of_all.extend(self.wait_ms.map(|until| Key::Wait(until, id)));
        (of_channel, of_all)
    }
}
