//! What GPU time costs by model and MIG profile, and for whose time a price is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rust_decimal::Decimal;
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

/// Whose time has a price: where the GPU is, and what labels the owner has.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The name of the node.
    pub node: &'a str,
    /// The name of the cluster.
    pub cluster: &'a str,
    /// Labels of the owner, by their keys.
    pub labels: &'a [(Arc<str>, Arc<str>)],
}

/// Prices of some of the time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
pub(super) struct Rule {
    /// Clusters of which it has to be one; any if there are none.
    pub(super) cluster: Vec<String>,
    /// Nodes of which it has to be one; any if there are none.
    node: Vec<String>,
    /// Labels that the owner must have, as a report by label prints their values.
    pub(super) label: BTreeMap<String, String>,
    pub(super) table: PriceTable,
}

/// A rule as it stands in the file. A flattened table would let keys pass that nobody knows.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    #[serde(deserialize_with = "one_or_several")]
    cluster: Vec<String>,
    #[serde(deserialize_with = "one_or_several")]
    node: Vec<String>,
    label: BTreeMap<String, String>,
    gpu: BTreeMap<String, Model>,
    default: Option<Model>,
}

impl From<Written> for Rule {
    fn from(written: Written) -> Self {
        Self {
            cluster: written.cluster,
            node: written.node,
            label: written.label,
            table: PriceTable {
                models: written.gpu,
                default: written.default,
            },
        }
    }
}

impl Rule {
    /// Whether it has a condition at all.
    pub(super) fn is_for_something(&self) -> bool {
        !(self.cluster.is_empty() && self.node.is_empty() && self.label.is_empty())
    }

    pub(super) fn holds(&self, whose: &Whose<'_>) -> bool {
        let is_one = |of: &[String], name: &str| of.is_empty() || of.iter().any(|one| one == name);
        let has = |(key, value): (&String, &String)| {
            let mut labels = whose.labels.iter();
            labels.any(|(own, found)| **own == **key && **found == **value)
        };
        is_one(&self.cluster, whose.cluster)
            && is_one(&self.node, whose.node)
            && self.label.iter().all(has)
    }
}

/// Prices of models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PriceTable {
    pub(super) models: BTreeMap<String, Model>,
    /// For models and profiles that have no price of their own.
    pub(super) default: Option<Model>,
}

impl PriceTable {
    pub(super) fn is_empty(&self) -> bool {
        self.models.is_empty() && self.default.is_none()
    }

    /// The prices, by their keys in the file. A model without any has an empty one.
    pub(super) fn all(&self) -> impl Iterator<Item = (String, Price)> {
        let models = self.models.iter();
        let models = models.map(|(model, of_it)| (format!("gpu.{model:?}"), of_it));
        let default = self.default.iter();
        let default = default.map(|of_it| ("default".to_owned(), of_it));
        models.chain(default).flat_map(|(key, of_it)| {
            let is_whole = of_it.mig.is_empty() || of_it.whole().is_some();
            let whole = is_whole.then(|| (key.clone(), of_it.whole().unwrap_or_default()));
            let instances = of_it.mig.iter();
            let instances = instances.map(|(mig, price)| (format!("{key}.mig.{mig:?}"), *price));
            whole.into_iter().chain(instances).collect::<Vec<_>>()
        })
    }

    /// The price of a model.
    pub(super) fn of(&self, model: &str) -> Option<Quote> {
        let own = self.models.get(model).and_then(Model::whole);
        Quote::new(own, self.default.as_ref().and_then(Model::whole))
    }

    /// The price of a MIG instance of a model.
    pub(super) fn of_instance(&self, model: &str, profile: &str) -> Option<Quote> {
        let of = |prices: &Model| prices.mig.get(profile).copied();
        let own = self.models.get(model).and_then(of);
        Quote::new(own, self.default.as_ref().and_then(of))
    }

    /// What it has prices for, in words.
    pub(super) fn known(&self) -> Vec<String> {
        let mut known = Vec::new();
        for (model, prices) in &self.models {
            known.extend(prices.whole().map(|_| format!("{model:?}")));
            let instances = prices.mig.keys();
            known.extend(instances.map(|profile| format!("{profile:?} of {model:?}")));
        }
        let instances = self.default.iter().flat_map(|prices| prices.mig.keys());
        known.extend(instances.map(|profile| format!("{profile:?} of any model")));
        known
    }
}

/// What a model costs, whole and in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Model {
    #[serde(deserialize_with = "decimal")]
    busy_hour: Option<Decimal>,
    #[serde(deserialize_with = "decimal")]
    allocated_hour: Option<Decimal>,
    /// Prices of MIG instances by profile.
    mig: BTreeMap<String, Price>,
}

impl Model {
    pub(super) fn whole(&self) -> Option<Price> {
        let price = Price {
            busy_hour: self.busy_hour,
            allocated_hour: self.allocated_hour,
        };
        (price != Price::default()).then_some(price)
    }

    /// Prices of MIG instances, by profile.
    pub(super) fn instances(&self) -> impl Iterator<Item = (&str, &Price)> {
        let instances = self.mig.iter();
        instances.map(|(profile, price)| (profile.as_str(), price))
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

/// A name, or a list of names of which none is more than the others.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct Names;

    impl<'de> Visitor<'de> for Names {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a name, or a list of names with one at least")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
            Ok(vec![text.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Vec<String>, A::Error> {
            let mut all = Vec::new();
            while let Some(name) = names.next_element()? {
                all.push(name);
            }
            match all.is_empty() {
                true => Err(de::Error::invalid_length(0, &self)),
                false => Ok(all),
            }
        }
    }

    deserializer.deserialize_any(Names)
}
