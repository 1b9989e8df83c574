//! Every target over its seeds, and over some bytes that are none of its business.

use std::fs;
use std::path::Path;

use gpuacct_fuzz::TARGETS;

#[test]
fn every_target_takes_its_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for target in TARGETS {
        let mut inputs = vec![
            Vec::new(),
            vec![0; 64],
            vec![0xff; 64],
            (0..=u8::MAX).cycle().take(target.most).collect(),
        ];
        if let Ok(folder) = fs::read_dir(seeds.join(target.name)) {
            for entry in folder {
                let path = entry.expect("a folder can be read").path();
                inputs.push(fs::read(path).expect("a seed can be read"));
            }
        }
        for input in inputs {
            (target.run)(&input);
        }
    }
}

/// `cargo xtask fuzz` knows the targets by their folders.
#[test]
fn every_target_has_a_folder_of_seeds_and_every_folder_a_target() {
    let folder = |name| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(name)
    };
    for target in TARGETS {
        assert!(folder(target.name).is_dir(), "{}", target.name);
    }
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for entry in fs::read_dir(seeds).expect("the seeds are there") {
        let name = entry.expect("a folder can be read").file_name();
        let name = name.to_string_lossy();
        assert!(gpuacct_fuzz::target(&name).is_some(), "{name}");
    }
}
