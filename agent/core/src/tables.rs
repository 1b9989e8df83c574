//! The core's hash tables: the standard library's with another hash function.
//!
//! Most keys are containers' ids of 64 digits, or hold one, and each is looked up several times a
//! commit. The standard hash takes a good part of that; this one is made for speed, with a seed of
//! the process's own, so that tenants, who choose names, cannot cause collisions.

use foldhash::fast::RandomState;

/// A hash map with a randomly seeded hash.
pub(super) type HashMap<K, V> = std::collections::HashMap<K, V, RandomState>;
/// A hash set with a randomly seeded hash.
pub(super) type HashSet<T> = std::collections::HashSet<T, RandomState>;
