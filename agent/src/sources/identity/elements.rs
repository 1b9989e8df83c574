//! The elements of a list in a protobuf message, one at a time and without decoding them.
//!
//! A decoded message can take a hundred times the memory of its bytes: an empty element is two
//! bytes on the wire and a whole structure in memory. So an answer with a list is kept as bytes.
//! This module finds where each element begins and ends. The reader of the list decodes one
//! element, takes what it needs, and drops it before the next one.
//!
//! It knows the framing of protobuf only, <https://protobuf.dev/programming-guides/encoding/>, and
//! refuses groups, which no interface in use has. Units: bytes.

use super::Counters;

/// Largest element of a list that is decoded, in bytes. A container or a sandbox has some kilobytes;
/// Kubernetes allows 256 KiB of annotations and 1.5 MiB for a whole pod.
pub(super) const MAX_ELEMENT: usize = 1 << 20;

/// The kinds of fields, as the last three bits of a field's key tell them.
const VARINT: usize = 0;
const FIXED_64: usize = 1;
const LENGTH_DELIMITED: usize = 2;
const FIXED_32: usize = 5;

/// Why an answer cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    /// The bytes are not a message.
    #[error("not a protobuf message: {what} {left} bytes before the end of {of}")]
    Framing {
        what: &'static str,
        left: usize,
        of: usize,
    },
    /// A text is not UTF-8.
    #[error("not a protobuf message: field {field} is not UTF-8")]
    Text {
        field: usize,
        source: std::str::Utf8Error,
    },
    /// An element is not what it should be.
    #[error("cannot decode an element of {of} bytes: {source}")]
    Element {
        of: usize,
        source: prost::DecodeError,
    },
}

/// The elements of one field. Ends after the first error.
#[derive(Clone, Debug)]
pub(super) struct Elements<'a> {
    whole: usize,
    rest: &'a [u8],
    field: usize,
}

/// The elements of a message's repeated field, in order.
pub(super) fn elements(message: &[u8], field: usize) -> Elements<'_> {
    Elements {
        whole: message.len(),
        rest: message,
        field,
    }
}

impl<'a> Elements<'a> {
    fn number(&mut self, what: &'static str) -> Result<usize, Malformed> {
        let left = self.rest.len();
        prost::decode_length_delimiter(&mut self.rest).map_err(|_| Malformed::Framing {
            what,
            left,
            of: self.whole,
        })
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Malformed::Framing {
                what: "a field is longer than the message,",
                left: self.rest.len(),
                of: self.whole,
            })?;
        self.rest = rest;
        Ok(taken)
    }

    fn find(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        while !self.rest.is_empty() {
            let key = self.number("no field's key")?;
            let (field, kind) = (key >> 3, key & 7);
            let value = match kind {
                LENGTH_DELIMITED => {
                    let length = self.number("no field's length")?;
                    self.take(length)?
                }
                VARINT if field != self.field => {
                    self.number("no number")?;
                    continue;
                }
                FIXED_64 if field != self.field => self.take(8)?,
                FIXED_32 if field != self.field => self.take(4)?,
                _ => {
                    return Err(Malformed::Framing {
                        what: "a field of the wrong kind",
                        left: self.rest.len(),
                        of: self.whole,
                    });
                }
            };
            if field == self.field {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8], Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.find();
        if found.is_err() {
            self.rest = &[];
        }
        found.transpose()
    }
}

/// A message's text field: the last one, as protobuf has it, and empty where there is none.
pub(super) fn text(message: &[u8], field: usize) -> Result<&str, Malformed> {
    let last = elements(message, field).try_fold(&[][..], |_, found| found)?;
    std::str::from_utf8(last).map_err(|source| Malformed::Text { field, source })
}

/// Decodes an element of no more than [`MAX_ELEMENT`] bytes; counts one that is larger, and gives
/// nothing for it.
pub(super) fn decode<T: prost::Message + Default>(
    element: &[u8],
    counters: &Counters,
) -> Result<Option<T>, Malformed> {
    if element.len() > MAX_ELEMENT {
        Counters::count(&counters.entries_dropped);
        return Ok(None);
    }
    let decoded = T::decode(element).map_err(|source| Malformed::Element {
        of: element.len(),
        source,
    });
    decoded.map(Some)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use gpuacct_proto::pod_resources::{ListPodResourcesResponse, PodResources};

    fn pod(name: &str) -> PodResources {
        PodResources {
            name: name.to_owned(),
            namespace: "ml".to_owned(),
            containers: vec![],
        }
    }

    #[test]
    fn the_elements_are_those_that_a_decoder_finds() {
        let list = ListPodResourcesResponse {
            pod_resources: vec![pod("a"), pod(""), pod("b")],
        };
        let bytes = list.encode_to_vec();
        let found: Vec<PodResources> = elements(&bytes, 1)
            .map(|element| PodResources::decode(element.unwrap()).unwrap())
            .collect();
        assert_eq!(found, list.pod_resources);
        assert_eq!(elements(&bytes, 2).count(), 0);
        // A number, eight bytes, four bytes, and then the element: what is not asked for is skipped.
        let mut mixed = vec![0x10, 0x96, 0x01, 0x19];
        mixed.extend([0; 8]);
        mixed.push(0x25);
        mixed.extend([0; 4]);
        mixed.extend([0x0a, 2, b'h', b'i']);
        assert_eq!(text(&mixed, 1).unwrap(), "hi");
        assert_eq!(text(&mixed, 7).unwrap(), "");
        // The last one counts.
        mixed.extend([0x0a, 1, b'x']);
        assert_eq!(text(&mixed, 1).unwrap(), "x");
    }

    #[test]
    fn what_is_no_message_ends_in_one_error() {
        let rows: [&[u8]; 8] = [
            &[0x0a],
            &[0x0a, 5, 1],
            &[
                0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            ],
            &[0xff],
            &[0x08, 1],
            &[0x0b],
            &[0x13],
            &[0x11, 0, 0],
        ];
        for row in rows {
            let found: Vec<_> = elements(row, 1).collect();
            assert!(matches!(&found[..], [Err(_)]), "{row:?}: {found:?}");
        }
        let error = text(&[0x0a, 1, 0xff], 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not a protobuf message: field 1 is not UTF-8"
        );
    }

    #[test]
    fn an_element_that_is_too_large_is_left_out_and_counted() {
        let counters = Counters::default();
        let of = |length: usize| pod(&"x".repeat(length)).encode_to_vec();
        let fits = decode::<PodResources>(&of(MAX_ELEMENT - 10), &counters);
        assert!(fits.unwrap().is_some());
        let large = decode::<PodResources>(&of(MAX_ELEMENT), &counters);
        assert!(large.unwrap().is_none());
        assert!(decode::<PodResources>(&[0x0a, 9], &counters).is_err());
        let dropped = counters.entries_dropped.into_inner();
        assert_eq!(dropped, 1);
    }
}
