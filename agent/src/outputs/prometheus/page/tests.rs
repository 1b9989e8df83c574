//! Tests of `page`.

use std::sync::Arc;

use axum::http::header::CONTENT_SECURITY_POLICY;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use super::history::tests::Node;
use super::*;
use crate::core::model::{HostUnit, SourceState, WallTime};
use crate::drawing::COLOURS;
use crate::outputs::sample::{self, NOW, golden};

fn at(wall: WallTime) -> Clock {
    Clock { boot: NOW, wall }
}

fn written(page: &PeoplePage, published: &Published) -> String {
    let wall = WallTime(published.books.wall.0 + 500_000_000);
    let mut out = String::new();
    page.render(published, at(wall), &mut out);
    out
}

/// Everything between angle brackets, in order.
fn tags(html: &str) -> Vec<&str> {
    let parts = html.split('<').skip(1);
    parts
        .map(|part| part.split('>').next().unwrap_or_default())
        .collect()
}

#[test]
fn the_sample_as_a_page() {
    let mut published = sample::published();
    let page = PeoplePage::default();
    page.look(&published);
    let books = &mut published.books;
    books.at = NOW;
    let book = &mut books.gpus[0];
    for amount in [&mut book.elapsed, &mut book.busy] {
        *amount += Nanos::from_secs(30);
    }
    books.accounts[1].amounts.busy += Nanos::from_secs(20);
    books.accounts[2].amounts.busy += Nanos::from_secs(10);
    golden("page.html", &written(&page, &published));
}

/// Texts that would be something else in HTML, in an attribute, in a style or in a script, or would
/// turn the text around them.
const HOSTILE: [&str; 7] = [
    "<script>document.title='owned'</script>",
    "\"><img src=x onerror=document.title='owned'>",
    "' onmouseover='document.title=1",
    "</style><style>*{display:none}</style>",
    "</title></svg><iframe src=//example.org>",
    "\u{202e}drow\u{2066}\0\u{7}\r\n]]>--><!--",
    "{{ page.version }}{% if true %}&lt;b&gt;",
];

#[test]
fn a_name_makes_no_element_wherever_it_is() {
    let hostile = |text: &str| -> Published {
        let mut published = sample::published();
        let books = &mut published.books;
        for account in &mut books.accounts {
            let labels = Arc::make_mut(&mut account.labels);
            for label in [
                &mut labels.namespace,
                &mut labels.pod,
                &mut labels.container,
            ] {
                *label = text.into();
            }
        }
        for unit in &mut books.host_accounts {
            unit.unit = HostUnit::from(text);
        }
        for book in &mut books.gpus {
            book.gpu.model = text.into();
        }
        for series in &mut books.xids {
            Arc::make_mut(&mut series.labels).pod = text.into();
        }
        for health in &mut published.agent.sources {
            health.place = text.into();
            if let SourceState::Down { reason, .. } = &mut health.state {
                *reason = text.into();
            }
        }
        published
    };
    let page = |published: &Published| {
        let page = PeoplePage::default();
        page.look(published);
        let mut later = published.clone();
        later.books.at = NOW;
        for (book, gpu) in later.books.gpus.iter_mut().zip(1..) {
            book.elapsed += Nanos::from_secs(gpu * 60);
            book.busy += Nanos::from_secs(gpu * 60);
        }
        for account in &mut later.books.accounts {
            account.amounts.busy += Nanos::from_secs(5);
        }
        written(&page, &later)
    };
    let tame = page(&hostile("tame"));
    for text in HOSTILE {
        let html = page(&hostile(text));
        let shapes = |html: &str| -> Vec<String> {
            let names = tags(html).into_iter();
            names
                .map(|tag| tag.split(' ').next().unwrap_or_default().to_owned())
                .collect()
        };
        assert_eq!(shapes(&html), shapes(&tame), "{text}");
        assert!(
            !html.contains(['\u{202e}', '\u{2066}', '\0', '\u{7}']),
            "{text}"
        );
        // No attribute is ended by a quote of the name's.
        let quotes = |html: &str| tags(html).concat().matches(['"', '\'']).count();
        assert_eq!(quotes(&html), quotes(&tame), "{text}");
    }
    let long = page(&hostile(&"x".repeat(4_096)));
    assert!(long.len() < 3 * tame.len(), "{} bytes", long.len());
}

#[test]
fn the_policy_allows_the_style_that_is_in_the_page_and_nothing_else() {
    let html = written(&PeoplePage::default(), &sample::published());
    let style = html.split_once("<style>").expect("a style").1;
    let style = style.split_once("</style>").expect("its end").0;
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, style.as_bytes()));
    let headers = headers();
    let policy = headers
        .iter()
        .find(|(name, _)| name == CONTENT_SECURITY_POLICY);
    assert_eq!(
        policy.expect("there is one").1,
        format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'"
        )
    );
    let html = html.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
    assert!(!html.contains(" style=") && !html.contains("<script") && !html.contains("http"));
    for address in tags(&html)
        .into_iter()
        .filter_map(|tag| tag.split_once("href=\""))
    {
        let address = address.1.split('"').next().unwrap_or_default();
        let is_own = ["metrics", "healthz", "readyz"].contains(&address);
        assert!(is_own || address.starts_with('#'), "{address}");
    }
}

#[test]
fn every_class_has_a_style_and_every_style_its_class() {
    let html = written(&PeoplePage::default(), &sample::published());
    for colour in 0..COLOURS {
        assert!(STYLE.contains(&format!(".c{colour}{{--c:var(--c{colour})}}")));
        // Once for light and once for dark.
        assert_eq!(STYLE.matches(&format!("--c{colour}:#")).count(), 2);
    }
    for tag in tags(&html) {
        let Some((_, classes)) = tag.split_once("class=\"") else {
            continue;
        };
        for class in classes.split('"').next().unwrap_or_default().split(' ') {
            assert!(STYLE.contains(&format!(".{class}")), "no style of {class}");
        }
    }
}

#[test]
fn a_node_without_a_gpu_and_an_agent_that_starts_have_pages() {
    let mut published = sample::published();
    published.books.gpus.clear();
    let html = written(&PeoplePage::default(), &published);
    assert!(html.contains("No GPU is known."));
    let html = written(&PeoplePage::default(), &Published::default());
    assert!(html.contains("No GPU is known.") && html.contains("starting"));
    assert!(html.contains("nothing has been committed yet"));
}

#[test]
fn more_owners_than_fit_are_in_a_part_that_opens_and_none_is_missing() {
    let mut node = Node::new();
    node.containers(80);
    node.snapshot.host_accounts.clear();
    let page = PeoplePage::default();
    let published = |node: &Node| Published {
        books: node.snapshot.clone(),
        ..sample::published()
    };
    page.look(&published(&node));
    for number in 0..80 {
        node.busy(number, 80 - u64::try_from(number).unwrap());
    }
    let html = written(&page, &published(&node));
    let (seen, rest) = html.split_once("<details>").expect("it is there");
    let more = rest.split_once("</details>").expect("it ends").0;
    assert_eq!(seen.matches("<bdi title=\"team/pod-").count(), 12);
    assert!(more.contains("<summary>68 more owners</summary>"));
    assert_eq!(more.matches("<bdi title=\"team/pod-").count(), 68);
    // Of 80 owners 64 have a figure of their own in a minute, and 16 their sum.
    assert!(html.contains("at least 16 more owners"));
    assert_eq!(more.matches("wide\">- <span>-</span>").count(), 16);
}

#[test]
fn who_was_given_a_gpu_has_it_even_if_it_does_not_use_it() {
    let mut published = sample::published();
    for account in &mut published.books.accounts {
        account.share = 0.0;
        account.memory = None;
        account.ended = false;
    }
    published.books.host_accounts.clear();
    let html = written(&PeoplePage::default(), &published);
    let who = html.split("class=\"who\">").nth(1).expect("a first GPU");
    let who = who.split("</td>").next().unwrap_or_default();
    assert!(who.contains("research/train-0/trainer"), "{who}");
    assert!(!who.contains("jupyter"), "{who}");
    assert!(html.contains("<em>allocated</em>"));
}

#[tokio::test(start_paused = true)]
async fn a_look_is_taken_each_minute_and_first_once_something_is_published() {
    let (publish, published) = watch::channel(Arc::new(Published::default()));
    let page = Arc::new(PeoplePage::default());
    let looking = tokio::spawn(Arc::clone(&page).keep_history(published));
    let mut node = Node::new();
    node.containers(1);
    for _ in 0..4 {
        node.busy(0, 30);
        let books = node.snapshot.clone();
        publish.send_replace(Arc::new(Published {
            books,
            ..Published::default()
        }));
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    looking.abort();
    assert!(looking.await.is_err_and(|error| error.is_cancelled()));
    let mut history = page.history.lock().unwrap();
    let mut hours = history.until(&node.snapshot);
    let hour = hours
        .remove(&sample::FIRST_GPU.into())
        .expect("it is there");
    let lengths: Vec<_> = hour.stretches.iter().map(|it| it.elapsed().0).collect();
    let minute = Nanos::from_secs(60).0;
    assert_eq!(lengths, [minute, minute / 2]);
}

#[test]
fn no_two_bands_of_a_picture_have_one_colour() {
    for (name, gpus, owners) in [("many", 1, 40), ("full", 8, 64)] {
        let html = page_of(gpus, owners, 61, name);
        for picture in html.split("<figure>").skip(1) {
            let picture = picture.split("</figure>").next().unwrap_or_default();
            let paths = picture.split("<path class=\"").skip(1);
            let mut classes: Vec<&str> = paths
                .map(|path| path.split('"').next().unwrap_or_default())
                .collect();
            let bands = classes.len();
            assert!(bands > 10, "{bands}");
            classes.sort_unstable();
            classes.dedup();
            assert_eq!(classes.len(), bands);
        }
    }
}

/// Where pages are put to be looked at, if anywhere.
const PAGES: &str = "GPUACCT_PAGES";

#[test]
fn pages_of_nodes_of_all_sizes_are_bounded() {
    for (name, gpus, owners, minutes, most) in [
        ("none", 0, 0, 3, 20_000),
        ("one", 1, 3, 61, 40_000),
        ("many-owners", 1, 40, 61, 100_000),
        ("full", 8, 64, 61, 700_000),
        ("starting", 2, 3, 17, 40_000),
    ] {
        let html = page_of(gpus, owners, minutes, name);
        assert!(html.len() < most, "{name}: {} bytes", html.len());
        assert_eq!(html.matches("<figure>").count(), gpus, "{name}");
        if let Some(folder) = std::env::var_os(PAGES) {
            let file = std::path::Path::new(&folder).join(format!("{name}.html"));
            std::fs::write(file, html).expect("there is room");
        }
    }
}

/// The page of a node with so many GPUs and owners on each, after so many minutes.
fn page_of(gpus: usize, owners: usize, minutes: usize, name: &str) -> String {
    let mut published = sample::published();
    published.books = crate::core::snapshot::Snapshot {
        gpus: Vec::new(),
        accounts: Vec::new(),
        host_accounts: Vec::new(),
        allocations: Vec::new(),
        xids: Vec::new(),
        ..published.books
    };
    if name == "one" || name == "full" {
        published
            .agent
            .sources
            .retain(|it| it.state.as_str() != "down");
    }
    let sample = sample::snapshot();
    let books = &mut published.books;
    for gpu in 0..gpus {
        let mut book = sample.gpus[0].clone();
        book.gpu.index = u32::try_from(gpu).unwrap();
        book.gpu.uuid = format!("GPU-8a56a4bc-e184-a047-2620-{gpu:012x}")
            .as_str()
            .into();
        book.gpu.simulated = false;
        if name == "starting" && gpu == 1 {
            book.gpu.mig = Some(crate::core::input::MigInfo {
                parent: books.gpus[0].gpu.uuid.clone(),
                profile: "1g.10gb".into(),
                gpu_instance: 7,
                compute_instance: 0,
            });
            book.health = None;
        }
        if name != "one" {
            book.health = None;
        }
        for owner in 0..owners {
            let mut account = sample.accounts[1].clone();
            account.gpu = book.gpu.uuid.clone();
            account.id = format!("{:064x}", gpu * 1_000 + owner).as_str().into();
            account.share = 0.0;
            account.memory = Some((owner as u64 % 5) << 30);
            let labels = Arc::make_mut(&mut account.labels);
            let teams = ["research", "serving", "batch"];
            labels.namespace = teams[owner % 3].into();
            labels.pod = format!(
                "{}-{owner}",
                ["train-7b", "chat-5d9f7-x2x4z", "eval"][owner % 3]
            )
            .into();
            labels.container = ["trainer", "server", "main"][owner % 3].into();
            books.accounts.push(account);
        }
        books.gpus.push(book);
    }
    let page = PeoplePage::default();
    page.look(&published);
    let minute = Nanos::from_secs(60).0;
    for now in 1..=minutes {
        let books = &mut published.books;
        books.sequence += 1;
        books.at = books.at.plus(Nanos(minute));
        for (gpu, book) in books.gpus.iter_mut().enumerate() {
            let mut left = minute;
            let accounts = books
                .accounts
                .iter_mut()
                .filter(|it| it.gpu == book.gpu.uuid);
            for (owner, account) in accounts.enumerate() {
                // Some work all the time, others come and go.
                let phase = (now + 7 * owner + 3 * gpu) % 60;
                let is_at_work = owner == 0 || phase < 25 + owner % 9;
                let part = minute / (owner as u64 + 3) * (8 + (phase as u64 * 5) % 3) / 10;
                let part = if is_at_work { part.min(left) } else { 0 };
                left -= part;
                account.amounts.busy += Nanos(part);
                account.share = part as f64 / minute as f64;
                book.busy += Nanos(part);
            }
            let unowned = if now % 23 == 0 { left / 2 } else { 0 };
            let unobserved = if (20..24).contains(&now) {
                (left - unowned) / 2
            } else {
                0
            };
            book.unattributed[0].1 += Nanos(unowned);
            book.busy += Nanos(unowned);
            book.unobserved[0].1 += Nanos(unobserved);
            book.idle += Nanos(left - unowned - unobserved);
            book.elapsed += Nanos(minute);
        }
        page.look(&published);
    }
    let now = Clock {
        boot: published.books.at.plus(Nanos::from_secs(1)),
        wall: WallTime(published.books.wall.0 + minute),
    };
    let mut out = String::new();
    page.render(&published, now, &mut out);
    out
}
