//! What is sent, against an extract of the semantic conventions.

use std::collections::BTreeMap;

use super::conventions::{
    ImageParts, OtlpInstrument, SCHEMA_URL, attribute_name, conventional_key, image_parts,
};
use super::table::all_families;
use super::*;

const EXTRACT: &str = include_str!("conventions/v1.44.0.txt");

/// Deviations from the conventions, each with its reason: a family and an attribute that the
/// conventions recommend for it, or a key without an attribute.
const DEVIATIONS: [(&str, &str); 2] = [
    (
        "hw.driver_version",
        "not on hw.energy, whose total outlives a driver: another version would be another series that \
         begins with the whole total",
    ),
    (
        "k8s.node.uid",
        "no source on the node knows it; OTEL_RESOURCE_ATTRIBUTES can set it",
    ),
];

fn lines(kind: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = EXTRACT
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    lines.filter(move |words| words[0] == kind)
}

#[test]
fn each_name_of_the_conventions_has_their_kind_and_unit() {
    let metrics: BTreeMap<_, _> = lines("metric").map(|of_it| (of_it[1], of_it)).collect();
    assert!(metrics.len() > 30, "{metrics:?}");
    assert!(EXTRACT.contains(SCHEMA_URL.rsplit_once('/').unwrap().1));
    let mut found = 0;
    for family in all_families() {
        let name = family.conventional();
        if !family.is_of_hardware() {
            assert_eq!(name, family.otlp);
            continue;
        }
        let kind = match family.otlp_instrument() {
            OtlpInstrument::Counter => "counter",
            OtlpInstrument::UpDownCounter => "updowncounter",
            OtlpInstrument::Gauge => "gauge",
        };
        let expected = metrics
            .get(name)
            .unwrap_or_else(|| panic!("no convention {name}"));
        assert_eq!(&expected[2..], [kind, family.unit.ucum()], "{name}");
        assert!(family.keys.contains(&"gpu_uuid"), "{name} has no hw.id");
        found += 1;
    }
    assert_eq!(found, 7);
}

#[test]
fn each_attribute_is_one_of_the_conventions_or_below_our_own_name() {
    let attributes: Vec<_> = lines("attribute").map(|words| words[1]).collect();
    let keys = all_families().flat_map(|family| family.keys);
    for key in keys {
        match conventional_key(key) {
            Some(name) => assert!(attributes.contains(&name), "{name}"),
            None => assert_eq!(attribute_name(key), format!("gpuacct.{key}")),
        }
    }
    for name in [
        "hw.type",
        "hw.name",
        "hw.vendor",
        "container.name",
        "container.image.tags",
        "container.image.repo_digests",
        "container.image.id",
        "k8s.node.name",
    ] {
        assert!(attributes.contains(&name), "{name}");
    }
    for (name, reason) in DEVIATIONS {
        assert!(attributes.contains(&name) && !reason.is_empty(), "{name}");
    }
}

#[test]
fn a_level_is_a_gauge_of_the_table() {
    let levels =
        all_families().filter(|of_it| of_it.otlp_instrument() == OtlpInstrument::UpDownCounter);
    let gauges = levels.filter(|of_it| of_it.kind == Kind::Gauge).count();
    assert_eq!(gauges, super::conventions::LEVELS.len());
}

#[test]
fn an_image_is_taken_apart_as_the_conventions_do() {
    let named = |name, tag| ImageParts {
        name: Some(name),
        tag,
        ..ImageParts::default()
    };
    for (image, expected) in [
        ("image", named("image", None)),
        ("image:1.2", named("image", Some("1.2"))),
        (
            "registry:5000/team/image",
            named("registry:5000/team/image", None),
        ),
        (
            "registry:5000/image:1",
            named("registry:5000/image", Some("1")),
        ),
        (
            "r/image:1@sha256:aa",
            ImageParts {
                repo_digest: Some("r/image:1@sha256:aa"),
                ..named("r/image", Some("1"))
            },
        ),
        (
            "sha256:aa",
            ImageParts {
                id: Some("sha256:aa"),
                ..ImageParts::default()
            },
        ),
    ] {
        assert_eq!(image_parts(image), expected);
    }
}
