//! What the pages for people have in common: the colours of owners, the blocks of pictures, and what a
//! browser may do with a page.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;
use svg::node::element::path::Data;

use crate::core::model::text::fnv1a;

/// Colours of owners: the classes `c0` to `c11` of the pages' style.
pub(crate) const COLOURS: u8 = 12;

/// The colour that an owner of this name has if nobody else has it, so that it mostly has the same one
/// on every page.
pub(crate) fn first_colour(name: &str) -> u8 {
    u8::try_from(fnv1a(name.as_bytes()) % u64::from(COLOURS)).unwrap_or(0)
}

/// The colours, of which each that an earlier one has is replaced by the next one that none has. There
/// have to be more colours than there are of these.
pub(crate) fn distinct(colours: impl Iterator<Item = u8>) -> Vec<u8> {
    let mut taken: Vec<u8> = Vec::new();
    for own in colours {
        let from_own = (0..COLOURS).map(|step| (own + step) % COLOURS);
        let free = from_own.into_iter().find(|colour| !taken.contains(colour));
        taken.push(free.unwrap_or(own));
    }
    taken
}

/// A Content-Security-Policy by which a page may use this style, and nothing else.
pub(crate) fn policy(style: &str) -> String {
    let hash = digest::digest(&digest::SHA256, style.as_bytes());
    let hash = STANDARD.encode(hash);
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'")
}

/// Adds a block to a path: from `left` and `top` on, so wide and so high.
pub(crate) fn block(data: Data, (left, top): (u64, u64), (width, height): (u64, u64)) -> Data {
    let width = signed(width);
    data.move_to((signed(left), signed(top)))
        .horizontal_line_by(width)
        .vertical_line_by(signed(height))
        .horizontal_line_by(-width)
        .close()
}

/// A coordinate as the crate takes it.
fn signed(coordinate: u64) -> i32 {
    i32::try_from(coordinate).unwrap_or(i32::MAX)
}

/// A place in a picture as a part of its width.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let hundredths = part * 10_000 / whole;
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}
