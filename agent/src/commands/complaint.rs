//! The one form in which a subcommand says what is wrong: what failed, on what, why, and in a second
//! line what to do.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use super::ask::AskError;
use crate::config::ConfigError;
use crate::errors::{causes, chain};
use crate::outputs::store::query::ReadError;
use crate::report::ReportError;
use crate::report::fleet::FleetError;
use crate::report::focus::FocusError;
use crate::report::prices::MoneyError;
use crate::report::promql::StoreError;
use crate::report::range::RangeError;

/// Says an error with its causes, and how to exit.
pub(super) fn complain(error: &(dyn Error + 'static), code: u8) -> ExitCode {
    say(&chain(error), remedy_of(error), code)
}

/// Says what is wrong in words, and how to exit.
pub(super) fn say(what: &str, remedy: Option<&str>, code: u8) -> ExitCode {
    // If standard error is closed, the exit code still says it.
    let _ = std::io::stderr().write_all(text(what, remedy).as_bytes());
    ExitCode::from(code)
}

fn text(what: &str, remedy: Option<&str>) -> String {
    let remedy = remedy.map(|remedy| format!("  -> {remedy}\n"));
    format!("error: {what}\n{}", remedy.unwrap_or_default())
}

/// What to do about an error, by the first of it and its causes for which that is known.
pub(super) fn remedy_of(error: &(dyn Error + 'static)) -> Option<&'static str> {
    causes(error).find_map(|error| {
        if let Some(error) = error.downcast_ref::<ConfigError>() {
            return Some(of_config(error));
        }
        if let Some(error) = error.downcast_ref::<AskError>() {
            return of_asking(error);
        }
        if let Some(error) = error.downcast_ref::<MoneyError>() {
            return Some(of_money(error));
        }
        if error.is::<RangeError>() {
            return Some("look at --since and --until");
        }
        if let Some(error) = error.downcast_ref::<ReportError>() {
            return match error {
                ReportError::Read(error) => Some(of_reading(error)),
                ReportError::Money(error) => Some(of_money(error)),
                ReportError::Outside { .. } => Some("look at --since and --until, and at --store"),
                ReportError::Twice { .. } | ReportError::Doubled { .. } => {
                    Some("name one of the two")
                }
                ReportError::NoLedger => Some("name one with --store"),
                ReportError::NoCluster(_) => Some("use --from, or --by node"),
                ReportError::Zone(_) => Some("use --timezone with another zone, or UTC"),
            };
        }
        if let Some(error) = error.downcast_ref::<FocusError>() {
            return Some(match error {
                FocusError::NoPrices => "name a file of prices with --prices",
                FocusError::Currency { .. } => "correct the file of prices",
                FocusError::Limited => {
                    "leave out --namespace and --label, or use --focus-version 1.2"
                }
                FocusError::PricesOfOwners => {
                    "use prices without label in [[for]]; nodes and clusters may have their own"
                }
                FocusError::Money(error) => of_money(error),
                FocusError::Row(_) => "report this",
            });
        }
        if let Some(error) = error.downcast_ref::<FleetError>() {
            return of_fleet(error);
        }
        None
    })
}

fn of_fleet(error: &FleetError) -> Option<&'static str> {
    Some(match error {
        FleetError::Store(error) => return of_store(error),
        FleetError::Nothing { .. } => "look at --since and --until, at --from and at --selector",
        FleetError::Future(_) => "look at --since",
        FleetError::Lacks { .. } => {
            "let the store keep these metrics; a rule of the scraper may drop them"
        }
        FleetError::Contradiction { .. } => {
            "try again, and look at the store's log: it answers less than it has"
        }
        FleetError::OwnNamespace { .. } => {
            "set prometheus.owner_prefix = \"owner_\" in the agent's configuration, or stop the scraper from \
             writing over namespace; what was scraped so far has lost its owners, the nodes' ledgers have them"
        }
        FleetError::NoPodLabels { .. } | FleetError::LacksPodLabels { .. } => {
            "name these labels in publish.pod_labels of the agents' configuration, which publishes them from \
             then on, or use --store with the nodes' ledgers"
        }
        FleetError::AllocatedPrice => {
            "use prices with busy_hour only, or --store with the nodes' ledgers"
        }
        FleetError::Zone(_) => "use --timezone with another zone, or UTC",
        FleetError::Money(error) => of_money(error),
    })
}

fn of_store(error: &StoreError) -> Option<&'static str> {
    Some(match error {
        StoreError::Url { .. } => "name the URL below which the store has /api/v1, with --from",
        StoreError::Selector(_) => "correct --selector",
        StoreError::Header(_) | StoreError::Secret { .. } => {
            "look at --header, --header-file, --token-file and --password-file"
        }
        StoreError::Unreachable { .. } => {
            "see whether the store runs, and look at --from, and at --ca, --cert and --key"
        }
        StoreError::Slow { .. } => "raise --timeout, or ask for less with --selector",
        StoreError::Refused { status, .. } => match status {
            401 | 403 => {
                "look at --token-file, --user and --header: the store wants to know who asks"
            }
            400 | 422 => "look at --selector, and at what the store says",
            404 => "look at --from: /api/v1 is not below this URL",
            _ => return None,
        },
        StoreError::TooLong { .. } => "ask for less with --selector",
        StoreError::Answer { .. } => "see whether --from is a store that is asked in PromQL",
    })
}

fn of_config(error: &ConfigError) -> &'static str {
    match error {
        ConfigError::Read { .. } => {
            "name a TOML file that can be read, with --config or GPUACCT_CONFIG"
        }
        ConfigError::Wrong(_) => "correct this and check it with `gpuacct config --config FILE`",
    }
}

fn of_money(error: &MoneyError) -> &'static str {
    match error {
        MoneyError::Missing { .. } | MoneyError::MissingInstance { .. } => {
            "add the price to the file of prices"
        }
        MoneyError::TooLarge => "ask for a shorter range",
        _ => "correct the file of prices",
    }
}

fn of_asking(error: &AskError) -> Option<&'static str> {
    match error {
        AskError::Config(error) => Some(of_config(error)),
        error => error.remedy(),
    }
}

fn of_reading(error: &ReadError) -> &'static str {
    match error {
        ReadError::Denied { .. } => "run this as root: the store is open to the agent's user only",
        ReadError::Missing { .. } | ReadError::Foreign { .. } => {
            "did an agent run here with store.enabled? Name its directory with --store, or its \
             configuration with --config"
        }
        ReadError::Empty { .. } => "try again in some seconds",
        ReadError::Newer { .. } => "use the gpuacct that wrote it",
        ReadError::Locked { .. } => {
            "find out which program has locked the file; the agent never does"
        }
        ReadError::Damaged { .. } => {
            "a running agent sets it aside and begins a new one; `sqlite3 FILE .recover` gets what is \
             left"
        }
        _ => "look at the file, and at the permissions of its directory",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn an_error_says_what_failed_on_what_and_why_and_what_to_do() {
        let file = Path::new("/nonexistent/gpuacct.toml");
        let no_file = Config::read(file).unwrap_err();
        let no_agent = AskError::NoAgent {
            path: "/run/a.sock".into(),
            source: std::io::Error::from_raw_os_error(2),
        };
        let rows: [(&(dyn Error + 'static), &str); 2] = [
            (
                &no_file,
                "error: cannot read the configuration file /nonexistent/gpuacct.toml: No such file or \
                 directory (os error 2)\n  -> name a TOML file that can be read, with --config or \
                 GPUACCT_CONFIG\n",
            ),
            (
                &no_agent,
                "error: no agent answers on /run/a.sock: No such file or directory (os error 2)\n  \
                 -> see whether the agent runs; name its socket with --socket, or its configuration \
                 with --config\n",
            ),
        ];
        for (error, expected) in rows {
            assert_eq!(text(&chain(error), remedy_of(error)), expected);
        }
    }
}
