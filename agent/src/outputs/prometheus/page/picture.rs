//! The picture of a GPU's last hour: what became of its time, a band for each owner, as SVG.
//!
//! The whole height is the whole GPU. Bands of owners stand at the bottom, the largest first. Time that
//! was not observed hangs from the top. What is between them is idle. Time that is not known has a
//! ground of its own. The picture takes its colours from the page's style, and says in words what it
//! shows.

use svg::Node as _;
use svg::node::element::path::Data;
use svg::node::element::{Description, Line, Path, Rectangle, SVG, Text, Title};

use super::history::{Hour, OwnerKey, Stretch};
use crate::core::model::Nanos;
use crate::drawing::{block, percent};
use crate::figures::duration;
use crate::words::shown;

/// Units of the picture, one a second: as wide as an hour.
const WIDTH: u64 = 3_600;
/// Units of the picture's height, ten a pixel.
const HEIGHT: u64 = 1_200;
/// Where the axis and its words are, in pixels.
const AXIS: u64 = HEIGHT / 10;
const WORDS: u64 = AXIS + 15;
const ALL: u64 = AXIS + 20;
/// Seconds that are not known and are worth being shown.
const LEAST_UNKNOWN: u64 = 15;
/// The columns of a name in the words of the picture.
const NAME_WIDTH: usize = 120;

/// An owner with a band of its own.
#[derive(Debug)]
pub(super) struct Band<'a> {
    pub(super) owner: &'a OwnerKey,
    pub(super) class: String,
    pub(super) name: String,
    pub(super) hour: Nanos,
}

/// Draws an hour.
pub(super) fn draw(gpu: &str, hour: &Hour, bands: &[Band<'_>], total: &Stretch) -> String {
    let places = places(hour);
    let known_from = places.first().map_or(WIDTH, |place| place.from);
    let known_to = places.last().map_or(WIDTH, |place| place.to);
    let mut plot = SVG::new()
        .set("width", "100%")
        .set("height", AXIS)
        .set("viewBox", (0, 0, WIDTH, HEIGHT))
        .set("preserveAspectRatio", "none")
        .set("class", "plot");
    plot.append(rectangle("ground", known_from, known_to));
    let mut below = vec![Nanos::ZERO; places.len()];
    for band in bands {
        let amounts = places.iter().map(|place| {
            let mut owners = place.stretch.owners.iter();
            let found = owners.find(|(owner, _)| owner == band.owner);
            found.map_or(Nanos::ZERO, |(_, busy)| *busy)
        });
        let name = shown(&band.name, NAME_WIDTH);
        let words = format!("{name}: {}", duration(band.hour));
        append_band(&mut plot, &band.class, words, &places, &mut below, amounts);
    }
    let others = places.iter().map(|place| {
        let owners = place.stretch.owners.iter();
        let unbanded = owners.filter(|(owner, _)| bands.iter().all(|band| band.owner != owner));
        let unbanded: Nanos = unbanded.map(|(_, busy)| *busy).sum();
        unbanded.plus(place.stretch.others)
    });
    let others: Vec<Nanos> = others.collect();
    let words = format!("other owners: {}", duration(others.iter().copied().sum()));
    append_band(
        &mut plot,
        "others",
        words,
        &places,
        &mut below,
        others.into_iter(),
    );
    let unowned = places.iter().map(|place| place.stretch.unowned);
    let words = format!("busy, no owner: {}", duration(total.unowned));
    append_band(&mut plot, "unowned", words, &places, &mut below, unowned);
    append_unobserved(&mut plot, &places, total);

    let mut picture = SVG::new()
        .set("class", "picture")
        .set("role", "img")
        .set("width", "100%")
        .set("height", ALL)
        .add(Title::new(format!("{gpu}, the last hour by owner")))
        .add(Description::new().add(svg::node::Text::new(description(bands, total))))
        .add(plot);
    append_unknown(&mut picture, 0, known_from);
    append_unknown(&mut picture, known_to, WIDTH);
    append_axis(&mut picture);
    picture.to_string()
}

/// Where a stretch is in the picture.
struct Place<'a> {
    from: u64,
    to: u64,
    stretch: &'a Stretch,
}

impl Place<'_> {
    /// A part of its time as a part of the height.
    fn height(&self, part: Nanos) -> u64 {
        let whole = u128::from(self.stretch.elapsed().0.max(1));
        let height = (u128::from(part.0) * u128::from(HEIGHT) + whole / 2) / whole;
        u64::try_from(height).unwrap_or(HEIGHT).min(HEIGHT)
    }

    /// Adds a block at this place to a path.
    fn block(&self, data: Data, top: u64, height: u64) -> Data {
        block(data, (self.from, top), (self.to - self.from, height))
    }
}

/// The places of the stretches, the oldest first. What is before the picture's beginning is cut off.
fn places(hour: &Hour) -> Vec<Place<'_>> {
    let x = |age: Nanos| WIDTH.saturating_sub((age.0 + Nanos::SECOND.0 / 2) / Nanos::SECOND.0);
    let mut age = hour.behind;
    let mut places = Vec::with_capacity(hour.stretches.len());
    for stretch in hour.stretches.iter().rev() {
        let to = x(age);
        age = age.plus(stretch.elapsed());
        let from = x(age);
        if from < to {
            places.push(Place { from, to, stretch });
        }
    }
    places.reverse();
    places
}

/// A band on top of those that are there. Nothing is drawn of one that is nowhere.
fn append_band(
    plot: &mut SVG,
    class: &str,
    words: String,
    places: &[Place<'_>],
    below: &mut [Nanos],
    amounts: impl Iterator<Item = Nanos>,
) {
    let mut data = Data::new();
    for ((place, below), amount) in places.iter().zip(below).zip(amounts) {
        // Edges are rounded and not heights, so that bands leave no room between them.
        let bottom = place.height(*below);
        *below = below.plus(amount);
        let top = place.height(*below);
        if top > bottom {
            data = place.block(data, HEIGHT - top, top - bottom);
        }
    }
    append_path(plot, class, words, data);
}

/// What was not observed, from the top.
fn append_unobserved(plot: &mut SVG, places: &[Place<'_>], total: &Stretch) {
    let mut data = Data::new();
    for place in places {
        let height = place.height(place.stretch.unobserved);
        if height > 0 {
            data = place.block(data, 0, height);
        }
    }
    let words = format!("not observed: {}", duration(total.unobserved));
    append_path(plot, "unobserved", words, data);
}

fn append_path(plot: &mut SVG, class: &str, words: String, data: Data) {
    if !data.is_empty() {
        let path = Path::new()
            .set("class", class)
            .set("d", data)
            .add(Title::new(words));
        plot.append(path);
    }
}

fn rectangle(class: &str, from: u64, to: u64) -> Rectangle {
    Rectangle::new()
        .set("class", class)
        .set("x", from)
        .set("width", to - from)
        .set("height", HEIGHT)
}

/// Time that is not known, with a word in it where there is room for one.
fn append_unknown(picture: &mut SVG, from: u64, to: u64) {
    // The books are always some seconds behind the clock.
    if to - from < LEAST_UNKNOWN {
        return;
    }
    picture.append(
        Rectangle::new()
            .set("class", "unknown")
            .set("x", percent(from, WIDTH))
            .set("width", percent(to - from, WIDTH))
            .set("height", AXIS),
    );
    if to - from > WIDTH / 4 {
        picture.append(
            Text::new("not known")
                .set("class", "word")
                .set("x", percent(from + to, 2 * WIDTH))
                .set("y", AXIS / 2 + 4)
                .set("text-anchor", "middle"),
        );
    }
}

/// The axis of time.
fn append_axis(picture: &mut SVG) {
    for (quarter, anchor, words) in [
        (0, "start", "60 min ago"),
        (1, "middle", "45"),
        (2, "middle", "30"),
        (3, "middle", "15"),
        (4, "end", "now"),
    ] {
        let x = percent(quarter, 4);
        if (1..4).contains(&quarter) {
            picture.append(
                Line::new()
                    .set("class", "tick")
                    .set("x1", &*x)
                    .set("x2", &*x)
                    .set("y1", 0)
                    .set("y2", AXIS),
            );
        }
        picture.append(
            Text::new(words)
                .set("class", "word")
                .set("x", x)
                .set("y", WORDS)
                .set("text-anchor", anchor),
        );
    }
}

/// The picture in words, for who does not see it.
fn description(bands: &[Band<'_>], total: &Stretch) -> String {
    let known = total.elapsed();
    if known.is_zero() {
        return "Nothing is known yet.".to_owned();
    }
    let owners = bands.iter().map(|band| {
        let name = shown(&band.name, NAME_WIDTH);
        format!("{name} {}", duration(band.hour))
    });
    let rest = [
        ("busy without an owner", total.unowned),
        ("idle", total.idle),
        ("not observed", total.unobserved),
    ];
    let rest = rest.iter().filter(|(_, amount)| !amount.is_zero());
    let rest = rest.map(|(words, amount)| format!("{words} {}", duration(*amount)));
    let parts: Vec<String> = owners.chain(rest).collect();
    let known = duration(known);
    format!("Of the {known} that are known: {}.", parts.join(", "))
}

#[cfg(test)]
#[path = "picture_tests.rs"]
mod tests;
