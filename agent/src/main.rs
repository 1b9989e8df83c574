//! gpuacct.
fn main() {}
