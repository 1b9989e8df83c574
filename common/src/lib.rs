//! The bytes that cross the kernel boundary.
#![no_std]
