//! What GPU time costs: a file of prices, and decimal arithmetic.
//!
//! ```toml
//! currency = "EUR"
//! decimals = 2                      # of every amount of money; 2 unless given
//!
//! [gpu."NVIDIA A100-SXM4-80GB"]     # as NVML calls the model
//! busy_hour = "1.80"                # text, so that it is what it says
//! allocated_hour = "0.40"           # one of the two will do; both are added
//!
//! [gpu."NVIDIA A100-SXM4-80GB".mig."1g.10gb"]   # an instance, by its profile
//! busy_hour = "0.30"
//!
//! [default]                         # for what has no price of its own, with `mig` like a model's
//! busy_hour = "1.00"
//! ```
//!
//! A MIG instance is a part of a GPU and has the price of its profile, never the whole GPU's.
//!
//! The price of allocated time is for the GPU, not for each who has it. While containers share a GPU by
//! time-slicing, each of them pays for its part of the time, and together they pay for no more than the
//! GPU's time.
//!
//! A price is for an hour of one GPU. It is multiplied by nanoseconds and added up exactly; the
//! division and the rounding happen once, when it is printed. Then the running sum of the rows is
//! rounded, half to even, and each row is given the difference: so the rows add up to the total to
//! the last digit, the total is the same however the rows are grouped, and no row strays by more than
//! one in the last digit from its exact amount.
//!
//! A model without a price, where there is no default for it, is an error: nothing is given away and
//! nothing is guessed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rust_decimal::{Decimal, RoundingStrategy};
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use crate::core::model::Nanos;
use crate::text_file::{self, TextFileError};

/// Nanoseconds of an hour.
const HOUR: i64 = 3_600_000_000_000;
/// More than any currency has, and what is left exact in any sum that a node can have.
const MOST_DECIMALS: u32 = 9;
/// What a unit of currency can be called.
const LONGEST_CURRENCY: usize = 16;

/// What is wrong with prices.
#[derive(Debug, thiserror::Error)]
pub enum MoneyError {
    /// The file cannot be read.
    #[error("cannot read the prices in {}", path.display())]
    Read {
        /// The file of prices.
        path: PathBuf,
        /// Why it cannot be read.
        source: TextFileError,
    },
    /// The file is not what it should be.
    #[error("{origin}: {message}")]
    Syntax {
        /// File that the error is in.
        origin: String,
        /// Where in it, what was found and what was expected.
        message: String,
    },
    /// A value that cannot be.
    #[error("{origin}: {key} is {found}, allowed is {allowed}")]
    Value {
        /// File that the error is in.
        origin: String,
        /// The key.
        key: String,
        /// Value that was found.
        found: String,
        /// Description of the allowed values.
        allowed: &'static str,
    },
    /// A GPU that was used and has no price.
    #[error("{origin} has no price for {model:?} ({gpu}), it has prices for {known}")]
    Missing {
        /// File that the error is in.
        origin: String,
        /// The GPU's model.
        model: String,
        /// The GPU.
        gpu: String,
        /// For which there are prices.
        known: String,
    },
    /// A MIG instance that was used and has no price.
    #[error(
        "{origin} has no price for the MIG instance {profile:?} of {model:?} ({gpu}), it has prices for {known}"
    )]
    MissingInstance {
        /// File that the error is in.
        origin: String,
        /// What it is a part of.
        model: String,
        /// Its profile.
        profile: String,
        /// The instance.
        gpu: String,
        /// For which there are prices.
        known: String,
    },
    /// A sum with more digits than can be calculated with.
    #[error("an amount of money has more than 28 digits")]
    TooLarge,
}

/// Prices, by model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices {
    origin: String,
    /// Currency of the prices.
    pub currency: String,
    /// How many decimals an amount is printed with.
    pub decimals: u32,
    models: BTreeMap<String, Model>,
    /// For models and profiles that have no price of their own.
    default: Model,
}

/// What a model costs, whole and in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Model {
    #[serde(deserialize_with = "decimal")]
    busy_hour: Option<Decimal>,
    #[serde(deserialize_with = "decimal")]
    allocated_hour: Option<Decimal>,
    /// Prices of MIG instances by profile.
    mig: BTreeMap<String, Price>,
}

impl Model {
    fn whole(&self) -> Option<Price> {
        let price = Price {
            busy_hour: self.busy_hour,
            allocated_hour: self.allocated_hour,
        };
        (price != Price::default()).then_some(price)
    }
}

/// What an hour of a model costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Price {
    /// Of its being busy.
    #[serde(deserialize_with = "decimal")]
    pub busy_hour: Option<Decimal>,
    /// Price of an allocated hour, busy or not. Containers that share the GPU by time-slicing pay
    /// for their share.
    #[serde(deserialize_with = "decimal")]
    pub allocated_hour: Option<Decimal>,
}

/// A price, and where it is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// The price.
    pub price: Price,
    /// Whether it is the default.
    pub is_default: bool,
}

impl Quote {
    fn new(own: Option<Price>, default: Option<Price>) -> Option<Self> {
        Some(Self {
            price: own.or(default)?,
            is_default: own.is_none(),
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    currency: String,
    #[serde(default = "two")]
    decimals: u32,
    #[serde(default)]
    gpu: Option<BTreeMap<String, Model>>,
    #[serde(default)]
    default: Option<Model>,
}

const fn two() -> u32 {
    2
}

impl Prices {
    /// Whether anything in it has a price for allocated time.
    #[must_use]
    pub fn charges_allocated(&self) -> bool {
        let models = self.models.values().chain([&self.default]);
        let mut prices =
            models.flat_map(|of| of.whole().into_iter().chain(of.mig.values().copied()));
        prices.any(|price| price.allocated_hour.is_some())
    }

    /// Prices of busy hours: of each model, whole and by MIG profile, and last the default of whole GPUs,
    /// which has no model.
    #[must_use]
    pub fn busy_hours(&self) -> Vec<(Option<&str>, Option<&str>, Decimal)> {
        let mut prices = Vec::new();
        for (model, of_it) in &self.models {
            let model = Some(model.as_str());
            prices.extend(of_it.busy_hour.map(|price| (model, None, price)));
            let instances = of_it.mig.iter();
            prices.extend(instances.filter_map(|(profile, price)| {
                Some((model, Some(profile.as_str()), price.busy_hour?))
            }));
        }
        prices.extend(self.default.busy_hour.map(|price| (None, None, price)));
        prices
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or used.
    pub fn read(path: &Path) -> Result<Self, MoneyError> {
        let text = text_file::read(path).map_err(|source| MoneyError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads text that came from `origin`.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn parse(text: &str, origin: &str) -> Result<Self, MoneyError> {
        let file: File = toml::from_str(text).map_err(|error| MoneyError::Syntax {
            origin: origin.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let ensure = |holds: bool, key: &str, found: &dyn fmt::Display, allowed| {
            let error = || MoneyError::Value {
                origin: origin.to_owned(),
                key: key.to_owned(),
                found: found.to_string(),
                allowed,
            };
            holds.then_some(()).ok_or_else(error)
        };
        let currency = &file.currency;
        ensure(
            !currency.is_empty()
                && currency.len() <= LONGEST_CURRENCY
                && currency.chars().all(|c| c.is_ascii_alphanumeric()),
            "currency",
            &format_args!("{currency:?}"),
            "1 to 16 letters and digits, such as \"EUR\"",
        )?;
        ensure(
            file.decimals <= MOST_DECIMALS,
            "decimals",
            &file.decimals,
            "0 to 9",
        )?;
        ensure(
            file.gpu.is_some() || file.default.is_some(),
            "gpu",
            &"missing",
            "a table of models, or one of defaults",
        )?;
        let models = file.gpu.unwrap_or_default();
        let keys = models
            .iter()
            .map(|(model, of_it)| (format!("gpu.{model:?}"), of_it));
        let default = file
            .default
            .iter()
            .map(|of_it| ("default".to_owned(), of_it));
        let mut prices = Vec::new();
        for (key, of_it) in keys.chain(default) {
            if of_it.mig.is_empty() || of_it.whole().is_some() {
                prices.push((key.clone(), of_it.whole().unwrap_or_default()));
            }
            let instances = of_it.mig.iter();
            prices.extend(instances.map(|(mig, price)| (format!("{key}.mig.{mig:?}"), *price)));
        }
        for (key, price) in prices {
            let both = [price.busy_hour, price.allocated_hour];
            ensure(
                both.iter().any(Option::is_some),
                &key,
                &"without a price",
                "busy_hour, allocated_hour or both",
            )?;
            for price in both.into_iter().flatten() {
                ensure(
                    price <= Decimal::from(1_000_000_000) && price.scale() <= MOST_DECIMALS,
                    &key,
                    &price,
                    "0 to 1000000000, with 9 decimals at most",
                )?;
            }
        }
        Ok(Self {
            origin: origin.to_owned(),
            currency: file.currency,
            decimals: file.decimals,
            models,
            default: file.default.unwrap_or_default(),
        })
    }

    /// The price of a GPU's model, or the default.
    ///
    /// # Errors
    /// If it has none.
    pub fn of(&self, model: &str, gpu: &str) -> Result<Quote, MoneyError> {
        let own = self.models.get(model).and_then(Model::whole);
        Quote::new(own, self.default.whole()).ok_or_else(|| MoneyError::Missing {
            origin: self.origin.clone(),
            model: model.to_owned(),
            gpu: gpu.to_owned(),
            known: self.known(),
        })
    }

    /// The price of a MIG instance of a model, or the default for its profile.
    ///
    /// # Errors
    /// If it has none.
    pub fn of_instance(&self, model: &str, profile: &str, gpu: &str) -> Result<Quote, MoneyError> {
        let own = self.models.get(model);
        let own = own.and_then(|prices| prices.mig.get(profile)).copied();
        let default = self.default.mig.get(profile).copied();
        Quote::new(own, default).ok_or_else(|| MoneyError::MissingInstance {
            origin: self.origin.clone(),
            model: model.to_owned(),
            profile: profile.to_owned(),
            gpu: gpu.to_owned(),
            known: self.known(),
        })
    }

    fn known(&self) -> String {
        let mut known = Vec::new();
        for (model, prices) in &self.models {
            known.extend(prices.whole().map(|_| format!("{model:?}")));
            let instances = prices.mig.keys();
            known.extend(instances.map(|profile| format!("{profile:?} of {model:?}")));
        }
        let instances = self.default.mig.keys();
        known.extend(instances.map(|profile| format!("{profile:?} of any model")));
        if known.is_empty() {
            return "nothing".to_owned();
        }
        known.join(", ")
    }

    /// What the rows come to, and all of them together: see the module for how it is rounded.
    ///
    /// # Errors
    /// If a sum has too many digits.
    pub fn round(&self, rows: &[Cost]) -> Result<(Vec<Decimal>, Decimal), MoneyError> {
        let mut sum = Cost::default();
        let mut given = Decimal::new(0, self.decimals);
        let mut rounded = Vec::with_capacity(rows.len());
        for row in rows {
            sum = sum.plus(*row)?;
            let mut through = (sum.0 / Decimal::from(HOUR))
                .round_dp_with_strategy(self.decimals, RoundingStrategy::MidpointNearestEven);
            through.rescale(self.decimals);
            rounded.push(through - given);
            given = through;
        }
        Ok((rounded, given))
    }
}

/// Money times nanoseconds, before the division by an hour: exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost(Decimal);

impl Cost {
    /// What these times cost.
    ///
    /// # Errors
    /// If it has too many digits.
    pub fn of(price: Price, busy: Nanos, allocated: Nanos) -> Result<Self, MoneyError> {
        let part = |price: Option<Decimal>, time: Nanos| match price {
            // What does not fit is rounded by the library, and what is rounded is not exact.
            Some(price) => price
                .checked_mul(time.0.into())
                .filter(|product| product.is_zero() || product.scale() == price.scale())
                .ok_or(MoneyError::TooLarge),
            None => Ok(Decimal::ZERO),
        };
        Self(part(price.busy_hour, busy)?).plus(Self(part(price.allocated_hour, allocated)?))
    }

    /// The sum.
    ///
    /// # Errors
    /// If it has too many digits.
    pub fn plus(self, other: Self) -> Result<Self, MoneyError> {
        let scale = self.0.scale().max(other.0.scale());
        let is_exact =
            |sum: &Decimal| self.0.is_zero() || other.0.is_zero() || sum.scale() == scale;
        self.0
            .checked_add(other.0)
            .filter(is_exact)
            .map(Self)
            .ok_or(MoneyError::TooLarge)
    }
}

/// A decimal as text or as a whole number. A number with a point would be a binary fraction, which
/// "1.80" is not.
fn decimal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Decimal>, D::Error> {
    struct Exact;

    impl Visitor<'_> for Exact {
        type Value = Decimal;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a price of at least 0 as text, such as \"1.80\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Decimal, E> {
            Decimal::from_str_exact(text)
                .ok()
                .filter(|price| !price.is_sign_negative())
                .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }

        fn visit_i64<E: de::Error>(self, whole: i64) -> Result<Decimal, E> {
            u64::try_from(whole)
                .map(Decimal::from)
                .map_err(|_| E::invalid_value(de::Unexpected::Signed(whole), &self))
        }
    }

    deserializer.deserialize_any(Exact).map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A100: &str =
        "currency = \"EUR\"\n[gpu.\"A100\"]\nbusy_hour = \"1.80\"\nallocated_hour = \"0.40\"\n";

    fn dec(text: &str) -> Decimal {
        Decimal::from_str_exact(text).unwrap()
    }

    #[test]
    fn prices_are_read_as_they_are_written() {
        let prices = Prices::parse(A100, "p").unwrap();
        assert_eq!((prices.currency.as_str(), prices.decimals), ("EUR", 2));
        let price = prices.of("A100", "GPU-0").unwrap().price;
        assert_eq!(price.busy_hour, Some(dec("1.80")));
        assert_eq!(price.allocated_hour, Some(dec("0.40")));
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        for (text, expected) in [
            ("", "currency"),
            ("currency = \"EUR\"", "gpu is missing"),
            (
                "currency = \"EUR\"\n[default]",
                "default is without a price",
            ),
            (
                "currency = \"EUR\"\n[default.mig.\"1g.10gb\"]",
                "default.mig.\"1g.10gb\" is without a price",
            ),
            ("currency = \"E R\"\n[gpu]", "currency is \"E R\""),
            ("currency = \"\"\n[gpu]", "letters and digits"),
            ("currency = \"EUR\"\ndecimals = 10\n[gpu]", "decimals is 10"),
            (
                "currency = \"EUR\"\n[gpu.A]",
                "busy_hour, allocated_hour or both",
            ),
            ("currency = \"EUR\"\n[gpu.A]\nbusy_hour = 1.8", "as text"),
            ("currency = \"EUR\"\n[gpu.A]\nbusy_hour = -1", "at least 0"),
            (
                "currency = \"EUR\"\n[gpu.A]\nbusy_hour = \"-1\"",
                "at least 0",
            ),
            (
                "currency = \"EUR\"\n[gpu.A]\nbusy_hour = \"one\"",
                "as text",
            ),
            (
                "currency = \"EUR\"\n[gpu.A]\nbusy_hour = \"1.0000000001\"",
                "9 decimals",
            ),
            (
                "currency = \"EUR\"\n[gpu.A]\nhourly = \"1\"",
                "unknown field",
            ),
            (
                "currency = \"EUR\"\n[gpu.A.mig.\"1g.10gb\"]",
                "gpu.\"A\".mig.\"1g.10gb\" is without a price",
            ),
        ] {
            let error = Prices::parse(text, "p.toml").unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
            assert!(error.starts_with("p.toml: "), "{error}");
        }
        let error = Prices::parse(A100, "p.toml").unwrap().of("H100", "GPU-7");
        assert_eq!(
            error.unwrap_err().to_string(),
            "p.toml has no price for \"H100\" (GPU-7), it has prices for \"A100\""
        );
    }

    #[test]
    fn an_instance_never_costs_what_the_whole_gpu_does() {
        let text = format!("{A100}[gpu.A100.mig.\"1g.10gb\"]\nbusy_hour = \"0.30\"\n");
        let prices = Prices::parse(&text, "p.toml").unwrap();
        let instance = prices
            .of_instance("A100", "1g.10gb", "MIG-0")
            .unwrap()
            .price;
        assert_eq!(instance.busy_hour, Some(dec("0.30")));
        assert_eq!(instance.allocated_hour, None);
        let error = prices.of_instance("A100", "3g.40gb", "MIG-1").unwrap_err();
        assert_eq!(
            error.to_string(),
            "p.toml has no price for the MIG instance \"3g.40gb\" of \"A100\" (MIG-1), it has prices \
             for \"A100\", \"1g.10gb\" of \"A100\""
        );
        // Prices of instances alone are none of the whole.
        let text = "currency = \"EUR\"\n[gpu.A100.mig.\"1g.10gb\"]\nbusy_hour = \"0.30\"\n";
        let prices = Prices::parse(text, "p.toml").unwrap();
        assert!(prices.of_instance("A100", "1g.10gb", "MIG-0").is_ok());
        assert!(prices.of("A100", "GPU-0").is_err());
    }

    #[test]
    fn a_default_is_for_what_has_no_price_of_its_own() {
        let text = format!(
            "{A100}[gpu.H100.mig.\"1g.10gb\"]\nbusy_hour = \"0.30\"\n\
             [default]\nbusy_hour = \"1\"\n[default.mig.\"1g.10gb\"]\nbusy_hour = \"0.20\"\n"
        );
        let prices = Prices::parse(&text, "p.toml").unwrap();
        for (model, profile, expected) in [
            ("A100", None, Some(("1.80", false))),
            ("L4", None, Some(("1", true))),
            // Prices of its instances alone are none of the whole.
            ("H100", None, Some(("1", true))),
            ("H100", Some("1g.10gb"), Some(("0.30", false))),
            ("A100", Some("1g.10gb"), Some(("0.20", true))),
            // An instance never costs what a whole GPU does.
            ("A100", Some("3g.40gb"), None),
        ] {
            let found = match profile {
                Some(profile) => prices.of_instance(model, profile, "MIG-0"),
                None => prices.of(model, "GPU-0"),
            };
            let found = found
                .ok()
                .map(|quote| (quote.price.busy_hour, quote.is_default));
            let expected = expected.map(|(price, is_default)| (Some(dec(price)), is_default));
            assert_eq!(found, expected, "{model} {profile:?}");
        }
        let alone = "currency = \"EUR\"\n[default]\nallocated_hour = \"1\"\n";
        let alone = Prices::parse(alone, "p.toml").unwrap();
        assert!(alone.of("A100", "GPU-0").unwrap().is_default);
    }

    #[test]
    fn money_is_decimal() {
        let prices = Prices::parse(A100, "p").unwrap();
        let price = prices.of("A100", "").unwrap().price;
        let minutes = |n: u64| Nanos::from_secs(60 * n);
        for (busy, allocated, expected) in [
            (minutes(60), minutes(0), "1.80"),
            (minutes(0), minutes(60), "0.40"),
            (minutes(30), minutes(60), "1.30"),
            (minutes(0), minutes(0), "0.00"),
            // 0.0050, half to even.
            (minutes(0), Nanos::from_secs(45), "0.00"),
            (minutes(0), Nanos::from_secs(135), "0.02"),
        ] {
            let cost = Cost::of(price, busy, allocated).unwrap();
            let (rows, total) = prices.round(&[cost]).unwrap();
            assert_eq!(total.to_string(), expected, "{busy:?} {allocated:?}");
            assert_eq!(rows, [total]);
        }
        let enormous = Price {
            busy_hour: Some(dec("999999999.999999999")),
            allocated_hour: None,
        };
        let cost = Cost::of(enormous, Nanos(u64::MAX), Nanos::ZERO);
        assert!(matches!(cost, Err(MoneyError::TooLarge)), "{cost:?}");
    }

    proptest! {
        #[test]
        fn rows_add_up_to_a_total_that_grouping_does_not_change(
            times in prop::collection::vec((0_u64..10_000_000_000_000, 0_u64..10_000_000_000_000), 1..40),
            price in 0_i64..2_000_000,
            decimals in 0_u32..=4,
            cut in 0_usize..40,
        ) {
            let price = Price { busy_hour: Some(Decimal::new(price, 4)), allocated_hour: Some(dec("0.3333")) };
            let prices = Prices { decimals, ..Prices::parse(A100, "p").unwrap() };
            let costs: Vec<Cost> = times
                .iter()
                .map(|(busy, allocated)| Cost::of(price, Nanos(*busy), Nanos(*allocated)).unwrap())
                .collect();
            let (rows, total) = prices.round(&costs).unwrap();
            prop_assert_eq!(rows.iter().copied().sum::<Decimal>(), total);
            let digit = Decimal::new(1, decimals);
            for (row, cost) in rows.iter().zip(&costs) {
                let exact = cost.0 / Decimal::from(HOUR);
                prop_assert!((*row - exact).abs() <= digit, "{} of {}", row, exact);
            }
            let (left, right) = costs.split_at(cut.min(costs.len()));
            let sum = |costs: &[Cost]| costs.iter().try_fold(Cost::default(), |a, b| a.plus(*b)).unwrap();
            let (_, regrouped) = prices.round(&[sum(right), sum(left)]).unwrap();
            prop_assert_eq!(regrouped, total);
        }
    }
}
