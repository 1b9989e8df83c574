//! The pid namespace that NVML's pids belong to: the initial one.

use std::path::Path;
use std::sync::Arc;

/// The initial pid namespace: its inode number is fixed in the kernel (`PROC_PID_INIT_INO`).
pub const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// The pid namespace of this process, if it is not the initial one. If it cannot be read, it is
/// assumed to be the initial one, because a wrong warning would not help.
pub(super) fn pid_namespace() -> Option<Arc<str>> {
    other_namespace(&std::fs::read_link(Path::new("/proc/self/ns/pid")).ok()?)
}

fn other_namespace(link: &Path) -> Option<Arc<str>> {
    let name = link.to_string_lossy();
    (name != INITIAL_PID_NAMESPACE).then(|| name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_initial_pid_namespace_is_right() {
        assert_eq!(other_namespace(Path::new("pid:[4026531836]")), None);
        let other = other_namespace(Path::new("pid:[4026532201]"));
        assert_eq!(other.as_deref(), Some("pid:[4026532201]"));
    }
}
