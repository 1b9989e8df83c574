//! A layer of an image: an archive whose bytes depend on nothing but what is in it.
//!
//! Entries are in the order of their paths, belong to root and have one time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tar::{Builder, EntryType, Header};

use crate::dist;

/// What is at a path.
#[derive(Debug)]
enum Entry {
    Folder,
    File { mode: u32, bytes: Vec<u8> },
    Link { target: PathBuf },
}

/// An archive that is being made.
#[derive(Debug)]
pub(crate) struct Layer {
    epoch: u64,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Layer {
    /// An empty one, whose entries all have this time.
    pub(crate) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            entries: BTreeMap::new(),
        }
    }

    /// Adds a file, and the folders above it.
    pub(crate) fn add_file(&mut self, path: &Path, mode: u32, bytes: Vec<u8>) {
        self.add(path, Entry::File { mode, bytes });
    }

    /// Adds a symbolic link, and the folders above it.
    pub(crate) fn add_link(&mut self, path: &Path, target: &Path) {
        let target = target.to_owned();
        self.add(path, Entry::Link { target });
    }

    /// Adds an empty folder, and those above it.
    pub(crate) fn add_folder(&mut self, path: &Path) {
        self.add(path, Entry::Folder);
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        let above = path.ancestors().skip(1);
        for folder in above.filter(|folder| !folder.as_os_str().is_empty()) {
            self.entries
                .entry(folder.to_owned())
                .or_insert(Entry::Folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Adds everything below a folder of this machine, as `place`.
    pub(crate) fn add_tree(&mut self, folder: &Path, place: &Path) -> Result<()> {
        for path in dist::entries(folder)? {
            let place = place.join(path.file_name().unwrap_or_default());
            let about = fs::symlink_metadata(&path)
                .with_context(|| format!("cannot look at {}", path.display()))?;
            if about.is_dir() {
                self.add_folder(&place);
                self.add_tree(&path, &place)?;
            } else if about.is_symlink() {
                let target = fs::read_link(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                self.add_link(&place, &target);
            } else {
                let mode = about.permissions().mode() & 0o777;
                self.add_file(&place, mode, dist::read(&path)?);
            }
        }
        Ok(())
    }

    /// The archive.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        let mut archive = Builder::new(Vec::new());
        for (path, entry) in self.entries {
            let mut header = Header::new_gnu();
            header.set_mtime(self.epoch);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            let what = format!("{} does not fit into an archive", path.display());
            match entry {
                Entry::Folder => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(0o755);
                    archive
                        .append_data(&mut header, path, &[][..])
                        .context(what)?;
                }
                Entry::File { mode, bytes } => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_mode(mode);
                    header.set_size(u64::try_from(bytes.len())?);
                    archive
                        .append_data(&mut header, path, &*bytes)
                        .context(what)?;
                }
                Entry::Link { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    archive
                        .append_link(&mut header, path, target)
                        .context(what)?;
                }
            }
        }
        archive.into_inner().context("cannot end an archive")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_in_which_it_is_filled_does_not_matter() {
        let fill = |paths: [&str; 2]| {
            let mut layer = Layer::new(7);
            for path in paths {
                layer.add_file(Path::new(path), 0o644, path.into());
            }
            layer.add_link(Path::new("lib"), Path::new("usr/lib"));
            layer.finish().unwrap()
        };
        let bytes = fill(["usr/b", "usr/a"]);
        assert_eq!(bytes, fill(["usr/a", "usr/b"]));
        let mut archive = tar::Archive::new(&*bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 7);
            entry.path().unwrap().display().to_string()
        });
        let paths: Vec<String> = entries.collect();
        assert_eq!(paths, ["lib", "usr", "usr/a", "usr/b"]);
    }
}
