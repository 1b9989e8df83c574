//! A ledger of a past that is made up, written by the store's own writer: commits as the core makes
//! them, at times that the test says.
//!
//! Each GPU's time passes by itself: what no account, no reason and no gap took is idle. So the books
//! balance unless a test wants otherwise.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use gpuacct::core::amounts::{Amounts, Millijoules};
use gpuacct::core::input::{GpuInfo, IdentitySource, MigInfo};
use gpuacct::core::model::{
    BootTime, Clock, GpuUuid, NONE, Nanos, UNRESOLVED, UnattributedReason, UnobservedReason,
    WallTime,
};
use gpuacct::core::records::{
    Changes, ClosedAccount, KeptAccount, KeptBook, KeptReason, KeptTime, KeptTotals, OwnerKind,
};
use gpuacct::core::snapshot::{Attribution, ContainerLabels, EnergyBook, IdOnlyReason};
use gpuacct::outputs::store::{self, Handle, Options};

/// Name of the node that a ledger is of.
pub const NODE: &str = "gpu-7";

/// Idle power: 50 W, in millijoules a second.
const IDLE_MILLIWATTS: u64 = 50_000;

/// The writer and what it has written.
#[derive(Debug)]
pub struct Past {
    handle: Handle,
    now: WallTime,
    sequence: u64,
    numbers: u32,
    books: Vec<KeptBook>,
    /// Busy and unobserved time since the last commit, by GPU.
    taken: Vec<Nanos>,
    times: BTreeMap<(usize, KeptReason), Nanos>,
    open: BTreeMap<u32, (usize, KeptAccount, KeptTotals)>,
    closed: Vec<ClosedAccount>,
}

/// Who pays.
#[derive(Clone, Debug)]
pub enum Payer<'a> {
    /// A container with names.
    Named {
        /// `namespace/pod/container`.
        name: &'a str,
        /// Its image.
        image: &'a str,
        /// Its labels.
        labels: &'a [(&'a str, &'a str)],
    },
    /// A container of which only the id is known.
    IdOnly(&'a str),
    /// A host's unit.
    Host(&'a str),
}

impl Past {
    /// A new ledger in `directory`, for GPUs of these models.
    ///
    /// # Errors
    /// If there is no thread for the writer.
    pub fn begin(directory: &Path, at: WallTime, models: &[&str]) -> Result<Self> {
        Self::begin_on(NODE, directory, at, models)
    }

    /// A new ledger of a node in `directory`, for GPUs of these models.
    ///
    /// # Errors
    /// If there is no thread for the writer.
    pub fn begin_on(node: &str, directory: &Path, at: WallTime, models: &[&str]) -> Result<Self> {
        let handle = store::spawn(Options {
            directory: directory.to_owned(),
            retention: Duration::from_secs(35 * 86_400),
            max_bytes: 1 << 40,
            boot: "b0075eed-0000-4000-8000-000000000000".into(),
            node: node.into(),
            records: false,
        })?;
        let books = models.iter().zip(0..).map(|(model, index)| KeptBook {
            gpu: GpuInfo {
                uuid: GpuUuid(match node {
                    NODE => format!("GPU-{index:08x}").into(),
                    _ => format!("GPU-{node}-{index:08x}").into(),
                }),
                index,
                minor: Some(index),
                pci: None,
                model: (*model).into(),
                driver: "550.54".into(),
                simulated: true,
                memory_total: Some(80 << 30),
                mig: None,
                engines: Vec::new(),
            },
            start: at,
            through: None,
            elapsed: Nanos::ZERO,
            busy: Nanos::ZERO,
            idle: Nanos::ZERO,
            energy: Some(EnergyBook::default()),
            closed: Amounts::ZERO,
            windows: 0,
            torn_windows: 0,
            invalid_rows: 0,
            cut: Nanos::ZERO,
        });
        Ok(Self {
            handle,
            now: at,
            sequence: 0,
            numbers: 0,
            books: books.collect(),
            taken: vec![Nanos::ZERO; models.len()],
            times: BTreeMap::new(),
            open: BTreeMap::new(),
            closed: Vec::new(),
        })
    }

    /// Opens an account and gives its number.
    pub fn open(&mut self, gpu: usize, payer: &Payer<'_>) -> u32 {
        self.numbers += 1;
        let number = self.numbers;
        let id: Arc<str> = format!("{number:064x}").into();
        let text = |text: &str| Arc::<str>::from(text);
        let labels = |namespace: &str, pod: &str, container: &str, uid: Arc<str>, id: Arc<str>| {
            ContainerLabels {
                namespace: text(namespace),
                pod: text(pod),
                container: text(container),
                pod_uid: uid,
                container_id: id,
            }
        };
        let (kind, owner_id, names, image, attribution, runtime_labels) = match payer {
            Payer::Named {
                name,
                image,
                labels: given,
            } => {
                let mut parts = name.splitn(3, '/');
                let mut part = || parts.next().unwrap_or(NONE);
                let uid = format!("pod-uid-{number}").into();
                let names = labels(part(), part(), part(), uid, Arc::clone(&id));
                let source = IdentitySource::Docker;
                let given = given.iter().map(|(key, value)| (text(key), text(value)));
                (
                    OwnerKind::Container,
                    id,
                    names,
                    *image,
                    Some(Attribution::Named { source }),
                    given.collect(),
                )
            }
            Payer::IdOnly(id) => (
                OwnerKind::Container,
                text(id),
                labels(
                    UNRESOLVED,
                    UNRESOLVED,
                    UNRESOLVED,
                    text(UNRESOLVED),
                    text(id),
                ),
                UNRESOLVED,
                Some(Attribution::IdOnly {
                    reason: IdOnlyReason::NotFound,
                }),
                BTreeMap::new(),
            ),
            Payer::Host(unit) => (
                OwnerKind::Host,
                text(unit),
                labels(NONE, NONE, NONE, text(NONE), text(NONE)),
                NONE,
                None,
                BTreeMap::new(),
            ),
        };
        let account = KeptAccount {
            number,
            gpu: self.books[gpu].gpu.uuid.clone(),
            mig: self.books[gpu].gpu.mig.clone(),
            kind,
            owner_id,
            labels: names.into(),
            image: image.into(),
            runtime: "docker".into(),
            attribution,
            runtime_labels: Arc::new(runtime_labels),
            opened: self.now,
            held_since: BootTime(0),
            ended: None,
            fed: false,
            id_only: None,
            named: None,
        };
        let totals = KeptTotals {
            number,
            amounts: Amounts::ZERO,
            memory_peak: None,
            processes_started: 1,
            first_used: None,
            last_used: None,
            changed: BootTime(0),
            since: None,
            allocated_through: None,
        };
        self.open.insert(number, (gpu, account, totals));
        number
    }

    /// Charges an account, and its GPU with it.
    ///
    /// # Panics
    /// If it is not open.
    pub fn charge(&mut self, account: u32, amounts: Amounts) {
        let (gpu, _, totals) = self.open.get_mut(&account).expect("the account is open");
        totals.amounts += amounts;
        totals.first_used.get_or_insert(self.now);
        totals.last_used = Some(self.now);
        totals.memory_peak = totals.memory_peak.max(Some(1 << 30));
        let book = &mut self.books[*gpu];
        book.busy += amounts.busy;
        add(&mut book.energy, |book| &mut book.total, amounts.energy);
        self.taken[*gpu] += amounts.busy;
    }

    /// Makes a GPU an instance of another one, from here on. Accounts that are open stay what they
    /// were.
    pub fn divide(&mut self, gpu: usize, parent: usize, profile: &str) {
        self.books[gpu].gpu.mig = Some(MigInfo {
            parent: self.books[parent].gpu.uuid.clone(),
            profile: profile.into(),
            gpu_instance: 1,
            compute_instance: 0,
        });
    }

    /// Time that has no owner.
    pub fn unattributed(&mut self, gpu: usize, reason: UnattributedReason, time: Nanos) {
        let energy = Millijoules(time.0 / 10_000);
        let book = &mut self.books[gpu];
        book.busy += time;
        add(&mut book.energy, |book| &mut book.total, energy);
        add(&mut book.energy, |book| &mut book.unattributed, energy);
        self.taken[gpu] += time;
        *self
            .times
            .entry((gpu, KeptReason::Unattributed(reason)))
            .or_default() += time;
    }

    /// Time that was not observed.
    pub fn unobserved(&mut self, gpu: usize, reason: UnobservedReason, time: Nanos) {
        self.taken[gpu] += time;
        *self
            .times
            .entry((gpu, KeptReason::Unobserved(reason)))
            .or_default() += time;
    }

    /// Closes an account.
    ///
    /// # Panics
    /// If it is not open.
    pub fn close(&mut self, account: u32) {
        let (gpu, account, totals) = self.open.remove(&account).expect("the account is open");
        self.books[gpu].closed += totals.amounts;
        self.closed.push(ClosedAccount {
            at: self.now,
            account,
            totals,
        });
    }

    /// Lets so much time pass and commits, whether or not everything is new.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn commit(&mut self, passed: Nanos) -> Result<()> {
        for (book, taken) in self.books.iter_mut().zip(&mut self.taken) {
            let idle = passed.minus(*taken);
            let energy = Millijoules(idle.0 / 1_000_000_000 * IDLE_MILLIWATTS);
            book.elapsed += passed;
            book.idle += idle;
            book.windows += 1;
            add(&mut book.energy, |book| &mut book.total, energy);
            add(&mut book.energy, |book| &mut book.idle, energy);
            *taken = Nanos::ZERO;
        }
        let whole = self.sequence == 0;
        self.sequence += 1;
        let changes = Changes {
            whole,
            sequence: self.sequence,
            clock: Clock {
                boot: BootTime(self.now.0 / 1_000),
                wall: self.now,
            },
            books: self.books.clone(),
            times: self
                .times
                .iter()
                .map(|((gpu, reason), time)| KeptTime {
                    gpu: self.books[*gpu].gpu.uuid.clone(),
                    reason: *reason,
                    time: *time,
                })
                .collect(),
            accounts: self
                .open
                .values()
                .map(|(_, account, _)| account.clone())
                .collect(),
            totals: self.open.values().map(|(.., totals)| *totals).collect(),
            closed: std::mem::take(&mut self.closed),
            namespaces: Vec::new(),
            processes: Vec::new(),
            gone: Vec::new(),
            allocations: Vec::new(),
            allocations_gone: Vec::new(),
        };
        let written = self.handle.write(changes).blocking_recv();
        written
            .context("the store's thread is gone")?
            .context("the commit was not written")?;
        Ok(())
    }

    /// Moves the clock. What is charged from here on belongs to the commits from here on.
    pub fn pass(&mut self, time: Nanos) {
        self.now.0 += time.0;
    }

    /// Closes the file.
    pub fn end(self) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        if let Ok(runtime) = runtime {
            runtime.block_on(self.handle.close());
        }
    }
}

fn add(
    book: &mut Option<EnergyBook>,
    of: fn(&mut EnergyBook) -> &mut Millijoules,
    energy: Millijoules,
) {
    of(book.get_or_insert_default()).0 += energy.0;
}
