//! The attributes of a point, from the label values of its series.
//!
//! By the conventions, a value that does not apply is left out: `(none)` would be the name of a pod.
//! `(unresolved)` stays, so that what could not be learnt is not taken for what does not apply.

use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value};

use super::shape::Naming;
use crate::core::model::{NONE, UNRESOLVED};
use crate::core::snapshot::{GpuBook, Snapshot};
use crate::outputs::instruments::conventions::{attribute_name, image_parts};
use crate::outputs::instruments::{Instrument, LabelValues};

/// Who makes the GPUs that NVML knows.
pub(super) const VENDOR: &str = "NVIDIA";
/// Keys that name a container, in the table's words.
const OWNER: [&str; 5] = ["namespace", "pod", "container", "pod_uid", "container_id"];

/// A container that a point is about.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// The values of its labels.
    pub(super) key: Vec<String>,
    /// The attributes that name it.
    pub(super) attributes: Vec<KeyValue>,
}

impl Owner {
    /// Whether neither a container nor a pod is known: the work of the host, or of nobody.
    fn is_nobody(&self) -> bool {
        self.key.iter().rev().take(2).all(|id| id.starts_with('('))
    }

    /// What tells it from all other instances: its id, or all its names where that is not known.
    pub(super) fn instance(&self) -> String {
        match self.key.last() {
            // A container that is named late has two series, under both names at once.
            Some(id) if self.key.first().is_some_and(|name| name == UNRESOLVED) => {
                format!("{id}/unresolved")
            }
            Some(id) if !id.starts_with('(') => id.clone(),
            _ => self.key.join("/"),
        }
    }
}

/// A text as an attribute.
pub(super) fn attribute(key: &str, value: &str) -> KeyValue {
    with(key, any_value::Value::StringValue(value.to_owned()))
}

/// A list of one text.
fn list_of(key: &str, value: &str) -> KeyValue {
    let value = any_value::Value::StringValue(value.to_owned());
    let values = vec![AnyValue { value: Some(value) }];
    with(key, any_value::Value::ArrayValue(ArrayValue { values }))
}

/// A value as an attribute.
pub(super) fn with(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Makes the attributes of points, family by family.
pub(super) struct Attributes<'a> {
    naming: Naming,
    gpus: HashMap<&'a str, &'a GpuBook>,
    /// The family's keys, in its order, with their names.
    keys: Vec<(&'static str, String)>,
    family: Option<&'static Instrument>,
    /// Whether the points are about containers.
    has_owner: bool,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, naming: Naming) -> Self {
        let gpus = snapshot.gpus.iter();
        Self {
            naming,
            gpus: gpus.map(|book| (book.gpu.uuid.as_str(), book)).collect(),
            keys: Vec::new(),
            family: None,
            has_owner: false,
        }
    }

    /// The points that follow are of this family.
    pub(super) fn family(&mut self, instrument: &'static Instrument) {
        let name = |key: &str| match self.naming {
            Naming::Conventions => attribute_name(key),
            Naming::Labels => key.to_owned(),
        };
        self.keys = instrument
            .keys
            .iter()
            .map(|key| (*key, name(key)))
            .collect();
        self.has_owner = OWNER.iter().all(|key| instrument.keys.contains(key));
        self.family = Some(instrument);
    }

    /// Whom a point is about, if it is a container, and its other attributes.
    pub(super) fn of(&self, labels: LabelValues<'_>) -> (Option<Owner>, Vec<KeyValue>) {
        let mut owner = self.has_owner.then(|| Owner {
            key: Vec::with_capacity(OWNER.len()),
            attributes: Vec::with_capacity(OWNER.len()),
        });
        let mut others = Vec::with_capacity(self.keys.len());
        // Outside of Kubernetes a container has a name and no pod.
        let values = || self.keys.iter().zip(labels.iter());
        let is_in_a_pod = !values().any(|((key, _), value)| *key == "pod" && value == NONE);
        for ((key, name), value) in values() {
            let into = match &mut owner {
                Some(owner) if OWNER.contains(key) => {
                    owner.key.push(value.to_owned());
                    &mut owner.attributes
                }
                _ => &mut others,
            };
            match (self.naming, *key) {
                (Naming::Labels, _) => into.push(attribute(name, value)),
                (Naming::Conventions, _) if value == NONE => {}
                (Naming::Conventions, "image") => image(value, into),
                (Naming::Conventions, "container") if !is_in_a_pod => {
                    into.push(attribute("container.name", value));
                }
                (Naming::Conventions, "gpu_uuid") => {
                    into.push(attribute(name, value));
                    self.device(value, into);
                }
                (Naming::Conventions, _) => into.push(attribute(name, value)),
            }
        }
        if let Some(nobody) = owner.take_if(|owner| owner.is_nobody()) {
            others.splice(0..0, nobody.attributes);
        }
        for (key, value) in labels.configured() {
            match self.naming {
                Naming::Labels => others.push(attribute(key, value)),
                Naming::Conventions => others.push(attribute(&attribute_name(key), value)),
            }
        }
        (owner, others)
    }

    /// What the device's own families say of it besides.
    fn device(&self, uuid: &str, into: &mut Vec<KeyValue>) {
        let Some(family) = self.family.filter(|family| family.is_of_hardware()) else {
            return;
        };
        if ["hw.energy", "hw.power"].contains(&family.conventional()) {
            into.push(attribute("hw.type", "gpu"));
        }
        into.push(attribute("hw.vendor", VENDOR));
        let Some(book) = self.gpus.get(uuid) else {
            return;
        };
        if !book.gpu.model.is_empty() {
            into.push(attribute("hw.model", &book.gpu.model));
        }
        if let Some(mig) = &book.gpu.mig {
            into.push(attribute("hw.parent", mig.parent.as_str()));
        }
        // A total goes on under another driver and another index.
        if family.conventional() != "hw.energy" {
            into.push(attribute("hw.name", &format!("GPU {}", book.gpu.index)));
            if !book.gpu.driver.is_empty() {
                into.push(attribute("hw.driver_version", &book.gpu.driver));
            }
        }
    }
}

/// An image by the conventions, taken apart.
pub(super) fn image(value: &str, into: &mut Vec<KeyValue>) {
    let parts = image_parts(value);
    into.extend(
        parts
            .name
            .map(|name| attribute("container.image.name", name)),
    );
    into.extend(parts.tag.map(|tag| list_of("container.image.tags", tag)));
    let digest = parts.repo_digest;
    into.extend(digest.map(|digest| list_of("container.image.repo_digests", digest)));
    into.extend(parts.id.map(|id| attribute("container.image.id", id)));
}
