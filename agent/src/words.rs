//! How owners and states are called wherever people read them, and names that are safe to show there.
//!
//! Names come from tenants. What is shown of them moves no cursor and changes no order of the text
//! around them.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::core::model::{BootTime, NONE, Nanos, SourceState, UNRESOLVED, WallTime};
use crate::core::snapshot::{Attribution, ContainerAccount, ContainerLabels, Snapshot};
use crate::figures::{duration, short};

/// `namespace/pod/container`, or the runtime's name, or the id.
pub(crate) fn container(labels: &ContainerLabels, id: &str) -> String {
    if &*labels.container == UNRESOLVED {
        // Runtimes show twelve digits of an id, and so it can be looked up there.
        format!("{UNRESOLVED} {}", short(id))
    } else if &*labels.namespace == NONE {
        labels.container.to_string()
    } else {
        format!("{}/{}/{}", labels.namespace, labels.pod, labels.container)
    }
}

/// How far a container's names are known, or that it has ended.
pub(crate) fn state(account: &ContainerAccount) -> String {
    match (account.ended, account.attribution) {
        (_, Attribution::Held) => "held back".to_owned(),
        (_, Attribution::IdOnly { reason }) => format!("id only: {}", reason.as_str()),
        (true, Attribution::Named { .. }) => "ended".to_owned(),
        (false, Attribution::Named { .. }) => "named".to_owned(),
    }
}

/// For how long the agent has been running.
pub(crate) fn uptime(snapshot: &Snapshot, now: WallTime) -> String {
    match snapshot.sequence {
        0 => "starting".to_owned(),
        _ => {
            let up = Nanos(now.0.saturating_sub(snapshot.agent_started.0));
            format!("up {}", duration(up))
        }
    }
}

/// Where a source is, and if it is down why, and when it is tried again.
pub(crate) fn place_and_reason(place: &str, state: &SourceState, now: BootTime) -> String {
    let SourceState::Down {
        reason, next_retry, ..
    } = state
    else {
        return place.to_owned();
    };
    let retry = match next_retry {
        Some(at) => format!("next try in {}", duration(at.since(now))),
        None => "not tried again".to_owned(),
    };
    let colon = if place.is_empty() { "" } else { ": " };
    format!("{place}{colon}{reason}, {retry}")
}

/// Without what could move the cursor: names come from outside and a terminal obeys them.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.width().is_none() { ' ' } else { c })
        .filter(|c| !is_direction(*c))
        .collect()
}

/// The marks that make a terminal or a browser show text in another order than it has: Unicode's
/// property `Bidi_Control`.
fn is_direction(c: char) -> bool {
    matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// A text from outside: bounded, on one line, in the order in which it is written.
pub(crate) fn shown(text: &str, width: usize) -> String {
    elide(&printable(text), width)
}

/// `text` in at most `width` columns, its middle left out where it is longer.
pub(crate) fn elide(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let tail_room = room / 2;
    let take = |chars: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        chars
            .take_while(|c| {
                used += c.width().unwrap_or(0);
                used <= room
            })
            .collect::<Vec<char>>()
    };
    let head = take(&mut text.chars(), room - tail_room);
    let tail = take(&mut text.chars().rev(), tail_room);
    head.into_iter()
        .chain(['…'])
        .chain(tail.into_iter().rev())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_a_long_name_goes() {
        let rows = [
            ("abc", 3, "abc"),
            ("abcd", 3, "a…d"),
            ("abcdefgh", 4, "ab…h"),
            ("abcd", 1, "…"),
            ("日本語の名前", 6, "日…前"),
            ("", 0, ""),
        ];
        for (text, width, expected) in rows {
            assert_eq!(elide(text, width), expected, "{text} in {width}");
            assert!(elide(text, width).width() <= width.max(1));
        }
    }

    #[test]
    fn what_moves_the_cursor_does_not_come_through() {
        assert_eq!(printable("a\x1b[2Jb\r\n\u{202e}c\u{61c}d"), "a [2Jb  cd");
    }
}
