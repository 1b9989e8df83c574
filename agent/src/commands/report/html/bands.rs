//! Who has a colour on the page, and what is drawn in it.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::page::{became, names};
use super::picture::Band;
use crate::core::model::{NONE, Nanos};
use crate::drawing::{COLOURS, distinct, first_colour};
use crate::report::tally::{Dimension, Kind, Strand, Timeline};

/// Owners that have a colour and a column of their own.
const BANDS: usize = 10;

/// Who has a colour, and all that is drawn.
#[derive(Debug, Default)]
pub(super) struct Bands {
    classes: HashMap<(Kind, Vec<Arc<str>>), String>,
    pub(super) all: Vec<Band>,
}

impl Bands {
    /// The bands of a picture, from the bottom up: owners, the largest first; the other owners; time that
    /// nobody owns.
    pub(super) fn of(timeline: &Timeline) -> Self {
        let mark = timeline.by.iter().position(Dimension::is_identity);
        let owners = timeline.strands.iter().filter(|of| of.kind.is_owned());
        let owners: Vec<&Strand> = owners.collect();
        // The place that "1 other owners" would take is as well taken by that owner.
        let named = match owners.len() {
            count if count <= BANDS + 1 => count,
            _ => BANDS,
        };
        let (named, others) = owners.split_at(named);
        let names: Vec<String> = named
            .iter()
            .map(|strand| title(&names_of(strand, mark)))
            .collect();
        let colours = distinct(names.iter().map(|name| first_colour(name)));
        const { assert!(BANDS < COLOURS as usize, "each band has a colour") };
        let mut bands = Self::default();
        for ((strand, name), colour) in named.iter().zip(names).zip(colours) {
            let class = format!("c{colour}");
            let key = (strand.kind, strand.key.clone());
            bands.classes.insert(key, class.clone());
            bands.all.push(Band {
                class,
                name,
                times: strand.times.clone(),
            });
        }
        for strand in others {
            let key = (strand.kind, strand.key.clone());
            bands.classes.insert(key, "others".to_owned());
        }
        let mut joined = |class: &str, name: String, strands: &[&Strand]| {
            let mut times = vec![Nanos::ZERO; timeline.columns.len()];
            for strand in strands {
                for (sum, time) in times.iter_mut().zip(&strand.times) {
                    *sum = sum.plus(*time);
                }
            }
            if times.iter().any(|time| !time.is_zero()) {
                bands.all.push(Band {
                    class: class.to_owned(),
                    name,
                    times,
                });
            }
        };
        joined("others", format!("{} other owners", others.len()), others);
        for kind in [
            Kind::Unattributed,
            Kind::Idle,
            Kind::Unobserved,
            Kind::Unaccounted,
        ] {
            let strands = timeline.strands.iter().filter(|of| of.kind == kind);
            let strands: Vec<&Strand> = strands.collect();
            joined(class_of(kind), became(kind).to_owned(), &strands);
        }
        bands
    }

    /// The class of an owner's colour. One that was only given a GPU is not drawn.
    pub(super) fn class(&self, kind: Kind, key: &[Arc<str>]) -> String {
        let found = self.classes.get(&(kind, key.to_vec()));
        found.cloned().unwrap_or_else(|| "none".to_owned())
    }
}

fn names_of(strand: &Strand, mark: Option<usize>) -> Vec<String> {
    names(strand.kind, &strand.key, mark)
}

/// A name of several parts in one line, without the parts that do not apply.
fn title(names: &[String]) -> String {
    let known = names.iter().filter(|name| *name != NONE);
    let known: Vec<&str> = known.map(String::as_str).collect();
    match known.is_empty() {
        true => NONE.to_owned(),
        false => known.join(" / "),
    }
}

/// The class of the colour of time that nobody owns.
pub(super) const fn class_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Unattributed => "unowned",
        Kind::Idle => "idle",
        Kind::Unobserved => "unobserved",
        Kind::Unaccounted => "unaccounted",
        Kind::Container | Kind::Host | Kind::Total => "others",
    }
}
