//! Figures as they are printed: Markdown, a table of goals and a paragraph of particulars for each
//! benchmark.

use std::fmt;
use std::time::Duration;

/// One figure.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// What was found.
    pub(crate) found: String,
    /// What we want, and whether it is so.
    pub(crate) goal: Option<(&'static str, bool)>,
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            found: found.into(),
            goal: None,
        }
    }

    pub(crate) fn goal(mut self, goal: &'static str, holds: bool) -> Self {
        self.goal = Some((goal, holds));
        self
    }
}

/// Prints rows as a table.
pub(crate) fn table(title: &str, rows: &[Row]) {
    println!("\n### {title}\n");
    println!("| figure | found | goal | holds |");
    println!("|---|---|---|---|");
    for row in rows {
        let (goal, holds) = match row.goal {
            Some((goal, true)) => (goal, "yes"),
            Some((goal, false)) => (goal, "**no**"),
            None => ("", ""),
        };
        println!("| {} | {} | {goal} | {holds} |", row.what, row.found);
    }
}

/// The median and the range of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) least: f64,
    pub(crate) median: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// None of nothing.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let upper = *figures.get(middle)?;
        let median = if figures.len().is_multiple_of(2) {
            f64::midpoint(figures[middle - 1], upper)
        } else {
            upper
        };
        Some(Self {
            least: figures[0],
            median,
            most: figures[figures.len() - 1],
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            least,
            median,
            most,
        } = self;
        match f.precision() {
            Some(digits) => write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})"),
            None => write!(f, "{median} ({least} to {most})"),
        }
    }
}

/// The smallest of the sorted `times` that is no less than `percent` of them.
pub(crate) fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "for people, to a few digits")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// KiB as MB (10⁶ bytes), in which the goals are.
pub(crate) fn megabytes(kib: u64) -> f64 {
    float(kib) * 1024.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads() {
        for (figures, expected) in [
            (vec![], None),
            (vec![3.0], Some((3.0, 3.0, 3.0))),
            (vec![3.0, 1.0, 2.0], Some((1.0, 2.0, 3.0))),
            (vec![4.0, 1.0, 2.0, 3.0], Some((1.0, 2.5, 4.0))),
        ] {
            let found = Spread::of(figures.clone());
            let found = found.map(|it| (it.least, it.median, it.most));
            assert_eq!(found, expected, "{figures:?}");
        }
    }

    #[test]
    fn percentiles() {
        let times: Vec<_> = (1..=1_000).map(Duration::from_micros).collect();
        for (percent, micros) in [(0, 1), (50, 500), (99, 990), (100, 1_000)] {
            let expected = Duration::from_micros(micros);
            assert_eq!(percentile(&times, percent), expected, "{percent}");
        }
        assert_eq!(percentile(&times[..1], 99), times[0]);
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }
}
