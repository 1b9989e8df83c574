//! GPUs: what NVIDIA's management library answers, turned into windows of busy time.
//!
//! [`nvml`] is where it begins: a supervisor owns the library and starts a worker, on a thread of its
//! own, for each GPU, since calls may block in the driver. It also reads the GPU's health ([`vitals`]). [`window`] is the arithmetic, without a
//! clock and without NVML, so that every answer the driver could give can be put to it in a test.
//! [`record`] writes down what a real driver answers.

mod accounting;
pub mod answer;
mod cadence;
pub mod calls;
mod cdi;
mod credit;
pub mod cursor;
mod device;
mod driver;
mod energy;
mod engines;
mod fault;
mod health;
mod helper;
mod library;
mod lists;
mod mig;
pub mod namespace;
pub mod nvml;
mod orders;
mod raw;
mod reader;
#[cfg(test)]
mod reader_tests;
pub mod record;
mod register;
mod release;
mod reopening;
mod requests;
mod row_clock;
pub mod sample_clock;
mod schedule;
mod slot;
mod slots;
mod spacing;
mod supervisor;
pub mod survey;
mod unobserved;
mod vitals;
pub mod window;
mod worker;
mod xid_events;

use nvml_wrapper::error::NvmlError;

/// Asks again where the answer outgrew the room that was made for it: NVML is asked for the size
/// first, and the world moves on in between.
fn retried<T>(mut ask: impl FnMut() -> Result<T, NvmlError>) -> Result<T, NvmlError> {
    const TRIES: u32 = 3;
    let mut answer = ask();
    for _ in 1..TRIES {
        if !matches!(answer, Err(NvmlError::InsufficientSize(_))) {
            break;
        }
        answer = ask();
    }
    answer
}

/// For the fuzz target: what a specification of CDI says.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub fn fuzz_cdi(file: &[u8]) {
    cdi::fuzz(file);
}
