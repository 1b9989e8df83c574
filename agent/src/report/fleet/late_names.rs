//! Time that was published before a container had names.
//!
//! A container that is not named in time is published under its id, in the namespace `(unresolved)`. Once it
//! is named, a second series of it begins, and the first one stays as it is. Both have the same
//! `container_id`, so the bill gives both to the name, as the ledger does.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::families::Owner;
use crate::core::amounts::Amounts;
use crate::core::model::{NONE, UNRESOLVED};

/// What each owner used of each GPU.
pub(super) type Used = BTreeMap<(Arc<str>, Owner), Hours>;

/// What was used in windows, in the order of their last hours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Hours(Vec<(i64, Amounts)>);

impl Hours {
    /// The amounts of a window.
    pub(super) fn of_mut(&mut self, hour: i64) -> &mut Amounts {
        let at = match self.0.binary_search_by_key(&hour, |(hour, _)| *hour) {
            Ok(at) => at,
            Err(at) => {
                self.0.insert(at, (hour, Amounts::ZERO));
                at
            }
        };
        &mut self.0[at].1
    }
}

impl IntoIterator for Hours {
    type Item = (i64, Amounts);
    type IntoIter = std::vec::IntoIter<(i64, Amounts)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Gives what containers used before they were named to their names. A container with two names keeps what
/// it used without one.
pub(super) fn give_to_names(used: Used) -> Used {
    let mut names: HashMap<Arc<str>, Option<Owner>> = HashMap::new();
    for (_, owner) in used.keys() {
        if let Some(id) = id_of(owner)
            && !is_unnamed(owner)
        {
            names
                .entry(id)
                .and_modify(|name| *name = name.take().filter(|name| name == owner))
                .or_insert_with(|| Some(owner.clone()));
        }
    }
    let mut named = Used::new();
    for ((gpu, owner), hours) in used {
        let name = id_of(&owner)
            .filter(|_| is_unnamed(&owner))
            .and_then(|id| names.get(&id).cloned().flatten());
        let of_owner = named.entry((gpu, name.unwrap_or(owner))).or_default();
        for (hour, amounts) in hours {
            *of_owner.of_mut(hour) += amounts;
        }
    }
    named
}

/// The id of a container that has one.
fn id_of(owner: &Owner) -> Option<Arc<str>> {
    match owner {
        Owner::Container { container_id, .. } if !matches!(&**container_id, NONE | UNRESOLVED) => {
            Some(Arc::clone(container_id))
        }
        _ => None,
    }
}

fn is_unnamed(owner: &Owner) -> bool {
    matches!(owner, Owner::Container { namespace, .. } if **namespace == *UNRESOLVED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::model::Nanos;

    fn container(namespace: &str, id: &str) -> Owner {
        Owner::Container {
            namespace: namespace.into(),
            pod: "pod".into(),
            container: "main".into(),
            pod_uid: "uid".into(),
            container_id: id.into(),
        }
    }

    fn used(rows: &[(&str, Owner, u64)]) -> Used {
        let amounts = |busy| Amounts {
            busy: Nanos(busy),
            ..Amounts::ZERO
        };
        let rows = rows.iter().map(|(gpu, owner, busy)| {
            let hours = Hours(vec![(7, amounts(*busy))]);
            (((*gpu).into(), owner.clone()), hours)
        });
        rows.collect()
    }

    #[test]
    fn what_was_used_before_a_late_name_was_billed_to_nobody() {
        let before = used(&[
            ("g", container(UNRESOLVED, "one"), 5),
            ("g", container("ml", "one"), 7),
            // On this GPU it has no name yet.
            ("h", container(UNRESOLVED, "one"), 3),
            ("g", container(UNRESOLVED, "never named"), 2),
        ]);
        let expected = used(&[
            ("g", container("ml", "one"), 12),
            ("h", container("ml", "one"), 3),
            ("g", container(UNRESOLVED, "never named"), 2),
        ]);
        assert_eq!(give_to_names(before), expected);
    }

    #[test]
    fn nothing_is_guessed_where_an_id_has_two_names_or_none() {
        let before = used(&[
            ("g", container(UNRESOLVED, "two"), 5),
            ("g", container("ml", "two"), 7),
            ("h", container("batch", "two"), 7),
            ("g", container(UNRESOLVED, NONE), 5),
            ("g", container("pods", NONE), 7),
        ]);
        assert_eq!(give_to_names(before.clone()), before);
    }
}
