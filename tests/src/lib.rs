//! What the tests that need the real thing have in common: daemons that they start and stop, and
//! the rule for what a machine lacks.

pub mod docker;
pub mod requirement;
