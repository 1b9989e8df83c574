//! A report as one page for a browser, a mail or a printer: pictures and tables.
//!
//! It is a file that asks for nothing else and has no script. Names in it come from tenants. The template
//! escapes them, and the Content-Security-Policy in it allows nothing but the page's own style, so that a
//! name that were not escaped would do nothing either.
//!
//! **Its figures are those of `-o json`.** Each stands in an element `data`, whose value is the exact figure
//! of the JSON; what is shown of it is rounded for people. The picture and its table are sums of the same
//! figures.

mod bands;
mod picture;
mod table;
mod view;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _};

use askama::Template as _;

use self::view::Page;
use crate::drawing;
use crate::report::tally::Report;

/// The style, whose hash the Content-Security-Policy has.
const STYLE: &str = concat!(
    include_str!("../../../templates/base.css"),
    include_str!("../../../templates/report.css")
);

/// The document. The text of its template is the other half of this.
#[derive(askama::Template)]
#[template(path = "report.html")]
struct Document<'a> {
    style: &'static str,
    policy: &'a str,
    page: &'a Page,
}

/// Whether the page would go to a terminal, which does not show it.
pub(super) fn is_for_a_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Writes the page. A `wide` one has all figures.
pub(super) fn html(report: &Report, wide: bool) -> io::Result<String> {
    let page = Page::new(report, wide);
    let document = Document {
        style: STYLE,
        policy: &drawing::policy(STYLE),
        page: &page,
    };
    document.render().map_err(io::Error::other)
}
