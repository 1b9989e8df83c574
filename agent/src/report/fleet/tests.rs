//! Tests of `fleet`, against a store that answers what it is told to.
