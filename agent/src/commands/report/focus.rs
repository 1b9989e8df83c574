//! Charges as FOCUS has them, in CSV: see [`crate::report::focus`] for what a charge is.
//!
//! The columns are those of version 1.2 of the specification, or of 1.3 with its columns for split costs. In
//! 1.3 all that is not about the allocation is the same in all charges of a GPU's hour, as the
//! specification wants it: so the namespace is a sub account in 1.2 and a tag of the allocation in 1.3.
//!
//! Columns that begin with `x_` are our own, and stand last. A value that is not known is nothing.

use std::io;
use std::process::ExitCode;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rust_decimal::Decimal;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::super::complaint::complain;
use super::super::output::{not_written, note};
use super::print::{seconds, tame};
use crate::report::focus::{self, Charge, FocusError, Meter, Origin, Payer};
use crate::report::tally::{Kind, Question, Report};

/// The prefix of tags that are not the users' own.
const TAG: &str = "gpuacct/";
/// What a price and a quantity are about.
const UNIT: &str = "Hours";

/// The flags of `--output focus`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Costs for FinOps tools, with --output focus and --prices")]
pub(super) struct Flags {
    /// Version of the FinOps Open Cost and Usage Specification; 1.3 has its columns for split costs
    /// [default: 1.2]
    #[arg(long, value_enum, value_name = "VERSION")]
    focus_version: Option<Version>,
    /// Who provides the GPUs. Fills the columns of provider, publisher and invoice issuer, and in 1.3
    /// of host provider and service provider [default: gpuacct]
    #[arg(long, value_name = "NAME", value_parser = named)]
    focus_provider: Option<String>,
    /// The billing account, for example the cluster [default: gpuacct]
    #[arg(long, value_name = "ID", value_parser = named)]
    focus_account: Option<String>,
}

/// The provider and the account that are not named.
const UNNAMED: &str = "gpuacct";

impl Flags {
    /// A flag that was given. All of them need `--output focus`.
    pub(super) fn given(&self) -> Option<&'static str> {
        let flags = [
            ("--focus-version", self.focus_version.is_some()),
            ("--focus-provider", self.focus_provider.is_some()),
            ("--focus-account", self.focus_account.is_some()),
        ];
        let mut given = flags.into_iter().filter(|(_, is_given)| *is_given);
        given.next().map(|(flag, _)| flag)
    }

    fn version(&self) -> Version {
        self.focus_version.unwrap_or_default()
    }

    fn provider(&self) -> &str {
        self.focus_provider.as_deref().unwrap_or(UNNAMED)
    }

    fn account(&self) -> &str {
        self.focus_account.as_deref().unwrap_or(UNNAMED)
    }
}

/// A name that is not blank.
fn named(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected a name, found nothing".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// A version of the specification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Version {
    /// Without an allocation.
    #[default]
    #[value(name = "1.2")]
    V1_2,
    /// With the columns for split costs.
    #[value(name = "1.3")]
    V1_3,
}

/// What is asked for, so that its report has what charges need.
pub(super) fn question(asked: Question) -> Result<Question, ExitCode> {
    focus::question(asked).map_err(|error| complain(&error, 2))
}

/// The charges of the report as CSV, after what has to be known of them was said; or how to exit after the
/// error that was.
pub(super) fn text(
    flags: &Flags,
    question: &Question,
    report: &Report,
) -> Result<String, ExitCode> {
    let made = match &question.prices {
        Some(prices) => focus::charges(report, prices, flags.version() == Version::V1_3),
        None => Err(FocusError::NoPrices),
    };
    let charges = made.map_err(|error| complain(&error, 2))?;
    for text in notes(report, &charges) {
        note(format_args!("note: {text}"));
    }
    csv(flags, report, &charges).map_err(|error| not_written(&error.into()))
}

/// What there is to know of the charges.
fn notes(report: &Report, charges: &[Charge]) -> Vec<String> {
    let mut notes = Vec::new();
    let currency = report.currency.as_deref().unwrap_or_default();
    let unbilled: Decimal = charges.iter().map(|of| of.cost - of.billed).sum();
    if !unbilled.is_zero() {
        notes.push(format!(
            "time that nobody used is worth {} {currency} and is billed to nobody: its BilledCost is 0",
            unbilled.round_dp(2)
        ));
    }
    let rows = report.rows.iter();
    let unaccounted = rows.filter(|row| row.kind == Kind::Unaccounted);
    let unaccounted: crate::core::model::Nanos = unaccounted.map(|row| row.sums.gpu).sum();
    if !unaccounted.is_zero() {
        notes.push(format!(
            "{} s of GPU time are in no book, and are no charge",
            seconds(unaccounted)
        ));
    }
    notes
}

/// RFC 4180: a header first, and lines that end in CR LF.
fn csv(flags: &Flags, report: &Report, charges: &[Charge]) -> io::Result<String> {
    let mut writer = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    let is_in = |of: &&Column| of.only.is_none_or(|version| version == flags.version());
    let columns: Vec<&Column> = COLUMNS.iter().filter(is_in).collect();
    writer.write_record(columns.iter().map(|column| column.name))?;
    let currency = report.currency.as_deref().unwrap_or_default();
    for charge in charges {
        let about = About {
            flags,
            currency,
            charge,
            origin: &charge.origin,
            payer: charge.payer.as_ref(),
        };
        for column in &columns {
            let cell = (column.cell)(&about).unwrap_or_default();
            writer.write_field(&*tame(&cell))?;
        }
        // It ends the record.
        writer.write_record(None::<&[u8]>)?;
    }
    let bytes = writer.into_inner().map_err(io::Error::other)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// A charge and what it is printed with.
struct About<'a> {
    flags: &'a Flags,
    currency: &'a str,
    charge: &'a Charge,
    origin: &'a Origin,
    payer: Option<&'a Payer>,
}

impl About<'_> {
    /// The month of UTC that the charge is in: its beginning, and the next one's.
    fn month(&self) -> Option<(Timestamp, Timestamp)> {
        let day = TimeZone::UTC.to_datetime(self.origin.begin).date();
        let first = day.first_of_month();
        let next = day.last_of_month().tomorrow().ok()?;
        let begin = |date: jiff::civil::Date| {
            let zoned = date.to_zoned(TimeZone::UTC);
            zoned.ok().map(|zoned| zoned.timestamp())
        };
        Some((begin(first)?, begin(next)?))
    }

    /// What a price is for: the model, the profile of an instance, and the meter.
    fn sku(&self) -> String {
        let Origin { model, meter, .. } = self.origin;
        let meter = meter.as_str();
        match &self.origin.profile {
            Some(profile) => format!("{model}/{profile}/{meter}"),
            None => format!("{model}/{meter}"),
        }
    }

    fn meter(&self) -> &'static str {
        match self.origin.meter {
            Meter::Busy => "GPU busy time",
            Meter::Allocated => "GPU allocated time",
        }
    }

    /// The namespace, under which costs of containers are kept.
    fn namespace(&self) -> Cell {
        self.of_payer(|payer| payer.namespace.as_deref().map(Into::into))
    }

    fn of_payer(&self, value: impl FnOnce(&Payer) -> Cell) -> Cell {
        self.payer.and_then(value)
    }

    /// Labels as they are, and names as tags of our own; none for time without an owner.
    fn tags(&self) -> Cell {
        let payer = self.payer?;
        let names = [
            ("namespace", &payer.namespace),
            ("pod", &payer.pod),
            ("container", &payer.container),
            ("image", &payer.image),
            ("unit", &payer.unit),
        ];
        let names = names.into_iter().filter_map(|(key, value)| {
            let value = value.as_ref()?;
            Some((format!("{TAG}{key}"), Value::from(&**value)))
        });
        // A label never takes the place of a name: its key cannot begin with the prefix and be kept.
        let labels = payer.labels.iter();
        let labels = labels.filter(|(key, _)| !key.starts_with(TAG));
        let labels = labels.map(|(key, value)| (key.to_string(), Value::from(&**value)));
        let tags: Map<String, Value> = labels.chain(names).collect();
        (!tags.is_empty()).then(|| Value::from(tags).to_string())
    }
}

/// What is printed of a charge in a column; nothing where it does not apply or is not known.
type Cell = Option<String>;

struct Column {
    name: &'static str,
    /// The version that it is in, if not in both.
    only: Option<Version>,
    cell: fn(&About<'_>) -> Cell,
}

const fn both(name: &'static str, cell: fn(&About<'_>) -> Cell) -> Column {
    let only = None;
    Column { name, only, cell }
}

const fn only(version: Version, name: &'static str, cell: fn(&About<'_>) -> Cell) -> Column {
    let only = Some(version);
    Column { name, only, cell }
}

fn some(value: impl ToString) -> Cell {
    Some(value.to_string())
}

/// The columns in order: FOCUS' own by name, then ours.
const COLUMNS: [Column; 65] = [
    only(Version::V1_3, "AllocatedMethodDetails", |of| {
        details(of.charge)
    }),
    only(Version::V1_3, "AllocatedMethodId", |of| {
        some(format_args!("gpuacct-{}-time", of.origin.meter.as_str()))
    }),
    only(Version::V1_3, "AllocatedResourceId", |of| {
        of.of_payer(|payer| payer.id().map(ToString::to_string))
    }),
    only(Version::V1_3, "AllocatedResourceName", |of| {
        of.of_payer(Payer::name)
    }),
    only(Version::V1_3, "AllocatedTags", |of| of.tags()),
    both("BilledCost", |of| some(of.charge.billed)),
    both("BillingAccountId", |of| some(of.flags.account())),
    both("BillingAccountName", |of| some(of.flags.account())),
    both("BillingCurrency", |of| some(of.currency)),
    both("BillingPeriodEnd", |of| {
        of.month().and_then(|of| some(of.1))
    }),
    both("BillingPeriodStart", |of| {
        of.month().and_then(|of| some(of.0))
    }),
    both("ChargeCategory", |_| some("Usage")),
    both("ChargeClass", |_| None),
    both("ChargeDescription", |of| {
        some(format_args!("{} of {}", of.meter(), of.origin.gpu))
    }),
    both("ChargeFrequency", |_| some("Usage-Based")),
    both("ChargePeriodEnd", |of| some(of.origin.end())),
    both("ChargePeriodStart", |of| some(of.origin.begin)),
    // The rules about what was consumed name it, so it has to be there.
    both("CommitmentDiscountStatus", |_| None),
    both("ConsumedQuantity", |of| some(of.charge.consumed())),
    both("ConsumedUnit", |_| some(UNIT)),
    both("ContractedCost", |of| some(of.charge.cost)),
    both("ContractedUnitPrice", |of| some(of.origin.price)),
    both("EffectiveCost", |of| some(of.charge.cost)),
    only(Version::V1_3, "HostProviderName", |of| {
        some(of.flags.provider())
    }),
    both("InvoiceId", |_| None),
    both("InvoiceIssuerName", |of| some(of.flags.provider())),
    both("ListCost", |of| some(of.charge.cost)),
    both("ListUnitPrice", |of| some(of.origin.price)),
    both("PricingCategory", |_| some("Standard")),
    both("PricingCurrency", |of| some(of.currency)),
    both("PricingCurrencyContractedUnitPrice", |of| {
        some(of.origin.price)
    }),
    both("PricingCurrencyEffectiveCost", |of| some(of.charge.cost)),
    both("PricingCurrencyListUnitPrice", |of| some(of.origin.price)),
    both("PricingQuantity", |of| some(of.charge.hours)),
    both("PricingUnit", |_| some(UNIT)),
    both("ProviderName", |of| some(of.flags.provider())),
    both("PublisherName", |of| some(of.flags.provider())),
    both("ResourceId", |of| some(&of.origin.gpu)),
    both("ResourceName", |of| {
        let (node, index) = of.origin.node.as_ref().zip(of.origin.index.as_ref())?;
        some(format_args!("{node} GPU {index}"))
    }),
    both("ResourceType", |of| {
        some(match of.origin.profile {
            Some(_) => "MIG instance",
            None => "GPU",
        })
    }),
    both("ServiceCategory", |_| some("Compute")),
    both("ServiceName", |_| some("GPU")),
    only(Version::V1_3, "ServiceProviderName", |of| {
        some(of.flags.provider())
    }),
    both("ServiceSubcategory", |_| some("Other (Compute)")),
    both("SkuId", |of| some(of.sku())),
    both("SkuMeter", |of| some(of.meter())),
    both("SkuPriceDetails", |of| {
        let mut details = Map::new();
        match &of.origin.profile {
            Some(profile) => details.insert("x_MigProfile".to_owned(), Value::from(&**profile)),
            None => details.insert("GpuCount".to_owned(), Value::from(1)),
        };
        details.insert("x_GpuModel".to_owned(), Value::from(&*of.origin.model));
        some(Value::from(details))
    }),
    both("SkuPriceId", |of| some(of.sku())),
    only(Version::V1_2, "SubAccountId", |of| of.namespace()),
    only(Version::V1_2, "SubAccountName", |of| of.namespace()),
    both("Tags", |of| match of.flags.version() {
        Version::V1_2 => of.tags(),
        // These are the tags of the GPU, and it has none.
        Version::V1_3 => None,
    }),
    both("x_Container", |of| {
        of.of_payer(|payer| payer.container.as_ref().and_then(some))
    }),
    both("x_ContainerId", |of| {
        of.of_payer(|payer| payer.container_id.as_ref().and_then(some))
    }),
    both("x_GpuModel", |of| some(&of.origin.model)),
    both("x_GpuSeconds", |of| some(seconds(of.charge.time))),
    both("x_Image", |of| {
        of.of_payer(|payer| payer.image.as_ref().and_then(some))
    }),
    both("x_Kind", |of| some(of.charge.part.as_str())),
    both("x_MigProfile", |of| {
        of.origin.profile.as_ref().and_then(some)
    }),
    both("x_Namespace", |of| of.namespace()),
    both("x_Node", |of| of.origin.node.as_ref().and_then(some)),
    both("x_Pod", |of| {
        of.of_payer(|payer| payer.pod.as_ref().and_then(some))
    }),
    both("x_PodUid", |of| {
        of.of_payer(|payer| payer.pod_uid.as_ref().and_then(some))
    }),
    both("x_Reason", |of| of.charge.reason.as_ref().and_then(some)),
    both("x_Runtime", |of| {
        of.of_payer(|payer| payer.runtime.as_ref().and_then(some))
    }),
    both("x_Unit", |of| {
        of.of_payer(|payer| payer.unit.as_ref().and_then(some))
    }),
];

/// How the part of the hour was found, as the specification wants it. Digits stay as they are: there is no
/// binary fraction between the books and who reads them.
fn details(charge: &Charge) -> Cell {
    #[derive(serde::Serialize)]
    struct Details {
        #[serde(rename = "Elements")]
        elements: [Element; 1],
    }
    #[derive(serde::Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Element {
        allocated_ratio: Box<RawValue>,
        usage_unit: &'static str,
        usage_quantity: Box<RawValue>,
    }
    let number = |number: Decimal| RawValue::from_string(number.to_string()).ok();
    let element = Element {
        allocated_ratio: number(charge.ratio)?,
        usage_unit: "Seconds",
        usage_quantity: number(seconds(charge.time))?,
    };
    let elements = [element];
    serde_json::to_string(&Details { elements }).ok()
}
