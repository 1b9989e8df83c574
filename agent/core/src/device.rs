//! What is known of the processes on one GPU, beside its book.

use crate::holding::Holding;
use crate::input::GpuProcess;
use crate::model::{BootTime, Nanos, Owner, ProcessId};
use crate::sharing::Sharing;
use crate::tables::HashMap;

/// Age up to which process lists count for the present use of memory: three times the longest
/// interval that can be configured.
const LISTS_HOLD: Nanos = Nanos::from_secs(180);

/// The newest process lists of a GPU.
#[derive(Debug, Default)]
pub(crate) struct DeviceLists {
    /// When they were read.
    pub(crate) at: BootTime,
    /// The processes, without the agent's own.
    pub(crate) processes: Vec<GpuProcess>,
    /// Device memory in use, in bytes; absent where NVML does not say.
    pub(crate) memory_used: Option<u64>,
    /// Device memory in use by owner, in bytes.
    pub(crate) memory: HashMap<Owner, u64>,
}

/// The state of one GPU that its process lists bring.
#[derive(Debug)]
pub(crate) struct DeviceState {
    /// The newest lists; absent before any, and once they are too old.
    pub(crate) lists: Option<DeviceLists>,
    /// Who holds the GPU, for held time and memory over time.
    pub(crate) holding: Holding,
    /// Who shares the GPU, for busy time that comes without a process.
    pub(crate) sharing: Sharing,
}

impl DeviceState {
    fn new(lists_interval: Nanos) -> Self {
        Self {
            lists: None,
            holding: Holding::new(lists_interval),
            sharing: Sharing::default(),
        }
    }
}

/// The states of all GPUs, by the index of the GPU's book.
#[derive(Debug)]
pub(crate) struct Devices {
    states: Vec<DeviceState>,
    /// How often process lists are read at least.
    lists_interval: Nanos,
}

impl Devices {
    pub(crate) const fn new(lists_interval: Nanos) -> Self {
        Self {
            states: Vec::new(),
            lists_interval,
        }
    }

    /// The state of a GPU, if any list of it was ever taken.
    pub(crate) fn get(&self, book: usize) -> Option<&DeviceState> {
        self.states.get(book)
    }

    /// The state of a GPU; made if there is none.
    pub(crate) fn of(&mut self, book: usize) -> &mut DeviceState {
        while self.states.len() <= book {
            self.states.push(DeviceState::new(self.lists_interval));
        }
        &mut self.states[book]
    }

    /// All states, in the order of the books. Books without a state are at the end.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &DeviceState> {
        self.states.iter()
    }

    /// All states, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut DeviceState> {
        self.states.iter_mut()
    }

    /// A process replaced its image, so its contexts are gone. Returns whether it held a GPU.
    pub(crate) fn executed(&mut self, process: ProcessId, at: BootTime) -> bool {
        let mut held = false;
        for device in &mut self.states {
            held |= device.holding.executed(process, at);
            device.sharing.executed(process, at);
        }
        held
    }

    /// Forgets lists that are too old to say anything of now.
    pub(crate) fn forget_old_lists(&mut self, now: BootTime) {
        for device in &mut self.states {
            device
                .lists
                .take_if(|lists| now.since(lists.at) >= LISTS_HOLD);
        }
    }
}
