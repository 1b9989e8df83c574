//! The documents of the last commit that was asked for, in each coding: an exposition in each format,
//! and the page for people.
//!
//! Each is made when it is first asked for and kept until the next commit, so that any number of
//! readers costs one rendering and one compression. The text is not kept where all scrapers take it
//! compressed, as Prometheus does: on a full node it is more than a megabyte.

use std::io::{Read as _, Write as _};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::negotiation::{Coding, Format};

/// How much is done to find repetitions. Containers' ids make up most of what is left. They repeat
/// from family to family, farther apart than gzip looks back, so that more work gains little.
const LEVEL: Compression = Compression::new(2);

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Document {
    /// An exposition in this format.
    Metrics(Format),
    /// The page for people.
    Page,
}

/// What a document was made of: as long as it is the same, so is the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edition {
    /// The commit's number.
    pub(super) sequence: u64,
    /// A part of time, if the document depends on when it is made.
    pub(super) time: u64,
}

/// What is kept for scrapers and people.
#[derive(Debug, Default)]
pub(super) struct Expositions {
    text: Option<Exposition>,
    openmetrics: Option<Exposition>,
    page: Option<Exposition>,
    /// Those of earlier commits that clients have not taken wholly yet.
    under_way: Vec<Bytes>,
}

/// An edition of a document.
#[derive(Debug)]
struct Exposition {
    edition: Edition,
    /// The length of the text.
    length: usize,
    /// Absent until somebody has asked for it.
    plain: Option<Bytes>,
    /// Absent until somebody has asked for it. At least one of the two is there.
    gzip: Option<Bytes>,
}

impl Expositions {
    /// What was already made in this edition.
    pub(super) fn get(
        &self,
        edition: Edition,
        document: Document,
        coding: Coding,
    ) -> Option<Bytes> {
        let kept = match document {
            Document::Metrics(Format::Text) => &self.text,
            Document::Metrics(Format::OpenMetrics) => &self.openmetrics,
            Document::Page => &self.page,
        };
        let kept = kept.as_ref().filter(|kept| kept.edition == edition)?;
        match coding {
            Coding::Identity => kept.plain.clone(),
            Coding::Gzip => kept.gzip.clone(),
        }
    }

    /// Makes what is missing of an edition, in place of what was kept of an earlier one. `render` writes
    /// the text; it takes milliseconds on a full node.
    pub(super) fn make(
        &mut self,
        edition: Edition,
        document: Document,
        coding: Coding,
        render: impl FnOnce(&mut String),
    ) -> Bytes {
        let kept = match document {
            Document::Metrics(Format::Text) => &mut self.text,
            Document::Metrics(Format::OpenMetrics) => &mut self.openmetrics,
            Document::Page => &mut self.page,
        };
        let before = kept.take_if(|kept| kept.edition != edition);
        // About as much as the last time: growing would copy it.
        let capacity = before.as_ref().map_or(0, |before| before.length);
        if let Some(Exposition { plain, gzip, .. }) = before {
            self.under_way.extend(plain.into_iter().chain(gzip));
        }
        let Some(kept) = kept else {
            let mut text = String::with_capacity(capacity + capacity / 16);
            render(&mut text);
            let length = text.len();
            let (plain, gzip, made) = match coding {
                Coding::Identity => {
                    let plain = Bytes::from(text.into_bytes().into_boxed_slice());
                    (Some(plain.clone()), None, plain)
                }
                Coding::Gzip => {
                    let gzip = compressed(text.as_bytes());
                    (None, Some(gzip.clone()), gzip)
                }
            };
            *kept = Some(Exposition {
                edition,
                length,
                plain,
                gzip,
            });
            return made;
        };
        // The same text in the other coding, and not rendered again: it has the outputs' own counters,
        // which have gone on.
        let Exposition { plain, gzip, .. } = kept;
        match coding {
            Coding::Identity => plain.get_or_insert_with(|| {
                let gzip = gzip.as_ref().map(|gzip| unpacked(gzip, kept.length));
                gzip.unwrap_or_default()
            }),
            Coding::Gzip => gzip.get_or_insert_with(|| {
                let plain = plain.as_ref().map(|plain| compressed(plain));
                plain.unwrap_or_default()
            }),
        }
        .clone()
    }

    /// Bytes of earlier expositions that are kept for slow clients.
    pub(super) fn bytes_under_way(&mut self) -> usize {
        self.under_way.retain(|body| !body.is_unique());
        self.under_way.iter().map(Bytes::len).sum()
    }
}

fn compressed(plain: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4), LEVEL);
    let written = encoder.write_all(plain).and_then(|()| encoder.finish());
    let compressed = written.expect("a Vec takes everything");
    Bytes::from(compressed.into_boxed_slice())
}

fn unpacked(gzip: &[u8], length: usize) -> Bytes {
    let mut plain = Vec::with_capacity(length);
    let read = GzDecoder::new(gzip).read_to_end(&mut plain);
    read.expect("this was compressed here");
    Bytes::from(plain)
}

#[cfg(test)]
mod tests {
    use super::super::text::render;
    use super::*;
    use crate::core::snapshot::Snapshot;
    use crate::outputs::counters::OutputCounters;
    use crate::outputs::instruments::View;
    use crate::outputs::sample;

    fn edition(sequence: u64) -> Edition {
        Edition { sequence, time: 0 }
    }

    fn make(
        expositions: &mut Expositions,
        snapshot: &Snapshot,
        format: Format,
        coding: Coding,
    ) -> Bytes {
        let view = View {
            snapshot,
            agent: &sample::agent_status(),
            counters: &OutputCounters::default(),
            opt_in: &sample::opt_in(),
        };
        let document = Document::Metrics(format);
        expositions.make(edition(snapshot.sequence), document, coding, |out| {
            render(&view, format, out);
        })
    }

    #[test]
    fn what_was_made_of_a_commit_is_kept_until_the_next_one() {
        let mut expositions = Expositions::default();
        let mut snapshot = sample::snapshot();
        for format in [Format::Text, Format::OpenMetrics] {
            let first = snapshot.sequence;
            let all = [Coding::Identity, Coding::Gzip];
            let get = |expositions: &Expositions, of, coding| {
                expositions.get(edition(of), Document::Metrics(format), coding)
            };
            assert!(all.iter().all(|it| get(&expositions, first, *it).is_none()));
            let gzip = make(&mut expositions, &snapshot, format, Coding::Gzip);
            let plain = get(&expositions, first, Coding::Identity);
            assert_eq!(plain, None, "a scraper that takes gzip costs no text");
            let plain = make(&mut expositions, &snapshot, format, Coding::Identity);
            let mut text = String::new();
            let view = View {
                snapshot: &snapshot,
                agent: &sample::agent_status(),
                counters: &OutputCounters::default(),
                opt_in: &sample::opt_in(),
            };
            render(&view, format, &mut text);
            assert_eq!(plain, text.as_bytes());
            assert!(gzip.len() < plain.len() / 4, "{} bytes", gzip.len());
            let kept = get(&expositions, first, Coding::Gzip).unwrap();
            assert_eq!(kept.as_ptr(), gzip.as_ptr(), "compressed once");
            let again = make(&mut expositions, &snapshot, format, Coding::Identity);
            assert_eq!(again.as_ptr(), plain.as_ptr(), "rendered once");

            snapshot.sequence += 1;
            let plain = make(&mut expositions, &snapshot, format, Coding::Identity);
            assert!(get(&expositions, first, Coding::Identity).is_none());
            assert!(get(&expositions, snapshot.sequence, Coding::Gzip).is_none());
            let gzip = make(&mut expositions, &snapshot, format, Coding::Gzip);
            let kept = get(&expositions, snapshot.sequence, Coding::Identity).unwrap();
            assert_eq!(kept.as_ptr(), plain.as_ptr(), "rendered once");
            assert!(gzip.starts_with(&[0x1f, 0x8b]));
        }
    }

    #[test]
    fn compressed_bodies_that_clients_have_not_taken_count_like_plain_ones() {
        let mut expositions = Expositions::default();
        let mut snapshot = sample::snapshot();
        let mut taking = Vec::new();
        for coding in [Coding::Gzip, Coding::Identity, Coding::Gzip] {
            snapshot.sequence += 1;
            taking.push(make(&mut expositions, &snapshot, Format::Text, coding));
        }
        // The last commit's is kept anyway.
        let lengths: Vec<usize> = taking.iter().map(Bytes::len).collect();
        assert!(lengths[0] < lengths[1]);
        assert_eq!(expositions.bytes_under_way(), lengths[0] + lengths[1]);
        taking.remove(1);
        assert_eq!(expositions.bytes_under_way(), lengths[0]);
        taking.clear();
        assert_eq!(expositions.bytes_under_way(), 0);
    }
}
