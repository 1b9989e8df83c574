//! Tests of `page::picture`.

use super::*;

fn owner(name: &str) -> OwnerKey {
    OwnerKey::Unit(name.into())
}

fn stretch(owners: &[(&str, u64)], idle: u64, unobserved: u64) -> Stretch {
    let owners = owners.iter();
    Stretch {
        owners: owners
            .map(|(name, busy)| (owner(name), Nanos::from_secs(*busy)))
            .collect(),
        idle: Nanos::from_secs(idle),
        unobserved: Nanos::from_secs(unobserved),
        ..Stretch::default()
    }
}

fn picture(hour: &Hour, named: &[&OwnerKey]) -> String {
    let bands = named.iter().map(|owner| Band {
        owner,
        class: "c1".to_owned(),
        name: "a <b>\u{202e}&amp;".to_owned(),
        hour: Nanos::from_secs(90),
    });
    draw(
        "GPU 0",
        hour,
        &bands.collect::<Vec<_>>(),
        &Stretch {
            unobserved: Nanos::from_secs(30),
            ..Stretch::default()
        },
    )
}

/// The `d` of the path of that class.
fn path<'a>(picture: &'a str, class: &str) -> Option<&'a str> {
    let (_, rest) = picture.split_once(&format!("<path class=\"{class}\" d=\""))?;
    rest.split('"').next()
}

#[test]
fn stretches_stand_side_by_side_and_bands_on_one_another() {
    let named = owner("a");
    let hour = Hour {
        stretches: vec![
            stretch(&[("a", 30)], 30, 0),
            stretch(&[("a", 15), ("b", 15)], 0, 30),
        ],
        behind: Nanos::from_secs(20),
    };
    let picture = picture(&hour, &[&named]);
    // An hour ends at 3600. 20 s are behind, and two minutes before that.
    let expected = "M3460,600 h60 v600 h-60 z M3520,900 h60 v300 h-60 z";
    assert_eq!(path(&picture, "c1"), Some(expected));
    let others = "M3520,600 h60 v300 h-60 z";
    assert_eq!(path(&picture, "others"), Some(others));
    let unobserved = "M3520,0 h60 v600 h-60 z";
    assert_eq!(path(&picture, "unobserved"), Some(unobserved));
    assert_eq!(path(&picture, "unowned"), None, "there is none");
    // What is known has a ground; what is before and behind it has another one.
    assert!(picture.contains("class=\"ground\" height=\"1200\" width=\"120\" x=\"3460\""));
    assert!(picture.contains("class=\"unknown\" height=\"120\" width=\"96.11%\" x=\"0.00%\""));
    assert!(picture.contains("class=\"unknown\" height=\"120\" width=\"0.55%\" x=\"99.44%\""));
}

#[test]
fn nothing_is_drawn_as_idle_of_a_gpu_of_which_nothing_is_known() {
    let picture = picture(&Hour::default(), &[]);
    assert!(!picture.contains("<path"), "{picture}");
    assert!(picture.contains("class=\"ground\" height=\"1200\" width=\"0\" x=\"3600\""));
    assert!(picture.contains("class=\"unknown\" height=\"120\" width=\"100.00%\" x=\"0.00%\""));
    assert!(picture.contains("not known"));
}

#[test]
fn what_is_older_than_the_picture_is_cut_off() {
    let named = owner("a");
    let hour = Hour {
        stretches: vec![
            stretch(&[("a", 60)], 0, 0),
            stretch(&[("a", 60)], 0, 0),
            stretch(&[], 3_570, 0),
        ],
        behind: Nanos::ZERO,
    };
    let picture = picture(&hour, &[&named]);
    assert_eq!(path(&picture, "c1"), Some("M0,0 h30 v1200 h-30 z"));
    assert!(!picture.contains("class=\"unknown\""), "{picture}");
}

#[test]
fn bands_never_rise_above_the_whole() {
    // Seven sevenths, each of which is rounded.
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    let owners: Vec<_> = names.map(|name| (name, 1)).to_vec();
    let hour = Hour {
        stretches: vec![stretch(&owners, 0, 0)],
        behind: Nanos::ZERO,
    };
    let keys = names.map(owner);
    let picture = picture(&hour, &keys.iter().collect::<Vec<_>>());
    let heights = picture.split("<path").skip(1).map(|path| {
        let height = path.split(" v").nth(1).expect("a height");
        let height = height.split(' ').next().expect("a number");
        height.parse::<u64>().expect("a number")
    });
    assert_eq!(heights.sum::<u64>(), HEIGHT);
}

#[test]
fn names_in_a_picture_are_text_and_nothing_else() {
    let named = owner("a");
    let hour = Hour {
        stretches: vec![stretch(&[("a", 60)], 0, 0)],
        behind: Nanos::ZERO,
    };
    let picture = picture(&hour, &[&named]);
    assert!(!picture.contains("<b>") && !picture.contains('\u{202e}'));
    assert!(
        picture.contains("a &lt;b&gt;&amp;amp;: 1m 30s"),
        "{picture}"
    );
}
