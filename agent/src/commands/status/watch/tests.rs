//! The live view, drawn on a terminal in memory and driven by keys.

use std::sync::Arc;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{
    Event, KeyCode, KeyEvent, KeyModifiers, MouseEvent, MouseEventKind,
};
use ratatui::style::{Color, Modifier};

use super::input::After;
use super::model::Row;
use super::*;
use crate::commands::charset::Charset;
use crate::commands::status::selection::{Selection, Sort};
use crate::commands::status::words::name;
use crate::core::explanation::Explanation;
use crate::core::model::{BootTime, Nanos, Pid, SourceId, SourceState, WallTime};
use crate::core::snapshot::{ContainerAccount, GpuProcessView, Snapshot};
use crate::outputs::sample::{self, golden};
use crate::outputs::socket::StatusReport;

const LOOK: Look = Look {
    charset: Charset::Unicode,
    has_colours: true,
    has_headings: true,
};

fn answer_of(report: StatusReport) -> Answer {
    Answer {
        report,
        processes: None,
        explained: None,
    }
}

fn view() -> View {
    let report = sample::report(&sample::published());
    View::new(answer_of(report), Selection::default(), LOOK)
}

/// A node with this many GPUs and containers, all of them busy; every other container has a process.
fn node(gpus: usize, containers: usize) -> Answer {
    let mut report = sample::report(&sample::published());
    report.degraded.clear();
    for health in &mut report.agent.sources {
        health.state = SourceState::Up;
    }
    let Snapshot {
        gpus: books,
        accounts,
        host_accounts,
        allocations,
        ..
    } = &mut report.snapshot;
    let book = books[0].clone();
    *books = (0..gpus)
        .map(|number| {
            let mut book = book.clone();
            book.gpu.index = u32::try_from(number).unwrap();
            book.gpu.uuid = format!("GPU-{number:08}").as_str().into();
            book.gpu.simulated = false;
            book
        })
        .collect();
    let account = accounts[1].clone();
    *accounts = (0..containers)
        .map(|number| {
            let mut account = account.clone();
            let labels = Arc::make_mut(&mut account.labels);
            labels.pod = format!("train-{number}").into();
            account.id = format!("{number:064}").as_str().into();
            account.gpu = books[number % gpus].gpu.uuid.clone();
            account.share = 1.0 / (number + 1) as f64;
            account
        })
        .collect();
    host_accounts.clear();
    allocations.clear();
    let process = sample::processes()[0].clone();
    let processes = accounts.iter().enumerate().step_by(2);
    let processes = processes
        .map(|(number, account)| GpuProcessView {
            pid: Pid(1_000 + u32::try_from(number).unwrap()),
            gpu: account.gpu.clone(),
            owner: Arc::clone(&account.id.0),
            inner: Vec::new(),
            share: account.share,
            ..process.clone()
        })
        .collect();
    Answer {
        processes: Some(processes),
        ..answer_of(report)
    }
}

/// One commit of that node, without processes.
fn still(gpus: usize, containers: usize) -> View {
    let mut answer = node(gpus, containers);
    answer.processes = None;
    View::new(answer, Selection::default(), LOOK)
}

/// Two minutes on that node, a commit each two seconds: GPUs busy by different shares, one of them
/// without an owner for a time, another one not observed for a time.
fn driven(gpus: usize, containers: usize) -> View {
    let mut view = still(gpus, containers);
    for step in 1..=60_u64 {
        let mut answer = node(gpus, containers);
        answer.processes = None;
        let snapshot = &mut answer.report.snapshot;
        snapshot.sequence += step;
        snapshot.at = snapshot.at.plus(Nanos::from_secs(2 * step));
        for (number, book) in snapshot.gpus.iter_mut().enumerate() {
            let number = number as u64;
            let elapsed = Nanos::from_secs(2 * step);
            book.elapsed = book.elapsed.plus(elapsed);
            let lost = Nanos::from_secs(if number == 1 { 2 * step.min(15) } else { 0 });
            book.unobserved[0].1 = book.unobserved[0].1.plus(lost);
            let share = elapsed.minus(lost).0 / 8 * (number % 9);
            book.busy = book.busy.plus(Nanos(share));
            if number == 2 {
                let unowned = Nanos(share / step * step.saturating_sub(30));
                book.unattributed[0].1 = book.unattributed[0].1.plus(unowned);
            }
        }
        assert!(view.take(Ok(answer), Duration::ZERO), "another commit");
    }
    view
}

fn buffer(view: &mut View, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    terminal.backend().buffer().clone()
}

/// What a terminal of that size shows.
fn drawn(view: &mut View, width: u16, height: u16) -> String {
    let buffer = buffer(view, width, height);
    let rows = buffer.content.chunks(usize::from(width));
    rows.map(|row| {
        let row: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        row.trim_end().to_owned() + "\n"
    })
    .collect()
}

fn press(view: &mut View, code: KeyCode) -> After {
    view.react(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn type_in(view: &mut View, keys: &str) -> After {
    let mut last = After::Nothing;
    for c in keys.chars() {
        let code = match c {
            '\n' => KeyCode::Enter,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            c => KeyCode::Char(c),
        };
        last = press(view, code);
    }
    last
}

fn wheel(view: &mut View, kind: MouseEventKind) -> After {
    view.react(&Event::Mouse(MouseEvent {
        kind,
        column: 1,
        row: 1,
        modifiers: KeyModifiers::NONE,
    }))
}

fn order(view: &View) -> Vec<String> {
    let rows = view.rows().into_iter();
    rows.map(|row| match row {
        Row::Container(account) => name(account),
        Row::Unit(account) => account.unit.to_string(),
        Row::Process(process) => process.pid.to_string(),
    })
    .collect()
}

#[test]
fn the_sample_on_a_terminal() {
    golden("watch.txt", &drawn(&mut view(), 100, 30));
}

#[test]
fn eight_gpus_and_sixty_four_containers_on_terminals_of_all_sizes() {
    for (width, height) in [(40, 10), (80, 24), (200, 60)] {
        let mut view = driven(8, 64);
        let text = drawn(&mut view, width, height);
        golden(&format!("watch_{width}x{height}.txt"), &text);
    }
}

#[test]
fn no_gpu_and_no_container_disappears_silently() {
    for (width, height) in [(40, 10), (40, 24), (80, 10), (80, 24), (80, 60), (200, 60)] {
        let mut view = still(16, 500);
        let text = drawn(&mut view, width, height);
        let containers = |text: &str| text.matches("research/").count();
        let shown = containers(&text);
        let hidden = format!("{} more containers", 500 - shown);
        assert!(
            shown > 0 && text.contains(&hidden),
            "{width}x{height}:\n{text}"
        );
        // Each GPU has its index and its utilization, or is among those that are counted.
        let gpus = text.matches("75.0%").count();
        let counted = text
            .lines()
            .find_map(|line| line.split_once(" more GPUs: press a"))
            .map_or(0, |(count, _)| count.trim().parse().unwrap());
        assert_eq!(gpus + counted, 16, "{width}x{height}:\n{text}");
        // Scrolled to its end, the list has shown every container.
        let names = order(&view);
        let mut seen = std::collections::BTreeSet::new();
        loop {
            let text = drawn(&mut view, width, height);
            assert_eq!(containers(&text), view.room, "{width}x{height}:\n{text}");
            seen.extend(&names[view.above..view.above + view.room]);
            if press(&mut view, KeyCode::PageDown) == After::Nothing {
                break;
            }
        }
        assert_eq!(seen.len(), 500, "{width}x{height}");
        let end = drawn(&mut view, width, height);
        assert!(!end.contains("more containers"), "{width}x{height}:\n{end}");
        assert!(end.contains("containers above"), "{width}x{height}:\n{end}");
    }
}

#[test]
fn what_is_below_is_counted_however_narrow_the_screen_is() {
    let mut view = View::new(node(1, 100), Selection::default(), LOOK);
    for (width, wording) in [
        (80, " 89 more containers, 44 processes, press j  ? help"),
        (40, " ALL more rows, press j  ? help"),
        (20, " +ALL  ? help"),
        (5, " +ALL"),
    ] {
        let text = drawn(&mut view, width, 24);
        let hidden = 150 - view.room;
        let expected = wording.replace("ALL", &hidden.to_string());
        let footer = text.lines().last().unwrap();
        assert!(footer.starts_with(&expected), "{width}: {text}");
    }
}

#[test]
fn figures_are_never_cut() {
    let mut view = driven(8, 64);
    for width in 30..120 {
        let text = drawn(&mut view, width, 24);
        for line in text.lines().filter(|line| line.contains("rch/")) {
            let (_, figures) = line.split_at(line.find('/').unwrap());
            let cut = figures.split_whitespace().skip(1);
            // Only names and images are ever cut.
            let cut = cut.filter(|word| word.contains('…') && !word.contains('/'));
            assert_eq!(cut.count(), 0, "{width}: {line}");
        }
    }
}

#[test]
fn processes_that_were_asked_for_were_not_shown_on_a_terminal() {
    let answer = node(1, 4);
    let mut view = View::new(answer, Selection::default(), LOOK);
    let text = drawn(&mut view, 80, 24);
    assert!(text.contains("  1000 "), "{text}");
    assert_eq!(
        order(&view),
        [
            "research/train-0/trainer",
            "1000",
            "research/train-1/trainer",
            "research/train-2/trainer",
            "1002",
            "research/train-3/trainer"
        ]
    );
    // They go on a key, and come on it with a question to the agent.
    assert_eq!(type_in(&mut view, "p"), After::Draw);
    assert!(!drawn(&mut view, 80, 24).contains("  1000 "));
    assert!(!view.question().processes);
    assert_eq!(type_in(&mut view, "p"), After::Ask);
    assert!(view.question().processes);
}

#[test]
fn a_process_without_an_owner_in_the_list_is_there_all_the_same() {
    let mut answer = node(1, 1);
    let processes = answer.processes.as_mut().unwrap();
    processes[0].owner = "(unknown_pid)".into();
    let mut view = View::new(answer, Selection::default(), LOOK);
    assert_eq!(order(&view), ["research/train-0/trainer", "1000"]);
    let text = drawn(&mut view, 80, 24);
    assert!(text.contains("1000 (unknown_pid)"), "{text}");
}

#[test]
fn no_size_is_too_small_or_too_large() {
    for (width, height) in [
        (1, 1),
        (2, 40),
        (80, 2),
        (80, 3),
        (80, 10),
        (300, 5),
        (300, 200),
    ] {
        for keys in ["", "?", "a", "\n", "p/x"] {
            let mut view = view();
            type_in(&mut view, keys);
            let text = drawn(&mut view, width, height);
            assert_eq!(text.lines().count(), usize::from(height));
            press(&mut view, KeyCode::End);
            drawn(&mut view, width, height);
        }
    }
}

#[test]
fn the_keys_sort_filter_and_quit() {
    let mut view = view();
    let by_use = order(&view);
    assert_eq!(by_use[0], "research/train-0/trainer");
    assert!(by_use.contains(&"display-manager.service".to_owned()));
    type_in(&mut view, "r");
    let reversed: Vec<_> = by_use.iter().rev().cloned().collect();
    assert_eq!(order(&view), reversed);
    type_in(&mut view, "rsss");
    assert_eq!(view.sort, Sort::Name);
    let mut by_name = by_use.clone();
    by_name.sort();
    assert_eq!(order(&view), by_name);
    type_in(&mut view, "ss");
    assert_eq!(order(&view), by_use, "round and back");

    // While a filter is typed, its letters are no commands.
    assert_eq!(type_in(&mut view, "/JUPq"), After::Draw);
    assert_eq!(order(&view), Vec::<String>::new());
    assert!(drawn(&mut view, 100, 30).contains("nothing matches the filter"));
    type_in(&mut view, "\u{8}");
    assert_eq!(order(&view), ["jupyter"]);
    type_in(&mut view, "\n");
    assert!(drawn(&mut view, 100, 30).contains("filter: JUP (Esc)"));
    assert_eq!(
        type_in(&mut view, "\u{1b}"),
        After::Draw,
        "it ends the filter"
    );
    assert_eq!(order(&view), by_use);
    assert_eq!(type_in(&mut view, "q"), After::Quit);
    assert_eq!(type_in(&mut view, "\u{1b}"), After::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(view.react(&Event::Key(interrupt)), After::Quit);
}

#[test]
fn the_wheel_and_the_keys_scroll_and_never_past_the_end() {
    let mut view = still(1, 50);
    let first = drawn(&mut view, 100, 30);
    assert!(!first.contains("above"), "{first}");
    assert_eq!(view.cursor, 0);
    type Act = fn(&mut View) -> After;
    let rows: [(&str, Act, usize); 8] = [
        ("j", |view| type_in(view, "j"), 1),
        ("k", |view| type_in(view, "k"), 0),
        ("wheel", |view| wheel(view, MouseEventKind::ScrollDown), 3),
        (
            "wheel back",
            |view| wheel(view, MouseEventKind::ScrollUp),
            0,
        ),
        ("end", |view| press(view, KeyCode::End), 49),
        ("up", |view| press(view, KeyCode::Up), 48),
        ("page down", |view| press(view, KeyCode::PageDown), 49),
        ("home", |view| press(view, KeyCode::Home), 0),
    ];
    for (key, act, expected) in rows {
        assert_eq!(act(&mut view), After::Draw, "{key}");
        drawn(&mut view, 100, 30);
        assert_eq!(view.cursor, expected, "{key}");
    }
    assert_eq!(
        press(&mut view, KeyCode::Up),
        After::Nothing,
        "it is the first"
    );
}

#[test]
fn the_selected_row_stays_selected_when_the_order_changes() {
    let mut view = still(1, 50);
    drawn(&mut view, 100, 30);
    type_in(&mut view, "jj");
    let selected = |view: &View| order(view)[view.cursor].clone();
    assert_eq!(selected(&view), "research/train-2/trainer");
    type_in(&mut view, "r");
    drawn(&mut view, 100, 30);
    assert_eq!(selected(&view), "research/train-2/trainer");
    // It ends: whoever is in its place is selected.
    let mut answer = node(1, 50);
    answer.processes = None;
    answer.report.snapshot.sequence += 1_000;
    answer.report.snapshot.accounts.remove(2);
    assert!(view.take(Ok(answer), Duration::ZERO));
    drawn(&mut view, 100, 30);
    assert_eq!(order(&view).len(), 49);
    assert_eq!(selected(&view), "research/train-1/trainer");
}

#[test]
fn the_header_of_a_dead_agent_said_healthy() {
    let mut view = still(2, 2);
    let text = drawn(&mut view, 100, 30);
    assert!(text.lines().next().unwrap().contains("healthy"), "{text}");
    let timeout = || AskError::Timeout {
        request: "/v1/status".to_owned(),
    };
    assert!(view.take(Err(timeout()), Duration::from_millis(12_300)));
    let text = drawn(&mut view, 100, 30);
    let first = text.lines().next().unwrap();
    assert!(!first.contains("healthy"), "{text}");
    assert!(
        first.contains("no answer since 14:13:20 UTC (12.3s)"),
        "{text}"
    );
    assert!(text.contains("has not answered /v1/status"), "{text}");
    // Its last words stay.
    assert!(text.contains("research/train-0/trainer"), "{text}");
    let mut again = node(2, 2);
    again.processes = None;
    again.report.snapshot.sequence = view.report.snapshot.sequence;
    assert!(view.take(Ok(again), Duration::ZERO), "it answers again");
    assert!(drawn(&mut view, 100, 30).contains("healthy"));
}

#[test]
fn nothing_is_drawn_if_there_is_nothing_new() {
    let mut view = view();
    let report = view.report.clone();
    assert!(!view.take(Ok(answer_of(report.clone())), Duration::ZERO));
    assert_eq!(wheel(&mut view, MouseEventKind::Moved), After::Nothing);
    assert_eq!(type_in(&mut view, "x"), After::Nothing);
    let mut next = report;
    next.snapshot.sequence += 1;
    assert!(view.take(Ok(answer_of(next)), Duration::ZERO));
}

#[test]
fn space_pauses_and_goes_on() {
    let mut view = view();
    assert_eq!(type_in(&mut view, " "), After::Draw);
    assert!(drawn(&mut view, 100, 30).contains(", paused"));
    let mut next = view.report.clone();
    next.snapshot.sequence += 1;
    next.snapshot.accounts.clear();
    assert!(!view.take(Ok(answer_of(next.clone())), Duration::ZERO));
    assert!(drawn(&mut view, 100, 30).contains("research/train-0/trainer"));
    assert_eq!(type_in(&mut view, " "), After::Ask, "at once");
    assert!(view.take(Ok(answer_of(next)), Duration::ZERO));
    assert!(!drawn(&mut view, 100, 30).contains("research/train-0/trainer"));
}

#[test]
fn enter_shows_what_explain_says_of_the_selected_row() {
    let mut view = view();
    drawn(&mut view, 80, 24);
    assert_eq!(type_in(&mut view, "j\n"), After::Ask);
    let question = view.question();
    let subject = question.explain.unwrap();
    assert_eq!(view.rows()[1].subject(), subject);
    let text = drawn(&mut view, 80, 24);
    assert!(text.contains("asking the agent"), "{text}");

    let explained = |subject: &str| {
        let explanation = Explanation {
            subject: subject.into(),
            at: BootTime(1),
            wall: WallTime(1),
            events_through: None,
            processes: vec![],
            processes_left_out: 70,
            owners: vec![],
            owners_left_out: 0,
        };
        Answer {
            explained: Some((subject.to_owned(), Ok(Box::new(explanation)))),
            ..answer_of(sample::report(&sample::published()))
        }
    };
    // An answer about another row comes late.
    view.take(Ok(explained("another")), Duration::ZERO);
    assert!(drawn(&mut view, 80, 24).contains("asking the agent"));
    assert!(view.take(Ok(explained(&subject)), Duration::ZERO));
    let text = drawn(&mut view, 80, 24);
    assert!(text.contains("and 70 more processes"), "{text}");
    assert_eq!(type_in(&mut view, "\u{1b}"), After::Draw);
    assert_eq!(view.question().explain, None);
    assert!(drawn(&mut view, 80, 24).contains("OWNER"));
}

#[test]
fn texts_over_the_list_scroll_and_say_what_is_below() {
    let mut view = view();
    for (key, words, last) in [
        ("?", "what explain says", "room are left out"),
        ("a", "GIVEN BY THE KUBELET TO", "kernel events"),
    ] {
        drawn(&mut view, 80, 12);
        assert_eq!(type_in(&mut view, key), After::Draw);
        let mut seen = String::new();
        let first = drawn(&mut view, 80, 12);
        assert!(first.contains("more lines, press j"), "{first}");
        loop {
            seen += &drawn(&mut view, 80, 12);
            if press(&mut view, KeyCode::PageDown) == After::Nothing {
                break;
            }
        }
        assert!(seen.contains(words), "{seen}");
        let end = drawn(&mut view, 80, 12);
        assert!(end.contains(last) && !end.contains("more lines"), "{end}");
        assert_eq!(type_in(&mut view, "q"), After::Draw, "back to the list");
    }
}

#[test]
fn only_sources_that_need_attention_have_a_line() {
    let mut view = still(2, 2);
    let text = drawn(&mut view, 100, 30);
    assert!(text.contains("5 sources, all up"), "{text}");
    assert!(!text.contains("procfs"), "{text}");
    let text = drawn(&mut self::view(), 100, 30);
    assert!(
        text.contains("5 sources: 1 down, 3 up, 1 disabled"),
        "{text}"
    );
    assert!(
        text.contains("docker is down for 1h 0m: /var/run/docker.sock"),
        "{text}"
    );
    assert_eq!(text.matches("is down").count(), 1, "{text}");
}

#[test]
fn many_reasons_are_counted_where_they_find_no_room() {
    let mut report = sample::report(&sample::published());
    report.degraded = (0..20).map(|number| format!("reason {number}")).collect();
    let mut view = View::new(answer_of(report), Selection::default(), LOOK);
    for height in [10, 24, 60] {
        let text = drawn(&mut view, 80, height);
        let shown = text.matches("- reason").count();
        // The source that is down, and the remark that the GPUs are simulated.
        let hidden = 22 - shown - text.matches("- docker").count() - text.matches("simul").count();
        let expected = format!("{hidden} more: press a");
        assert!(hidden == 0 || text.contains(&expected), "{height}:\n{text}");
        assert!(text.contains("OWNER"), "{text}");
    }
}

#[test]
fn colours_and_characters_are_those_that_the_terminal_is_said_to_have() {
    let colours = |buffer: &Buffer| buffer.content.iter().any(|cell| cell.fg != Color::Reset);
    let mut view = driven(8, 64);
    view.report.degraded.push("something".to_owned());
    let with = buffer(&mut view, 80, 24);
    assert!(colours(&with));
    assert!(!drawn(&mut view, 80, 24).is_ascii());
    view.look.has_colours = false;
    let without = buffer(&mut view, 80, 24);
    assert!(!colours(&without));
    // What is degraded is inverted instead.
    assert!(without.content[0].modifier.contains(Modifier::REVERSED));
    view.look.charset = Charset::Ascii;
    let text = drawn(&mut view, 80, 24);
    assert!(text.is_ascii(), "{text}");
    assert!(text.contains("===="), "bars: {text}");
}

#[test]
fn a_choice_holds_in_the_live_view() {
    let answer = node(4, 20);
    let selection = Selection {
        gpu: vec!["1".to_owned()],
        limit: Some(2),
        sort_by: Some(Sort::Name),
        ..Selection::default()
    };
    let mut view = View::new(answer, selection, LOOK);
    let containers = view.report.snapshot.accounts.len();
    assert_eq!((view.report.snapshot.gpus.len(), containers), (1, 2));
    assert_eq!(view.sort, Sort::Name);
    let text = drawn(&mut view, 100, 30);
    assert!(text.contains("left out by --limit"), "{text}");
    // The GPU is gone: it has no containers, and the view goes on.
    let mut gone = node(4, 20);
    gone.report.snapshot.sequence += 1;
    gone.report.snapshot.gpus.remove(1);
    assert!(view.take(Ok(gone), Duration::ZERO));
    assert_eq!(order(&view), Vec::<String>::new());
}

#[test]
fn a_container_account_is_told_from_the_same_container_on_another_gpu() {
    let mut answer = node(2, 1);
    let accounts = &mut answer.report.snapshot.accounts;
    let other = ContainerAccount {
        gpu: answer.report.snapshot.gpus[1].gpu.uuid.clone(),
        ..accounts[0].clone()
    };
    accounts.push(other);
    answer.processes = None;
    let view = View::new(answer, Selection::default(), LOOK);
    let keys: Vec<String> = view.rows().iter().map(Row::key).collect();
    assert_ne!(keys[0], keys[1]);
    assert!(matches!(
        view.report.agent.sources[0].source,
        SourceId::Kernel
    ));
}
