//! Tests of the page, over a report that is made up.

use super::super::tests::report;
use super::*;
use crate::drawing::COLOURS;

const PRICES: &str = "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n";

fn pages() -> Vec<String> {
    let grouped = [
        &["namespace"][..],
        &["hour", "gpu", "pod"],
        &["node", "day"],
        &["label:team", "unit"],
    ];
    let priced = [None, Some(PRICES)];
    let all = grouped.iter().flat_map(|by| {
        priced.map(|prices| html(&report(by, "Europe/Berlin", prices), true).unwrap())
    });
    all.collect()
}

/// The tags of a document.
fn tags(html: &str) -> impl Iterator<Item = &str> {
    let tags = html.split('<').skip(1);
    tags.map(|tag| tag.split('>').next().unwrap_or_default())
}

#[test]
fn every_class_has_a_style() {
    for colour in 0..COLOURS {
        assert!(STYLE.contains(&format!(".c{colour}{{--c:var(--c{colour})}}")));
    }
    for html in pages() {
        let (_, body) = html.split_once("</style>").unwrap();
        for classes in tags(body).filter_map(|tag| tag.split_once("class=\"")) {
            let classes = classes.1.split('"').next().unwrap_or_default();
            for class in classes.split(' ').filter(|class| !class.is_empty()) {
                assert!(STYLE.contains(&format!(".{class}")), "no style of {class}");
            }
        }
    }
}

#[test]
fn a_page_asks_for_nothing_and_says_so_to_the_browser() {
    for html in pages() {
        let policy = html
            .find("http-equiv=\"Content-Security-Policy\" content=\"default-src &#39;none&#39;");
        let style = html.find("<style>");
        assert!(policy.is_some() && policy < style, "{html}");
        for tag in tags(&html) {
            let name = tag.split([' ', '/']).find(|part| !part.is_empty());
            let refused = [
                "script", "link", "img", "iframe", "a", "form", "object", "base",
            ];
            assert!(!name.is_some_and(|name| refused.contains(&name)), "{tag}");
            for attribute in [" src=", " href=", " style=", " on"] {
                assert!(!tag.contains(attribute), "{tag}");
            }
        }
    }
}

#[test]
fn times_are_cut_in_the_zone_of_the_report() {
    let html = html(&report(&["namespace"], "Europe/Berlin", None), false).unwrap();
    assert!(html.contains(">2026-01-31 09:00:00+01:00<"), "{html}");
    assert!(!html.contains("08:00:00"), "{html}");
}
