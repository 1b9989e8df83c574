//! Tests.

pub mod requirement;
