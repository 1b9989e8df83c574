//! An identity source that runs as the agent runs it, and what it says: for tests of one source
//! against real or canned daemons.
//!
//! The rig has a runtime of its own, so that a test is an ordinary function and may block on what it
//! starts beside the source.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gpuacct::core::input::{ContainerIdentity, IdentityUpdate, Input, SourceHealth};
use gpuacct::core::model::{ContainerId, SourceId, SourceState};
use gpuacct::sources::identity::{Counters, IdentityIo};
use gpuacct::sources::{Io, clock};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long a source may take to say or do anything. It turns a hang into a failure.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Requests and inputs that wait at most.
const ROOM: usize = 64;

/// A running source.
#[derive(Debug)]
pub struct SourceRig<Wanted = ContainerId> {
    source: SourceId,
    runtime: Runtime,
    inputs: mpsc::Receiver<Input>,
    wanted: mpsc::Sender<Wanted>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    counters: Arc<Counters>,
}

impl<Wanted: Send + 'static> SourceRig<Wanted> {
    /// Starts the source that `run` makes, with the channels that the agent would give it. Only health
    /// of `source` may come from it.
    ///
    /// # Panics
    /// If there is no runtime to be had.
    pub fn start<F: Future<Output = ()> + Send + 'static>(
        source: SourceId,
        run: impl FnOnce(IdentityIo<Wanted>) -> F,
    ) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (wanted, asked) = mpsc::channel(ROOM);
        let (out, inputs) = mpsc::channel(ROOM);
        let (stop, shutdown) = watch::channel(false);
        let counters = Arc::new(Counters::default());
        let task = runtime.spawn(run(IdentityIo {
            counters: Arc::clone(&counters),
            questions: asked,
            io: Io {
                out,
                clock: clock::now,
                shutdown,
            },
        }));
        Self {
            source,
            runtime,
            inputs,
            wanted,
            stop,
            task,
            counters,
        }
    }

    /// The first of the coming inputs that `pick` makes something of.
    ///
    /// # Panics
    /// If none comes, or the source has ended; the message has what came instead.
    pub fn until<T>(&mut self, what: &str, mut pick: impl FnMut(&Input) -> Option<T>) -> T {
        let inputs = &mut self.inputs;
        let mut passed = Vec::new();
        let search = async {
            loop {
                let input = inputs.recv().await.expect("the source goes on");
                if let Some(picked) = pick(&input) {
                    return picked;
                }
                passed.push(input);
            }
        };
        let found = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, search).await });
        found.unwrap_or_else(|_| panic!("no {what} among {passed:#?}"))
    }

    /// The next report of health with that state.
    ///
    /// # Panics
    /// As [`SourceRig::until`].
    pub fn health(&mut self, state: &str) -> SourceHealth {
        let source = self.source;
        self.until(state, |input| match input {
            Input::Health(health) if health.state.as_str() == state => {
                assert_eq!(health.source, source);
                Some(health.clone())
            }
            _ => None,
        })
    }

    /// The class and the words of the next failure.
    ///
    /// # Panics
    /// As [`SourceRig::until`], or if it does not say when it tries again.
    pub fn down(&mut self) -> (String, String) {
        let SourceState::Down {
            class,
            reason,
            next_retry,
        } = self.health("down").state
        else {
            panic!("down is down");
        };
        assert!(next_retry.is_some());
        (class.to_string(), reason.to_string())
    }

    /// The words of the next failure of that class.
    ///
    /// # Panics
    /// As [`SourceRig::until`].
    pub fn down_for(&mut self, wanted: &str) -> String {
        self.until(wanted, |input| match input {
            Input::Health(SourceHealth {
                state: SourceState::Down { class, reason, .. },
                ..
            }) => (&**class == wanted).then(|| reason.to_string()),
            _ => None,
        })
    }

    /// Asks it for something.
    ///
    /// # Panics
    /// If the source has ended.
    pub fn ask(&self, for_what: Wanted) {
        let asked = self.wanted.blocking_send(for_what);
        asked.unwrap_or_else(|_| panic!("the source goes on"));
    }

    /// Waits, and passes over what it says meanwhile, until something holds elsewhere.
    ///
    /// # Panics
    /// If it does not come to hold.
    pub fn while_it_goes_on(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < deadline, "no {what}");
            while self.inputs.try_recv().is_ok() {}
            std::thread::yield_now();
        }
    }

    /// One of its counters.
    pub fn count(&self, of: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        of(&self.counters).load(Ordering::Relaxed)
    }

    /// Stops it in order.
    ///
    /// # Panics
    /// If it does not stop, or has panicked.
    pub fn stop(self) {
        self.stop.send(true).expect("the source goes on");
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(PATIENCE, self.task).await });
        ended
            .expect("the source stops")
            .expect("and has not panicked");
    }
}

impl SourceRig {
    /// Asks it for a container.
    ///
    /// # Panics
    /// If the source has ended.
    pub fn look_up(&self, id: &str) {
        self.ask(ContainerId::from(id));
    }

    /// The next identity of that container.
    ///
    /// # Panics
    /// As [`SourceRig::until`].
    pub fn found(&mut self, id: &str) -> ContainerIdentity {
        self.until(id, |input| match input {
            Input::Identity(IdentityUpdate::Found(identity)) if identity.id.as_str() == id => {
                Some(identity.clone())
            }
            _ => None,
        })
    }

    /// Waits until it says that the container is gone.
    ///
    /// # Panics
    /// As [`SourceRig::until`].
    pub fn removed(&mut self, id: &str) {
        self.until("removal", |input| match input {
            Input::Identity(IdentityUpdate::Removed { id: gone, .. }) => {
                (gone.as_str() == id).then_some(())
            }
            _ => None,
        });
    }

    /// Why it does not find that container, as it says next.
    ///
    /// # Panics
    /// As [`SourceRig::until`].
    pub fn not_found(&mut self, id: &str) -> &'static str {
        self.until("not found", |input| match input {
            Input::Identity(IdentityUpdate::NotFound {
                id: lost, reason, ..
            }) => (lost.as_str() == id).then_some(*reason),
            _ => None,
        })
    }
}
