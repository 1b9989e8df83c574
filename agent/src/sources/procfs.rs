//! Scans of /proc.
