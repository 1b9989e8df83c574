//! The bytes that cross the boundary between the eBPF object and the agent.
//!
//! Both sides compile this crate, so a record, a counter's place and a global's name are written
//! down once. It refuses to hold anything that needs an allocator, the standard library or a
//! pointer: what crosses is plain data of fixed width, in the machine's byte order.
//!
//! Times are nanoseconds of the boot clock (`CLOCK_BOOTTIME`).

#![no_std]

pub mod counter;
pub mod event;
pub mod global;
