//! The marker file in the agent's runtime directory: it says that everything published is in that
//! store.
//!
//! A store whose directory cannot be written holds less than was published, and cannot say so. An
//! agent that went on from it would show less than the one before it. So an agent goes on only where
//! it finds the mark, which names the store and the life of its series, and the mark is taken away
//! *before* anything is published that the store does not hold. What is missing fails safe: without
//! a mark the series start at 0. A mark that would have to be *made* when the store fails could not
//! be made on a full disk.
//!
//! The directory is the socket's, which lives as long as the boot, as series do. A service manager
//! that removes it when the agent stops (`RuntimeDirectory=` without `RuntimeDirectoryPreserve=`)
//! makes every restart start at 0.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The marker file.
#[derive(Clone, Debug)]
pub struct MarkerFile {
    path: PathBuf,
}

/// Content of a marker file: a store and a life in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifeId {
    /// The store's random name.
    pub store: String,
    /// The life's number.
    pub life: i64,
}

impl LifeId {
    fn text(&self) -> String {
        format!("{} {}\n", self.store, self.life)
    }
}

impl MarkerFile {
    /// A mark beside the agent's socket.
    #[must_use]
    pub fn beside(socket: &Path) -> Self {
        Self {
            path: socket.with_extension("kept"),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is there and names this.
    #[must_use]
    pub fn names(&self, named: &LifeId) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == named.text())
    }

    /// Makes it, whole or not at all.
    ///
    /// # Errors
    ///
    /// The directory cannot be written. Nothing is wrong then but that a restart begins at 0.
    pub fn set(&self, named: &LifeId) -> io::Result<()> {
        let beside = self.path.with_extension("kept~");
        fs::write(&beside, named.text())?;
        fs::rename(&beside, &self.path)
    }

    /// Takes it away.
    ///
    /// # Errors
    ///
    /// It is still there, and a restart would go on from what the store holds.
    pub fn clear(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // A directory that takes no change may have files that do.
                fs::write(&self.path, "").map_err(|_| error)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_names_one_life_of_one_store() {
        let directory = tempfile::tempdir().expect("a directory");
        let mark = MarkerFile::beside(&directory.path().join("gpuacct.sock"));
        let named = |store: &str, life| LifeId {
            store: store.into(),
            life,
        };
        assert!(!mark.names(&named("a", 1)), "there is none");
        assert!(mark.clear().is_ok(), "nor need there be one");
        mark.set(&named("a", 1)).expect("it can be made");
        assert!(mark.names(&named("a", 1)));
        for other in [named("a", 2), named("b", 1), named("a", 11)] {
            assert!(!mark.names(&other), "{other:?}");
        }
        mark.clear().expect("it can be taken away");
        assert!(!mark.names(&named("a", 1)));
        assert_eq!(
            fs::read_dir(directory.path()).map(Iterator::count).ok(),
            Some(0)
        );
    }
}
