//! Checks that the tests of one package and those of all packages share every dependency that they
//! build: `tests/features` sees to it.

use std::collections::BTreeSet;

use super::{Options, packages};
use crate::command::Cmd;
use crate::workspace;

/// What cargo builds for the tests of these packages: each dependency with its features.
fn built_for(packages: &[&str]) -> BTreeSet<String> {
    let tree = Cmd::new(workspace::cargo())
        .args(["tree", "--locked", "--edges", "normal,build,dev"])
        .args(["--prefix", "none", "--format", "{p} {f}"])
        .args(packages)
        .read()
        .expect("cargo knows the dependencies");
    let lines = tree.lines().map(|line| line.trim_end_matches(" (*)"));
    lines.map(str::to_owned).collect()
}

#[test]
fn tests_of_one_package_build_no_dependency_by_themselves() {
    let of = |fast| Options {
        fast,
        slow: false,
        libtest: false,
        arguments: Vec::new(),
        required: None,
    };
    let all = built_for(packages(&of(false)));
    for some in [
        packages(&of(true)),
        &["--package", "gpuacct"],
        &["--package", "gpuacct-tests"],
    ] {
        let some_packages = built_for(some);
        let alone: Vec<_> = some_packages.difference(&all).collect();
        assert!(
            alone.is_empty(),
            "{some:?} builds these by itself; tests/features/Cargo.toml should ask for the features \
             that the rest of the workspace asks for: {alone:#?}"
        );
    }
}
