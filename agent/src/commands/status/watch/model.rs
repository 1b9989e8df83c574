//! What the live view knows and shows: the last answer, the order, the filter, the selected row.
//!
//! It neither draws nor reads a key or a clock. Whether an answer has anything new is decided here, so
//! that nothing is drawn in vain.

use std::collections::BTreeMap;
use std::time::Duration;

use super::history::History;
use super::look::Look;
use super::sheet::{Kind, Sheet};
use crate::commands::ask::AskError;
use crate::commands::status::selection::{LeftOut, Selection, Sort, SortKey};
use crate::commands::status::words::{Indexes, name};
use crate::core::explanation::Explanation;
use crate::core::snapshot::{ContainerAccount, GpuProcessView, HostAccount};
use crate::errors::chain;
use crate::outputs::socket::StatusReport;

/// What the agent is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Question {
    /// Whether the processes are asked for.
    pub(super) processes: bool,
    /// The subject that is to be explained.
    pub(super) explain: Option<String>,
}

/// What the agent answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) report: StatusReport,
    pub(super) processes: Option<Vec<GpuProcessView>>,
    /// The subject that was asked for, and what is known of it.
    pub(super) explained: Option<(String, Result<Box<Explanation>, AskError>)>,
}

/// An agent that does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Silence {
    /// Why the last question was not answered.
    pub(super) reason: String,
    /// How long ago the last answer was.
    pub(super) lasts: Duration,
}

/// A row of the list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Row<'a> {
    Container(&'a ContainerAccount),
    Unit(&'a HostAccount),
    Process(&'a GpuProcessView),
}

impl Row<'_> {
    /// What tells the row from all others.
    pub(super) fn key(&self) -> String {
        match self {
            Self::Container(account) => format!("container {} {}", account.id, account.gpu),
            Self::Unit(account) => format!("unit {} {}", account.unit, account.gpu),
            Self::Process(process) => format!("process {} {}", process.pid, process.gpu),
        }
    }

    /// What `explain` is asked about it.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Container(account) => account.id.to_string(),
            Self::Unit(account) => account.unit.to_string(),
            Self::Process(process) => process.pid.to_string(),
        }
    }
}

/// What is shown, and how.
#[derive(Debug)]
pub(super) struct View {
    /// The part of the report that is chosen.
    pub(super) report: StatusReport,
    pub(super) processes: Vec<GpuProcessView>,
    pub(super) left_out: LeftOut,
    pub(super) history: History,
    pub(super) silence: Option<Silence>,
    pub(super) look: Look,
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    pub(super) filter: String,
    /// Whether the filter is being typed.
    pub(super) is_typing: bool,
    pub(super) is_paused: bool,
    /// Whether the list has processes below their owners.
    pub(super) has_processes: bool,
    /// What is over the list.
    pub(super) sheet: Option<Sheet>,
    /// The row that was selected by a key; the first row if none was.
    pub(super) selected: Option<String>,
    /// The place of the selected row.
    pub(super) cursor: usize,
    /// Rows above the first one that is shown.
    pub(super) above: usize,
    /// Rows that found room last time.
    pub(super) room: usize,
    selection: Selection,
}

impl View {
    pub(super) fn new(answer: Answer, selection: Selection, look: Look) -> Self {
        let mut view = Self {
            report: answer.report.clone(),
            processes: Vec::new(),
            left_out: LeftOut::default(),
            history: History::default(),
            silence: None,
            look,
            sort: selection.sort_by.unwrap_or_default(),
            is_reversed: false,
            filter: String::new(),
            is_typing: false,
            is_paused: false,
            has_processes: answer.processes.is_some(),
            sheet: None,
            selected: None,
            cursor: 0,
            above: 0,
            room: 0,
            selection,
        };
        view.show(answer);
        view
    }

    /// What is asked for the next time.
    pub(super) fn question(&self) -> Question {
        let sheet = self.sheet.as_ref().map(|sheet| &sheet.kind);
        Question {
            processes: self.has_processes,
            explain: match sheet {
                Some(Kind::Details { subject, .. }) => Some(subject.clone()),
                Some(Kind::Help | Kind::Page) | None => None,
            },
        }
    }

    /// Takes an answer, or the reason why there is none, with the time since the last answer. Returns
    /// whether there is anything new to draw.
    pub(super) fn take(&mut self, answer: Result<Answer, AskError>, since: Duration) -> bool {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.silence = Some(Silence {
                    reason: chain(&error),
                    lasts: since,
                });
                return true;
            }
        };
        let was_silent = self.silence.take().is_some();
        let explains = answer.explained.is_some();
        if self.is_paused {
            // Details and processes may be asked for; the figures stay.
            self.explain(answer.explained);
            let lacks_processes = self.has_processes && self.processes.is_empty();
            if let Some(processes) = answer.processes.filter(|_| lacks_processes) {
                let chosen = self.selection.choose_present(&answer.report, &processes);
                self.processes = chosen.processes(&processes);
            }
            return was_silent || explains || lacks_processes;
        }
        let is_same = answer.report.snapshot.sequence == self.report.snapshot.sequence
            && answer.report.snapshot.agent_started == self.report.snapshot.agent_started
            && answer.report.degraded == self.report.degraded
            && answer.processes.as_deref().unwrap_or_default() == self.processes;
        if is_same && !explains {
            return was_silent;
        }
        self.show(answer);
        true
    }

    fn show(&mut self, answer: Answer) {
        let Answer {
            report,
            processes,
            explained,
        } = answer;
        self.history.note(&report.snapshot);
        let processes = processes.unwrap_or_default();
        let chosen = self.selection.choose_present(&report, &processes);
        self.left_out = chosen.left_out;
        self.processes = chosen.processes(&processes);
        self.report = chosen.report(&report);
        self.explain(explained);
    }

    fn explain(&mut self, explained: Option<(String, Result<Box<Explanation>, AskError>)>) {
        let Some((of, explained)) = explained else {
            return;
        };
        if let Some(sheet) = &mut self.sheet
            && let Kind::Details { subject, text, .. } = &mut sheet.kind
            // Another one may have been chosen meanwhile.
            && *subject == of
        {
            *text = Some(match explained {
                Ok(explanation) => crate::commands::explain::page(&explanation),
                Err(AskError::Refused { reason, .. }) => reason,
                Err(error) => chain(&error),
            });
        }
    }

    /// The rows of the list in their order: containers and host units, each with its processes if
    /// these are shown, and then the processes without an owner that is in the list.
    pub(super) fn rows(&self) -> Vec<Row<'_>> {
        let snapshot = &self.report.snapshot;
        let wanted = self.filter.to_lowercase();
        let matches = |texts: &[&str]| {
            let mut texts = texts.iter();
            wanted.is_empty() || texts.any(|text| text.to_lowercase().contains(&wanted))
        };
        let containers = snapshot.accounts.iter().filter(|account| {
            let name = name(account);
            matches(&[&name, account.id.as_str(), &account.image, &account.runtime])
        });
        let containers = containers.map(|account| {
            let key = SortKey::of_container(account, snapshot);
            (key, Row::Container(account))
        });
        let units = snapshot
            .host_accounts
            .iter()
            .filter(|account| matches(&[account.unit.as_str()]));
        let units = units.map(|account| {
            let key = SortKey::of_unit(account, snapshot);
            (key, Row::Unit(account))
        });
        let mut owners: Vec<_> = containers.chain(units).collect();
        owners.sort_by(|(a, _), (b, _)| self.sort.compare(a, b));
        if self.is_reversed {
            owners.reverse();
        }
        let owners = owners.into_iter().map(|(_, row)| row);
        if !self.has_processes {
            return owners.collect();
        }
        let mut processes: BTreeMap<_, Vec<&GpuProcessView>> = BTreeMap::new();
        for process in &self.processes {
            let of = (&*process.owner, &process.gpu);
            processes.entry(of).or_default().push(process);
        }
        let mut rows = Vec::new();
        for owner in owners {
            let of = match owner {
                Row::Container(account) => processes.remove(&(account.id.as_str(), &account.gpu)),
                Row::Unit(account) => processes.remove(&(account.unit.as_str(), &account.gpu)),
                Row::Process(_) => None,
            };
            rows.push(owner);
            rows.extend(of.into_iter().flatten().map(Row::Process));
        }
        // With a filter, what is left belongs to owners that are not shown.
        if wanted.is_empty() {
            rows.extend(processes.into_values().flatten().map(Row::Process));
        }
        rows
    }

    /// Finds the selected row again after the rows have changed, and has the list show it.
    pub(super) fn settle(&mut self, keys: &[String], room: usize) {
        self.room = room;
        let place = self
            .selected
            .as_ref()
            .and_then(|selected| keys.iter().position(|key| key == selected));
        match (place, &self.selected) {
            (Some(place), _) => self.cursor = place,
            (None, None) => self.cursor = 0,
            // It is gone: whatever is in its place.
            (None, Some(_)) => {
                self.cursor = self.cursor.min(keys.len().saturating_sub(1));
                self.selected = keys.get(self.cursor).cloned();
            }
        }
        let last = keys.len().saturating_sub(room);
        let first = (self.cursor + 1).saturating_sub(room);
        self.above = self.above.clamp(first, self.cursor.max(first)).min(last);
    }

    /// Moves the selection to a row, counted from the first one.
    pub(super) fn select(&mut self, place: usize) {
        let keys: Vec<String> = self.rows().iter().map(Row::key).collect();
        self.cursor = place.min(keys.len().saturating_sub(1));
        // At the top the list is followed, whoever is first.
        self.selected = (self.cursor > 0).then(|| keys[self.cursor].clone());
        self.settle(&keys, self.room);
    }

    pub(super) fn indexes(&self) -> Indexes {
        Indexes::of(&self.report.snapshot)
    }
}
