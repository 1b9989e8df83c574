//! When something is sent again: spread over time, so that the nodes of a cluster do not send together.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

/// Pauses after failures: each is twice as long as the one before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    /// The first one.
    pub(super) first: Duration,
    /// The longest.
    pub(super) most: Duration,
}

impl Backoff {
    /// The pause after so many failures before this one: between half of it and the whole.
    pub(super) fn after(self, failures: u32) -> Duration {
        let factor = 2_u32.saturating_pow(failures.min(16));
        self.first
            .saturating_mul(factor)
            .min(self.most)
            .mul_f64(0.5 + 0.5 * random())
    }
}

/// An interval, up to a tenth shorter or longer.
pub(super) fn spread(interval: Duration) -> Duration {
    interval.mul_f64(0.9 + 0.2 * random())
}

/// A number in 0..1, good enough to keep nodes apart: `std` seeds its hashers at random.
pub(super) fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_within_their_bounds() {
        let backoff = Backoff {
            first: Duration::from_secs(1),
            most: Duration::from_secs(60),
        };
        for (failures, whole) in [(0, 1), (1, 2), (5, 32), (6, 60), (u32::MAX, 60)] {
            let whole = Duration::from_secs(whole);
            for _ in 0..100 {
                let pause = backoff.after(failures);
                assert!(
                    pause >= whole / 2 && pause <= whole,
                    "{pause:?} of {whole:?}"
                );
                let interval = spread(Duration::from_secs(60));
                assert!(interval >= Duration::from_secs(54), "{interval:?}");
                assert!(interval <= Duration::from_secs(66), "{interval:?}");
            }
        }
    }
}
