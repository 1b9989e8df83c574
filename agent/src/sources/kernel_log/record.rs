//! A record of `/dev/kmsg`, and the Xid error in it.
//!
//! The text is from outside. What is not exactly as the driver writes it is no Xid error. Two things keep
//! tenants from writing one: the kernel marks what user space writes to the log, so only records of the
//! kernel's own facility are believed; and the pid is read only where the driver puts it, before the
//! process's name, which the process chooses.
//!
//! Format of records: `Documentation/ABI/testing/dev-kmsg` of the kernel. Format of the line:
//! `nvidia/os-interface` of NVIDIA's open kernel modules and NVIDIA's document "Xid Errors".

use std::sync::Arc;

use crate::core::model::Pid;

/// The longest record that is looked at: the kernel writes none of more than 2 KiB.
const LONGEST: usize = 4_096;
/// What an Xid error begins with.
const BEGIN: &str = "NVRM: Xid (";
/// The largest number of an error that is believed.
const LARGEST_XID: u32 = 9_999;

/// An Xid error in the kernel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoggedXid {
    /// When the record was written, in microseconds of the clock that stamps the log.
    pub(super) at_us: u64,
    /// PCI address of the GPU, as [`GpuInfo::pci`](crate::core::input::GpuInfo::pci) has it.
    pub(super) pci: Arc<str>,
    /// NVIDIA's number.
    pub(super) xid: u32,
    /// The process that the driver names, in the initial pid namespace.
    pub(super) pid: Option<Pid>,
}

/// The Xid error in a record, if it is one.
pub(super) fn xid_of(record: &[u8]) -> Option<LoggedXid> {
    let record = std::str::from_utf8(record.get(..record.len().min(LONGEST))?).ok()?;
    let (prefix, text) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let _sequence = fields.next()?;
    let at_us = fields.next()?.parse().ok()?;
    // Facility 0 is the kernel's. The kernel gives another one to what user space writes.
    if priority >> 3 != 0 {
        return None;
    }
    // Lines after the first one are a dictionary.
    let line = text.lines().next()?;
    let (device, rest) = line.strip_prefix(BEGIN)?.split_once("): ")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = rest.split_at(digits);
    let xid = number.parse().ok()?;
    if !(1..=LARGEST_XID).contains(&xid) || !(rest.is_empty() || rest.starts_with(',')) {
        return None;
    }
    Some(LoggedXid {
        at_us,
        pci: address(device)?,
        xid,
        pid: pid(rest),
    })
}

/// A PCI address as the driver writes it: `PCI:0000:b2:00`, with the GPU instance behind it under MIG
/// (`PCI:0000:b2:00 GPU-I:09`), in old drivers without `PCI:`.
fn address(device: &str) -> Option<Arc<str>> {
    let device = device.strip_prefix("PCI:").unwrap_or(device);
    let (address, _) = device.split_once(' ').unwrap_or((device, ""));
    let mut parts = address.split(':').map(|part| {
        let are_digits =
            (1..=8).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_hexdigit());
        are_digits.then(|| u32::from_str_radix(part, 16).ok())?
    });
    let (domain, bus, device) = (parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() {
        return None;
    }
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}").into())
}

/// The pid, directly behind the number: `, pid=1234, …`. The driver may also write `'<unknown>'`.
fn pid(rest: &str) -> Option<Pid> {
    let rest = rest.strip_prefix(", pid=")?;
    let (pid, _) = rest.split_once(',').unwrap_or((rest, ""));
    let are_digits = !pid.is_empty() && pid.bytes().all(|c| c.is_ascii_digit());
    let pid: u32 = are_digits.then(|| pid.parse().ok())??;
    (pid != 0).then_some(Pid(pid))
}

/// Looks at any bytes as a record.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(record: &[u8]) {
    if let Some(found) = xid_of(record) {
        assert!((1..=LARGEST_XID).contains(&found.xid));
        assert!(found.pid != Some(Pid(0)));
        assert!(found.pci.len() <= 26, "{}", found.pci);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(line: &str) -> Option<(String, u32, Option<u32>)> {
        let record =
            format!("3,1234,5140900123,-;{line}\n SUBSYSTEM=pci\n DEVICE=+pci:0000:17:00.0\n");
        let xid = xid_of(record.as_bytes())?;
        assert_eq!(xid.at_us, 5_140_900_123);
        Some((xid.pci.to_string(), xid.xid, xid.pid.map(|pid| pid.0)))
    }

    #[test]
    fn lines_of_real_drivers_are_understood() {
        for (line, expected) in [
            (
                "NVRM: Xid (PCI:0000:cb:00): 109, pid=1797828, name=pt_main_thread, Ch 00000008, errorString CTX SWITCH TIMEOUT, Info 0x58005",
                ("0000:cb:00", 109, Some(1_797_828)),
            ),
            (
                "NVRM: Xid (PCI:0000:cb:00): 13, pid='<unknown>', name=<unknown>, Graphics SM Warp Exception on (GPC 7, TPC 7, SM 0): Illegal Instruction Parameter",
                ("0000:cb:00", 13, None),
            ),
            (
                "NVRM: Xid (PCI:0000:dc:00): 45, pid=1818990, name=python3, Ch 00000001 caused by previous Xid 149",
                ("0000:dc:00", 45, Some(1_818_990)),
            ),
            (
                "NVRM: Xid (PCI:0019:01:00): 149, NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000 0x00000000 0x00000000 0x00000000 0x00000000)",
                ("0019:01:00", 149, None),
            ),
            (
                "NVRM: Xid (PCI:0000:9b:00): 94, pid=1234, name=python3, Contained ECC error",
                ("0000:9b:00", 94, Some(1_234)),
            ),
            (
                "NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus",
                ("0000:44:00", 79, None),
            ),
            (
                "NVRM: Xid (PCI:0000:01:00): 31, Ch 00000003, engmask 00000101, intr 10000000",
                ("0000:01:00", 31, None),
            ),
            // Under MIG, in capitals, from drivers before 340, and with nothing behind the number.
            (
                "NVRM: Xid (PCI:0000:B2:00 GPU-I:09): 13, pid=77, name=a.out, Graphics Exception",
                ("0000:b2:00", 13, Some(77)),
            ),
            (
                "NVRM: Xid (0000:01:00): 8, Channel 00000001",
                ("0000:01:00", 8, None),
            ),
            ("NVRM: Xid (PCI:0000:01:00): 8", ("0000:01:00", 8, None)),
        ] {
            let (pci, xid, pid) = expected;
            assert_eq!(found(line), Some((pci.to_owned(), xid, pid)), "{line}");
        }
    }

    #[test]
    fn other_lines_are_none() {
        for line in [
            "",
            "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  570.158.01",
            "NVRM: The NVIDIA GPU 0000:b3:00.0",
            "nvidia-nvswitch0: SXid (PCI:0000:01:00.0): 20034, Fatal, Link 00",
            "a process says NVRM: Xid (PCI:0000:01:00): 79, pid=1, name=x",
            "NVRM: Xid (PCI:0000:01:00) 79",
            "NVRM: Xid (PCI:0000:01:00): ",
            "NVRM: Xid (PCI:0000:01:00): 0, nothing",
            "NVRM: Xid (PCI:0000:01:00): 10000, too large",
            "NVRM: Xid (PCI:0000:01:00): 99999999999999999999, too large",
            "NVRM: Xid (PCI:0000:01:00): -79, negative",
            "NVRM: Xid (PCI:0000:01:00): 79x",
            "NVRM: Xid (PCI:0000:01): 79, too few parts",
            "NVRM: Xid (PCI:0000:01:00:00): 79, too many parts",
            "NVRM: Xid (PCI:0000:zz:00): 79, no digits",
            "NVRM: Xid (PCI:000000000:01:00): 79, too many digits",
            "NVRM: Xid (PCI:+1:01:00): 79, a sign",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }

    #[test]
    fn a_process_s_name_cannot_forge_a_pid() {
        for (line, expected) in [
            ("79, pid='<unknown>', name=x, pid=1, name=", None),
            ("79, name=a, pid=1, x", None),
            ("79, pid=0, name=x", None),
            ("79, pid=-1, name=x", None),
            ("79, pid=+7, name=x", None),
            ("79, pid=4294967296, name=x", None),
            ("79, pid=7", Some(7)),
            ("79, pid=7, name=y, pid=1, z", Some(7)),
        ] {
            let line = format!("NVRM: Xid (PCI:0000:01:00): {line}");
            let (_, _, pid) = found(&line).expect("it is an Xid error");
            assert_eq!(pid, expected, "{line}");
        }
    }

    #[test]
    fn what_user_space_writes_to_the_log_is_not_believed() {
        let line = "NVRM: Xid (PCI:0000:01:00): 79, pid=1, name=x";
        for (prefix, is_believed) in [
            ("3,1,2,-", true),
            ("0,1,2,-", true),
            ("7,1,2,-,caller=T12", true),
            // Facility 1: user.
            ("12,1,2,-", false),
            ("8,1,2,-", false),
            ("30,1,2,-", false),
            ("", false),
            ("3", false),
            ("3,1", false),
            ("3,1,x", false),
            ("-3,1,2,-", false),
        ] {
            let record = format!("{prefix};{line}\n");
            assert_eq!(xid_of(record.as_bytes()).is_some(), is_believed, "{prefix}");
        }
        assert_eq!(
            xid_of(b"3,1,2,-;NVRM: Xid (PCI:0000:01:00): 79, \xff\n"),
            None
        );
        assert_eq!(xid_of(&[b'3'; 10_000]), None);
    }
}
