//! What a scraper can read, and prefers: the format and the coding of an exposition.
//!
//! A scraper that names nothing acceptable gets text without a coding, which it can use more than an
//! error.

use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, HeaderName};

/// A way to write the books down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, the default.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// The `Content-Type` of an answer in this format.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that the `Accept` headers prefer: OpenMetrics only where it is named and wanted no
    /// less than text.
    #[must_use]
    pub fn negotiate(headers: &HeaderMap) -> Self {
        // A name overrides a wildcard, whatever the order.
        let (mut text, mut open) = (Want::default(), Want::default());
        for range in ranges(headers, ACCEPT) {
            match (range.name.as_str(), range.version) {
                ("application/openmetrics-text", None | Some("1.0.0")) => {
                    open.hear(3, range.quality);
                }
                ("text/plain", None | Some("0.0.4")) => text.hear(3, range.quality),
                ("text/*", _) => text.hear(2, range.quality),
                ("*/*", _) => text.hear(1, range.quality),
                _ => {}
            }
        }
        let by_wildcard = text.precision < open.precision && text.quality == open.quality;
        if open.quality > text.quality || (open.quality > 0 && by_wildcard) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// The text as it is, not compressed.
    Identity,
    /// Compressed with gzip.
    Gzip,
}

impl Coding {
    /// The coding that the `Accept-Encoding` headers prefer: gzip where it is wanted no less than
    /// none. Without such a header it is none.
    pub(super) fn negotiate(headers: &HeaderMap) -> Self {
        let (mut gzip, mut identity) = (Want::default(), Want::default());
        for range in ranges(headers, ACCEPT_ENCODING) {
            match range.name.as_str() {
                "gzip" | "x-gzip" => gzip.hear(2, range.quality),
                "identity" => identity.hear(2, range.quality),
                "*" => {
                    gzip.hear(1, range.quality);
                    identity.hear(1, range.quality);
                }
                _ => {}
            }
        }
        if gzip.quality > 0 && gzip.quality >= identity.quality {
            Self::Gzip
        } else {
            Self::Identity
        }
    }
}

/// What a header names, and how much it is wanted.
struct Range<'a> {
    /// In lower case.
    name: String,
    /// In thousandths.
    quality: u16,
    version: Option<&'a str>,
}

/// Everything that the headers of this name list.
fn ranges(headers: &HeaderMap, header: HeaderName) -> impl Iterator<Item = Range<'_>> {
    let values = headers.get_all(header).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut version) = (1_000, None);
        for (key, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
            match key.trim().to_ascii_lowercase().as_str() {
                "q" => quality = thousandths(value.trim()),
                "version" => version = Some(value.trim().trim_matches('"')),
                _ => {}
            }
        }
        Range {
            name,
            quality,
            version,
        }
    })
}

/// How much something is wanted, in thousandths, and how precisely it was named.
#[derive(Clone, Copy, Default)]
struct Want {
    precision: u8,
    quality: u16,
}

impl Want {
    fn hear(&mut self, precision: u8, quality: u16) {
        let heard = Self { precision, quality };
        if (precision, quality) > (self.precision, self.quality) {
            *self = heard;
        }
    }
}

/// A q-value in thousandths; one that is malformed or above one counts as not wanted.
fn thousandths(text: &str) -> u16 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return 0;
    }
    let fraction = format!("{fraction:0<3}").parse().unwrap_or(0);
    match (whole, fraction) {
        ("0", fraction) => fraction,
        ("1", 0) => 1_000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: HeaderName, values: &[&'static str]) -> HeaderMap {
        let values = values.iter().copied().map(HeaderValue::from_static);
        values.map(|value| (name.clone(), value)).collect()
    }

    #[test]
    fn the_format_is_what_the_scraper_prefers() {
        use Format::{OpenMetrics, Text};
        let rows: [(&[&'static str], Format); 20] = [
            (&[], Text),
            (&[""], Text),
            (&["*/*"], Text),
            (&["text/html"], Text),
            (&["text/plain"], Text),
            (&["application/openmetrics-text"], OpenMetrics),
            (
                &["Application/OpenMetrics-Text; Version=1.0.0"],
                OpenMetrics,
            ),
            // Prometheus 2.42.
            (
                &[
                    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ],
                OpenMetrics,
            ),
            // Prometheus 3.
            (
                &[
                    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                ],
                OpenMetrics,
            ),
            // Prometheus 3 told to prefer text.
            (&["text/plain;version=0.0.4;q=0.5,*/*;q=0.4"], Text),
            (
                &["text/plain;q=0.5,application/openmetrics-text;q=0.4"],
                Text,
            ),
            (&["text/plain, application/openmetrics-text"], Text),
            (&["*/*, application/openmetrics-text"], OpenMetrics),
            (
                &["text/plain;q=0.1", "application/openmetrics-text;q=0.2"],
                OpenMetrics,
            ),
            (&["application/openmetrics-text;q=0"], Text),
            (&["application/openmetrics-text;q=0, */*;q=0"], Text),
            (&["application/openmetrics-text;q=1.5"], Text),
            (&["application/openmetrics-text;q=nan"], Text),
            (&["application/openmetrics-text;version=2.0.0"], Text),
            (
                &["text/plain;q=0.2, */*;q=0.9, application/openmetrics-text;q=0.3"],
                OpenMetrics,
            ),
        ];
        for (values, expected) in rows {
            let found = Format::negotiate(&headers(ACCEPT, values));
            assert_eq!(found, expected, "{values:?}");
        }
    }

    #[test]
    fn the_coding_is_what_the_scraper_prefers() {
        use Coding::{Gzip, Identity};
        let rows: [(&[&'static str], Coding); 22] = [
            (&[], Identity),
            (&[""], Identity),
            // Prometheus.
            (&["gzip"], Gzip),
            (&["GZip"], Gzip),
            (&["x-gzip"], Gzip),
            // curl --compressed, a browser.
            (&["deflate, gzip, br, zstd"], Gzip),
            (&["deflate", "gzip"], Gzip),
            (&["deflate, br"], Identity),
            // Python's urllib.
            (&["identity"], Identity),
            (&["gzip;q=1.0, identity;q=0.5, *;q=0"], Gzip),
            (&["gzip;q=0"], Identity),
            (&["gzip;q=0.001"], Gzip),
            (&["gzip;q=2"], Identity),
            (&["gzip;q=0.5, identity;q=0.6"], Identity),
            (&["gzip, identity"], Gzip),
            (&["*"], Gzip),
            (&["*;q=0"], Identity),
            (&["*, gzip;q=0"], Identity),
            (&["*;q=0, gzip;q=0.1"], Gzip),
            (&["identity;q=0, *"], Gzip),
            (&["identity;q=0, gzip;q=0.2"], Gzip),
            // Nothing is acceptable.
            (&["identity;q=0"], Identity),
        ];
        for (values, expected) in rows {
            let found = Coding::negotiate(&headers(ACCEPT_ENCODING, values));
            assert_eq!(found, expected, "{values:?}");
        }
    }
}
