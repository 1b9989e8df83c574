//! What the page says: the words and figures that its template puts into place.
//!
//! Every text that comes from outside goes through [`shown`] on its way here, and is escaped by the
//! template and by the writer of the pictures.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::history::{History, Hour, OwnerKey, Stretch};
use super::picture::{Band, draw};
use crate::core::model::{Clock, ContainerId, GpuUuid, Nanos, SourceState, WallTime};
use crate::core::snapshot::{
    AllocationState, AllocationView, Attribution, ContainerAccount, GpuBook, HostAccount, Snapshot,
};
use crate::drawing::distinct;
use crate::figures::{bytes, duration, memory_of, share, unknown};
use crate::outputs::condition::degraded;
use crate::outputs::gpu_status::{GpuStatus, troubles};
use crate::outputs::instruments::VERSION;
use crate::published::Published;
use crate::words::{place_and_reason, shown, state, uptime};

/// Owners of a GPU that have a band of their own in its picture.
const BANDS: usize = 10;
/// Owners of a GPU whose rows are seen at once. The others are in a part that opens.
const ROWS: usize = 12;
/// Owners that the overview names for each GPU.
const HOLDERS: usize = 3;
/// The columns of a name that are shown, and of the whole name that is shown on demand.
const NAME_WIDTH: usize = 80;
const WHOLE_NAME_WIDTH: usize = 512;
/// The columns of any other text from outside.
const TEXT_WIDTH: usize = 300;

/// Everything on the page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) version: &'static str,
    /// The time of the commit, for people and for programs; absent before the first one.
    pub(super) as_of: Option<(String, String)>,
    pub(super) up: String,
    /// Why the agent is degraded; nothing if it is well.
    pub(super) reasons: Vec<String>,
    pub(super) is_simulated: bool,
    pub(super) gpus: Vec<Gpu>,
    pub(super) sources: Vec<Source>,
}

/// A GPU and who has it.
#[derive(Debug)]
pub(super) struct Gpu {
    /// What the section is found by.
    pub(super) anchor: String,
    pub(super) title: String,
    pub(super) model: String,
    /// The UUID, and of a MIG instance its place.
    pub(super) detail: String,
    /// Share of the last minute in which it was busy: in words and in whole percents.
    pub(super) busy: (String, u32),
    pub(super) memory: String,
    pub(super) troubles: Vec<(&'static str, String)>,
    /// Who uses it now, the most first, with their shares.
    pub(super) holders: Vec<(String, String)>,
    /// Who has it now beside these.
    pub(super) more_holders: usize,
    /// The picture, as SVG.
    pub(super) picture: String,
    /// Rows that are seen at once.
    pub(super) rows: Vec<Row>,
    /// The other rows.
    pub(super) more: Vec<Row>,
    /// What the hour consists of beside the owners.
    pub(super) rest: Vec<Rest>,
    /// The whole hour.
    pub(super) known: String,
}

/// An owner on a GPU.
#[derive(Debug)]
pub(super) struct Row {
    /// The class of its colour.
    pub(super) class: String,
    pub(super) name: String,
    /// The whole name, as far as it is bounded.
    pub(super) whole: String,
    /// What else is to be known of it.
    pub(super) remarks: Vec<String>,
    pub(super) now: String,
    pub(super) hour: String,
    pub(super) hour_share: String,
    pub(super) memory: String,
}

/// A part of the hour that is no owner's.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) class: &'static str,
    pub(super) name: String,
    pub(super) hour: String,
    pub(super) hour_share: String,
}

/// A source and its state.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) state: &'static str,
    pub(super) since: String,
    pub(super) place: String,
}

/// An owner's use of a GPU, of now and of the last hour.
#[derive(Debug, Default)]
struct Use {
    name: String,
    remarks: Vec<String>,
    share: f64,
    memory: Option<u64>,
    has_it: bool,
    hour: Nanos,
}

impl Page {
    /// What is to be said of `published` at `now`.
    pub(super) fn new(published: &Published, history: &mut History, now: Clock) -> Self {
        let snapshot = &published.books;
        let mut hours = history.until(snapshot);
        let is_begun = snapshot.sequence > 0;
        let reasons = degraded(published, now.boot);
        let gpus = snapshot.gpus.iter().enumerate().map(|(number, book)| {
            let hour = hours.remove(&book.gpu.uuid).unwrap_or_default();
            Gpu::new(number, book, snapshot, history, &hour, now.wall)
        });
        let sources = published.agent.sources.iter().map(|health| Source {
            name: health.source.as_str(),
            state: health.state.as_str(),
            since: match health.state {
                SourceState::Disabled => unknown(),
                _ => duration(now.boot.since(health.since)),
            },
            place: shown(
                &place_and_reason(&health.place, &health.state, now.boot),
                TEXT_WIDTH,
            ),
        });
        Self {
            version: VERSION,
            as_of: is_begun.then(|| times(snapshot.wall)).flatten(),
            up: uptime(snapshot, now.wall),
            reasons: reasons
                .iter()
                .map(|reason| shown(reason, TEXT_WIDTH))
                .collect(),
            is_simulated: snapshot.gpus.iter().any(|book| book.gpu.simulated),
            gpus: gpus.collect(),
            sources: sources.collect(),
        }
    }

    /// The state of the agent in one word.
    pub(super) fn state(&self) -> &'static str {
        match (&self.as_of, self.reasons.is_empty()) {
            (None, _) => "starting",
            (Some(_), true) => "healthy",
            (Some(_), false) => "degraded",
        }
    }
}

/// An instant for people and for programs.
fn times(at: WallTime) -> Option<(String, String)> {
    let at = jiff::Timestamp::from_nanosecond(i128::from(at.0)).ok()?;
    let people = at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    Some((people, at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()))
}

impl Gpu {
    fn new(
        number: usize,
        book: &GpuBook,
        snapshot: &Snapshot,
        history: &History,
        hour: &Hour,
        now: WallTime,
    ) -> Self {
        let uuid = &book.gpu.uuid;
        let total = total(hour);
        let uses = uses(snapshot, uuid, history, &total);
        let mut ranked: Vec<(&OwnerKey, &Use)> = uses.iter().collect();
        ranked.sort_by_key(|(_, of)| (Reverse(of.hour), Reverse(permille(of.share)), &of.name));

        let banded: Vec<&OwnerKey> = ranked
            .iter()
            .filter(|(_, of)| !of.hour.is_zero())
            .take(BANDS)
            .map(|(key, _)| *key)
            .collect();
        let colours = distinct(banded.iter().map(|key| history.colour(key)));
        let bands = banded.iter().zip(colours).map(|(key, colour)| Band {
            owner: key,
            class: format!("c{colour}"),
            name: uses[*key].name.clone(),
            hour: uses[*key].hour,
        });
        let bands: Vec<Band<'_>> = bands.collect();

        let rows = ranked.iter().map(|(key, of)| {
            let band = bands.iter().find(|band| band.owner == *key);
            let class = band.map(|band| band.class.clone());
            let is_drawn = !of.hour.is_zero();
            Row::new(
                of,
                class.unwrap_or_else(|| if is_drawn { "others" } else { "none" }.to_owned()),
                &total,
            )
        });
        let mut rows: Vec<Row> = rows.collect();
        // One row more is no longer than the line that says that there is one.
        let keep = if rows.len() <= ROWS + 1 {
            rows.len()
        } else {
            ROWS
        };
        let more = rows.split_off(keep);

        let mut holders: Vec<&Use> = uses.values().filter(|of| of.has_it).collect();
        holders.sort_by_key(|of| (Reverse(permille(of.share)), &of.name));
        let named = holders.iter().take(HOLDERS);
        let named = named.map(|of| (shown(&of.name, NAME_WIDTH), share(of.share)));
        let found = troubles(book, &snapshot.xids, now).into_iter();
        let title = format!("GPU {}", book.gpu.index);
        Self {
            anchor: format!("gpu-{number}"),
            model: shown(&book.gpu.model, NAME_WIDTH),
            detail: detail(book, snapshot),
            busy: book.utilization.map_or((unknown(), 0), |busy| {
                (share(busy), permille(busy).min(1_000) / 10)
            }),
            memory: memory_of(book.memory_used, book.gpu.memory_total),
            troubles: found
                .map(|(status, text)| (status_class(status), shown(&text, TEXT_WIDTH)))
                .collect(),
            more_holders: holders.len().saturating_sub(HOLDERS),
            holders: named.collect(),
            picture: draw(&title, hour, &bands, &total),
            rows,
            more,
            rest: rest(&total),
            known: duration(total.elapsed()),
            title,
        }
    }
}

/// The hour as one stretch.
fn total(hour: &Hour) -> Stretch {
    let mut total = Stretch::default();
    let mut owners: BTreeMap<&OwnerKey, Nanos> = BTreeMap::new();
    for stretch in &hour.stretches {
        for (owner, busy) in &stretch.owners {
            let sum = owners.entry(owner).or_default();
            *sum = sum.plus(*busy);
        }
        total.others = total.others.plus(stretch.others);
        // Of two minutes it cannot be said whether the same owners are joined in both.
        total.joined = total.joined.max(stretch.joined);
        total.unowned = total.unowned.plus(stretch.unowned);
        total.idle = total.idle.plus(stretch.idle);
        total.unobserved = total.unobserved.plus(stretch.unobserved);
    }
    total.owners = owners
        .into_iter()
        .map(|(owner, busy)| (owner.clone(), busy))
        .collect();
    total
}

/// What each owner uses of a GPU, who has it now or has used it in the last hour.
fn uses(
    snapshot: &Snapshot,
    gpu: &GpuUuid,
    history: &History,
    total: &Stretch,
) -> BTreeMap<OwnerKey, Use> {
    let allocated = allocated(&snapshot.allocations, gpu);
    let mut uses = BTreeMap::new();
    for account in snapshot.accounts.iter().filter(|it| it.gpu == *gpu) {
        uses.insert(OwnerKey::of(account), Use::of(account, &allocated));
    }
    for account in snapshot.host_accounts.iter().filter(|it| it.gpu == *gpu) {
        uses.insert(OwnerKey::Unit(account.unit.clone()), Use::of_unit(account));
    }
    for (owner, busy) in &total.owners {
        let of = uses.entry(owner.clone()).or_insert_with(|| Use {
            name: history.name(owner),
            remarks: vec!["ended".to_owned()],
            ..Use::default()
        });
        of.hour = *busy;
    }
    uses.retain(|_, of| of.has_it || !of.hour.is_zero());
    uses
}

/// The containers to which the kubelet has given the GPU.
fn allocated<'a>(allocations: &'a [AllocationView], gpu: &GpuUuid) -> BTreeSet<&'a ContainerId> {
    let given = allocations.iter().filter(|given| match given.state {
        AllocationState::Counting | AllocationState::Forgotten | AllocationState::Unconfirmed => {
            given.devices.iter().any(|device| device.gpus.contains(gpu))
        }
        AllocationState::NoContainer | AllocationState::Ended => false,
    });
    given.filter_map(|given| given.id.as_ref()).collect()
}

impl Use {
    fn of(account: &ContainerAccount, allocated: &BTreeSet<&ContainerId>) -> Self {
        let mut remarks = Vec::new();
        let is_allocated = allocated.contains(&account.id);
        if is_allocated {
            remarks.push("allocated".to_owned());
        }
        if account.ended || !matches!(account.attribution, Attribution::Named { .. }) {
            remarks.push(state(account));
        }
        let is_using = is_using(account.share, account.memory);
        Self {
            name: OwnerKey::of(account).name(Some(&account.labels)),
            remarks,
            share: account.share,
            memory: account.memory,
            has_it: !account.ended && (is_using || is_allocated),
            hour: Nanos::ZERO,
        }
    }

    fn of_unit(account: &HostAccount) -> Self {
        Self {
            name: account.unit.to_string(),
            remarks: vec!["host".to_owned()],
            share: account.share,
            memory: account.memory,
            has_it: is_using(account.share, account.memory),
            hour: Nanos::ZERO,
        }
    }
}

/// Whether an owner uses a GPU now.
fn is_using(share: f64, memory: Option<u64>) -> bool {
    share > 0.0 || memory.is_some_and(|memory| memory > 0)
}

impl Row {
    fn new(of: &Use, class: String, total: &Stretch) -> Self {
        // One without a figure of its own may be among those that are joined.
        let is_known = !of.hour.is_zero() || total.others.is_zero();
        let known = if is_known {
            total.elapsed()
        } else {
            Nanos::ZERO
        };
        Self {
            class,
            name: shown(&of.name, NAME_WIDTH),
            whole: shown(&of.name, WHOLE_NAME_WIDTH),
            remarks: of.remarks.clone(),
            now: share(of.share),
            hour: match is_known {
                true => duration(of.hour),
                false => unknown(),
            },
            hour_share: share_of(of.hour, known),
            memory: of.memory.map_or_else(unknown, bytes),
        }
    }
}

/// What the hour consists of beside the owners that have rows.
fn rest(total: &Stretch) -> Vec<Rest> {
    let known = total.elapsed();
    let mut rest = Vec::new();
    let mut row = |class, name: String, hour: Nanos, is_always: bool, whole: Nanos| {
        if is_always || !hour.is_zero() {
            rest.push(Rest {
                class,
                name,
                hour: duration(hour),
                hour_share: share_of(hour, whole),
            });
        }
    };
    let joined = match total.joined {
        1 => "at least 1 more owner".to_owned(),
        joined => format!("at least {joined} more owners"),
    };
    row("others", joined, total.others, false, known);
    row(
        "unowned",
        "busy, no owner".into(),
        total.unowned,
        false,
        known,
    );
    row("idle", "idle".into(), total.idle, true, known);
    row(
        "unobserved",
        "not observed".into(),
        total.unobserved,
        false,
        known,
    );
    rest
}

/// Where a GPU is found: its UUID, and of a MIG instance its place on its GPU.
fn detail(book: &GpuBook, snapshot: &Snapshot) -> String {
    let uuid = shown(book.gpu.uuid.as_str(), NAME_WIDTH);
    let Some(mig) = &book.gpu.mig else {
        return uuid;
    };
    let mut books = snapshot.gpus.iter();
    let parent = books.find(|book| book.gpu.uuid == mig.parent);
    let parent = match parent {
        Some(parent) => format!("GPU {}", parent.gpu.index),
        None => shown(mig.parent.as_str(), NAME_WIDTH),
    };
    let profile = shown(&mig.profile, NAME_WIDTH);
    format!(
        "MIG {profile}, instance {}/{} of {parent}, {uuid}",
        mig.gpu_instance, mig.compute_instance
    )
}

const fn status_class(status: GpuStatus) -> &'static str {
    match status {
        GpuStatus::Ok => "note",
        GpuStatus::Degraded => "warn",
        GpuStatus::Failed => "bad",
    }
}

/// A share in thousandths, for an order among shares.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of a float saturates, and that is what is wanted"
)]
fn permille(share: f64) -> u32 {
    (share * 1_000.0).round() as u32
}

fn share_of(part: Nanos, whole: Nanos) -> String {
    if whole.is_zero() {
        return unknown();
    }
    share(part.as_secs_f64() / whole.as_secs_f64())
}
