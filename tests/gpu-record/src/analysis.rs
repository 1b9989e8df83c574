//! Facts from the lines of a recording. Pure: text in, values out.
//!
//! A fact is only drawn where the lines admit no other reading; what they leave open is counted as
//! such. The rows and samples are compared in brackets: two lists of samples around one list of
//! rows, with the same newest sample, so that all three speak of the same time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

const SAMPLES: &str = "nvmlDeviceGetSamples";
const ROWS: &str = "nvmlDeviceGetProcessUtilization";
const SIZE_QUERY: &str = "nvmlDeviceGetProcessUtilization(NULL)";
const MEMORY_V2: &str = "nvmlDeviceGetMemoryInfo_v2";
const COMPUTE: &str = "nvmlDeviceGetComputeRunningProcesses";
const MPS: &str = "nvmlDeviceGetMPSComputeRunningProcesses";
/// The host's pid namespace has this inode on every kernel.
const HOST_NAMESPACE: &str = "pid:[4026531836]";

/// One line, as `gpuacct::sources::gpu::record` writes it: a call with its answer, or a note.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Line {
    at_us: u64,
    call: Option<String>,
    gpu: Option<usize>,
    args: Value,
    took_ns: u64,
    answer: Option<Value>,
    error: Option<String>,
    note: Option<String>,
    facts: Value,
}

/// A line that is no JSON, or not of this form.
#[derive(Debug, thiserror::Error)]
#[error("line {number} is no line of a recording")]
pub struct LineError {
    /// Which, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub source: serde_json::Error,
}

/// Reads a recording.
pub fn parse(text: &str) -> Result<Vec<Line>, LineError> {
    let lines = text.lines().enumerate();
    lines
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|source| LineError {
                number: index + 1,
                source,
            })
        })
        .collect()
}

/// What a recording shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// Library, driver, symbols and where this ran, as noted.
    pub machine: Value,
    /// Each GPU's name, by index.
    pub gpus: BTreeMap<usize, String>,
    /// Each GPU's ring.
    pub rings: BTreeMap<usize, Ring>,
    /// What the size query answered, with how often.
    pub size_queries: Vec<SizeQuery>,
    /// NVML's code for each version field tried on the second memory query.
    pub memory_versions: BTreeMap<u64, String>,
    /// How rows are made whole percents.
    pub rounding: Rounding,
    /// What is seen of each program that was run and ended.
    pub programs: Vec<Program>,
    /// Pids in the MPS list.
    pub mps: BTreeSet<u64>,
    /// Those of them that are in the compute list too, in the same round.
    pub mps_and_compute: BTreeSet<u64>,
    /// Those of them that a row was credited to.
    pub mps_with_rows: BTreeSet<u64>,
    /// How long each call takes.
    pub latencies: BTreeMap<String, Latency>,
    /// Errors, with how often, by call.
    pub errors: BTreeMap<String, BTreeMap<String, usize>>,
    /// Busy nanoseconds by pid, as whole brackets book them; whole means without sub-percents.
    pub credited_ns: BTreeMap<u64, u64>,
}

/// The device's samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ring {
    /// The most that were answered at once.
    pub capacity: u64,
    /// From the oldest to the newest of those.
    pub span_us: u64,
    /// Between two samples: the median, the shortest and the longest.
    pub period_us: u64,
    /// The shortest.
    pub shortest_us: u64,
    /// Duration of the longest call.
    pub longest_us: u64,
}

/// One kind of answer to the size query.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SizeQuery {
    /// Whether the query was about the whole ring; else about a time that is to come.
    pub whole_ring: bool,
    /// NVML's code.
    pub code: u64,
    /// Rows that it asks room for.
    pub room: u64,
}

/// Which reading explains the rows of brackets with a single busy process.
///
/// A sample of 1 to 99 stands for anything from itself to just below the next; 0 and 100 are exact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rounding {
    /// Brackets whose samples changed in between, of which nothing is learnt.
    pub torn: usize,
    /// Only cutting off explains the row.
    pub floor: usize,
    /// Only rounding to the nearest does.
    pub nearest: usize,
    /// Both do.
    pub both: usize,
    /// Neither does.
    pub neither: usize,
}

impl Rounding {
    /// What follows from the counts.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.floor, self.nearest) {
            (0, 0) => "not settled: no bracket tells the two apart",
            (_, 0) => "floor",
            (0, _) => "nearest",
            _ => "not settled: some brackets show floor, some nearest",
        }
    }
}

/// A program that was run and ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// As the recorder's pid namespace counts.
    pub pid: u64,
    /// How it ended.
    pub status: String,
    /// Whether rows named it while it ran.
    pub rows_while_running: bool,
    /// Whether the compute list named it while it ran.
    pub listed_while_running: bool,
    /// For how long after its end a row over the whole ring still named it; none where no row did.
    pub rows_after_end_us: Option<u64>,
    /// The same of the compute list.
    pub listed_after_end_us: Option<u64>,
    /// For how long it was watched after its end.
    pub watched_us: u64,
}

/// How long a call takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// How many calls.
    pub calls: usize,
    /// Half of them took at most so long.
    pub p50_ns: u64,
    /// 99 of 100 of them did.
    pub p99_ns: u64,
    /// All of them did.
    pub max_ns: u64,
}

/// Whether this pid namespace is the host's, as far as the recording says.
#[must_use]
pub fn in_host_namespace(machine: &Value) -> Option<bool> {
    Some(machine["pid_namespace"].as_str()? == HOST_NAMESPACE)
}

/// What these recordings show together; each is one run of the recorder.
#[must_use]
pub fn analyse(recordings: &[Vec<Line>]) -> Findings {
    let mut findings = Findings::default();
    let mut took: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut gaps: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for lines in recordings {
        for line in lines {
            plain_facts(&mut findings, line);
            if let Some(call) = &line.call {
                took.entry(call).or_default().push(line.took_ns);
            }
        }
        for (gpu, times) in sample_times(lines) {
            let times: Vec<u64> = times.into_iter().collect();
            let gaps = gaps.entry(gpu).or_default();
            gaps.extend(times.windows(2).map(|two| two[1] - two[0]));
        }
        findings.programs.extend(programs(lines));
        mps(&mut findings, lines);
    }
    for (gpu, mut gaps) in gaps {
        gaps.sort_unstable();
        let ring = findings.rings.entry(gpu).or_default();
        ring.period_us = gaps.get(gaps.len() / 2).copied().unwrap_or(0);
        ring.shortest_us = gaps.first().copied().unwrap_or(0);
        ring.longest_us = gaps.last().copied().unwrap_or(0);
    }
    for lines in recordings {
        brackets(&mut findings, lines);
    }
    let latencies = took
        .into_iter()
        .map(|(call, took)| (call.to_owned(), latency(took)));
    findings.latencies = latencies.collect();
    findings.size_queries.sort_unstable();
    findings.size_queries.dedup();
    findings
}

/// What a line tells by itself.
fn plain_facts(findings: &mut Findings, line: &Line) {
    let gpu = line.gpu.unwrap_or(0);
    match line.note.as_deref() {
        Some("machine") => findings.machine = line.facts.clone(),
        Some("ring") => {
            let number = |key: &str| line.facts[key].as_u64().unwrap_or(0);
            let gpu = usize::try_from(number("gpu")).unwrap_or(usize::MAX);
            let ring = findings.rings.entry(gpu).or_default();
            if number("samples") >= ring.capacity {
                ring.capacity = number("samples");
                ring.span_us = ring.span_us.max(number("span_us"));
            }
        }
        _ => {}
    }
    let Some(call) = &line.call else {
        return;
    };
    if let Some(error) = &line.error {
        let errors = findings.errors.entry(call.clone()).or_default();
        *errors.entry(error.clone()).or_default() += 1;
    }
    let answer = line.answer.as_ref();
    match call.as_str() {
        "nvmlDeviceGetName" => {
            let name = answer
                .and_then(Value::as_str)
                .unwrap_or("(unknown)")
                .to_owned();
            findings.gpus.insert(gpu, name);
        }
        SIZE_QUERY => findings.size_queries.extend(answer.and_then(|answer| {
            Some(SizeQuery {
                whole_ring: line.args.as_u64()? == 0,
                code: answer["code"].as_u64()?,
                room: answer["room"].as_u64()?,
            })
        })),
        MEMORY_V2 => {
            let code = answer.and_then(|answer| answer["code"].as_u64());
            let said = code.map_or_else(
                || line.error.clone().unwrap_or_default(),
                |code| format!("code {code}"),
            );
            let version = line.args.as_u64().unwrap_or(0);
            findings.memory_versions.insert(version, said);
        }
        _ => {}
    }
}

fn items(line: &Line) -> &[Value] {
    line.answer
        .as_ref()
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn is(line: &Line, call: &str) -> bool {
    line.call.as_deref() == Some(call)
}

/// Timestamp and percent of each sample of an answer.
fn samples(line: &Line) -> Vec<(u64, u64)> {
    let pairs = items(line)
        .iter()
        .filter_map(|sample| Some((sample[0].as_u64()?, sample[1].as_u64()?)));
    pairs.collect()
}

fn pids(line: &Line) -> BTreeSet<u64> {
    items(line)
        .iter()
        .filter_map(|item| item["pid"].as_u64())
        .collect()
}

fn sample_times(lines: &[Line]) -> BTreeMap<usize, BTreeSet<u64>> {
    let mut times: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
    for line in lines.iter().filter(|line| is(line, SAMPLES)) {
        let seen = samples(line).into_iter().map(|(at_us, _)| at_us);
        times.entry(line.gpu.unwrap_or(0)).or_default().extend(seen);
    }
    times
}

/// The programs that were run; the last line of a recording is the end of the watch.
fn programs(lines: &[Line]) -> Vec<Program> {
    let watched_to = lines.last().map_or(0, |line| line.at_us);
    let ends = lines
        .iter()
        .filter(|line| line.note.as_deref() == Some("program_ended"));
    ends.filter_map(|end| {
        let pid = end.facts["pid"].as_u64()?;
        let names = |call: &'static str| {
            let of_call = lines.iter().filter(move |line| is(line, call));
            of_call.filter(move |line| pids(line).contains(&pid))
        };
        let rows_of_all = names(ROWS).filter(|line| line.args.as_u64() == Some(0));
        let after =
            |at_us: Option<u64>| at_us.filter(|at| *at > end.at_us).map(|at| at - end.at_us);
        Some(Program {
            pid,
            status: end.facts["status"].as_str().unwrap_or_default().to_owned(),
            rows_while_running: names(ROWS).any(|line| line.at_us <= end.at_us),
            listed_while_running: names(COMPUTE).any(|line| line.at_us <= end.at_us),
            rows_after_end_us: after(rows_of_all.map(|line| line.at_us).max()),
            listed_after_end_us: after(names(COMPUTE).map(|line| line.at_us).max()),
            watched_us: watched_to.saturating_sub(end.at_us),
        })
    })
    .collect()
}

/// MPS clients, beside the compute list of the same round, which is asked for just before.
fn mps(findings: &mut Findings, lines: &[Line]) {
    let mut compute: BTreeMap<Option<usize>, BTreeSet<u64>> = BTreeMap::new();
    let mut with_rows = BTreeSet::new();
    let mut clients = BTreeSet::new();
    for line in lines {
        match line.call.as_deref() {
            Some(COMPUTE) => {
                compute.insert(line.gpu, pids(line));
            }
            Some(ROWS) => with_rows.extend(pids(line)),
            Some(MPS) => {
                let listed = pids(line);
                let beside = compute.get(&line.gpu);
                let both = listed
                    .iter()
                    .filter(|pid| beside.is_some_and(|pids| pids.contains(pid)));
                findings.mps_and_compute.extend(both);
                clients.extend(listed);
            }
            _ => {}
        }
    }
    findings
        .mps_with_rows
        .extend(clients.intersection(&with_rows));
    findings.mps.extend(clients);
}

/// Rows and samples of the same time, taken as the agent takes them.
fn brackets(findings: &mut Findings, lines: &[Line]) {
    let mut by_gpu: BTreeMap<usize, Vec<&Line>> = BTreeMap::new();
    for line in lines
        .iter()
        .filter(|line| is(line, SAMPLES) || is(line, ROWS))
    {
        by_gpu.entry(line.gpu.unwrap_or(0)).or_default().push(line);
    }
    for (gpu, lines) in by_gpu {
        let period_us = findings.rings.get(&gpu).map_or(0, |ring| ring.period_us);
        for three in lines.windows(3) {
            let [before, rows, after] = three else {
                continue;
            };
            let since = after.args.as_u64().unwrap_or(0);
            let same = before.args == rows.args && rows.args == after.args && since > 0;
            if !(same && is(before, SAMPLES) && is(rows, ROWS) && is(after, SAMPLES)) {
                continue;
            }
            let newest = |line: &Line| samples(line).iter().map(|(at, _)| *at).max();
            if newest(before) != newest(after) {
                findings.rounding.torn += 1;
                continue;
            }
            let mut percents: Vec<u64> = samples(after)
                .into_iter()
                .filter_map(|(at_us, percent)| (at_us > since).then_some(percent))
                .collect();
            percents
                .iter_mut()
                .for_each(|percent| *percent = (*percent).min(100));
            let count = u64::try_from(percents.len()).unwrap_or(u64::MAX);
            let mut busy = Vec::new();
            for row in items(rows) {
                let (Some(pid), Some(sm)) = (row["pid"].as_u64(), row["sm"].as_u64()) else {
                    continue;
                };
                // What exceeds 100 is no percent: garbage that the agent drops too.
                if (1..=100).contains(&sm) {
                    busy.push(sm);
                    let time = sm.saturating_mul(count).saturating_mul(period_us * 10);
                    *findings.credited_ns.entry(pid).or_default() += time;
                }
            }
            if let [row] = busy[..] {
                judge(&mut findings.rounding, row, &percents);
            }
        }
    }
}

/// Which reading explains `row` as the mean of these samples.
fn judge(rounding: &mut Rounding, row: u64, percents: &[u64]) {
    let count = u64::try_from(percents.len()).unwrap_or(u64::MAX);
    if count == 0 {
        return;
    }
    // In hundredths of a percent, which is how finely the driver counts.
    let least: u64 = percents.iter().map(|percent| percent * 100).sum();
    let unsure = percents
        .iter()
        .filter(|percent| (1..100).contains(*percent));
    let most = least + 99 * u64::try_from(unsure.count()).unwrap_or(u64::MAX);
    let floor = |sum: u64| sum / (count * 100);
    let nearest = |sum: u64| (sum + count * 50) / (count * 100);
    let by_floor = (floor(least)..=floor(most)).contains(&row);
    let by_nearest = (nearest(least)..=nearest(most)).contains(&row);
    *match (by_floor, by_nearest) {
        (true, true) => &mut rounding.both,
        (true, false) => &mut rounding.floor,
        (false, true) => &mut rounding.nearest,
        (false, false) => &mut rounding.neither,
    } += 1;
}

fn latency(mut took: Vec<u64>) -> Latency {
    took.sort_unstable();
    let calls = took.len();
    // The smallest value that is no less than so many of 100.
    let percentile = |percent: usize| {
        let rank = (calls * percent).div_ceil(100);
        took.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    };
    Latency {
        calls,
        p50_ns: percentile(50),
        p99_ns: percentile(99),
        max_ns: percentile(100),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(values: &[Value]) -> Vec<Line> {
        let text: Vec<String> = values.iter().map(Value::to_string).collect();
        parse(&text.join("\n")).unwrap()
    }

    fn call(at_us: u64, call: &str, args: u64, answer: Value) -> Value {
        json!({ "at_us": at_us, "call": call, "gpu": 0, "args": args, "took_ns": 1000, "answer": answer })
    }

    #[test]
    fn a_row_is_explained_by_cutting_off_or_by_rounding() {
        let count = |row, percents: &[u64]| {
            let mut rounding = Rounding::default();
            judge(&mut rounding, row, percents);
            rounding
        };
        for (row, percents, floor, nearest, both, neither) in [
            (66, &[100, 100, 0][..], 1, 0, 0, 0),
            (67, &[100, 100, 0], 0, 1, 0, 0),
            (33, &[100, 0, 0], 0, 0, 1, 0),
            (65, &[100, 100, 0], 0, 0, 0, 1),
            (50, &[100, 0], 0, 0, 1, 0),
            // 41 to 41.99: cut off 41, rounded 41 or 42.
            (42, &[41], 0, 1, 0, 0),
            (41, &[41], 0, 0, 1, 0),
            (7, &[], 0, 0, 0, 0),
        ] {
            let expect = Rounding {
                torn: 0,
                floor,
                nearest,
                both,
                neither,
            };
            assert_eq!(count(row, percents), expect, "{row} of {percents:?}");
        }
    }

    #[test]
    fn a_verdict_needs_brackets_that_tell_and_agree() {
        for (floor, nearest, verdict) in [
            (3, 0, "floor"),
            (0, 3, "nearest"),
            (0, 0, "not settled: no bracket tells the two apart"),
            (1, 1, "not settled: some brackets show floor, some nearest"),
        ] {
            let rounding = Rounding {
                floor,
                nearest,
                ..Rounding::default()
            };
            assert_eq!(rounding.verdict(), verdict);
        }
    }

    fn bracket(newest_after: u64) -> Vec<Line> {
        let seen = json!([[200_000, 100], [300_000, 100], [400_000, 0]]);
        let mut later = seen.clone();
        later[2][0] = newest_after.into();
        lines(&[
            call(1, SAMPLES, 100_000, seen),
            call(2, ROWS, 100_000, json!([{ "pid": 7, "sm": 66 }])),
            call(3, SAMPLES, 100_000, later),
            call(4, ROWS, 0, json!([{ "pid": 7, "sm": 12 }])),
        ])
    }

    #[test]
    fn a_whole_bracket_tells_and_a_torn_one_does_not() {
        let whole = analyse(&[bracket(400_000)]);
        assert_eq!((whole.rounding.floor, whole.rounding.torn), (1, 0));
        // 66 % of three periods of 100 ms; the row over the whole ring is not added.
        assert_eq!(whole.credited_ns, BTreeMap::from([(7, 198_000_000)]));
        assert_eq!(whole.rings[&0].period_us, 100_000);
        let torn = analyse(&[bracket(500_000)]);
        assert_eq!((torn.rounding.floor, torn.rounding.torn), (0, 1));
        assert_eq!(torn.credited_ns, BTreeMap::new());
    }

    #[test]
    fn a_dead_process_is_followed_until_its_rows_are_gone() {
        let row = || json!([{ "pid": 7, "sm": 50 }]);
        let ended = json!({ "at_us": 20, "note": "program_ended", "facts": { "pid": 7, "status": "exit status: 0" } });
        let mut recording = vec![
            call(10, ROWS, 0, row()),
            call(11, COMPUTE, 0, json!([{ "pid": 7 }])),
            ended,
            call(30, ROWS, 0, row()),
            call(31, ROWS, 29, row()),
            call(40, ROWS, 0, json!([])),
        ];
        let expect = Program {
            pid: 7,
            status: "exit status: 0".to_owned(),
            rows_while_running: true,
            listed_while_running: true,
            rows_after_end_us: Some(10),
            listed_after_end_us: None,
            watched_us: 20,
        };
        assert_eq!(
            analyse(&[lines(&recording)]).programs,
            std::slice::from_ref(&expect)
        );
        recording.remove(3);
        let filtered = analyse(&[lines(&recording)]);
        assert_eq!(filtered.programs[0].rows_after_end_us, None);
    }

    #[test]
    fn an_mps_client_is_looked_for_in_the_other_list_and_in_the_rows() {
        let findings = analyse(&[lines(&[
            call(1, ROWS, 0, json!([{ "pid": 8, "sm": 1 }])),
            call(2, COMPUTE, 0, json!([{ "pid": 7 }, { "pid": 5 }])),
            call(3, MPS, 0, json!([{ "pid": 7 }, { "pid": 8 }])),
        ])]);
        assert_eq!(findings.mps, BTreeSet::from([7, 8]));
        assert_eq!(findings.mps_and_compute, BTreeSet::from([7]));
        assert_eq!(findings.mps_with_rows, BTreeSet::from([8]));
    }

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let expect = |calls, p50_ns, p99_ns, max_ns| Latency {
            calls,
            p50_ns,
            p99_ns,
            max_ns,
        };
        assert_eq!(latency((1..=200).collect()), expect(200, 100, 198, 200));
        assert_eq!(latency(vec![9]), expect(1, 9, 9, 9));
        assert_eq!(latency(Vec::new()), expect(0, 0, 0, 0));
    }

    #[test]
    fn answers_of_any_shape_are_taken_for_what_they_are() {
        let findings = analyse(&[lines(&[
            call(1, SAMPLES, 5, json!("nonsense")),
            call(2, ROWS, 5, json!([{ "pid": -1, "sm": 900 }, 3, null])),
            call(3, SAMPLES, 5, json!([[1], ["a", "b"], [6, 1_000_000]])),
            call(4, SIZE_QUERY, 0, json!([])),
            json!({}),
        ])]);
        assert_eq!(findings.credited_ns, BTreeMap::new());
        assert_eq!(findings.size_queries, []);
    }

    #[test]
    fn what_is_no_recording_is_refused_by_line() {
        let error = parse("{}\n{\"at_us\": \"soon\"}").unwrap_err();
        assert_eq!(error.to_string(), "line 2 is no line of a recording");
    }
}
