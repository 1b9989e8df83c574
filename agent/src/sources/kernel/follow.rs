//! Keeps the eBPF object loaded, and hands on what it reports.

use std::time::Duration;

use super::opens::OpenHookState;
use super::{KernelConfig, KernelSource, Tally};
use crate::config;
use crate::core::input::{Input, KernelBatch};
use crate::core::model::{SourceId, SourceState};
use crate::errors::chain;
use crate::sources::Io;
use crate::sources::health::{Closed, HealthReporter};
use crate::sources::retry::Backoff;
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How long the object rests before it is loaded again: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How often a node without a GPU's device is looked at again.
const LOOK_FOR_DEVICES: Duration = Duration::from_secs(10);

/// What the object is asked for while it is loaded.
#[derive(Debug)]
pub struct Requested {
    /// To announce all cgroups anew.
    pub announce: mpsc::Receiver<()>,
    /// To report up to when all events are known.
    pub reports: mpsc::Receiver<()>,
}

/// Keeps the object loaded until the agent stops. Each time that it has just been attached, `rescans`
/// is asked for a scan of `/proc`: what was born before is known from there. Tells `tried` when the
/// object has been attached for the first time, or cannot be. Once the agent stops, it reports what
/// has happened until then, and ends.
pub async fn run(
    config: config::Kernel,
    mut requested: Requested,
    rescans: mpsc::Sender<()>,
    tried: oneshot::Sender<()>,
    io: Io,
) {
    let config = KernelConfig::from(&config);
    let mut tried = Some(tried);
    let mut has_tried = || {
        // Sending fails if the first scan of `/proc` has begun without waiting for this.
        let _ = tried.take().map(|tried| tried.send(()));
    };
    let mut health = HealthReporter::new(SourceId::Kernel, io.out.clone(), io.clock);
    let mut retry = Backoff::new(RETRY);
    let mut tally = Tally::default();
    loop {
        let config = config.clone();
        let loading = spawn_blocking(move || KernelSource::load(&config));
        let loaded = tokio::select! {
            loaded = loading => loaded,
            () = io.stopped() => return,
        };
        let (class, reason) = match loaded {
            Ok(Ok((source, batches))) => {
                retry.reset();
                // If the channel is full, a scan is about to begin anyway.
                let begun = || {
                    let _ = rescans.try_send(());
                    has_tried();
                };
                let passed_on = pass_on(
                    source,
                    batches,
                    begun,
                    &mut requested,
                    &mut tally,
                    &io,
                    &mut health,
                );
                match passed_on.await {
                    Ok(Ending::Stream) => {}
                    Ok(Ending::Stopped) | Err(Closed) => return,
                }
                tally.object_gone();
                ("stream", "the event stream ended".to_owned())
            }
            Ok(Err(error)) => (error.class(), chain(&error)),
            Err(error) => ("panic", error.to_string()),
        };
        let pause = retry.wait();
        let state = SourceState::Down {
            class: class.into(),
            reason: reason.into(),
            next_retry: Some((io.clock)().boot.plus(pause.into())),
        };
        if let Err(Closed) = health.report(state, "").await {
            return;
        }
        has_tried();
        tokio::select! {
            () = sleep(pause) => {}
            () = io.stopped() => return,
        }
    }
}

/// Why an object's reports came to their end.
enum Ending {
    /// Its stream ended.
    Stream,
    /// The agent stops.
    Stopped,
}

/// Hands on what an object reports, until its stream ends or the agent stops, and then what has
/// happened up to there.
async fn pass_on(
    mut source: KernelSource,
    mut batches: mpsc::Receiver<KernelBatch>,
    begun: impl FnOnce(),
    requested: &mut Requested,
    tally: &mut Tally,
    io: &Io,
    health: &mut HealthReporter,
) -> Result<Ending, Closed> {
    let mut opens = source.opens();
    health.report(SourceState::Up, opens.as_str()).await?;
    let mut look = interval(LOOK_FOR_DEVICES);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    begun();
    // When the agent stopped, once it has.
    let mut stopped = None;
    loop {
        tokio::select! {
            batch = batches.recv() => {
                let Some(mut batch) = batch else {
                    return Ok(Ending::Stream);
                };
                let through = batch.drained_through;
                batch.counters = tally.count(batch.counters);
                io.out.send(Input::Kernel(batch)).await.map_err(|_| Closed)?;
                if stopped.is_some_and(|stopped| stopped <= through) {
                    return Ok(Ending::Stopped);
                }
            }
            () = io.stopped(), if stopped.is_none() => {
                stopped = Some((io.clock)().boot);
                source.report();
            }
            Some(()) = requested.announce.recv() => source.clear_announced(),
            Some(()) = requested.reports.recv() => source.report(),
            // The driver is often loaded later than the agent starts.
            _ = look.tick(), if opens == OpenHookState::Waiting => {
                let looked = spawn_blocking(move || {
                    let opens = source.attach_opens();
                    (source, opens)
                });
                let Ok(looked) = looked.await else { return Ok(Ending::Stream) };
                (source, opens) = looked;
                if opens != OpenHookState::Waiting {
                    health.report(SourceState::Up, opens.as_str()).await?;
                }
            }
        }
    }
}
