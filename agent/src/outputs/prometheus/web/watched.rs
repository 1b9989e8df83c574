//! What a file was like when it was read, so that a change of it is noticed.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Files, and what they were like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamps(Vec<(PathBuf, Option<Stamp>)>);

/// Identity, length and times of a file. A link is followed: in a mounted ConfigMap or Secret the
/// kubelet moves the link `..data`, and each file is another one then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamps {
    /// What the files are like now. One that is not there has no stamp.
    pub(super) fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let stamps = paths.into_iter().map(|path| (path.to_owned(), stamp(path)));
        Self(stamps.collect())
    }

    /// These and those of other files.
    pub(super) fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Whether all of them are what they were.
    pub(super) fn are_true(&self) -> bool {
        self.0.iter().all(|(path, known)| stamp(path) == *known)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: found.dev(),
        inode: found.ino(),
        bytes: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_moved_link_of_a_config_map_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (generation, text) in [("..1", "same"), ("..2", "same")] {
            fs::create_dir(at(generation)).unwrap();
            fs::write(at(generation).join("web.yml"), text).unwrap();
        }
        symlink("..1", at("..data")).unwrap();
        symlink("..data/web.yml", at("web.yml")).unwrap();
        let (file, absent) = (at("web.yml"), at("absent"));
        let stamps = Stamps::of([&*file, &*absent]);
        assert!(stamps.are_true());
        // As the kubelet does it.
        symlink("..2", at("..tmp")).unwrap();
        fs::rename(at("..tmp"), at("..data")).unwrap();
        assert!(!stamps.are_true());
        let stamps = Stamps::of([&*file, &*absent]);
        fs::write(&absent, "").unwrap();
        assert!(!stamps.are_true(), "a file that comes is a change");
        let stamps = Stamps::of([&*file, &*absent]);
        fs::write(&file, "longer than before").unwrap();
        assert!(!stamps.are_true());
    }
}
