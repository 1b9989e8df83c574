//! How the books begin: from the store, or at 0.
//!
//! Nothing is accounted for before the store's lock is held, or known to be unavailable: two agents
//! that count the same GPUs would both be believed. An unusable store delays the start by at most
//! [`PATIENCE`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::outputs::state_of;
use super::settings::{BOOT_ID, boot, node_name, settings};
use crate::config::Config;
use crate::core::accountant::Accountant;
use crate::core::input::SourceHealth;
use crate::core::model::{SourceId, SourceState};
use crate::core::snapshot::Snapshot;
use crate::outputs::store::durability::{DurabilityGate, PATIENCE};
use crate::outputs::store::error::StoreError;
use crate::outputs::store::mark::MarkerFile;
use crate::outputs::store::{self, Handle, Limiter, RecordsDesk};
use crate::published::{AgentStatus, Published};
use crate::sources::clock::now;
use crate::sources::gpu::cursor::Cursor;

/// How often a lock that another agent holds is tried again.
const TRY_LOCK: Duration = Duration::from_secs(1);

/// The core and the store, ready to run.
pub(super) struct OpenedBooks {
    pub(super) accountant: Accountant,
    /// Absent where nothing is to be kept.
    pub(super) keeping: Option<DurabilityGate>,
    /// What can change the store's limits; absent where nothing is kept.
    pub(super) limiter: Option<Limiter>,
    /// Where usage records wait; absent where nothing is kept.
    pub(super) records: Option<RecordsDesk>,
    /// How the store is.
    pub(super) store: SourceHealth,
    /// Where the GPUs' windows go on.
    pub(super) cursors: Vec<Cursor>,
}

/// Begins the books. While another agent holds the store this waits, and `published` says so.
pub(super) async fn begin(
    config: &Config,
    published: &watch::Sender<Arc<Published>>,
) -> OpenedBooks {
    let mark = MarkerFile::beside(&config.socket.path);
    let path = config.store.path.display().to_string();
    let handle = if config.store.enabled {
        open(config)
    } else {
        // What is published from here on is not stored, so no later agent may continue from the
        // stored content.
        if let Err(error) = mark.clear() {
            let path = mark.path().display();
            warn!(%path, %error, "cannot remove the marker file of an earlier agent's store");
        }
        Ok(None)
    };
    let (handle, found) = match handle {
        Ok(Some(handle)) => {
            let found = resume(&handle, &mark, &path, published).await;
            (Some(handle), found)
        }
        Ok(None) => (None, Ok(None)),
        Err(error) => (None, Err(error)),
    };
    let clock = now();
    let (restored, trouble) = match found {
        Ok(Some(state)) => match Accountant::restored(settings(config), &state, clock) {
            Ok(accountant) => {
                info!(
                    accounts = state.accounts.len(),
                    sequence = state.sequence,
                    "continuing from the store"
                );
                (Some((accountant, state.clock)), None)
            }
            Err(error) => {
                warn!(%error, "cannot continue from the store; all series begin at 0");
                if let Some(handle) = &handle {
                    handle.begin_anew("unusable");
                }
                (None, None)
            }
        },
        Ok(None) => (None, None),
        Err(error) => {
            // Nobody waits for a stored state that comes late. A new life begins.
            if let Some(handle) = &handle {
                handle.begin_anew("unstored");
            }
            (None, Some(error))
        }
    };
    let cursors = restored.as_ref().map(|(accountant, then)| {
        let cursors = accountant.windows_ended().into_iter();
        let cursors = cursors.map(|(gpu, end)| Cursor {
            gpu,
            end,
            then: *then,
            began: clock.boot,
        });
        cursors.collect()
    });
    let accountant = match restored {
        Some((accountant, _)) => accountant,
        None => {
            let mut accountant = Accountant::new(settings(config), clock);
            if handle.is_some() {
                accountant.keep();
            }
            accountant
        }
    };
    let limiter = handle.as_ref().map(Handle::limiter);
    let records = handle.as_ref().map(Handle::records);
    let (keeping, state) = match handle {
        Some(handle) => {
            let (keeping, state) = DurabilityGate::begin(handle, mark, now, trouble.as_ref()).await;
            (Some(keeping), state)
        }
        None => (None, trouble.map_or(SourceState::Disabled, |e| down(&e))),
    };
    OpenedBooks {
        accountant,
        keeping,
        limiter,
        records,
        store: state_of(SourceId::Store, state, &path),
        cursors: cursors.unwrap_or_default(),
    }
}

fn down(error: &StoreError) -> SourceState {
    SourceState::Down {
        class: error.class().into(),
        reason: error.words().into(),
        next_retry: None,
    }
}

fn open(config: &Config) -> Result<Option<Handle>, StoreError> {
    let file = |act, path: &str| {
        let path = path.into();
        move |source| StoreError::File { act, path, source }
    };
    let boot = boot().map_err(file("read", BOOT_ID))?;
    let handle = store::spawn(store::Options {
        directory: config.store.path.clone(),
        retention: config.store.retention.0,
        max_bytes: config.store.max_size,
        boot: boot.into(),
        node: node_name(config).into(),
        records: config.records.enabled,
    });
    handle
        .map(Some)
        .map_err(file("start a thread for", "the store"))
}

/// Reads the previous agent's state from the store. Waits for as long as another agent holds the
/// store.
async fn resume(
    handle: &Handle,
    mark: &MarkerFile,
    path: &str,
    published: &watch::Sender<Arc<Published>>,
) -> Result<Option<crate::core::records::PersistedState>, StoreError> {
    let mut waits = false;
    loop {
        let found = timeout(PATIENCE, handle.resume(mark)).await;
        let error = match found {
            Ok(Err(error @ StoreError::Locked { .. })) => error,
            Ok(found) => return found,
            Err(_) => {
                return Err(StoreError::Slow {
                    seconds: PATIENCE.as_secs(),
                });
            }
        };
        if !waits {
            waits = true;
            warn!(
                reason = error.words(),
                "waiting for the store; nothing is accounted for until it is available"
            );
        }
        let at = now();
        let state = SourceState::Down {
            class: error.class().into(),
            reason: format!("{error}; nothing is metered until it lets go").into(),
            next_retry: Some(at.boot.plus(TRY_LOCK.into())),
        };
        published.send_replace(Arc::new(Published {
            books: Snapshot {
                at: at.boot,
                wall: at.wall,
                agent_started: at.wall,
                ..Snapshot::default()
            },
            agent: AgentStatus {
                sources: vec![state_of(SourceId::Store, state, path)],
                ..AgentStatus::default()
            },
            blocked: None,
        }));
        sleep(TRY_LOCK).await;
    }
}
