//! The outside world, turned into plain data.
//!
//! A source may fail, block, lie or come late; nothing behind it notices more than an observation
//! with its age and its error. Two sources never import each other, and none imports an output.

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
