//! The places that a listener has for connections, and which connection gives way when there are
//! too few.
//!
//! A new connection always gets a place. If there is none, the connection is closed that has
//! completed no step for the longest time. A step is a complete request or a complete answer.
//! Single bytes do not count, so a client cannot keep its place by sending or taking a byte now and
//! then.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::counters::{ConnectionCounters, Counter};

/// How many connections there may be, and how long each may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Connections that a listener has open at most.
    pub(super) places: usize,
    /// Of these, connections from one address at most. Several clients may be behind one address.
    pub(super) places_per_address: usize,
    /// How long the header of a request may take to arrive: from the connection's start, or from
    /// the request's first byte where it is not the first request.
    pub(super) header: Duration,
    /// How long an answer may take, from the end of the request's header until the kernel has taken
    /// the answer's last byte.
    pub(super) answer: Duration,
    /// How long a connection may be without a request. Longer than any usual scrape interval, so
    /// that scrapers can keep theirs.
    pub(super) silence: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            places: 64,
            places_per_address: 8,
            header: Duration::from_secs(5),
            answer: Duration::from_secs(30),
            silence: Duration::from_secs(150),
        }
    }
}

/// Why the agent closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// All places were taken, and it was the idlest.
    GaveWay,
    /// Its address had its share of places, and it was the idlest of them.
    OneAddress,
    /// A request's header did not arrive in time.
    SlowHeader,
    /// An answer was not taken in time.
    SlowReader,
    /// It was without a request for too long.
    Silent,
}

impl Closed {
    const fn counter(self, counters: &ConnectionCounters) -> &Counter {
        match self {
            Self::GaveWay => &counters.gave_way,
            Self::OneAddress => &counters.one_address,
            Self::SlowHeader => &counters.slow_header,
            Self::SlowReader => &counters.slow_reader,
            Self::Silent => &counters.silent,
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// A request's header is awaited, or a part of it is there.
    Header,
    /// A request is being answered. Once its answer is made, only the client is awaited.
    Answer { is_made: bool },
    /// The last answer was taken, and nothing of another request has come.
    Idle,
    /// It is being closed.
    Leaving(Closed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ConnectionState {
    stage: Stage,
    /// When it last finished something: it was accepted, a header was complete, an answer was
    /// taken.
    since: Instant,
}

/// One connection's progress, as its stream and its service tell it.
#[derive(Debug)]
pub(super) struct Progress {
    address: Option<IpAddr>,
    state: watch::Sender<ConnectionState>,
}

impl Progress {
    fn turn(&self, next: impl FnOnce(Stage) -> Option<Stage>, is_finished: bool) {
        self.state.send_if_modified(|state| {
            let Some(stage) = next(state.stage) else {
                return false;
            };
            state.stage = stage;
            if is_finished {
                state.since = Instant::now();
            }
            true
        });
    }

    /// The client has sent something.
    pub(super) fn bytes_arrived(&self) {
        self.turn(
            |stage| (stage == Stage::Idle).then_some(Stage::Header),
            true,
        );
    }

    /// A request's header is complete.
    pub(super) fn request_arrived(&self) {
        let answer = Stage::Answer { is_made: false };
        self.turn(
            |stage| matches!(stage, Stage::Header | Stage::Idle).then_some(answer),
            true,
        );
        // Where the client has not taken an earlier answer yet, the time of that one goes on.
        self.turn(
            |stage| (stage == Stage::Answer { is_made: true }).then_some(answer),
            false,
        );
    }

    /// The answer can be sent.
    pub(super) fn answer_made(&self) {
        let made = Stage::Answer { is_made: true };
        self.turn(
            |stage| (stage == Stage::Answer { is_made: false }).then_some(made),
            false,
        );
    }

    /// The kernel has taken everything that was to be sent.
    pub(super) fn all_taken(&self) {
        let made = Stage::Answer { is_made: true };
        self.turn(|stage| (stage == made).then_some(Stage::Idle), true);
    }

    fn leave(&self, closed: Closed) {
        self.turn(|_| Some(Stage::Leaving(closed)), false);
    }

    fn now(&self) -> ConnectionState {
        *self.state.borrow()
    }

    fn is_leaving(&self) -> bool {
        matches!(self.now().stage, Stage::Leaving(_))
    }
}

/// The places of one listener.
#[derive(Debug)]
pub(super) struct ConnectionSlots {
    bounds: Bounds,
    held: Mutex<Vec<Arc<Progress>>>,
}

impl ConnectionSlots {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            held: Mutex::default(),
        })
    }

    /// A place for a new connection. Another connection may have to leave for it.
    pub(super) fn take(self: &Arc<Self>, address: Option<IpAddr>) -> ConnectionSlot {
        let address = address.map(|address| address.to_canonical());
        let progress = Arc::new(Progress {
            address,
            state: watch::Sender::new(ConnectionState {
                stage: Stage::Header,
                since: Instant::now(),
            }),
        });
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let stay: Vec<_> = held.iter().filter(|other| !other.is_leaving()).collect();
        let is_neighbour = |other: &Progress| address.is_some() && other.address == address;
        let neighbours = stay.iter().filter(|other| is_neighbour(other));
        if neighbours.count() >= self.bounds.places_per_address {
            let neighbours = stay.iter().filter(|other| is_neighbour(other));
            if let Some(idlest) = neighbours.min_by_key(|other| other.now().since) {
                idlest.leave(Closed::OneAddress);
            }
        } else if stay.len() >= self.bounds.places
            && let Some(idlest) = stay.iter().min_by_key(|other| other.now().since)
        {
            idlest.leave(Closed::GaveWay);
        }
        held.push(Arc::clone(&progress));
        ConnectionSlot {
            places: Arc::clone(self),
            progress,
        }
    }

    /// Closes the connection whose client has been taking an answer for the longest time. Returns
    /// false if there is none.
    pub(super) fn end_slowest_reader(&self) -> bool {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let readers = held
            .iter()
            .filter(|other| other.now().stage == Stage::Answer { is_made: true });
        match readers.min_by_key(|other| other.now().since) {
            Some(slowest) => {
                slowest.leave(Closed::SlowReader);
                true
            }
            None => false,
        }
    }
}

/// A connection's slot. It is freed on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    places: Arc<ConnectionSlots>,
    progress: Arc<Progress>,
}

impl ConnectionSlot {
    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Waits until the connection has to be closed, and counts why.
    pub(super) async fn must_close(&self, counters: &ConnectionCounters) {
        let bounds = &self.places.bounds;
        let mut states = self.progress.state.subscribe();
        let closed = loop {
            let ConnectionState { stage, since } = *states.borrow_and_update();
            let (limit, closed) = match stage {
                Stage::Header => (bounds.header, Closed::SlowHeader),
                Stage::Answer { .. } => (bounds.answer, Closed::SlowReader),
                Stage::Idle => (bounds.silence, Closed::Silent),
                Stage::Leaving(closed) => break closed,
            };
            tokio::select! {
                // The sender lives as long as this place.
                _ = states.changed() => {}
                () = tokio::time::sleep_until(since + limit) => break closed,
            }
        };
        closed.counter(counters).add(1);
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let held = self.places.held.lock();
        let mut held = held.unwrap_or_else(PoisonError::into_inner);
        held.retain(|other| !Arc::ptr_eq(other, &self.progress));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    fn leaves(place: &ConnectionSlot) -> Option<Closed> {
        match place.progress.now().stage {
            Stage::Leaving(closed) => Some(closed),
            _ => None,
        }
    }

    async fn later() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_takes_the_place_of_whoever_finished_nothing_for_longest() {
        let places = ConnectionSlots::new(Bounds {
            places: 3,
            ..Bounds::default()
        });
        let [first, second, third] = [1, 2, 3].map(|at| places.take(address(at)));
        later().await;
        // The first sends byte after byte; the second's request is complete; the third's is
        // answered.
        first.progress.bytes_arrived();
        second.progress.request_arrived();
        third.progress.request_arrived();
        third.progress.answer_made();
        third.progress.all_taken();
        let _fourth = places.take(address(4));
        assert_eq!(leaves(&first), Some(Closed::GaveWay));
        assert_eq!((leaves(&second), leaves(&third)), (None, None));
        // Whoever is leaving is not asked a second time.
        let _fifth = places.take(address(5));
        let gone = [&second, &third].map(leaves);
        assert!(gone.contains(&Some(Closed::GaveWay)) && gone.contains(&None));
        drop((first, second, third));
        let held = places.held.lock().unwrap().len();
        assert_eq!(held, 2, "places are given back");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_its_share_of_places_takes_from_itself() {
        let places = ConnectionSlots::new(Bounds {
            places: 3,
            places_per_address: 2,
            ..Bounds::default()
        });
        let other = places.take(address(9));
        later().await;
        let first = places.take(address(1));
        later().await;
        // The same address, as a listener for both families shows it.
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped();
        let second = places.take(Some(IpAddr::from(mapped)));
        let _third = places.take(address(1));
        assert_eq!(leaves(&first), Some(Closed::OneAddress));
        assert_eq!((leaves(&second), leaves(&other)), (None, None));
        // A local socket has no addresses to share its places by.
        let places = ConnectionSlots::new(Bounds {
            places: 3,
            places_per_address: 1,
            ..Bounds::default()
        });
        let local = [(); 3].map(|()| places.take(None));
        assert!(local.iter().all(|place| leaves(place).is_none()));
    }

    #[tokio::test(start_paused = true)]
    async fn each_stage_has_its_own_limit_and_what_is_not_taken_keeps_its_time() {
        let places = ConnectionSlots::new(Bounds::default());
        let counters = ConnectionCounters::default();
        let seconds = Duration::from_secs;
        let began = Instant::now();
        let place = places.take(None);
        place.must_close(&counters).await;
        assert_eq!(
            (began.elapsed(), counters.slow_header.get()),
            (seconds(5), 1)
        );

        let began = Instant::now();
        let place = places.take(None);
        place.progress.request_arrived();
        tokio::time::advance(seconds(20)).await;
        place.progress.answer_made();
        // A second request, sent before the first one's answer was taken.
        place.progress.request_arrived();
        place.progress.answer_made();
        place.must_close(&counters).await;
        assert_eq!(
            (began.elapsed(), counters.slow_reader.get()),
            (seconds(30), 1)
        );

        let began = Instant::now();
        let place = places.take(None);
        place.progress.request_arrived();
        // What a handler that is still at work has to send is nothing.
        place.progress.all_taken();
        assert_eq!(place.progress.now().stage, Stage::Answer { is_made: false });
        place.progress.answer_made();
        place.progress.all_taken();
        place.must_close(&counters).await;
        assert_eq!((began.elapsed(), counters.silent.get()), (seconds(150), 1));

        let place = places.take(None);
        place.progress.request_arrived();
        place.progress.answer_made();
        place.progress.all_taken();
        tokio::time::advance(seconds(100)).await;
        let began = Instant::now();
        place.progress.bytes_arrived();
        place.must_close(&counters).await;
        assert_eq!(
            (began.elapsed(), counters.slow_header.get()),
            (seconds(5), 2)
        );
    }
}
