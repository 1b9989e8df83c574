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
//!
//! [[for]]                           # other prices for some of the time; the first that holds counts
//! cluster = "b"                     # `cluster`, `node` and labels: all that are given must hold
//! node = ["gpu-1", "gpu-2"]         # one of these
//! label.team = "vision"
//! [for.gpu."NVIDIA A100-SXM4-80GB"] # `gpu` and `default`, as above
//! busy_hour = "1.20"
//! ```
//!
//! What a part of the file has no price for is looked for in the next one that holds, and last in the tables
//! above. So prices of some models for a cluster leave the other models as they are.
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

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rust_decimal::{Decimal, RoundingStrategy};
use serde::Deserialize;

use self::table::{Model, PriceTable, Rule};
pub use self::table::{Price, Quote, Whose};
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

/// Prices, by model, and whose time they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prices {
    origin: String,
    /// Currency of the prices.
    pub currency: String,
    /// How many decimals an amount is printed with.
    pub decimals: u32,
    /// Prices of some of the time. The first that holds counts.
    rules: Vec<Rule>,
    /// Prices of all other time.
    table: PriceTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    currency: String,
    #[serde(default = "two")]
    decimals: u32,
    #[serde(default)]
    gpu: BTreeMap<String, Model>,
    #[serde(default)]
    default: Option<Model>,
    #[serde(default, rename = "for")]
    rules: Vec<Rule>,
}

const fn two() -> u32 {
    2
}

impl Prices {
    /// Whether anything in it has a price for allocated time.
    #[must_use]
    pub fn charges_allocated(&self) -> bool {
        let mut prices = self.tables().flat_map(PriceTable::all);
        prices.any(|(_, price)| price.allocated_hour.is_some())
    }

    /// Whether some prices are for clusters.
    #[must_use]
    pub fn are_by_cluster(&self) -> bool {
        self.rules.iter().any(|rule| !rule.cluster.is_empty())
    }

    /// The keys of the labels that some prices are for, in order.
    #[must_use]
    pub fn label_keys(&self) -> BTreeSet<Arc<str>> {
        let keys = self.rules.iter().flat_map(|rule| rule.label.keys());
        keys.map(|key| key.as_str().into()).collect()
    }

    /// All tables, in the order in which they are looked into.
    fn tables(&self) -> impl Iterator<Item = &PriceTable> {
        self.rules
            .iter()
            .map(|rule| &rule.table)
            .chain([&self.table])
    }

    /// The tables for somebody's time.
    fn tables_for<'a>(&'a self, whose: &'a Whose<'a>) -> impl Iterator<Item = &'a PriceTable> {
        let rules = self.rules.iter().filter(|rule| rule.holds(whose));
        rules.map(|rule| &rule.table).chain([&self.table])
    }

    /// Whether some prices are for some of the time only: of nodes, clusters or labels.
    #[must_use]
    pub const fn are_by_owner_or_place(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Whether MIG instances have prices whatever the model.
    #[must_use]
    pub fn are_by_profile_alone(&self) -> bool {
        let default = self.table.default.as_ref();
        default.is_some_and(|default| default.instances().next().is_some())
    }

    /// Prices of busy hours that are for all of the time: of each model, whole and by MIG profile, and last
    /// the default of whole GPUs, which has no model. What has a price, and none for busy time, costs 0.
    #[must_use]
    pub fn busy_hours(&self) -> Vec<(Option<&str>, Option<&str>, Decimal)> {
        let busy_hour = |price: Price| price.busy_hour.unwrap_or(Decimal::ZERO);
        let mut prices = Vec::new();
        for (model, of_it) in &self.table.models {
            let model = Some(model.as_str());
            prices.extend(of_it.whole().map(|price| (model, None, busy_hour(price))));
            let instances = of_it.instances();
            prices.extend(
                instances.map(|(profile, price)| (model, Some(profile), busy_hour(*price))),
            );
        }
        let default = self.table.default.as_ref().and_then(Model::whole);
        prices.extend(default.map(|price| (None, None, busy_hour(price))));
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
        let table = PriceTable {
            models: file.gpu,
            default: file.default,
        };
        let has_prices = !table.is_empty() || !file.rules.is_empty();
        ensure(
            has_prices,
            "gpu",
            &"missing",
            "a table of models, or one of defaults",
        )?;
        let mut prices: Vec<(String, Price)> = table.all().collect();
        for (number, rule) in file.rules.iter().enumerate() {
            let key = format!("for[{number}]");
            let conditions = "cluster, node or label, which say what it is for";
            ensure(rule.is_for_something(), &key, &"for everything", conditions)?;
            let tables = "a table of models, or one of defaults";
            ensure(!rule.table.is_empty(), &key, &"without a price", tables)?;
            let own = rule.table.all();
            prices.extend(own.map(|(of, price)| (format!("{key}.{of}"), price)));
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
            rules: file.rules,
            table,
        })
    }

    /// The price of a GPU's model, or the default, for somebody's time.
    ///
    /// # Errors
    /// If it has none.
    pub fn of(&self, whose: &Whose<'_>, model: &str, gpu: &str) -> Result<Quote, MoneyError> {
        let mut tables = self.tables_for(whose);
        let found = tables.find_map(|table| table.of(model));
        found.ok_or_else(|| MoneyError::Missing {
            origin: self.origin.clone(),
            model: model.to_owned(),
            gpu: gpu.to_owned(),
            known: self.known(whose),
        })
    }

    /// The price of a MIG instance of a model, or the default for its profile, for somebody's time.
    ///
    /// # Errors
    /// If it has none.
    pub fn of_instance(
        &self,
        whose: &Whose<'_>,
        model: &str,
        profile: &str,
        gpu: &str,
    ) -> Result<Quote, MoneyError> {
        let mut tables = self.tables_for(whose);
        let found = tables.find_map(|table| table.of_instance(model, profile));
        found.ok_or_else(|| MoneyError::MissingInstance {
            origin: self.origin.clone(),
            model: model.to_owned(),
            profile: profile.to_owned(),
            gpu: gpu.to_owned(),
            known: self.known(whose),
        })
    }

    fn known(&self, whose: &Whose<'_>) -> String {
        let known: Vec<String> = self.tables_for(whose).flat_map(PriceTable::known).collect();
        match known.is_empty() {
            true => "nothing".to_owned(),
            false => known.join(", "),
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A100: &str =
        "currency = \"EUR\"\n[gpu.\"A100\"]\nbusy_hour = \"1.80\"\nallocated_hour = \"0.40\"\n";

    const ANYBODY: Whose<'_> = Whose {
        node: "gpu-7",
        cluster: "a",
        labels: &[],
    };

    fn dec(text: &str) -> Decimal {
        Decimal::from_str_exact(text).unwrap()
    }

    #[test]
    fn prices_are_read_as_they_are_written() {
        let prices = Prices::parse(A100, "p").unwrap();
        assert_eq!((prices.currency.as_str(), prices.decimals), ("EUR", 2));
        let price = prices.of(&ANYBODY, "A100", "GPU-0").unwrap().price;
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
                "currency = \"EUR\"\n[[for]]\n[for.default]\nbusy_hour = \"1\"",
                "for[0] is for everything, allowed is cluster, node or label",
            ),
            (
                "currency = \"EUR\"\n[[for]]\nnode = \"a\"",
                "for[0] is without a price",
            ),
            (
                "currency = \"EUR\"\n[[for]]\nnode = \"a\"\n[for.gpu.A]",
                "for[0].gpu.\"A\" is without a price",
            ),
            (
                "currency = \"EUR\"\n[[for]]\nnode = []\n[for.gpu.A]",
                "a list of names with one at least",
            ),
            (
                "currency = \"EUR\"\n[[for]]\nnodes = [\"a\"]\n[for.gpu.A]",
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
        let error = Prices::parse(A100, "p.toml")
            .unwrap()
            .of(&ANYBODY, "H100", "GPU-7");
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
            .of_instance(&ANYBODY, "A100", "1g.10gb", "MIG-0")
            .unwrap()
            .price;
        assert_eq!(instance.busy_hour, Some(dec("0.30")));
        assert_eq!(instance.allocated_hour, None);
        let error = prices
            .of_instance(&ANYBODY, "A100", "3g.40gb", "MIG-1")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "p.toml has no price for the MIG instance \"3g.40gb\" of \"A100\" (MIG-1), it has prices \
             for \"A100\", \"1g.10gb\" of \"A100\""
        );
        // Prices of instances alone are none of the whole.
        let text = "currency = \"EUR\"\n[gpu.A100.mig.\"1g.10gb\"]\nbusy_hour = \"0.30\"\n";
        let prices = Prices::parse(text, "p.toml").unwrap();
        assert!(
            prices
                .of_instance(&ANYBODY, "A100", "1g.10gb", "MIG-0")
                .is_ok()
        );
        assert!(prices.of(&ANYBODY, "A100", "GPU-0").is_err());
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
                Some(profile) => prices.of_instance(&ANYBODY, model, profile, "MIG-0"),
                None => prices.of(&ANYBODY, model, "GPU-0"),
            };
            let found = found
                .ok()
                .map(|quote| (quote.price.busy_hour, quote.is_default));
            let expected = expected.map(|(price, is_default)| (Some(dec(price)), is_default));
            assert_eq!(found, expected, "{model} {profile:?}");
        }
        let alone = "currency = \"EUR\"\n[default]\nallocated_hour = \"1\"\n";
        let alone = Prices::parse(alone, "p.toml").unwrap();
        assert!(alone.of(&ANYBODY, "A100", "GPU-0").unwrap().is_default);
    }

    #[test]
    fn the_first_prices_that_hold_and_know_the_model_count() {
        let text = format!(
            "{A100}[gpu.H100]\nbusy_hour = \"9\"\n\
             [[for]]\ncluster = \"b\"\nlabel.team = \"vision\"\n[for.gpu.A100]\nbusy_hour = \"0.10\"\n\
             [[for]]\nnode = [\"gpu-1\", \"gpu-2\"]\n[for.gpu.A100]\nbusy_hour = \"0.20\"\n\
             [for.default.mig.\"1g.10gb\"]\nbusy_hour = \"0.02\"\n\
             [[for]]\ncluster = \"b\"\n[for.default]\nbusy_hour = \"0.30\"\n"
        );
        let prices = Prices::parse(&text, "p.toml").unwrap();
        assert!(prices.are_by_cluster() && prices.charges_allocated());
        assert_eq!(prices.label_keys(), BTreeSet::from(["team".into()]));
        for (cluster, node, team, model, expected) in [
            ("a", "gpu-7", "vision", "A100", Some(("1.80", false))),
            ("b", "gpu-7", "vision", "A100", Some(("0.10", false))),
            // The first prices know no H100, and the last ones have a default.
            ("b", "gpu-7", "vision", "H100", Some(("0.30", true))),
            ("b", "gpu-1", "language", "A100", Some(("0.20", false))),
            ("a", "gpu-2", "vision", "A100", Some(("0.20", false))),
            ("a", "gpu-2", "vision", "H100", Some(("9", false))),
            ("b", "gpu-7", "language", "A100", Some(("0.30", true))),
            ("a", "gpu-7", "vision", "L4", None),
        ] {
            let labels = [("team".into(), team.into())];
            let whose = Whose {
                node,
                cluster,
                labels: &labels,
            };
            let found = prices.of(&whose, model, "GPU-0").ok();
            let found = found.map(|quote| (quote.price.busy_hour, quote.is_default));
            let expected = expected.map(|(price, is_default)| (Some(dec(price)), is_default));
            assert_eq!(found, expected, "{cluster} {node} {team} {model}");
        }
        let whose = Whose {
            node: "gpu-2",
            ..ANYBODY
        };
        let instance = prices.of_instance(&whose, "A100", "1g.10gb", "MIG-0");
        assert_eq!(instance.unwrap().price.busy_hour, Some(dec("0.02")));
        let error = prices.of_instance(&ANYBODY, "A100", "1g.10gb", "MIG-0");
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("it has prices for \"A100\", \"H100\""),
            "{error}"
        );
    }

    #[test]
    fn money_is_decimal() {
        let prices = Prices::parse(A100, "p").unwrap();
        let price = prices.of(&ANYBODY, "A100", "").unwrap().price;
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
