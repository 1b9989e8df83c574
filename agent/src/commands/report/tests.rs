//! Tests of what is printed, over reports that are made up.

use std::collections::HashMap;
use std::sync::Arc;

use clap::Args as _;
use jiff::Timestamp;

use super::{page, print};
use crate::core::amounts::Amounts;
use crate::core::model::{GpuUuid, Nanos, WallTime};
use crate::outputs::store::query::{
    AccountLife, AccountRecord, GpuRecord, GpuUsed, LedgerExtent, Used,
};
use crate::report::hour::{begin_of, hour_of};
use crate::report::prices::{MoneyError, Prices};
use crate::report::range::Asked;
use crate::report::tally::{Dimension, Filter, Question, Report, Tally};
use crate::report::zone::Zone;

const UUID: &str = "GPU-7c8e1f02-9a4b-4d5e-8f60-112233445566";

/// Half an hour and a bit of use of one GPU by one container, from 08:00 UTC on.
pub(super) fn report(by: &[&str], timezone: &str, prices: Option<&str>) -> Report {
    let since: Timestamp = "2026-01-31T08:00:00Z".parse().unwrap();
    let committed: Timestamp = "2026-01-31T08:30:00.123456789Z".parse().unwrap();
    let hour = hour_of(since);
    let wall = |at: Timestamp| WallTime(u64::try_from(at.as_nanosecond()).unwrap());
    let by: Vec<Dimension> = by.iter().map(|name| name.parse().unwrap()).collect();
    let question = Question {
        asked: Asked { since, until: None },
        zone: timezone.parse().unwrap(),
        by: Dimension::with_index(&by),
        filter: Filter::default(),
        prices: prices.map(|text| Prices::parse(text, "p").unwrap()),
        timeline: true,
    };
    let extent = LedgerExtent {
        node: "gpu-7".into(),
        path: "gpuacct.db".into(),
        store: "5704e".into(),
        committed: wall(committed),
        hour,
        first_hour: hour,
    };
    let gpu = GpuRecord {
        node: "gpu-7".into(),
        cluster: "lab".into(),
        uuid: GpuUuid(UUID.into()),
        index: "0".into(),
        model: "NVIDIA A100-SXM4-80GB".into(),
        profile: None,
        parent: None,
        first_hour: hour,
        last_hour: hour,
    };
    let text = |text: &str| Arc::<str>::from(text);
    let record = AccountRecord {
        gpu: 1,
        kind: text("container"),
        owner: text("id"),
        namespace: text("research"),
        pod: text("trainer-with-a-name-that-is-longer-than-any-column-0"),
        container: text("main"),
        pod_uid: text("u"),
        container_id: text("id"),
        image: text("i"),
        runtime: text("docker"),
        attribution: text("named"),
        labels: text("{}"),
        profile: None,
        life: AccountLife {
            last_used: Some(wall(committed)),
            ..AccountLife::default()
        },
    };
    let busy = Nanos::from_secs(1_200);
    let mut tally = Tally::new(extent, HashMap::from([(1, gpu)]), &question);
    let used = Used {
        hour,
        account: 1,
        amounts: Amounts::busy(busy),
    };
    tally
        .account(used, |_| Ok::<_, MoneyError>(record))
        .unwrap();
    tally.book(GpuUsed {
        hour,
        gpu: 1,
        elapsed: Nanos::from_secs(1_800),
        busy,
        idle: Nanos::from_secs(600),
        ..GpuUsed::default()
    });
    tally.report(committed).unwrap()
}

/// Whether it is not above the tables.
fn is_of_a_table(line: &str) -> bool {
    !line.contains(" to ") && !line.starts_with("  ")
}

#[test]
fn what_was_asked_for_is_whole_at_every_width() {
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n";
    let keys = [
        (&["hour"][..], &["2026-01-31T08:00:00Z"][..]),
        (&["gpu"], &[UUID]),
        (&["hour", "gpu", "pod"], &["2026-01-31T08:00:00Z", UUID]),
    ];
    for (by, whole) in keys {
        for prices in [None, Some(prices)] {
            for width in [1, 20, 40, 60, 80, 120, 200] {
                let page = page::table(&report(by, "UTC", prices), false, Some(width));
                let case = format!("{by:?} in {width}:\n{}", page.text);
                for key in whole {
                    // Of the container, and of what is idle.
                    let rows = page.text.lines().filter(|line| is_of_a_table(line));
                    let found = rows.filter(|line| line.contains(key)).count();
                    assert_eq!(found, 2, "{key}: {case}");
                }
                assert!(!page.text.contains('…'), "{case}");
                // What was used and what it costs stays; everything that is missing is named.
                assert!(page.text.contains("BUSY h"), "{case}");
                assert_eq!(page.text.contains("EUR"), prices.is_some(), "{case}");
                for column in ["ALLOC. h", "UNUSED h", "GiB h", "kWh", "SHARE"] {
                    let lines = page.text.lines().filter(|line| line.contains(column));
                    let is_everywhere =
                        lines.count() > usize::from(["kWh", "SHARE"].contains(&column));
                    let is_named = page.left_out.contains(&column);
                    assert!(is_everywhere || is_named, "{column}: {case}");
                }
                let least = page.left_out.len() == 5;
                let mut rows = page.text.lines().filter(|line| is_of_a_table(line));
                let is_narrow = rows.all(|line| line.chars().count() <= width);
                assert!(least || is_narrow, "{case}");
            }
        }
    }
}

#[test]
fn the_help_has_exit_codes_and_examples_that_can_be_typed() {
    let command = || {
        let command = clap::Command::new("gpuacct report").no_binary_name(true);
        super::Options::augment_args(command)
    };
    let help = command().render_help().to_string();
    let (_, codes) = help.split_once("Exit codes:\n").unwrap();
    let (codes, examples) = codes.split_once("\n\nExamples:\n").unwrap();
    let first: Vec<&str> = codes.lines().map(|line| &line[..5]).collect();
    assert_eq!(first, ["  0  ", "  1  ", "  2  "]);
    let examples = examples.trim_end().replace("\\\n", " ");
    assert!(examples.lines().count() >= 2, "{examples}");
    for example in examples.lines() {
        let typed = example.trim().strip_prefix("gpuacct report ").unwrap();
        let typed = typed.split(" > ").next().unwrap().split_whitespace();
        let parsed = command().try_get_matches_from(typed);
        assert!(parsed.is_ok(), "{example}: {parsed:?}");
    }
}

#[test]
fn the_least_important_figures_give_way_first() {
    let report = report(&["hour"], "UTC", None);
    for (width, expected) in [
        (None, vec![]),
        (Some(82), vec![]),
        (Some(81), vec!["SHARE"]),
        (Some(73), vec!["SHARE", "kWh"]),
        (
            Some(1),
            vec!["SHARE", "kWh", "GiB h", "UNUSED h", "ALLOC. h"],
        ),
    ] {
        let page = page::table(&report, false, width);
        assert_eq!(page.left_out, expected, "in {width:?}:\n{}", page.text);
    }
    let wide = page::table(&report, true, Some(1));
    assert!(wide.left_out.is_empty() && wide.text.contains("HELD h"));
}

#[test]
fn csv_has_the_line_ends_of_rfc_4180_and_whole_seconds() {
    let report = report(&["pod"], "UTC", None);
    let csv = print::csv(&report).unwrap();
    assert_eq!(csv.matches('\n').count(), csv.matches("\r\n").count());
    assert_eq!(csv.matches("\r\n").count(), 4, "{csv}");
    for text in [
        csv,
        print::ndjson(&report).unwrap(),
        print::json(&report).unwrap(),
    ] {
        assert!(text.contains("2026-01-31T08:30:00Z"), "{text}");
        assert!(!text.contains(".123456789Z"), "{text}");
    }
}

#[test]
fn every_output_is_in_the_zone_of_the_report() {
    let report = report(&["pod"], "Europe/Berlin", None);
    for text in [
        page::table(&report, true, None).text,
        print::csv(&report).unwrap(),
        print::ndjson(&report).unwrap(),
        print::json(&report).unwrap(),
    ] {
        assert!(text.contains("2026-01-31T09:30:00+01:00"), "{text}");
        assert!(!text.contains("08:30:00"), "{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&print::json(&report).unwrap()).unwrap();
    assert_eq!(json["timezone"], "Europe/Berlin");
    assert_eq!(json["complete"], true);
    assert_eq!(report.zone, "Europe/Berlin".parse::<Zone>().unwrap());
    assert_eq!(
        json["since"],
        report.zone.show(begin_of(hour_of(report.since)))
    );
}
