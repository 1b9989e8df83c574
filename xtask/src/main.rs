//! gpuacct build system.
fn main() {}
