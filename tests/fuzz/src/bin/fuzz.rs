//! libFuzzer's program: it feeds the target that `GPUACCT_FUZZ_TARGET` names. One program for all
//! targets, since linking it takes longer than anything else.

#![no_main]

use std::sync::LazyLock;

use gpuacct_fuzz::{Target, target};

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("GPUACCT_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("GPUACCT_FUZZ_TARGET names no target: {name:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| -> libfuzzer_sys::Corpus {
    if data.len() > TARGET.most {
        return libfuzzer_sys::Corpus::Reject;
    }
    (TARGET.run)(data);
    libfuzzer_sys::Corpus::Keep
});
