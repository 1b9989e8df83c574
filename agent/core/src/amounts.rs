//! What is counted for an owner on a GPU: integers that only grow, each in its own unit.
//!
//! *Busy* is what the books balance over: something ran on the SMs. *Held* is having a context,
//! *allocated* is having been given the device by the kubelet; neither is ever turned into busy
//! time. The other engines run beside the SMs and are no part of the balance.
//!
//! All of them are published through one gate, so that a series that is held back or frozen is so
//! for each of its amounts at the same instant. Only the first amount of an engine may come later:
//! each engine has a series of its own, which shows 0 first.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::model::Nanos;

/// Energy, in millijoules, as NVML counts it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millijoules(pub u64);

/// Device memory in use, summed over time: bytes times seconds.
///
/// 64 bits are too few. An account that holds 192 GiB reaches 2^63 in 1.4 years, one of 80 GiB in
/// 3.4 years, and a node of eight times 192 GiB in 65 days.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteSeconds(pub u128);

/// An engine of a GPU beside the SMs, as NVML reports them per process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// The memory interface (`memUtil`).
    Memory,
    /// NVENC.
    Encoder,
    /// NVDEC.
    Decoder,
    /// NVJPG.
    Jpeg,
    /// The optical flow accelerator.
    Ofa,
}

impl Engine {
    /// Every engine, in the order in which they are shown.
    pub const ALL: [Self; 5] = [
        Self::Memory,
        Self::Encoder,
        Self::Decoder,
        Self::Jpeg,
        Self::Ofa,
    ];

    /// Returns the value as used in labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
            Self::Jpeg => "jpeg",
            Self::Ofa => "ofa",
        }
    }
}

/// A set of engines. It is written as a list of their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<Engine>", into = "Vec<Engine>")]
pub struct EngineSet(u8);

impl EngineSet {
    /// The engines in it, in the order of [`Engine::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Engine> {
        let engines = Engine::ALL.into_iter();
        engines.filter(move |engine| self.0 & (1 << *engine as u8) != 0)
    }
}

impl FromIterator<Engine> for EngineSet {
    fn from_iter<I: IntoIterator<Item = Engine>>(engines: I) -> Self {
        let bits = engines.into_iter().map(|engine| 1 << engine as u8);
        Self(bits.fold(0, |set, bit: u8| set | bit))
    }
}

impl From<Vec<Engine>> for EngineSet {
    fn from(engines: Vec<Engine>) -> Self {
        engines.into_iter().collect()
    }
}

impl From<EngineSet> for Vec<Engine> {
    fn from(engines: EngineSet) -> Self {
        engines.iter().collect()
    }
}

/// Busy time of the engines beside the SMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engines {
    /// The memory interface.
    pub memory: Nanos,
    /// NVENC.
    pub encoder: Nanos,
    /// NVDEC.
    pub decoder: Nanos,
    /// NVJPG.
    pub jpeg: Nanos,
    /// The optical flow accelerator.
    pub ofa: Nanos,
}

impl Engines {
    /// One engine's.
    #[must_use]
    pub const fn of(&self, engine: Engine) -> Nanos {
        match engine {
            Engine::Memory => self.memory,
            Engine::Encoder => self.encoder,
            Engine::Decoder => self.decoder,
            Engine::Jpeg => self.jpeg,
            Engine::Ofa => self.ofa,
        }
    }

    /// One engine's, to be changed.
    #[must_use]
    pub const fn of_mut(&mut self, engine: Engine) -> &mut Nanos {
        match engine {
            Engine::Memory => &mut self.memory,
            Engine::Encoder => &mut self.encoder,
            Engine::Decoder => &mut self.decoder,
            Engine::Jpeg => &mut self.jpeg,
            Engine::Ofa => &mut self.ofa,
        }
    }

    /// Each engine's time, changed alike.
    #[must_use]
    pub(super) fn map(self, each: impl Fn(Nanos) -> Nanos) -> Self {
        Self {
            memory: each(self.memory),
            encoder: each(self.encoder),
            decoder: each(self.decoder),
            jpeg: each(self.jpeg),
            ofa: each(self.ofa),
        }
    }

    /// Whether none of them did anything.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// All that is counted of one account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Time during which its processes ran on the SMs.
    pub busy: Nanos,
    /// Time during which they ran on the other engines.
    pub engines: Engines,
    /// Time during which at least one of its processes had a context on the GPU.
    pub held: Nanos,
    /// Time during which the kubelet had given it the GPU.
    pub allocated: Nanos,
    /// Device memory over time.
    pub memory: ByteSeconds,
    /// Energy, by share of busy time.
    pub energy: Millijoules,
    /// Its part of the GPU's time while the kubelet had given it the GPU: that time, divided by the
    /// containers that had the same GPU. All parts of a GPU together are no more than its time.
    #[serde(default)]
    pub allocated_share: Nanos,
}

impl Amounts {
    /// Nothing of anything.
    pub const ZERO: Self = Self {
        busy: Nanos::ZERO,
        engines: Engines {
            memory: Nanos::ZERO,
            encoder: Nanos::ZERO,
            decoder: Nanos::ZERO,
            jpeg: Nanos::ZERO,
            ofa: Nanos::ZERO,
        },
        held: Nanos::ZERO,
        allocated: Nanos::ZERO,
        memory: ByteSeconds(0),
        energy: Millijoules(0),
        allocated_share: Nanos::ZERO,
    };

    /// Busy time alone.
    #[must_use]
    pub const fn busy(busy: Nanos) -> Self {
        Self { busy, ..Self::ZERO }
    }

    /// Each amount by itself, from `self` and `other`: those of 64 bits by `each`, memory by `wide`.
    fn zip(
        self,
        other: Self,
        each: impl Fn(u64, u64) -> u64,
        wide: impl Fn(u128, u128) -> u128,
    ) -> Self {
        let nanos = |a: Nanos, b: Nanos| Nanos(each(a.0, b.0));
        Self {
            busy: nanos(self.busy, other.busy),
            engines: Engines {
                memory: nanos(self.engines.memory, other.engines.memory),
                encoder: nanos(self.engines.encoder, other.engines.encoder),
                decoder: nanos(self.engines.decoder, other.engines.decoder),
                jpeg: nanos(self.engines.jpeg, other.engines.jpeg),
                ofa: nanos(self.engines.ofa, other.engines.ofa),
            },
            held: nanos(self.held, other.held),
            allocated: nanos(self.allocated, other.allocated),
            memory: ByteSeconds(wide(self.memory.0, other.memory.0)),
            energy: Millijoules(each(self.energy.0, other.energy.0)),
            allocated_share: nanos(self.allocated_share, other.allocated_share),
        }
    }

    /// The sums; each stops at its largest value.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_add, u128::saturating_add)
    }

    /// The differences; each stops at zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.zip(other, u64::saturating_sub, u128::saturating_sub)
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, u64::max, u128::max)
    }

    /// Whether there is nothing of anything.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

impl AddAssign for Amounts {
    fn add_assign(&mut self, other: Self) {
        *self = self.plus(other);
    }
}

impl std::iter::Sum for Amounts {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Self::plus)
    }
}

/// Splits `energy` over `weights`, all of it and to the millijoule: see [`parts`].
pub fn split(energy: Millijoules, weights: &[Nanos]) -> Vec<Millijoules> {
    parts(energy.0, weights)
        .into_iter()
        .map(Millijoules)
        .collect()
}

/// Splits `amount` over `weights`, all of it: the rounded parts of a running sum, so that none
/// strays by more than one from its exact share.
///
/// Nothing is handed out where all weights are zero.
pub(super) fn parts(amount: u64, weights: &[Nanos]) -> Vec<u64> {
    let whole: u128 = weights.iter().map(|weight| u128::from(weight.0)).sum();
    let mut sum = 0_u128;
    let mut given = 0_u64;
    weights
        .iter()
        .map(|weight| {
            sum += u128::from(weight.0);
            let through = u128::from(amount).saturating_mul(sum);
            let through = through.checked_div(whole).unwrap_or(0);
            let through = u64::try_from(through).unwrap_or(u64::MAX);
            let part = through - given;
            given = through;
            part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn amounts(n: u64) -> Amounts {
        Amounts {
            busy: Nanos(n),
            engines: Engines {
                memory: Nanos(n + 1),
                encoder: Nanos(n + 2),
                decoder: Nanos(n + 3),
                jpeg: Nanos(n + 4),
                ofa: Nanos(n + 5),
            },
            held: Nanos(n + 6),
            allocated: Nanos(n + 7),
            memory: ByteSeconds(u128::from(n + 8)),
            energy: Millijoules(n + 9),
            allocated_share: Nanos(n + 10),
        }
    }

    #[test]
    fn every_amount_is_added_and_taken_away_by_itself() {
        let (a, b) = (amounts(100), amounts(7));
        assert_eq!(a.plus(b).minus(b), a);
        assert_eq!(b.minus(a), Amounts::ZERO);
        assert_eq!(a.max(b), a);
        for engine in Engine::ALL {
            assert_ne!(a.engines.of(engine), Nanos::ZERO);
        }
    }

    #[test]
    fn a_set_of_engines_has_those_that_were_put_in_and_reads_back_as_it_was_written() {
        for (put_in, written) in [
            (vec![], "[]"),
            (vec![Engine::Ofa], r#"["ofa"]"#),
            (
                vec![Engine::Decoder, Engine::Memory],
                r#"["memory","decoder"]"#,
            ),
            (
                Engine::ALL.to_vec(),
                r#"["memory","encoder","decoder","jpeg","ofa"]"#,
            ),
        ] {
            let set: EngineSet = put_in.into_iter().collect();
            assert_eq!(serde_json::to_string(&set).unwrap(), written);
            assert_eq!(serde_json::from_str::<EngineSet>(written).unwrap(), set);
        }
    }

    proptest! {
        #[test]
        fn a_split_hands_out_all_of_it_and_strays_by_less_than_one(
            energy in 0_u64..10_000_000,
            weights in prop::collection::vec(0_u64..2_000_000_000, 1..20),
        ) {
            let weights: Vec<Nanos> = weights.into_iter().map(Nanos).collect();
            let whole: u128 = weights.iter().map(|w| u128::from(w.0)).sum();
            prop_assume!(whole > 0);
            let parts = split(Millijoules(energy), &weights);
            prop_assert_eq!(parts.iter().map(|p| p.0).sum::<u64>(), energy);
            for (part, weight) in parts.iter().zip(&weights) {
                let scaled = u128::from(energy) * u128::from(weight.0);
                let strays = (u128::from(part.0) * whole).abs_diff(scaled);
                prop_assert!(strays < whole, "{:?} of {:?}", part, weight);
            }
        }
    }
}
