//! The outside world, turned into plain data.
//!
//! A source may fail, block, give wrong data or start late. The rest of the agent sees only its
//! observations, each with a time, and its state. No source imports another source or an output.

pub mod clock;
pub mod gpu;
pub(crate) mod health;
pub mod identity;
mod io;
pub mod kernel;
pub mod kernel_log;
pub mod procfs;
mod retry;

pub use self::io::Io;
