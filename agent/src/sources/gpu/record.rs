//! What NVML really answers, written down.
//!
//! NVML's documentation leaves open what the window arithmetic has to know: how far its ring reaches
//! back, whether rows of dead processes stay, what a size query says. On a machine with a GPU this
//! asks, and writes each answer with its duration as a line of JSON, so that recordings can become
//! test data. An error is an answer too, and is written like one; only a writer that fails ends it.
//!
//! Read-only: no setting of a GPU is changed. It runs without eBPF and without the agent.
//!
//! Lines of one recording are `{"at_us", "call", "gpu", "args", "took_ns"}` with `"answer"` or
//! `"error"`, or `{"at_us", "note", …}`. `at_us` is the wall clock's, in
//! microseconds; NVML's stamps are as it gives them, and the note `clocks` has both clocks.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::Sampling;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;
use serde_json::{Value, json};

use super::calls::Watchdog;
use super::device::percent;
use super::library::Library;
use super::raw;
use crate::config;
use crate::core::model::Nanos;
use crate::sources::clock;

/// Time between two rounds of questions. Not a divisor of the driver's 1/6 s, so that the rounds
/// walk through its phase.
const ROUND: Duration = Duration::from_millis(450);
/// Version fields to try on the second version of the memory query: what its header's comment says,
/// and what drivers are known to want (size and version).
const MEMORY_VERSIONS: [u32; 2] = [2, 0x0200_0028];
/// Symbols whose presence shows a driver's age.
const SYMBOLS: [&str; 9] = [
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
    "nvmlDeviceGetRunningProcessDetailList",
    "nvmlDeviceGetConfComputeMemSizeInfo",
    "nvmlDeviceGetProcessesUtilizationInfo",
    "nvmlDeviceGetAccountingStats_v2",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlGpmMetricsGet",
];

/// What to record.
#[derive(Clone, Debug)]
pub struct Options {
    /// The library; looked for in the usual places if absent.
    pub library: Option<PathBuf>,
    /// For how long.
    pub duration: Duration,
    /// A program that uses a GPU, with its arguments; none if empty. It is started after a quarter of
    /// the time, ended after half of it, and shows for how long a dead process keeps its rows.
    pub program: Vec<OsString>,
}

/// Why a recording is not complete.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// NVML cannot be opened.
    #[error("cannot record: {0}")]
    Library(String),
    /// The program cannot be started, or not be waited for.
    #[error("cannot run {}", program.display())]
    Program {
        /// The program.
        program: OsString,
        /// What the system said.
        source: io::Error,
    },
    /// A line cannot be written.
    #[error("cannot write the recording")]
    Write(#[from] io::Error),
}

/// Records what NVML answers.
pub fn record(out: &mut dyn Write, options: &Options) -> Result<(), RecordError> {
    let cdi = config::Gpu::default().cdi;
    let library = Library::open(options.library.as_deref(), &cdi, &Watchdog::default())
        .map_err(|error| RecordError::Library(error.reason()))?;
    let mut recorder = Recorder { out };
    recorder.machine(&library)?;
    recorder.clocks()?;
    let devices = recorder.devices(&library)?;
    let mut gpus = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        recorder.properties(&library, index, device)?;
        gpus.push(Gpu {
            index,
            device,
            cursor_us: recorder.ring(index, device)?,
        });
    }
    let outcome = recorder.rounds(&mut gpus, options);
    for gpu in &gpus {
        recorder.ring(gpu.index, gpu.device)?;
        recorder.room(&library, gpu.index, gpu.device, 0)?;
        recorder.accounting(gpu.index, gpu.device)?;
    }
    recorder.clocks()?;
    recorder.out.flush()?;
    outcome
}

/// A GPU and the cursor that rolls along with its samples.
struct Gpu<'library> {
    index: usize,
    device: &'library Device<'library>,
    cursor_us: u64,
}

/// A program on its way.
struct Program {
    child: Child,
    over: bool,
}

impl Drop for Program {
    fn drop(&mut self) {
        // There is nobody to report to if it cannot be ended; one that is over is left alone.
        if !self.over {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

struct Recorder<'out> {
    out: &'out mut dyn Write,
}

impl Recorder<'_> {
    /// The library, the driver, and where this runs.
    fn machine(&mut self, library: &Library) -> io::Result<()> {
        let nvml = library.nvml();
        let symbols: Vec<&str> = SYMBOLS
            .into_iter()
            .filter(|symbol| raw::has_symbol(nvml, symbol))
            .collect();
        let namespace = std::fs::read_link("/proc/self/ns/pid");
        self.note(
            "machine",
            &json!({
                "library": &*library.place,
                "driver": &*library.driver,
                "simulated": library.simulated,
                "symbols": symbols,
                "pid_namespace": namespace.map(|link| link.to_string_lossy().into_owned()).ok(),
                "pid": std::process::id(),
            }),
        )?;
        self.ask("nvmlSystemGetNVMLVersion", None, Value::Null, || {
            nvml.sys_nvml_version().map(Value::from)
        })?;
        self.ask("nvmlSystemGetCudaDriverVersion", None, Value::Null, || {
            nvml.sys_cuda_driver_version().map(Value::from)
        })
        .map(drop)
    }

    /// Both clocks, since drivers do not all stamp by the wall clock.
    fn clocks(&mut self) -> io::Result<()> {
        let now = clock::now();
        let facts = json!({ "wall_us": now.wall.0 / 1000, "boot_us": now.boot.0 / 1000 });
        self.note("clocks", &facts)
    }

    fn devices<'library>(
        &mut self,
        library: &'library Library,
    ) -> io::Result<Vec<Device<'library>>> {
        let nvml = library.nvml();
        let count = self.ask("nvmlDeviceGetCount", None, Value::Null, || {
            nvml.device_count().map(Value::from)
        })?;
        let count = count.and_then(|count| count.as_u64()).unwrap_or(0);
        let mut devices = Vec::new();
        for index in 0..u32::try_from(count).unwrap_or(u32::MAX) {
            let mut opened = None;
            self.ask("nvmlDeviceGetHandleByIndex", None, json!(index), || {
                opened = Some(nvml.device_by_index(index)?);
                Ok(Value::Null)
            })?;
            devices.extend(opened);
        }
        Ok(devices)
    }

    /// What does not change during the recording.
    fn properties(
        &mut self,
        library: &Library,
        index: usize,
        device: &Device<'_>,
    ) -> io::Result<()> {
        let nvml = library.nvml();
        let none = || Value::Null;
        self.ask("nvmlDeviceGetUUID", Some(index), none(), || {
            device.uuid().map(Value::from)
        })?;
        self.ask("nvmlDeviceGetName", Some(index), none(), || {
            device.name().map(Value::from)
        })?;
        self.ask("nvmlDeviceGetMigMode", Some(index), none(), || {
            let mode = device.mig_mode()?;
            Ok(json!({ "current": mode.current, "pending": mode.pending }))
        })?;
        self.accounting(index, device)?;
        for version in MEMORY_VERSIONS {
            self.ask(
                "nvmlDeviceGetMemoryInfo_v2",
                Some(index),
                json!(version),
                || {
                    let (code, used) = raw::memory_info_versioned(nvml, device, version)?;
                    Ok(json!({ "code": code, "used": used }))
                },
            )?;
        }
        // Nothing is newer than the future.
        let future_us = clock::now().wall.0 / 1000 + 3_600_000_000;
        self.room(library, index, device, future_us)?;
        self.rows(index, device, future_us)
    }

    /// The size query of the process rows.
    fn room(
        &mut self,
        library: &Library,
        index: usize,
        device: &Device<'_>,
        last_us: u64,
    ) -> io::Result<()> {
        let call = "nvmlDeviceGetProcessUtilization(NULL)";
        self.ask(call, Some(index), json!(last_us), || {
            let (code, room) = raw::process_utilization_room(library.nvml(), device, last_us)?;
            Ok(json!({ "code": code, "room": room }))
        })
        .map(drop)
    }

    /// Whether accounting is on, and if so for whom. It is never switched.
    fn accounting(&mut self, index: usize, device: &Device<'_>) -> io::Result<()> {
        self.ask(
            "nvmlDeviceGetAccountingMode",
            Some(index),
            Value::Null,
            || device.is_accounting_enabled().map(Value::from),
        )?;
        self.ask(
            "nvmlDeviceGetAccountingBufferSize",
            Some(index),
            Value::Null,
            || device.accounting_buffer_size().map(Value::from),
        )?;
        let pids = self.ask(
            "nvmlDeviceGetAccountingPids",
            Some(index),
            Value::Null,
            || device.accounting_pids().map(Value::from),
        )?;
        let pids = pids.and_then(|pids| pids.as_array().cloned());
        for pid in pids.into_iter().flatten().filter_map(|pid| pid.as_u64()) {
            let Ok(pid) = u32::try_from(pid) else {
                continue;
            };
            self.ask(
                "nvmlDeviceGetAccountingStats",
                Some(index),
                json!(pid),
                || {
                    let stats = device.accounting_stats_for(pid)?;
                    Ok(json!({
                        "gpu_utilization": stats.gpu_utilization,
                        "memory_utilization": stats.memory_utilization,
                        "max_memory_usage": stats.max_memory_usage,
                        "start_time": stats.start_time,
                        "time": stats.time,
                        "is_running": stats.is_running,
                    }))
                },
            )?;
        }
        Ok(())
    }

    /// The whole ring, as it is now; notes its span and spacing, and gives its newest timestamp.
    fn ring(&mut self, index: usize, device: &Device<'_>) -> io::Result<u64> {
        let times = self.samples(index, device, 0)?;
        let spacings: Vec<u64> = times
            .windows(2)
            .map(|two| two[1].saturating_sub(two[0]))
            .collect();
        let mut sorted = spacings.clone();
        sorted.sort_unstable();
        let (first, last) = (times.first(), times.last());
        self.note(
            "ring",
            &json!({
                "gpu": index,
                "samples": times.len(),
                "span_us": first.zip(last).map(|(first, last)| last.saturating_sub(*first)),
                "period_us": sorted.get(sorted.len() / 2),
                "shortest_us": sorted.first(),
                "longest_us": sorted.last(),
            }),
        )?;
        Ok(times.iter().max().copied().unwrap_or(0))
    }

    /// Rounds of questions, with the program in between.
    fn rounds(&mut self, gpus: &mut [Gpu<'_>], options: &Options) -> Result<(), RecordError> {
        let began = Instant::now();
        let mut program: Option<Program> = None;
        let mut waiting = options.program.split_first();
        while began.elapsed() < options.duration {
            if began.elapsed() >= options.duration / 4
                && let Some((name, arguments)) = waiting.take()
            {
                let child = Command::new(name)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .spawn()
                    .map_err(|source| failed(name, source))?;
                self.note("program_started", &json!({ "pid": child.id() }))?;
                program = Some(Program { child, over: false });
            }
            if let Some(program) = program.as_mut().filter(|program| !program.over) {
                let late = began.elapsed() >= options.duration / 2;
                self.watch(program, late)
                    .map_err(|source| failed(&options.program[0], source))?;
            }
            for gpu in &mut *gpus {
                self.round(gpu)?;
            }
            sleep(ROUND);
        }
        Ok(())
    }

    /// Notes the program's end, and brings it about when it is late.
    fn watch(&mut self, program: &mut Program, late: bool) -> io::Result<()> {
        let pid = program.child.id();
        let mut status = program.child.try_wait()?;
        if status.is_none() && late {
            program.child.kill()?;
            status = Some(program.child.wait()?);
        }
        if let Some(status) = status {
            program.over = true;
            self.note(
                "program_ended",
                &json!({ "pid": pid, "status": status.to_string() }),
            )?;
        }
        Ok(())
    }

    /// One round about one GPU: the bracket that the agent takes, the same rows over the whole ring,
    /// and the lists.
    fn round(&mut self, gpu: &mut Gpu<'_>) -> io::Result<()> {
        let (index, device, cursor_us) = (gpu.index, gpu.device, gpu.cursor_us);
        self.samples(index, device, cursor_us)?;
        self.rows(index, device, cursor_us)?;
        let times = self.samples(index, device, cursor_us)?;
        self.rows(index, device, 0)?;
        gpu.cursor_us = times.into_iter().max().unwrap_or(cursor_us);

        self.ask(
            "nvmlDeviceGetUtilizationRates",
            Some(index),
            Value::Null,
            || {
                let rates = device.utilization_rates()?;
                Ok(json!({ "gpu": rates.gpu, "memory": rates.memory }))
            },
        )?;
        self.ask(
            "nvmlDeviceGetComputeRunningProcesses",
            Some(index),
            Value::Null,
            || device.running_compute_processes().map(processes),
        )?;
        self.ask(
            "nvmlDeviceGetGraphicsRunningProcesses",
            Some(index),
            Value::Null,
            || device.running_graphics_processes().map(processes),
        )?;
        self.ask(
            "nvmlDeviceGetMPSComputeRunningProcesses",
            Some(index),
            Value::Null,
            || device.mps_running_compute_processes().map(processes),
        )?;
        self.ask("nvmlDeviceGetMemoryInfo", Some(index), Value::Null, || {
            let memory = device.memory_info()?;
            Ok(json!({ "total": memory.total, "reserved": memory.reserved, "used": memory.used }))
        })
        .map(drop)
    }

    /// The device's samples since `last_us`; gives their timestamps.
    fn samples(&mut self, index: usize, device: &Device<'_>, last_us: u64) -> io::Result<Vec<u64>> {
        let answer = self.ask("nvmlDeviceGetSamples", Some(index), json!(last_us), || {
            let samples = device.samples(Sampling::GpuUtilization, last_us)?;
            let rows = samples
                .iter()
                .map(|s| json!([s.timestamp, percent(&s.value)]));
            Ok(rows.collect())
        })?;
        let rows = answer.and_then(|rows| rows.as_array().cloned());
        let times = rows.into_iter().flatten();
        Ok(times.filter_map(|row| row[0].as_u64()).collect())
    }

    fn rows(&mut self, index: usize, device: &Device<'_>, last_us: u64) -> io::Result<()> {
        let call = "nvmlDeviceGetProcessUtilization";
        self.ask(call, Some(index), json!(last_us), || {
            let rows = device.process_utilization_stats(last_us)?;
            Ok(rows
                .iter()
                .map(|row| {
                    json!({
                        "pid": row.pid,
                        "at_us": row.timestamp,
                        "sm": row.sm_util,
                        "mem": row.mem_util,
                        "enc": row.enc_util,
                        "dec": row.dec_util,
                    })
                })
                .collect())
        })?;
        let nvml = device.nvml();
        if !raw::has_processes_utilization(nvml) {
            return Ok(());
        }
        let call = "nvmlDeviceGetProcessesUtilizationInfo";
        self.ask(call, Some(index), json!(last_us), || {
            let rows = raw::processes_utilization(nvml, device, last_us)?;
            Ok(rows
                .iter()
                .map(|row| {
                    json!({
                        "pid": row.pid,
                        "at_us": row.timeStamp,
                        "sm": row.smUtil,
                        "mem": row.memUtil,
                        "enc": row.encUtil,
                        "dec": row.decUtil,
                        "jpg": row.jpgUtil,
                        "ofa": row.ofaUtil,
                    })
                })
                .collect())
        })
        .map(drop)
    }

    /// Asks, and writes the answer down. None where it was an error.
    fn ask(
        &mut self,
        call: &str,
        gpu: Option<usize>,
        args: Value,
        ask: impl FnOnce() -> Result<Value, NvmlError>,
    ) -> io::Result<Option<Value>> {
        let at_us = clock::now().wall.0 / 1000;
        let began = Instant::now();
        let answer = ask();
        let Nanos(took) = began.elapsed().into();
        let mut line =
            json!({ "at_us": at_us, "call": call, "gpu": gpu, "args": args, "took_ns": took });
        match &answer {
            Ok(answer) => line["answer"] = answer.clone(),
            Err(error) => line["error"] = error.to_string().into(),
        }
        writeln!(self.out, "{line}")?;
        Ok(answer.ok())
    }

    fn note(&mut self, note: &str, facts: &Value) -> io::Result<()> {
        let line = json!({ "at_us": clock::now().wall.0 / 1000, "note": note, "facts": facts });
        writeln!(self.out, "{line}")
    }
}

fn failed(program: &OsString, source: io::Error) -> RecordError {
    RecordError::Program {
        program: program.clone(),
        source,
    }
}

fn processes(list: Vec<ProcessInfo>) -> Value {
    list.iter()
        .map(|process| {
            let memory = match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(bytes),
                UsedGpuMemory::Unavailable => None,
            };
            json!({
                "pid": process.pid,
                "memory": memory,
                "gpu_instance": process.gpu_instance_id,
                "compute_instance": process.compute_instance_id,
            })
        })
        .collect()
}
