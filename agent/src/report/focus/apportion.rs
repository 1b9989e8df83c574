//! Divides a whole number among parts by the largest remainder.
//!
//! `core::amounts::split` divides by a running sum, in which a part depends on those before it. A charge
//! must not depend on the order of rows.

/// Divides `whole` in proportion to `weights`, all of it. Each part is its exact share rounded down, or one
/// more for those whose share lost most by that; of equal ones for the earlier. Nothing is handed out where
/// all weights are zero.
///
/// `whole` times the sum of the weights must fit 128 bits: hours in trillionths and nanoseconds do for a
/// hundred years.
pub(super) fn apportion(whole: u128, weights: &[u128]) -> Vec<u128> {
    let sum: u128 = weights.iter().sum();
    if sum == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: &u128| whole.saturating_mul(*weight);
    let mut parts: Vec<u128> = weights.iter().map(|weight| exact(weight) / sum).collect();
    let lost = |at: &usize| std::cmp::Reverse(exact(&weights[*at]) % sum);
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(lost);
    let given: u128 = parts.iter().sum();
    let rest = usize::try_from(whole.saturating_sub(given)).unwrap_or(usize::MAX);
    for at in order.into_iter().take(rest) {
        parts[at] += 1;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_remainder_gets_what_is_left() {
        for (whole, weights, parts) in [
            (10, &[1, 1, 1][..], &[4, 3, 3][..]),
            (10, &[1, 5, 0], &[2, 8, 0]),
            (1, &[1, 2], &[0, 1]),
            (7, &[7], &[7]),
            (5, &[0, 0], &[0, 0]),
            (5, &[], &[]),
        ] {
            assert_eq!(apportion(whole, weights), parts);
        }
    }

    proptest! {
        #[test]
        fn parts_add_up_and_none_strays_by_one(
            whole in 0_u128..1 << 60,
            weights in prop::collection::vec(0_u128..1 << 50, 1..20),
        ) {
            let parts = apportion(whole, &weights);
            let sum: u128 = weights.iter().sum();
            prop_assume!(sum > 0);
            prop_assert_eq!(parts.iter().sum::<u128>(), whole);
            for (part, weight) in parts.iter().zip(&weights) {
                prop_assert!((part * sum).abs_diff(whole * weight) < sum);
                prop_assert!(*weight > 0 || *part == 0);
            }
        }
    }
}
