//! The health of a simulated GPU: what the driver counts and tells beside time and memory.

use nvml_wrapper_sys::bindings::field_id as id;
use serde::{Deserialize, Serialize};

use crate::abi::code;

/// Health of one GPU. Powers, temperature of the die and clocks follow from what runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Degrees Celsius.
    pub memory_temperature: u64,
    /// NVML's bits for why clocks are reduced. That of an idle GPU comes by itself.
    pub throttle_reasons: u64,
    /// Errors since the driver was loaded: corrected, uncorrected.
    pub ecc_volatile: (u64, u64),
    /// Errors in the GPU's life: corrected, uncorrected.
    pub ecc_aggregate: (u64, u64),
    /// Rows remapped after errors: correctable, uncorrectable.
    pub rows_remapped: (u64, u64),
    /// Rows wait for a reset.
    pub remap_pending: bool,
    /// A row could not be remapped.
    pub remap_failed: bool,
    /// Pages retired after errors: single-bit, double-bit.
    pub pages_retired: (u64, u64),
    /// Pages wait for a reset.
    pub retirement_pending: bool,
    /// Replays on the PCIe link.
    pub pcie_replays: u64,
    /// Kilobytes a second over PCIe: sent, received.
    pub pcie_throughput: (u64, u64),
    /// Errors on NVLink: flits, data, replays, recoveries.
    pub nvlink: [u64; 4],
    /// `nvmlDeviceGpuRecoveryAction_t`.
    pub recovery_action: u64,
    /// Fields of `nvmlDeviceGetFieldValues` that answer a code instead: the field's id and the code.
    /// Functions beside them fail by a [`Fault`](crate::Fault).
    pub field_codes: Vec<(u32, u32)>,
}

impl Default for Health {
    /// A healthy GPU since Ampere: rows are remapped, and pages are not retired.
    fn default() -> Self {
        let retirement = [
            id::NVML_FI_DEV_RETIRED_SBE,
            id::NVML_FI_DEV_RETIRED_DBE,
            id::NVML_FI_DEV_RETIRED_PENDING,
        ];
        Self {
            memory_temperature: 41,
            throttle_reasons: 0,
            ecc_volatile: (0, 0),
            ecc_aggregate: (0, 0),
            rows_remapped: (0, 0),
            remap_pending: false,
            remap_failed: false,
            pages_retired: (0, 0),
            retirement_pending: false,
            pcie_replays: 0,
            pcie_throughput: (0, 0),
            nvlink: [0; 4],
            recovery_action: 0,
            field_codes: retirement.map(|field| (field, code::NOT_SUPPORTED)).into(),
        }
    }
}

impl Health {
    /// The value of a field, or the code that it answers; none if it is none of these.
    pub(crate) fn field(&self, field: u32) -> Option<Result<u64, u32>> {
        let [flits, data, replays, recoveries] = self.nvlink;
        let value = match field {
            id::NVML_FI_DEV_MEMORY_TEMP => self.memory_temperature,
            id::NVML_FI_DEV_ECC_SBE_VOL_TOTAL => self.ecc_volatile.0,
            id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL => self.ecc_volatile.1,
            id::NVML_FI_DEV_ECC_SBE_AGG_TOTAL => self.ecc_aggregate.0,
            id::NVML_FI_DEV_ECC_DBE_AGG_TOTAL => self.ecc_aggregate.1,
            id::NVML_FI_DEV_REMAPPED_COR => self.rows_remapped.0,
            id::NVML_FI_DEV_REMAPPED_UNC => self.rows_remapped.1,
            id::NVML_FI_DEV_REMAPPED_PENDING => self.remap_pending.into(),
            id::NVML_FI_DEV_REMAPPED_FAILURE => self.remap_failed.into(),
            id::NVML_FI_DEV_RETIRED_SBE => self.pages_retired.0,
            id::NVML_FI_DEV_RETIRED_DBE => self.pages_retired.1,
            id::NVML_FI_DEV_RETIRED_PENDING => self.retirement_pending.into(),
            id::NVML_FI_DEV_PCIE_REPLAY_COUNTER => self.pcie_replays,
            id::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL => flits,
            id::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL => data,
            id::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL => replays,
            id::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL => recoveries,
            id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION => self.recovery_action,
            _ => return None,
        };
        let mut codes = self.field_codes.iter();
        Some(match codes.find(|(of, _)| *of == field) {
            Some((_, code)) => Err(*code),
            None => Ok(value),
        })
    }

    /// Errors by NVML's type (corrected, uncorrected) and counter (volatile, aggregate).
    pub(crate) fn ecc(&self, kind: u32, counter: u32) -> Result<u64, u32> {
        match (kind, counter) {
            (0, 0) => Ok(self.ecc_volatile.0),
            (1, 0) => Ok(self.ecc_volatile.1),
            (0, 1) => Ok(self.ecc_aggregate.0),
            (1, 1) => Ok(self.ecc_aggregate.1),
            _ => Err(code::INVALID_ARGUMENT),
        }
    }
}
