//! Usage records: the section `[records]`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::otlp::{Otlp, OtlpKind};
use super::span::Span;
use crate::receiver::Receiver;
use crate::secrets;

/// Usage records: each account's hour as a log record over OTLP, at least once.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Records {
    /// Whether they are sent.
    pub enabled: bool,
    /// The receiver's base address, in place of that of OTLP; everything else of the receiver is as for
    /// logs over OTLP.
    pub endpoint: Option<String>,
    /// How often the ledger is asked which records are due.
    pub interval: Span,
}

impl fmt::Debug for Records {
    /// Without a user in the endpoint, which may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("enabled", &self.enabled)
            .field("endpoint", &self.endpoint.as_deref().map(secrets::shown))
            .field("interval", &self.interval)
            .finish()
    }
}

impl Default for Records {
    fn default() -> Self {
        Self {
            enabled: false,
            endpoint: None,
            interval: Span::secs(60),
        }
    }
}

impl Records {
    /// Where records would go if they were enabled; absent if no receiver is configured.
    #[must_use]
    pub fn receiver(&self, otlp: &Otlp) -> Option<Receiver> {
        let Some(endpoint) = &self.endpoint else {
            return otlp.receiver(OtlpKind::Logs);
        };
        let mut otlp = otlp.clone();
        // An address for logs alone is a whole one; this one is a base, as that for all signals.
        otlp.logs.endpoint = None;
        otlp.endpoint = Some(endpoint.clone());
        otlp.receiver(OtlpKind::Logs)
    }

    /// Takes the secrets out.
    pub(super) fn redact(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            *endpoint = secrets::shown(endpoint);
        }
    }
}
