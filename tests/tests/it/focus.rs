//! `gpuacct report --output focus` as it is typed, held against the FinOps Foundation's own validator and
//! against the report.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use gpuacct_tests::python::{Venv, interpreter, run, venv_of};
use gpuacct_tests::requirement::require;
use rust_decimal::Decimal;
use serde_json::Value;
use tempfile::TempDir;

use crate::report::{A100, DIVIDED, H100, RANGE, Rows, divided, past, past_on, printed, report};

/// The validator. It wants a NumPy that is compiled for this minor version of Python 3 and for none later.
const VALIDATOR: [&str; 2] = ["focus-validator==2.2.1", "pyarrow==19.0.1"];
const PYTHON: u32 = 12;

fn validator() -> anyhow::Result<Venv> {
    venv_of(&interpreter(PYTHON)?, "focus", &VALIDATOR)
}

fn prices(dir: &Path, text: &str) -> String {
    let path = dir.join("prices.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Both meters for one model, one for the other.
fn two_meters(dir: &Path) -> String {
    let text = format!(
        "currency = \"EUR\"\n[gpu.\"{A100}\"]\nbusy_hour = \"1.80\"\nallocated_hour = \"0.333333333\"\n\
         [gpu.\"{H100}\"]\nbusy_hour = \"3.7\"\n"
    );
    prices(dir, &text)
}

fn parsed(text: &str) -> Rows {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let rows = reader.deserialize().collect::<Result<_, _>>();
    rows.unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn sum<'a>(rows: impl IntoIterator<Item = &'a BTreeMap<String, String>>, column: &str) -> Decimal {
    let cells = rows.into_iter().map(|row| &row[column]);
    cells.map(|cell| cell.parse::<Decimal>().unwrap()).sum()
}

/// What holds of these charges, in the words of the specification: so all rules about it apply.
const CRITERIA: &str = "ACCOUNT_NAMING_SUPPORTED,BILLING_BASED_ON_PROVISIONED_RESOURCES_SUPPORTED,\
    MULTIPLE_PRICING_CATEGORIES_SUPPORTED,NEGOTIATED_PRICING_SUPPORTED,\
    PRICING_BILLING_CURRENCY_DIFFERENCES_SUPPORTED,PUBLIC_PRICE_LIST_SUPPORTED,\
    RESOURCE_TYPE_ASSIGNMENT_SUPPORTED,SUB_ACCOUNT_SUPPORTED,TAGGING_SUPPORTED,UNIT_PRICING_SUPPORTED,\
    USAGE_MEASUREMENT_SUPPORTED";

/// A charge has an invoice or it has none: the validator has a rule for each of the two cases, and a third
/// one that is content with either. No charge of ours has an invoice.
const OTHER_CASE: &str = "InvoiceId-C-005-C";

/// The rules that failed, and how many passed.
fn judged(validator: &Venv, text: &str) -> (Vec<String>, usize) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("focus.csv");
    fs::write(&file, text).unwrap();
    // It looks for its rules and the currencies below the working directory.
    let package = validator.package("focus_validator").unwrap();
    let said = run(Command::new(validator.program("focus-validator"))
        .current_dir(package.parent().unwrap())
        .arg("--data-file")
        .arg(&file)
        .args(["--validate-version", "1.2", "--block-download"])
        .args(["--applicability-criteria", CRITERIA])
        .args(["--output-type", "console"]))
    .unwrap();
    let rules = |verdict: &str| {
        let lines = said.lines().filter_map(|line| line.split_once(verdict));
        let names = lines.filter_map(|(name, _)| name.split_whitespace().last());
        names.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    (rules(": FAIL"), rules(": PASS").len())
}

#[test]
fn the_foundations_validator_finds_no_fault() {
    let Some(validator) = require("focus-validator", validator()) else {
        return;
    };
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let prices = two_meters(dir.path());
    let arguments = ["--prices", &prices, "-o", "focus", "--by", "label:team"];
    let text = printed(dir.path(), &[&RANGE[..], &arguments].concat());
    let (failed, passed) = judged(&validator, &text);
    assert_eq!(failed, [OTHER_CASE]);
    assert!(passed > 250, "only {passed} rules were tried");

    // So that what is judged can be wrong.
    let wrong = text.replace(",Usage,", ",Use,").replace(",EUR,", ",Euro,");
    let (failed, _) = judged(&validator, &wrong);
    for rule in ["ChargeCategory-C-003-M", "BillingCurrency-C-006-M"] {
        assert!(failed.iter().any(|name| name == rule), "{failed:?}");
    }
}

/// The charges of a ledger, and the same report's rows.
fn charges(store: &Path, arguments: &[&str]) -> Rows {
    let text = printed(store, &[arguments, &["-o", "focus"]].concat());
    parsed(&text)
}

#[test]
fn what_is_billed_is_the_reports_total_and_time_that_nobody_used_is_billed_to_nobody() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let prices = two_meters(dir.path());
    let arguments = [&RANGE[..], &["--prices", &prices]].concat();
    let json = printed(dir.path(), &[&arguments[..], &["-o", "json"]].concat());
    let json: Value = serde_json::from_str(&json).unwrap();
    let number = |value: &Value| value.to_string().parse::<Decimal>().unwrap();
    for version in ["1.2", "1.3"] {
        let arguments = [&arguments[..], &["--focus-version", version]].concat();
        let rows = charges(dir.path(), &arguments);
        let billed = sum(&rows, "BilledCost");
        assert_eq!(billed.round_dp(2), number(&json["total"]["cost"]));
        let busy = |row: &&BTreeMap<String, String>| row["SkuMeter"] == "GPU busy time";
        // Each of three hours of two GPUs, as far as it is in the books.
        assert_eq!(
            sum(rows.iter().filter(busy), "x_GpuSeconds"),
            number(&json["total"]["gpu_seconds"])
        );
        let kinds: BTreeSet<&str> = rows.iter().map(|row| &*row["x_Kind"]).collect();
        let all = [
            "container",
            "host",
            "idle",
            "unallocated",
            "unattributed",
            "unobserved",
        ];
        assert_eq!(kinds, BTreeSet::from(all));
        for row in &rows {
            let is_used = matches!(&*row["x_Kind"], "container" | "host" | "unattributed");
            let expected = if is_used { &*row["EffectiveCost"] } else { "0" };
            assert_eq!(row["BilledCost"], expected, "{row:?}");
            let number = |column: &str| row[column].parse::<Decimal>().unwrap();
            assert_eq!(
                number("EffectiveCost"),
                number("ContractedUnitPrice") * number("PricingQuantity")
            );
        }
    }
    // The namespace is a sub account, and what nobody owns has none.
    let rows = charges(
        dir.path(),
        &[&arguments[..], &["--by", "label:team"]].concat(),
    );
    let trainer = rows.iter().find(|row| row["x_Pod"] == "train-0").unwrap();
    assert_eq!(trainer["SubAccountId"], "research");
    let tags: Value = serde_json::from_str(&trainer["Tags"]).unwrap();
    assert_eq!(tags["team"], "vision");
    assert_eq!(tags["gpuacct/pod"], "train-0");
    let idle = rows.iter().find(|row| row["x_Kind"] == "idle").unwrap();
    assert!(
        idle["SubAccountId"].is_empty() && idle["Tags"].is_empty(),
        "{idle:?}"
    );
    // Charges are hours of UTC, whatever the zone that the range was asked in.
    let zoned = ["--since", "2026-01-31T07:00", "--until", "2026-01-31T10:00"];
    let berlin = [
        "--timezone",
        "Europe/Berlin",
        "--prices",
        &prices,
        "--by",
        "label:team",
    ];
    assert_eq!(charges(dir.path(), &[&zoned[..], &berlin].concat()), rows);
    assert_eq!(rows[0]["ChargePeriodStart"], "2026-01-31T06:00:00Z");
    assert_eq!(rows[0]["BillingPeriodStart"], "2026-01-01T00:00:00Z");
    assert_eq!(rows[0]["BillingPeriodEnd"], "2026-02-01T00:00:00Z");
}

/// The rules of the specification's 1.3 about split costs, as its attribute
/// `DataGeneratorCalculatedSplitCostAllocationHandling` and its columns have them. The validator knows
/// nothing of them yet.
#[test]
fn the_parts_of_a_gpus_hour_add_up_to_it_as_focus_1_3_wants_it() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    past(&a).end();
    // Its GPUs have the same names, and are used at another time.
    past_on("gpu-8", "2026-01-31T10:00:00Z", &b).end();
    let prices = two_meters(dir.path());
    let of = |stores: &[&str], version| {
        let stores = stores.iter().flat_map(|store| ["--store", store]);
        let asked = [
            "--prices",
            &prices,
            "--by",
            "label:team",
            "--focus-version",
            version,
        ];
        let asked = stores.chain(asked).collect::<Vec<_>>();
        let range = [
            "--since",
            "2026-01-31T06:00Z",
            "--until",
            "2026-01-31T13:00Z",
        ];
        parsed(&report_of(&[&range[..], &asked, &["-o", "focus"]].concat()))
    };
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    let rows = of(&[a, b], "1.3");
    assert_eq!(rows, [of(&[a], "1.3"), of(&[b], "1.3")].concat());
    let mut origins: BTreeMap<_, Vec<&BTreeMap<String, String>>> = BTreeMap::new();
    for row in &rows {
        let key = ["ResourceId", "ChargePeriodStart", "SkuId"].map(|column| &*row[column]);
        origins.entry(key).or_default().push(row);
    }
    assert!(origins.values().any(|parts| parts.len() > 3), "{origins:?}");
    for (origin, parts) in &origins {
        // Ratios add up to exactly 1, each beside the quantity that it is from.
        let details = parts.iter().map(|row| &row["AllocatedMethodDetails"]);
        let elements = details.map(|text| {
            let details: Value = serde_json::from_str(text).unwrap();
            assert_eq!(details["Elements"].as_array().unwrap().len(), 1);
            let element = details["Elements"][0].clone();
            assert_eq!(element["UsageUnit"], "Seconds");
            element
        });
        let elements: Vec<Value> = elements.collect();
        let sum_of = |key: &str| -> Decimal {
            let numbers = elements.iter().map(|element| element[key].to_string());
            numbers
                .map(|number| number.parse::<Decimal>().unwrap())
                .sum()
        };
        assert_eq!(sum_of("AllocatedRatio"), Decimal::ONE, "{origin:?}");
        assert_eq!(
            sum_of("UsageQuantity"),
            sum(parts.iter().copied(), "x_GpuSeconds")
        );
        // What is not summed and what is no number is the same in all.
        let own = |column: &str| {
            column.starts_with("Allocated") || column.starts_with("x_") || SUMMED.contains(&column)
        };
        let columns = parts[0].keys().filter(|column| !own(column));
        for column in columns {
            let values: BTreeSet<&str> = parts.iter().map(|row| &*row[column]).collect();
            assert_eq!(values.len(), 1, "{column} of {origin:?}: {values:?}");
        }
        // The price times the hour is what the parts cost together.
        let price: Decimal = parts[0]["ContractedUnitPrice"].parse().unwrap();
        let hours = sum(parts.iter().copied(), "PricingQuantity");
        assert_eq!(sum(parts.iter().copied(), "EffectiveCost"), price * hours);
        // Each owner has a name of its own, and what is not allocated has none.
        let mut ids = BTreeSet::new();
        for row in parts {
            let has = |column: &str| !row[column].is_empty();
            assert!(has("AllocatedMethodId"));
            let is_owned = matches!(&*row["x_Kind"], "container" | "host");
            assert_eq!(has("AllocatedResourceId"), is_owned, "{row:?}");
            assert_eq!(has("AllocatedResourceName"), is_owned, "{row:?}");
            // An owner without a name has no tags either.
            assert!(is_owned || !has("AllocatedTags"), "{row:?}");
            assert!(
                !is_owned || ids.insert(&row["AllocatedResourceId"]),
                "{row:?}"
            );
        }
    }
    // 1.2 has the same charges, without the allocation.
    let before = of(&[a, b], "1.2");
    assert_eq!(before.len(), rows.len());
    for (old, new) in before.iter().zip(&rows) {
        assert_eq!(old["Tags"], new["AllocatedTags"]);
        for column in SUMMED
            .iter()
            .chain(&["ChargePeriodStart", "SkuId", "x_Pod"])
        {
            assert_eq!(old[*column], new[*column]);
        }
        assert!(!old.keys().any(|column| column.starts_with("Allocated")));
    }
}

/// Columns that add up.
const SUMMED: [&str; 7] = [
    "BilledCost",
    "ConsumedQuantity",
    "ContractedCost",
    "EffectiveCost",
    "ListCost",
    "PricingCurrencyEffectiveCost",
    "PricingQuantity",
];

fn report_of(arguments: &[&str]) -> String {
    let mut command = Command::new(gpuacct_tests::agent::binary().unwrap());
    run(command
        .arg("report")
        .args(arguments)
        .env_remove("GPUACCT_CONFIG"))
    .unwrap()
}

#[test]
fn an_instance_is_a_resource_of_its_own_and_the_divided_gpu_is_none() {
    let dir = TempDir::new().unwrap();
    divided(dir.path()).end();
    let text = format!(
        "currency = \"USD\"\n[gpu.\"{A100}\"]\nbusy_hour = \"7\"\n[default.mig.\"1g.10gb\"]\nbusy_hour = \"1\"\n\
         [default.mig.\"3g.40gb\"]\nbusy_hour = \"3\"\n[default.mig.\"4g.40gb\"]\nbusy_hour = \"4\"\n"
    );
    let prices = prices(dir.path(), &text);
    let rows = charges(dir.path(), &[&DIVIDED[..], &["--prices", &prices]].concat());
    let resources: BTreeSet<_> = rows
        .iter()
        .map(|row| ["ResourceId", "ResourceType"].map(|column| &*row[column]))
        .collect();
    assert_eq!(
        resources,
        BTreeSet::from([
            ["GPU-00000001", "MIG instance"],
            ["GPU-00000002", "MIG instance"],
        ])
    );
    let small = rows.iter().find(|row| row["x_Pod"] == "small").unwrap();
    assert_eq!(small["SkuId"], format!("{A100}/1g.10gb/busy"));
    assert_eq!(small["EffectiveCost"], "1");
}

#[test]
fn costs_without_prices_are_refused_in_words() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    let dollars = prices(
        dir.path(),
        "currency = \"credits\"\n[default]\nbusy_hour = \"1\"\n",
    );
    let euros = dir.path().join("euros.toml");
    fs::write(&euros, "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n").unwrap();
    let euros = euros.to_str().unwrap();
    for (arguments, expected) in [
        (
            &[][..],
            "error: FOCUS is a format of costs, and no prices were given\n  -> name a file of prices with --prices\n",
        ),
        (
            &["--prices", &dollars],
            "error: the prices are in \"credits\", and FOCUS wants the three letters of ISO 4217, such as \
             \"EUR\"\n  -> correct the file of prices\n",
        ),
        (
            &[
                "--prices",
                euros,
                "--focus-version",
                "1.3",
                "--namespace",
                "research",
            ],
            "error: a report that is limited to some containers has no whole hours of GPUs to split\n  -> \
             leave out --namespace and --label, or use --focus-version 1.2\n",
        ),
    ] {
        let output = report(
            dir.path(),
            &[&RANGE[..], &["-o", "focus"], arguments].concat(),
        );
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.ends_with(expected), "{said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn flags_of_focus_were_ignored_without_it() {
    let dir = TempDir::new().unwrap();
    past(dir.path()).end();
    for flag in [
        ["--focus-version", "1.3"],
        ["--focus-provider", "us"],
        ["--focus-account", "a"],
    ] {
        let output = report(dir.path(), &[&RANGE[..], &flag].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        let expected = format!(
            "error: {} is for --output focus\n  -> add -o focus, or leave it out\n",
            flag[0]
        );
        assert_eq!(said, expected);
        assert_eq!(output.status.code(), Some(2));
    }
}
