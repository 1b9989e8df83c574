//! Makes a Go client of 2020 acceptable to a server that reads HTTP/2 strictly.
//!
//! Over a Unix socket such a client names the socket's path as the authority that it talks to. A
//! path is none, and the server refuses the call (`PROTOCOL_ERROR`) before anybody sees it. So what
//! the client says goes through here, and each authority is replaced by another of the same length:
//! nothing else has to change, and the tables by which both sides abbreviate headers stay in step.
//!
//! It refuses to be a proxy for more than that: a header in a frame with padding or a priority, or
//! spread over several frames, passes as it is.

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What a client says before its first frame.
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// The kind of a frame that has headers.
const HEADERS: u8 = 1;
/// The flags of a frame whose headers do not begin at its begin.
const PADDED_OR_PRIORITY: u8 = 0x28;
/// `:authority` in the table of names that everybody knows.
const AUTHORITY: usize = 1;

/// Passes on what a client says, until it ends.
pub(super) async fn mend(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    loop {
        let mut frame = vec![0; FRAME_HEADER];
        from.read_exact(&mut frame).await?;
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        let (kind, flags) = (frame[3], frame[4]);
        frame.resize(FRAME_HEADER + usize::try_from(length)?, 0);
        from.read_exact(&mut frame[FRAME_HEADER..]).await?;
        if kind == HEADERS && flags & PADDED_OR_PRIORITY == 0 {
            mend_headers(&mut frame[FRAME_HEADER..]).context("headers that end too early")?;
        }
        to.write_all(&frame).await?;
        to.flush().await?;
    }
}

/// Replaces the authority in a block of headers. See RFC 7541, section 6, for how they are written.
fn mend_headers(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let (bits, has_value) = match block[at] {
            0x80.. => (7, false),
            0x40.. => (6, true),
            0x20.. => (5, false),
            _ => (4, true),
        };
        let name = integer(block, &mut at, bits)?;
        if !has_value {
            continue;
        }
        if name == 0 {
            let length = integer(block, &mut at, 7)?;
            at = at.checked_add(length)?;
        }
        let value = at;
        let length = integer(block, &mut at, 7)?;
        let end = at.checked_add(length)?;
        if name == AUTHORITY {
            block.get_mut(at..end)?.fill(b'a');
            // It is not compressed.
            block[value] &= 0x7f;
        }
        at = end;
    }
    (at == block.len()).then_some(())
}

/// A number whose first so many bits end a byte, and the place behind it.
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let mut number = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if number < most {
        return Some(number);
    }
    let mut shift = 0;
    loop {
        let byte = *block.get(*at)?;
        *at += 1;
        let more = usize::from(byte & 0x7f).checked_shl(shift)?;
        number = number.checked_add(more)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_authority_changes_and_nothing_moves() {
        // POST, http, a path, the authority, a name and a value that are in no table.
        let mut block = b"\x83\x86\x44\x02/A\x41\x84abcd\x40\x01n\x01v".to_vec();
        assert_eq!(mend_headers(&mut block), Some(()));
        assert_eq!(block, b"\x83\x86\x44\x02/A\x41\x04aaaa\x40\x01n\x01v");
        let mended = block.clone();
        for short in 4..block.len() {
            // Cut within a value, a name or a number it is refused, and never a panic.
            let _ = mend_headers(&mut block[..short]);
        }
        assert_eq!(block, mended);
        assert_eq!(mend_headers(&mut b"\x41\x84abc".to_vec()), None);
        assert_eq!(mend_headers(&mut b"\x41\xff\xff".to_vec()), None);
    }

    #[test]
    fn a_long_number_is_read_and_an_endless_one_is_not() {
        // The example of RFC 7541, C.1.2.
        let mut at = 0;
        assert_eq!(integer(&[0b1111_1111, 0x9a, 0x0a], &mut at, 5), Some(1337));
        assert_eq!(at, 3);
        assert_eq!(integer(&[0xff; 32], &mut 0, 5), None);
    }
}
