//! `gpuacct explain`: why an amount is booked on whom, for one process, container or pod.
//!
//! The agent collects the facts from its tables. This prints them in order: process, cgroup, owner,
//! names, amounts.

use std::process::ExitCode;

use super::agent_choice::AgentChoice;
use super::ask::{AskError, escaped, get, parse};
use super::complaint::{complain, say};
use super::json::Json;
use super::output::{Output, print, print_page};
use super::progress::Progress;
use super::table::wrap;
use crate::core::explanation::{
    AccountStory, AnswerOutcome, AnswerStory, CgroupOwner, CgroupStory, Explanation, OwnerStory,
    ProcessStory, RefusalStory, SeenBy,
};
use crate::core::model::{BootTime, Nanos, SourceState, WallTime};
use crate::core::snapshot::{AllocationState, AllocationView, Attribution};
use crate::errors::quoted;
use crate::figures::{bytes, clock_time, duration, share, unknown};
use crate::words::printable;

/// Explain on whom a process, a container or a pod is booked, and why
///
/// Prints the whole chain: process, cgroup, owner, the answer of each identity source and why one
/// was used, what is booked and published. Also for subjects that have just ended. Exits with 0 if
/// the subject is known, with 1 if it is not or the answer cannot be written, with 2 if no agent
/// answers or a flag is wrong.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// A PID, a container's id (or its beginning) or name, a pod as NAMESPACE/POD or uid, a container
    /// as NAMESPACE/POD/CONTAINER, or a systemd unit
    #[arg(value_name = "SUBJECT")]
    subject: String,
    /// For people (table) or for programs (json)
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    #[command(flatten)]
    agent: AgentChoice,
}

/// Asks and prints: 0 known, 1 not known, 2 no agent.
pub async fn run(options: Options) -> ExitCode {
    let progress = Progress::start("asking the agent");
    let answer = answer(&options).await;
    drop(progress);
    match answer {
        Ok(page) if options.output == Output::Table => print_page(page, 0),
        Ok(json) => print(json, 0),
        Err(AskError::Refused {
            status: 400 | 404,
            reason,
            ..
        }) => say(
            &reason,
            Some("`gpuacct status --processes` lists containers, units and processes on the GPUs"),
            1,
        ),
        Err(error) => complain(&error, 2),
    }
}

/// The request for what is known of a subject.
pub(super) fn request(subject: &str) -> String {
    format!("/v1/explain?subject={}", escaped(subject))
}

async fn answer(options: &Options) -> Result<String, AskError> {
    let request = request(&options.subject);
    let json = get(&options.agent.socket()?, &request).await?;
    match options.output {
        Output::Table => parse(&request, &json).map(|explanation| page(&explanation)),
        Output::Json => {
            let answer: Json = parse(&request, &json)?;
            answer.pretty().map_err(|source| AskError::Format {
                request,
                said: quoted(&json),
                source,
            })
        }
    }
}

/// The chain, in words.
pub(super) fn page(explanation: &Explanation) -> String {
    let mut page = Page {
        text: String::new(),
        explanation,
    };
    for process in &explanation.processes {
        page.process(process);
    }
    page.left_out(explanation.processes_left_out, "processes");
    if let Some(through) = explanation.events_through
        && !explanation.processes.is_empty()
    {
        let through = page.ago(through);
        page.line(
            0,
            &format!("as of {through}: events of the kernel until then have been read"),
        );
    }
    for owner in &explanation.owners {
        page.owner(owner);
    }
    page.left_out(explanation.owners_left_out, "owners");
    page.text
}

struct Page<'a> {
    text: String,
    explanation: &'a Explanation,
}

impl Page<'_> {
    fn line(&mut self, depth: usize, text: &str) {
        let indent = "  ".repeat(depth);
        let deeper = "  ".repeat(depth + 2);
        wrap(&mut self.text, &format!("{indent}{text}"), &deeper);
    }

    fn left_out(&mut self, count: u64, of: &str) {
        if count > 0 {
            self.line(0, &format!("and {count} more {of}"));
        }
    }

    /// A point in time, by how long ago it was.
    fn ago(&self, at: WallTime) -> String {
        let span = self.explanation.wall.0.saturating_sub(at.0);
        let span = BootTime(span).since(BootTime::default());
        format!("{} ago", duration(span))
    }

    fn process(&mut self, process: &ProcessStory) {
        let parent = match process.parent {
            Some(parent) => format!("child of {parent}"),
            None => "parent not known".to_owned(),
        };
        let died = match process.died {
            Some(at) => format!(", died {}", self.ago(at)),
            None => String::new(),
        };
        let seen = match process.seen_by {
            SeenBy::Event => "seen by an event of the kernel",
            SeenBy::Scan => "seen by a scan of /proc",
        };
        let started = self.ago(process.started);
        self.line(
            0,
            &format!(
                "process {}: started {started}{died}, {parent}, {seen}",
                process.pid
            ),
        );
        self.cgroups("cgroup", &process.cgroups);
        self.cgroups("moved from", &process.moved_from);
        self.line(1, &format!("owner: {}", process.owner));
        if let Some(refused) = &process.refused {
            let what = format!("{}, which another cgroup has", refused.claimed);
            self.refused(&what, refused);
        }
        for used in &process.gpus {
            let memory = used.memory.map_or_else(unknown, bytes);
            let now = share(used.share);
            self.line(1, &format!("{}: {now} now, memory {memory}", used.gpu));
        }
    }

    fn refused(&mut self, what: &str, refused: &RefusalStory) {
        self.line(1, &format!("refused: {what}"));
        // Whole, like every path.
        for (what, path) in [("bears it", &refused.place), ("has it", &refused.bound_to)] {
            let path = printable(path);
            self.text.push_str(&format!("    {what}: {path}\n"));
        }
    }

    fn cgroups(&mut self, what: &str, cgroups: &[CgroupStory]) {
        // On hybrid hosts most hierarchies have everybody in their root, which says nothing.
        let says = |cgroup: &CgroupStory| cgroup.path.as_deref() != Some("/");
        let any = cgroups.iter().any(says);
        for cgroup in cgroups.iter().filter(|cgroup| says(cgroup) || !any) {
            let hierarchy = match cgroup.hierarchy {
                0 => "v2".to_owned(),
                number => format!("v1 hierarchy {number}"),
            };
            let path = cgroup.path.as_deref().unwrap_or("not announced yet");
            // Whole, however long: it is what everything else follows from.
            let path = printable(path);
            self.text
                .push_str(&format!("  {what} ({hierarchy}): {path}\n"));
        }
    }

    fn owner(&mut self, owner: &OwnerStory) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        match &owner.who {
            CgroupOwner::Container {
                id,
                runtime,
                pod_uid,
                qos,
                inner,
                outer,
            } => {
                self.line(0, &format!("container {id}"));
                self.line(
                    1,
                    &format!("runtime: {runtime}, by the form of its cgroup's path"),
                );
                if let Some(uid) = pod_uid {
                    let qos = qos.as_deref().unwrap_or("class not known");
                    self.line(1, &format!("pod uid: {uid} ({qos}), by its cgroup"));
                }
                for outer in outer {
                    self.line(
                        1,
                        &format!("it is inside this container, which is not charged: {outer}"),
                    );
                }
                for inner in inner {
                    self.line(1, &format!("inside it, not charged: {inner}"));
                }
            }
            CgroupOwner::Pod { uid } => self.line(0, &format!("pod {uid}: its own cgroup")),
            CgroupOwner::Host { unit } => self.line(0, &format!("host unit {unit}")),
        }
        if !matches!(owner.who, CgroupOwner::Host { .. }) {
            let labels = &owner.labels;
            let names = [&labels.namespace, &labels.pod, &labels.container];
            let names = names.map(|name| &**name).join(" / ");
            self.line(1, &format!("names: {names}"));
            self.line(1, &format!("image: {}", owner.image));
            if let Some(at) = owner.identified {
                let at = self.ago(at);
                self.line(
                    1,
                    &format!("identified: {at}, when cgroup and names were known"),
                );
            }
        }
        self.line(1, &format!("why: {}", owner.why));
        for answer in &owner.answers {
            self.answer(answer);
        }
        if let Some(allocation) = &owner.allocation {
            self.allocation(allocation);
        }
        for refused in &owner.refused {
            self.refused("another cgroup with its id", refused);
        }
        for account in &owner.accounts {
            self.account(account, owner.attribution);
        }
        for process in &owner.unsampled {
            let opened = self.ago(process.opened);
            self.line(
                1,
                &format!(
                    "process {} opened {} {opened}, no sample names it: used at most its \
                     lifetime, {}",
                    process.pid,
                    process.device,
                    duration(process.at_most)
                ),
            );
        }
    }

    fn answer(&mut self, answer: &AnswerStory) {
        let health = match &answer.health {
            None => "not configured".to_owned(),
            Some(SourceState::Down { reason, .. }) => format!("down: {reason}"),
            Some(state) => state.as_str().to_owned(),
        };
        let said = match &answer.outcome {
            None => "has not answered".to_owned(),
            Some(AnswerOutcome::Found { name }) => format!("knows it as {name}"),
            Some(AnswerOutcome::NotFound { reason }) => format!("does not know it ({reason})"),
            Some(AnswerOutcome::PodRefused { name, claimed }) => format!(
                "knows it as {name}; refused: its labels claim pod uid {claimed}, which no \
                 cgroup confirms"
            ),
            Some(AnswerOutcome::Refused { claimed }) => {
                format!("refused: it claims pod uid {claimed}")
            }
        };
        let at = answer
            .at
            .map_or_else(String::new, |at| format!(", {}", self.ago(at)));
        let removed = if answer.removed { ", gone since" } else { "" };
        let wins = if answer.wins { "; wins" } else { "" };
        let source = answer.source.as_str();
        self.line(
            1,
            &format!("{source} ({health}): {said}{at}{removed}{wins}"),
        );
    }

    fn allocation(&mut self, allocation: &AllocationView) {
        let state = match allocation.state {
            AllocationState::Counting => "and its time counts",
            AllocationState::Forgotten => "no longer listed; its time counts while it lives",
            AllocationState::Unconfirmed => {
                "not confirmed since the agent began; its time counts while it lives"
            }
            AllocationState::NoContainer => "no such container is running",
            AllocationState::Ended => "until it ended",
        };
        for device in &allocation.devices {
            let gpus: Vec<&str> = device.gpus.iter().map(|gpu| gpu.as_str()).collect();
            let gpus = match (&gpus[..], device.is_known) {
                ([], true) => "no GPU that NVML lists".to_owned(),
                ([], false) => "not known which GPU".to_owned(),
                _ => gpus.join(", "),
            };
            let text = format!(
                "given by the kubelet: {} {}: {gpus}; seen {}, {state}",
                device.resource,
                device.id,
                self.ago(device.since)
            );
            self.line(1, &text);
        }
    }

    fn account(&mut self, account: &AccountStory, attribution: Option<Attribution>) {
        let used = match account.last_used {
            Some(at) => format!("last used {}", self.ago(at)),
            None => "not used yet".to_owned(),
        };
        let ended = if account.ended { ", ended" } else { "" };
        let allocated = match account.allocated.is_zero() {
            true => String::new(),
            false => format!(", allocated for {}", duration(account.allocated)),
        };
        let since = match account.published_from {
            Some(from) => format!(
                " (from {}, in {}; a new series shows 0 first, for publish.zero_for)",
                clock_time(from),
                duration(Nanos(from.0.saturating_sub(self.explanation.wall.0)))
            ),
            None if attribution == Some(Attribution::Held) => {
                " (held back until its names are known, for publish.grace at most)".to_owned()
            }
            None => String::new(),
        };
        let text = format!(
            "{}: {} booked, {} published{since}, {} now, memory {}, {used}{allocated}{ended}",
            account.gpu,
            duration(account.busy),
            duration(account.published),
            share(account.share),
            account.memory.map_or_else(unknown, bytes),
        );
        self.line(1, &text);
        if let Some(clocks) = &account.clocks {
            let text = format!(
                "its samples are stamped by the clock {}, its rows by {} ({})",
                clocks.samples, clocks.rows, clocks.rows_call
            );
            self.line(2, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use unicode_width::UnicodeWidthStr as _;

    use super::*;
    use crate::commands::table::WIDTH;
    use crate::core::explanation::{GpuUse, UnsampledStory};
    use crate::core::input::{CallClock, ClockKind, IdentitySource, SampleClocks};
    use crate::core::model::Pid;
    use crate::core::snapshot::{AllocatedDeviceView, ContainerLabels};
    use crate::outputs::sample::{FIRST_GPU, golden};

    const HEX: &str = "4c01db0b339cccdd1f7a3b0f2e3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e";
    const UID: &str = "9d3f3c1e-6f7d-4b4e-9a53-0c6a4f0b8e21";

    fn explanation() -> Explanation {
        let wall = |seconds: u64| WallTime((1_790_000_000 + seconds) * 1_000_000_000);
        let answer = |source, health, outcome: Option<AnswerOutcome>, wins| AnswerStory {
            source,
            health,
            at: outcome.is_some().then(|| wall(95)),
            outcome,
            removed: false,
            wins,
        };
        let down = SourceState::Down {
            class: "timeout".into(),
            reason: "ping: no answer within 5s".into(),
            next_retry: None,
        };
        Explanation {
            subject: "4711".into(),
            at: BootTime(100),
            wall: wall(100),
            events_through: Some(WallTime(wall(100).0 - 340_000_000)),
            processes: vec![ProcessStory {
                pid: Pid(4_711),
                started: wall(0),
                died: Some(wall(98)),
                parent: Some(Pid(4_000)),
                seen_by: SeenBy::Event,
                cgroups: vec![CgroupStory {
                    hierarchy: 0,
                    path: Some(format!("/kubepods/burstable/pod{UID}/{HEX}").into()),
                }],
                moved_from: vec![CgroupStory {
                    hierarchy: 4,
                    path: None,
                }],
                owner: HEX.into(),
                refused: Some(RefusalStory {
                    claimed: format!("pod {UID}").into(),
                    place: format!("/docker/{HEX}/kubepods/pod{UID}").into(),
                    bound_to: format!("/kubepods/burstable/pod{UID}").into(),
                }),
                gpus: vec![GpuUse {
                    gpu: FIRST_GPU.into(),
                    share: 0.5,
                    memory: Some(8 << 30),
                }],
            }],
            processes_left_out: 3,
            owners: vec![OwnerStory {
                who: CgroupOwner::Container {
                    id: HEX.into(),
                    runtime: "containerd".into(),
                    pod_uid: Some(UID.into()),
                    qos: Some("Burstable".into()),
                    inner: vec!["bb66".repeat(16).as_str().into()],
                    outer: vec!["aa77".repeat(16).as_str().into()],
                },
                labels: ContainerLabels {
                    namespace: "research".into(),
                    pod: "train-0".into(),
                    container: "trainer".into(),
                    pod_uid: UID.into(),
                    container_id: HEX.into(),
                },
                image: "registry.example/team/image:1.2".into(),
                identified: Some(wall(1)),
                attribution: Some(Attribution::Named {
                    source: IdentitySource::Cri,
                }),
                why: "named by cri: it is the best source that knows the pod of the cgroup".into(),
                unsampled: vec![UnsampledStory {
                    pid: Pid(4650),
                    device: "nvidia0".into(),
                    opened: wall(70),
                    at_most: Nanos::from_millis(140),
                }],
                answers: vec![
                    answer(IdentitySource::Docker, Some(down), None, false),
                    answer(
                        IdentitySource::Cri,
                        Some(SourceState::Up),
                        Some(AnswerOutcome::Found {
                            name: "research/train-0/trainer".into(),
                        }),
                        true,
                    ),
                    answer(
                        IdentitySource::Bundle,
                        Some(SourceState::Up),
                        Some(AnswerOutcome::Refused {
                            claimed: "11111111-2222-3333-4444-555555555555".into(),
                        }),
                        false,
                    ),
                    answer(IdentitySource::KubeletLogs, None, None, false),
                ],
                allocation: Some(AllocationView {
                    namespace: "research".into(),
                    pod: "train-0".into(),
                    container: "trainer".into(),
                    id: Some(HEX.into()),
                    state: AllocationState::Forgotten,
                    devices: [("GPU-8a56a4bc::3", true), ("card-7", false)]
                        .map(|(id, is_known)| AllocatedDeviceView {
                            resource: "nvidia.com/gpu.shared".into(),
                            id: id.into(),
                            is_known,
                            gpus: is_known.then(|| FIRST_GPU.into()).into_iter().collect(),
                            since: wall(10),
                        })
                        .into(),
                }),
                refused: vec![RefusalStory {
                    claimed: format!("container {HEX}").into(),
                    place: format!("/evil/{HEX}").into(),
                    bound_to: format!("/kubepods/burstable/pod{UID}/{HEX}").into(),
                }],
                accounts: vec![AccountStory {
                    allocated: Nanos(90_000_000_000),
                    gpu: FIRST_GPU.into(),
                    busy: Nanos::from_millis(61_500),
                    published: Nanos::from_millis(60_000),
                    published_from: None,
                    share: 0.5,
                    memory: Some(8 << 30),
                    first_used: Some(wall(1)),
                    last_used: Some(wall(99)),
                    ended: true,
                    clocks: Some(SampleClocks {
                        samples: CallClock {
                            clock: ClockKind::Boot,
                            ahead_nanos: 0,
                        },
                        rows: CallClock {
                            clock: ClockKind::Wall,
                            ahead_nanos: 150_000_000,
                        },
                        rows_call: "nvmlDeviceGetProcessesUtilizationInfo".into(),
                        empty_call: None,
                        changes: 0,
                    }),
                }],
            }],
            owners_left_out: 0,
        }
    }

    #[test]
    fn the_chain_in_words() {
        let page = page(&explanation());
        let is_path = |line: &&str| line.contains(": /");
        for line in page.lines().filter(|line| !is_path(line)) {
            assert!(line.width() <= WIDTH, "{} columns: {line}", line.width());
        }
        golden("explain.txt", &page);
    }

    #[test]
    fn an_allocation_that_the_kubelet_has_not_confirmed_is_told_as_such() {
        let mut explanation = explanation();
        let allocation = explanation.owners[0].allocation.as_mut().unwrap();
        allocation.state = AllocationState::Unconfirmed;
        let page = page(&explanation);
        let words: Vec<&str> = page.split_whitespace().collect();
        let said = words.join(" ");
        assert!(said.contains("not confirmed since the agent began; its time counts"));
    }

    #[test]
    fn zero_published_says_why_and_until_when() {
        let said = |from: Option<WallTime>, attribution| {
            let mut explanation = explanation();
            let owner = &mut explanation.owners[0];
            owner.attribution = Some(attribution);
            owner.accounts[0].published = Nanos::ZERO;
            owner.accounts[0].published_from = from;
            let page = page(&explanation);
            page.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let named = Attribution::Named {
            source: IdentitySource::Cri,
        };
        let text = said(Some(WallTime(1_790_000_125 * 1_000_000_000)), named);
        let expected = "0s published (from 14:15:25 UTC, in 25.0s; a new series shows 0 first";
        assert!(text.contains(expected), "{text}");
        let text = said(None, Attribution::Held);
        assert!(text.contains("0s published (held back until"), "{text}");
        assert!(said(None, named).contains("0s published, "));
    }

    #[test]
    fn what_a_newer_agent_adds_is_no_error() {
        let mut json = serde_json::to_value(explanation()).unwrap();
        json["added"] = 1.into();
        let read: Explanation = serde_json::from_value(json).unwrap();
        assert_eq!(read, explanation());
    }
}
