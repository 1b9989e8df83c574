//! The inputs of the core with their times, as lines of JSON that can be replayed.
//!
//! The core depends on its inputs only, so the same lines give the same books on any machine,
//! without a kernel, a GPU or a runtime. A bug that was seen once becomes a test in this way. The
//! first line says with which settings; each other line is one observation, or a commit.
//!
//! A replay begins with empty books: what the agent restored from its store is not in the
//! recording.
//!
//! It writes and reads text, not files. A line that it does not understand is an error with its
//! number: a recording that is not exact is refused.

use serde::{Deserialize, Serialize};

use crate::accountant::{Accountant, Settings};
use crate::input::{Input, Policy};
use crate::model::{BootTime, Clock, Nanos, WallTime};
use crate::snapshot::Snapshot;

/// The version of the lines.
const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    recording: u32,
    boot: BootTime,
    wall: WallTime,
    grace: Nanos,
    zero_for: Nanos,
    keep_for: Nanos,
}

/// Any other line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Line<Event> {
    boot: BootTime,
    wall: WallTime,
    #[serde(flatten)]
    event: Event,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Written<'a> {
    Take(&'a Input),
    Commit {},
    CommitLast {},
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Read {
    Take(Box<Input>),
    Commit {},
    CommitLast {},
}

/// Why a recording cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// There is not even a first line.
    #[error("the recording is empty")]
    Empty,
    /// It was written by another version.
    #[error("recording has version {found}, expected {VERSION}")]
    Version {
        /// Version of the recording.
        found: u32,
    },
    /// A line is not what it should be.
    #[error("line {number} of the recording")]
    Line {
        /// Which, counted from 1.
        number: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// The first line of a recording of an accountant with these settings, made at `clock`.
///
/// # Errors
/// Never, as far as is known: plain data becomes JSON in memory.
pub fn head(settings: &Settings, clock: Clock) -> Result<String, serde_json::Error> {
    let Policy {
        grace,
        zero_for,
        keep_for,
    } = settings.policy;
    serde_json::to_string(&Head {
        recording: VERSION,
        boot: clock.boot,
        wall: clock.wall,
        grace,
        zero_for,
        keep_for,
    })
}

/// The line of an observation.
///
/// # Errors
/// As [`head`].
pub fn take(input: &Input, clock: Clock) -> Result<String, serde_json::Error> {
    line(Written::Take(input), clock)
}

/// The line of a commit; of the `last` one, where nothing more is awaited.
///
/// # Errors
/// As [`head`].
pub fn commit(last: bool, clock: Clock) -> Result<String, serde_json::Error> {
    let event = if last {
        Written::CommitLast {}
    } else {
        Written::Commit {}
    };
    line(event, clock)
}

fn line(event: Written<'_>, clock: Clock) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Line {
        boot: clock.boot,
        wall: clock.wall,
        event,
    })
}

/// Replays a recording and passes each snapshot to `each`. Effects are not carried out: their
/// results are in the recording.
///
/// # Errors
/// If a line is not one of a recording.
pub fn replay(text: &str, mut each: impl FnMut(Snapshot)) -> Result<Accountant, RecordingError> {
    let mut lines = text.lines().enumerate();
    let broken = |at: usize| {
        move |source| RecordingError::Line {
            number: at + 1,
            source,
        }
    };
    let (at, first) = lines.next().ok_or(RecordingError::Empty)?;
    let head: Head = serde_json::from_str(first).map_err(broken(at))?;
    if head.recording != VERSION {
        return Err(RecordingError::Version {
            found: head.recording,
        });
    }
    let settings = Settings {
        policy: Policy {
            grace: head.grace,
            zero_for: head.zero_for,
            keep_for: head.keep_for,
        },
        ..Settings::default()
    };
    let clock = |boot, wall| Clock { boot, wall };
    let mut accountant = Accountant::new(settings, clock(head.boot, head.wall));
    for (at, line) in lines {
        let line: Line<Read> = serde_json::from_str(line).map_err(broken(at))?;
        let clock = clock(line.boot, line.wall);
        match line.event {
            Read::Take(input) => accountant.take(*input, clock),
            Read::Commit {} => each(accountant.commit(clock)),
            Read::CommitLast {} => {
                accountant.await_nothing();
                each(accountant.commit(clock));
            }
        }
        drop(accountant.take_effects());
    }
    Ok(accountant)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = r#"{"recording":1,"boot":1,"wall":2,"grace":3,"zero_for":4,"keep_for":5}"#;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let clock = Clock {
            boot: BootTime(1),
            wall: WallTime(2),
        };
        let settings = Settings {
            policy: Policy {
                grace: Nanos(3),
                zero_for: Nanos(4),
                keep_for: Nanos(5),
            },
            ..Settings::default()
        };
        let text = [
            head(&settings, clock).unwrap(),
            take(&Input::Gpus(vec![]), clock).unwrap(),
            commit(false, clock).unwrap(),
            commit(true, clock).unwrap(),
        ];
        let expect = [
            HEAD,
            r#"{"boot":1,"wall":2,"take":{"gpus":[]}}"#,
            r#"{"boot":1,"wall":2,"commit":{}}"#,
            r#"{"boot":1,"wall":2,"commit_last":{}}"#,
        ];
        assert_eq!(text, expect);
        let mut commits = Vec::new();
        replay(&text.join("\n"), |snapshot| commits.push(snapshot.sequence)).unwrap();
        assert_eq!(commits, [1, 2]);
    }

    /// Earlier agents recorded the health of their outputs, too.
    #[test]
    fn a_recording_with_the_states_of_outputs_is_still_read() {
        let health = |source| {
            let health = r#""state":"down","class":"refused","reason":"","since":1,"place":"""#;
            format!(r#"{{"boot":1,"wall":2,"take":{{"health":{{"source":"{source}",{health}}}}}}}"#)
        };
        let commit = r#"{"boot":1,"wall":2,"commit":{}}"#;
        let (otlp, store) = (health("otlp"), health("store"));
        let of = |lines: &[&str]| {
            let mut books = Vec::new();
            replay(&lines.join("\n"), |snapshot| books.push(snapshot)).unwrap();
            books
        };
        let replayed = of(&[HEAD, &otlp, &store, commit]);
        assert_eq!(replayed, of(&[HEAD, commit]));
    }

    #[test]
    fn what_is_no_recording_is_refused_with_the_line() {
        let rows = [
            ("", "the recording is empty"),
            ("{}", "line 1 of the recording"),
            (
                &*HEAD.replace("g\":1", "g\":7"),
                "recording has version 7, expected 1",
            ),
            (&*format!("{HEAD}\n{{}}"), "line 2 of the recording"),
            (
                &*format!("{HEAD}\n{{\"boot\":1,\"wall\":2,\"take\":{{\"nobody\":1}}}}"),
                "line 2 of the recording",
            ),
        ];
        for (text, expect) in rows {
            let error = replay(text, drop).unwrap_err();
            assert_eq!(error.to_string(), expect, "{text}");
        }
    }
}
