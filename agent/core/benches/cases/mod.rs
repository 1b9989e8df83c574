//! How `cargo xtask bench --guard` runs the work whose instructions it counts.
//!
//! A regression guard must not depend on a clock or on how busy a machine is. So each case is run
//! under callgrind, which counts the instructions between the entry and the return of [`measured`].
//! What comes before is preparation and is not counted.
//!
//! `guard CASE` runs one case. `guard` without a name lists them, one a line.

/// A case: its name, and what prepares it and returns the work to be counted.
pub(crate) type Case = (&'static str, fn() -> Box<dyn FnMut()>);

/// Runs the case that the command line names, or lists all of them.
pub(crate) fn run(cases: &[Case]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // `cargo bench` adds `--bench`.
    let Some(wanted) = arguments.iter().find(|argument| !argument.starts_with('-')) else {
        for (name, _) in cases {
            println!("{name}");
        }
        return;
    };
    let Some((_, prepare)) = cases.iter().find(|(name, _)| name == wanted) else {
        eprintln!("there is no case {wanted}");
        std::process::exit(2);
    };
    let mut work = prepare();
    measured(&mut *work);
}

/// What callgrind counts: nothing before its entry, nothing after its return.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}
