//! Names for containers.
