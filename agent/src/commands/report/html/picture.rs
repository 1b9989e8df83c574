//! The picture of a report: what became of the GPUs' time in each hour, day or month, as SVG.
//!
//! A column's height is all of its GPU time. Owners are at the bottom, the largest first; time that nobody
//! owns is above them. The picture takes its colours from the page's style, and says in words what it shows.

use svg::Node as _;
use svg::node::element::path::Data;
use svg::node::element::{Description, Line, Path, Rectangle, SVG, Text, Title};

use super::super::page::short;
use super::super::print::hours;
use crate::core::model::Nanos;
use crate::drawing::{block, percent};
use crate::report::tally::{Dimension, Timeline};
use crate::words::shown;

/// Units of the picture's width, for each column.
const COLUMN: u64 = 100;
/// Units of the picture's height, ten a pixel.
const HEIGHT: u64 = 2_200;
/// Where the axes and their words are, in pixels.
const AXIS: u64 = HEIGHT / 10;
const ABOVE: u64 = 8;
const WORDS: u64 = AXIS + ABOVE + 15;
const ALL: u64 = AXIS + ABOVE + 20;
/// How wide the scale is, in pixels.
const SCALE: u64 = 56;
/// Words below the columns at most.
const MOST_WORDS: usize = 8;
/// The columns of a name in the words of the picture.
const NAME_WIDTH: usize = 120;
/// Nanoseconds of an hour.
const HOUR: u64 = 3_600_000_000_000;

/// Time that has a colour of its own.
#[derive(Debug)]
pub(super) struct Band {
    /// The class of its colour.
    pub(super) class: String,
    pub(super) name: String,
    /// Its time in each column.
    pub(super) times: Vec<Nanos>,
}

impl Band {
    /// All of its time.
    pub(super) fn sum(&self) -> Nanos {
        self.times.iter().copied().sum()
    }

    fn words(&self, time: Nanos) -> String {
        format!(
            "{}: {} h",
            shown(&self.name, NAME_WIDTH),
            short(hours(time, 9))
        )
    }
}

/// Draws bands, from the bottom up, and says what the picture shows. Nothing if there is nothing to draw.
pub(super) fn draw(timeline: &Timeline, bands: &[Band]) -> Option<(String, String)> {
    let count = timeline.columns.len();
    let sum = |at: usize| -> Nanos { bands.iter().map(|band| band.times[at]).sum() };
    let most = (0..count).map(sum).max()?;
    if most.is_zero() {
        return None;
    }
    let (step, top) = scale(most);
    let width = u64::try_from(count).unwrap_or(u64::MAX / COLUMN) * COLUMN;
    let mut plot = SVG::new()
        .set("width", "100%")
        .set("height", AXIS)
        .set("y", ABOVE)
        .set("viewBox", (0, 0, width, HEIGHT))
        .set("preserveAspectRatio", "none")
        .set("class", "plot");
    let mut below = vec![Nanos::ZERO; count];
    for band in bands {
        append_band(&mut plot, band, &mut below, top);
    }
    for (at, column) in (0..).zip(&timeline.columns) {
        let place = usize::try_from(at).unwrap_or(usize::MAX);
        let parts = bands.iter().filter(|band| !band.times[place].is_zero());
        let parts = parts.map(|band| band.words(band.times[place]));
        let words: Vec<String> = [column.name.to_string()].into_iter().chain(parts).collect();
        plot.append(
            Rectangle::new()
                .set("class", "column")
                .set("x", at * COLUMN)
                .set("width", COLUMN)
                .set("height", HEIGHT)
                .add(Title::new(words.join("\n"))),
        );
    }
    let parts: Vec<String> = bands.iter().map(|band| band.words(band.sum())).collect();
    let unit = &timeline.unit;
    let mut picture = SVG::new()
        .set("class", "picture")
        .set("role", "img")
        .set("width", "100%")
        .set("height", ALL)
        .add(Title::new(format!("GPU hours by {unit}")))
        .add(Description::new().add(svg::node::Text::new(format!("{}.", parts.join(", ")))))
        .add(plot);
    // Beside the picture, whose width is a part of the page's.
    let mut scale = SVG::new()
        .set("class", "scale")
        .set("aria-hidden", "true")
        .set("width", SCALE)
        .set("height", ALL);
    append_steps(&mut picture, &mut scale, step, top);
    append_times(&mut picture, timeline);
    Some((format!("{scale}{picture}"), format!("GPU hours by {unit}")))
}

/// The distance of the lines and the top of the picture: at least `most`, in nanoseconds.
fn scale(most: Nanos) -> (u64, u64) {
    // From a ten-thousandth of an hour on. A month of many thousands of GPUs is far below the end.
    let steps = (0..).map(|power| 10_u64.saturating_pow(power).saturating_mul(HOUR / 10_000));
    let steps = steps.flat_map(|step| [1, 2, 5].map(|times| step.saturating_mul(times)));
    let mut steps = steps.take_while(|step| *step < u64::MAX / 8);
    let step = steps.find(|step| most.0.div_ceil(*step) <= 5);
    let step = step.unwrap_or(u64::MAX / 8);
    (step, most.0.div_ceil(step).saturating_mul(step))
}

/// A time as a part of the height.
fn height(time: Nanos, top: u64) -> u64 {
    let whole = u128::from(top.max(1));
    let height = (u128::from(time.0) * u128::from(HEIGHT) + whole / 2) / whole;
    u64::try_from(height).unwrap_or(HEIGHT).min(HEIGHT)
}

/// A band on top of those that are there.
fn append_band(plot: &mut SVG, band: &Band, below: &mut [Nanos], top: u64) {
    let mut data = Data::new();
    for (at, (below, time)) in (0_u64..).zip(below.iter_mut().zip(&band.times)) {
        // Edges are rounded and not heights, so that bands leave no room between them.
        let bottom = height(*below, top);
        *below = below.plus(*time);
        let upper = height(*below, top);
        if upper > bottom {
            let corner = (at * COLUMN, HEIGHT - upper);
            // Columns are apart, so that days can be told from each other.
            data = block(data, corner, (COLUMN - COLUMN / 12, upper - bottom));
        }
    }
    if !data.is_empty() {
        let words = band.words(band.sum());
        let path = Path::new()
            .set("class", &*band.class)
            .set("d", data)
            .add(Title::new(words));
        plot.append(path);
    }
}

/// The lines across the picture, with what they mean.
fn append_steps(picture: &mut SVG, scale: &mut SVG, step: u64, top: u64) {
    for at in (1..=top / step).map(|number| number * step) {
        let y = ABOVE + AXIS - height(Nanos(at), top) / 10;
        picture.append(
            Line::new()
                .set("class", "tick")
                .set("x1", 0)
                .set("x2", "100%")
                .set("y1", y)
                .set("y2", y),
        );
        scale.append(
            Text::new(format!("{} h", hours(Nanos(at), 4)))
                .set("class", "word")
                .set("x", SCALE - 6)
                .set("y", y + 4)
                .set("text-anchor", "end"),
        );
    }
}

/// The names of some columns.
fn append_times(picture: &mut SVG, timeline: &Timeline) {
    let count = timeline.columns.len();
    let each = count.div_ceil(MOST_WORDS).max(1);
    let wide = u64::try_from(2 * count).unwrap_or(u64::MAX);
    for at in (0..count).step_by(each) {
        let name = &*timeline.columns[at].name;
        let words = match timeline.unit {
            // The day is said where it begins.
            Dimension::Hour => match (at, name.get(5..10), name.get(11..16)) {
                (0, Some(day), Some(hour)) => format!("{day} {hour}"),
                (_, _, Some(hour)) => hour.to_owned(),
                _ => name.to_owned(),
            },
            Dimension::Day => name.get(5..).unwrap_or(name).to_owned(),
            _ => name.to_owned(),
        };
        let middle = u64::try_from(2 * at + 1).unwrap_or(u64::MAX);
        picture.append(
            Text::new(words)
                .set("class", "word")
                .set(
                    "x",
                    if at == 0 {
                        "0".to_owned()
                    } else {
                        percent(middle, wide)
                    },
                )
                .set("y", WORDS)
                .set("text-anchor", if at == 0 { "start" } else { "middle" }),
        );
    }
}
