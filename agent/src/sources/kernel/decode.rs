//! Turns the ring's records into events.
//!
//! The records are the object's own, and are still checked byte for byte: a record of another
//! length, kind or shape is an error to be counted, never a guess.

use bytes::Buf;
use gpuacct_common::event::{
    CGROUP_NAME_BYTES, CGROUP_ROOT, CgroupRecord, CgroupRemovedRecord, Header, KIND_ATTACH,
    KIND_CGROUP, KIND_CGROUP_REMOVED, KIND_EXEC, KIND_EXIT, KIND_FORK, KIND_OPEN, OpenRecord,
    ProcessRecord, UNIFIED_HIERARCHY,
};
use thiserror::Error;

use crate::core::input::{CgroupAnnouncement, CgroupSet, DeviceOpen, KernelEvent, ProcessEvent};
use crate::core::model::{BootTime, CgroupKey, DeviceNumber, Pid, text};

/// The latest time that a record may bear, in nanoseconds since boot. The kernel's `ktime_t` is signed
/// and has 64 bits.
const LATEST_NS: u64 = i64::MAX as u64;

/// Why a record is not an event.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// It is shorter than a header.
    #[error("record has {found} bytes, its header alone has {}", size_of::<Header>())]
    Headless {
        /// Its length.
        found: usize,
    },
    /// It says that it is of another length than it is.
    #[error("record has {found} bytes, its header says {stated}")]
    Size {
        /// Its length.
        found: usize,
        /// What its header says.
        stated: usize,
    },
    /// It is of another length than its kind.
    #[error("record of kind {kind} has {found} bytes, expected {expected}")]
    Length {
        /// Its kind.
        kind: u16,
        /// Its length.
        found: usize,
        /// Length of a record of this kind.
        expected: usize,
    },
    /// Its kind is not known.
    #[error("record of unknown kind {kind}")]
    Kind {
        /// The kind in the header of the record.
        kind: u16,
    },
    /// A time that the kernel's clock cannot have shown.
    #[error(
        "record of kind {kind} has {what} at {found} ns since boot, expected at most {LATEST_NS}"
    )]
    Time {
        /// The record's kind.
        kind: u16,
        /// What is said to have been then.
        what: &'static str,
        /// The time, in nanoseconds since boot.
        found: u64,
    },
    /// The name of a cgroup does not fit where it is.
    #[error("cgroup name of {found} bytes in {CGROUP_NAME_BYTES}")]
    Name {
        /// What its length is said to be.
        found: u32,
    },
}

/// A decoded record: the CPU that wrote it, as far as that is known, and what it says.
pub type Decoded = (Option<u32>, Result<KernelEvent, DecodeError>);

/// Decodes one record.
pub fn decode(record: &[u8]) -> Decoded {
    let found = record.len();
    if found < size_of::<Header>() {
        return (None, Err(DecodeError::Headless { found }));
    }
    let mut rest = record;
    let kind = rest.get_u16_ne();
    let stated = usize::from(rest.get_u16_ne());
    let cpu = rest.get_u32_ne();
    let at = BootTime(rest.get_u64_ne());
    if stated != found {
        return (None, Err(DecodeError::Size { found, stated }));
    }
    if let Err(error) = check_time(kind, "its event", at) {
        return (Some(cpu), Err(error));
    }
    let event = match kind {
        KIND_FORK => process(kind, at, rest).map(KernelEvent::Fork),
        KIND_EXEC => process(kind, at, rest).map(KernelEvent::Exec),
        KIND_EXIT => process(kind, at, rest).map(KernelEvent::Exit),
        KIND_ATTACH => process(kind, at, rest).map(KernelEvent::Attach),
        KIND_CGROUP => cgroup(kind, rest).map(KernelEvent::Cgroup),
        KIND_CGROUP_REMOVED => removed(kind, rest).map(KernelEvent::CgroupRemoved),
        KIND_OPEN => open(kind, at, rest).map(KernelEvent::Open),
        _ => Err(DecodeError::Kind { kind }),
    };
    (Some(cpu), event)
}

fn expect(kind: u16, rest: &[u8], record_bytes: usize) -> Result<(), DecodeError> {
    let expected = record_bytes - size_of::<Header>();
    if rest.len() == expected {
        Ok(())
    } else {
        Err(DecodeError::Length {
            kind,
            found: rest.len() + size_of::<Header>(),
            expected: record_bytes,
        })
    }
}

fn process(kind: u16, at: BootTime, mut rest: &[u8]) -> Result<ProcessEvent, DecodeError> {
    expect(kind, rest, size_of::<ProcessRecord>())?;
    process_fields(kind, at, &mut rest)
}

fn open(kind: u16, at: BootTime, mut rest: &[u8]) -> Result<DeviceOpen, DecodeError> {
    expect(kind, rest, size_of::<OpenRecord>())?;
    Ok(DeviceOpen {
        process: process_fields(kind, at, &mut rest)?,
        device: DeviceNumber {
            major: rest.get_u32_ne(),
            minor: rest.get_u32_ne(),
        },
    })
}

fn check_time(kind: u16, what: &'static str, at: BootTime) -> Result<(), DecodeError> {
    let BootTime(found) = at;
    if found <= LATEST_NS {
        Ok(())
    } else {
        Err(DecodeError::Time { kind, what, found })
    }
}

/// The caller has checked the length.
fn process_fields(kind: u16, at: BootTime, rest: &mut &[u8]) -> Result<ProcessEvent, DecodeError> {
    let pid = Pid(rest.get_u32_ne());
    let parent = Pid(rest.get_u32_ne());
    let start = BootTime(rest.get_u64_ne());
    check_time(kind, "the start of its process", start)?;
    let pid_namespace_level = rest.get_u32_ne();
    rest.advance(4);
    let unified = cgroup_key(rest);
    let legacy = cgroup_key(rest);
    Ok(ProcessEvent {
        at,
        pid,
        parent,
        start,
        pid_namespace_level,
        cgroups: CgroupSet {
            unified,
            legacy: (legacy.hierarchy != UNIFIED_HIERARCHY).then_some(legacy),
        },
    })
}

fn cgroup(kind: u16, mut rest: &[u8]) -> Result<CgroupAnnouncement, DecodeError> {
    expect(kind, rest, size_of::<CgroupRecord>())?;
    let key = cgroup_key(&mut rest);
    let parent_id = rest.get_u64_ne();
    let flags = rest.get_u32_ne();
    let found = rest.get_u32_ne();
    let name = usize::try_from(found)
        .ok()
        .filter(|len| *len < CGROUP_NAME_BYTES)
        .and_then(|len| rest.get(..len))
        .ok_or(DecodeError::Name { found })?;
    Ok(CgroupAnnouncement {
        key,
        parent: (flags & CGROUP_ROOT == 0).then_some(parent_id),
        name: text::escaped(name).into(),
    })
}

fn removed(kind: u16, mut rest: &[u8]) -> Result<CgroupKey, DecodeError> {
    expect(kind, rest, size_of::<CgroupRemovedRecord>())?;
    Ok(cgroup_key(&mut rest))
}

/// The caller has checked the length.
fn cgroup_key(rest: &mut &[u8]) -> CgroupKey {
    let hierarchy = rest.get_u32_ne();
    rest.advance(4);
    let id = rest.get_u64_ne();
    CgroupKey { hierarchy, id }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;
    use proptest::prelude::*;

    use super::*;

    const PROCESS: usize = size_of::<ProcessRecord>();
    const CGROUP: usize = size_of::<CgroupRecord>();
    const OPEN: usize = size_of::<OpenRecord>();
    const REMOVED: usize = size_of::<CgroupRemovedRecord>();

    fn header(kind: u16, size: usize) -> Vec<u8> {
        let mut record = Vec::new();
        record.put_u16_ne(kind);
        record.put_u16_ne(u16::try_from(size).unwrap());
        record.put_u32_ne(3);
        record.put_u64_ne(1_000);
        record
    }

    fn process_record(kind: u16, legacy: (u32, u64)) -> Vec<u8> {
        let mut record = header(kind, PROCESS);
        record.put_u32_ne(42);
        record.put_u32_ne(1);
        record.put_u64_ne(900);
        record.put_u32_ne(2);
        record.put_u32_ne(0xdead);
        for (hierarchy, id) in [(0, 77), legacy] {
            record.put_u32_ne(hierarchy);
            record.put_u32_ne(0xbeef);
            record.put_u64_ne(id);
        }
        record
    }

    fn open_record(major: u32, minor: u32) -> Vec<u8> {
        let mut record = process_record(KIND_OPEN, (4, 5));
        record[2..4].copy_from_slice(&u16::try_from(OPEN).unwrap().to_ne_bytes());
        record.put_u32_ne(major);
        record.put_u32_ne(minor);
        record
    }

    fn cgroup_record(flags: u32, name_len: u32, name: &[u8]) -> Vec<u8> {
        let mut record = header(KIND_CGROUP, CGROUP);
        record.put_u32_ne(4);
        record.put_u32_ne(0);
        record.put_u64_ne(88);
        record.put_u64_ne(7);
        record.put_u32_ne(flags);
        record.put_u32_ne(name_len);
        record.put_slice(name);
        record.resize(CGROUP, 0xff);
        record
    }

    fn removed_record() -> Vec<u8> {
        let mut record = header(KIND_CGROUP_REMOVED, REMOVED);
        record.put_u32_ne(4);
        record.put_u32_ne(0xbeef);
        record.put_u64_ne(88);
        record
    }

    fn the_process(legacy: Option<CgroupKey>) -> ProcessEvent {
        ProcessEvent {
            at: BootTime(1_000),
            pid: Pid(42),
            parent: Pid(1),
            start: BootTime(900),
            pid_namespace_level: 2,
            cgroups: CgroupSet {
                unified: CgroupKey {
                    hierarchy: 0,
                    id: 77,
                },
                legacy,
            },
        }
    }

    fn the_cgroup(parent: Option<u64>, name: &str) -> KernelEvent {
        KernelEvent::Cgroup(CgroupAnnouncement {
            key: CgroupKey {
                hierarchy: 4,
                id: 88,
            },
            parent,
            name: name.into(),
        })
    }

    #[test]
    fn each_kind_is_read_as_it_was_written() {
        let legacy = Some(CgroupKey {
            hierarchy: 4,
            id: 5,
        });
        let rows = [
            (
                process_record(KIND_FORK, (4, 5)),
                KernelEvent::Fork(the_process(legacy)),
            ),
            (
                process_record(KIND_EXEC, (0, 0)),
                KernelEvent::Exec(the_process(None)),
            ),
            (
                process_record(KIND_EXIT, (4, 5)),
                KernelEvent::Exit(the_process(legacy)),
            ),
            (
                process_record(KIND_ATTACH, (4, 5)),
                KernelEvent::Attach(the_process(legacy)),
            ),
            (
                open_record(195, 1),
                KernelEvent::Open(DeviceOpen {
                    process: the_process(legacy),
                    device: DeviceNumber {
                        major: 195,
                        minor: 1,
                    },
                }),
            ),
            (
                removed_record(),
                KernelEvent::CgroupRemoved(CgroupKey {
                    hierarchy: 4,
                    id: 88,
                }),
            ),
            (cgroup_record(0, 3, b"pod"), the_cgroup(Some(7), "pod")),
            (cgroup_record(CGROUP_ROOT, 0, b""), the_cgroup(None, "")),
            (
                cgroup_record(0, 4, b"a\xff\"\n"),
                the_cgroup(Some(7), r#"a\xff"\x0a"#),
            ),
            (
                cgroup_record(0, 255, &[b'n'; 255]),
                the_cgroup(Some(7), &"n".repeat(255)),
            ),
        ];
        for (record, expected) in rows {
            assert_eq!(decode(&record), (Some(3), Ok(expected)));
        }
    }

    #[test]
    fn a_time_that_no_clock_can_show_is_refused() {
        let with_time = |mut record: Vec<u8>, at: usize, time: u64| {
            record[at..at + 8].copy_from_slice(&time.to_ne_bytes());
            decode(&record)
        };
        let past = LATEST_NS + 1;
        for time in [past, u64::MAX] {
            for record in [
                process_record(KIND_FORK, (0, 0)),
                process_record(KIND_EXIT, (0, 0)),
                open_record(195, 1),
                cgroup_record(0, 3, b"pod"),
            ] {
                let (cpu, event) = with_time(record, 8, time);
                assert_eq!(cpu, Some(3), "it counts as taken from that CPU");
                assert!(
                    matches!(event, Err(DecodeError::Time { found, .. }) if found == time),
                    "{event:?}"
                );
            }
            for record in [process_record(KIND_EXEC, (0, 0)), open_record(195, 1)] {
                let (_, event) = with_time(record, 24, time);
                assert!(matches!(event, Err(DecodeError::Time { .. })), "{event:?}");
            }
        }
        let (_, event) = with_time(process_record(KIND_FORK, (0, 0)), 24, past);
        assert_eq!(
            event.unwrap_err().to_string(),
            "record of kind 1 has the start of its process at 9223372036854775808 ns since boot, \
             expected at most 9223372036854775807"
        );
        let (_, event) = with_time(process_record(KIND_FORK, (0, 0)), 8, LATEST_NS);
        assert!(event.is_ok(), "{event:?}");
    }

    #[test]
    fn what_is_wrong_with_a_record_is_said() {
        let mut padded = process_record(KIND_FORK, (0, 0));
        padded.put_u64_ne(0);
        let mut resized = padded.clone();
        resized[2..4].copy_from_slice(&u16::try_from(PROCESS + 8).unwrap().to_ne_bytes());
        let rows = [
            (vec![], "record has 0 bytes, its header alone has 16"),
            (
                header(KIND_FORK, 16)[..15].to_vec(),
                "record has 15 bytes, its header alone has 16",
            ),
            (padded, "record has 80 bytes, its header says 72"),
            (resized, "record of kind 1 has 80 bytes, expected 72"),
            (
                header(KIND_CGROUP, 16),
                "record of kind 5 has 16 bytes, expected 304",
            ),
            (header(0, 16), "record of unknown kind 0"),
            (
                process_record(KIND_OPEN, (0, 0)),
                "record of kind 6 has 72 bytes, expected 80",
            ),
            (
                header(KIND_CGROUP_REMOVED, 16),
                "record of kind 7 has 16 bytes, expected 32",
            ),
            (header(8, 16), "record of unknown kind 8"),
            (
                cgroup_record(0, 256, &[b'n'; 256]),
                "cgroup name of 256 bytes in 256",
            ),
            (
                cgroup_record(0, u32::MAX, b""),
                "cgroup name of 4294967295 bytes in 256",
            ),
        ];
        for (record, expected) in rows {
            assert_eq!(decode(&record).1.unwrap_err().to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_an_error(record in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&record);
        }

        #[test]
        fn any_bytes_of_the_right_shape_are_an_event_or_an_error(
            kind in 0u16..9,
            body in proptest::collection::vec(any::<u8>(), CGROUP),
        ) {
            for size in [PROCESS, OPEN, CGROUP, REMOVED] {
                let mut record = header(kind, size);
                record.extend_from_slice(&body[..size - 16]);
                let (cpu, _) = decode(&record);
                prop_assert_eq!(cpu, Some(3));
            }
        }
    }
}
