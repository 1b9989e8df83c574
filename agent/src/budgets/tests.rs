//! Tests of files of budgets.

use super::*;

fn good(text: &str) -> Budgets {
    parse(text, "b.toml").unwrap()
}

#[test]
fn budgets_are_read_as_they_are_written() {
    let budgets = good(
        "prices = \"p.toml\"\n[[budget]]\nname = \"research\"\nnamespaces = [\"a\", \"b-1\"]\ngpu_hours = 20\n\
         of = \"allocated\"\n[[budget]]\nname = \"vision\"\nnamespace_label = { team = \"x\", \"a.b/c\" = \"y\" }\n\
         cluster = \"c\"\nmoney = \"99.50\"\n[[budget]]\nname = \"all\"\ncluster = \"c\"\ngpu_hours = \"0.5\"\n",
    );
    assert_eq!(budgets.prices.as_deref(), Some(Path::new("p.toml")));
    let [research, vision, all] = &budgets.budgets[..] else {
        panic!("{budgets:?}");
    };
    assert_eq!(research.limit, Limit::AllocatedHours(20.into()));
    assert_eq!(research.who.namespaces, ["a", "b-1"]);
    assert_eq!(vision.limit, Limit::Money(Decimal::new(9_950, 2)));
    assert_eq!(vision.who.labels["team"], "x");
    assert_eq!(vision.who.cluster.as_deref(), Some("c"));
    assert_eq!(all.limit, Limit::BusyHours(Decimal::new(5, 1)));
}

#[test]
fn all_that_is_wrong_is_said_at_once_with_its_place() {
    for (text, expected) in [
        (
            "",
            &["1:1: budget: there is none, expected at least one"][..],
        ),
        (
            "[budget]\nname = \"a\"\n",
            &["1:1: budget: found one table, expected [[budget]]"],
        ),
        (
            "[[budget]]\n",
            &[
                "1:1: budget[0]: says not how much it is: expected gpu_hours or money",
                "1:1: budget[0]: says not whose it is: expected namespaces, namespace_label or cluster",
                "1:1: budget[0].name: is missing",
            ],
        ),
        (
            "price = 1\n[[budget]]\nname = \"a\"\nnamespaces = [\"A.*\", 7]\ngpu_hours = 1.5\nmonney = 1\n\
             [[budget]]\nname = \"b\"\nnamespaces = \"b\"\nmoney = 5\nof = \"busy\"\n\
             [[budget]]\nname = \"\"\nnamespace_label = {}\ngpu_hours = -1\nof = \"idle\"\n\
             [[budget]]\nname = \"b\"\ncluster = 1\ngpu_hours = 1\nmoney = 1\n",
            &[
                "1:1: price: there is no such key, expected one of prices, budget",
                "4:15: budget[0].namespaces[0]: found \"A.*\", expected a namespace: a-z, 0-9 and - are possible",
                "4:22: budget[0].namespaces[1]: found a whole number, expected text",
                "5:13: budget[0].gpu_hours: found a number with a point, expected a whole number, or a decimal \
                 as text such as \"99.50\", above 0 and up to 1000000000",
                "6:1: budget[0].monney: there is no such key, expected one of name, namespaces, \
                 namespace_label, cluster, gpu_hours, money, of",
                "9:14: budget[1].namespaces: found text, expected a list of names",
                "10:9: budget[1].money: there are no prices; name their file with prices at the top",
                "11:6: budget[1].of: is for gpu_hours; money is for busy time",
                "13:8: budget[2].name: found \"\", expected 1 to 63 characters in one line",
                "14:19: budget[2].namespace_label: is empty, expected at least one label",
                "15:13: budget[2].gpu_hours: found -1, expected a whole number, or a decimal as text such as \
                 \"99.50\", above 0 and up to 1000000000",
                "16:6: budget[2].of: found \"idle\", expected \"busy\" or \"allocated\"",
                "19:11: budget[3].cluster: found a whole number, expected text",
                "21:9: budget[3].money: there is gpu_hours too; make two budgets of it",
            ],
        ),
        (
            "[[budget]]\nname = \"a\"\ncluster = \"c\"\ngpu_hours = 1\n[[budget]]\nname = \"a\"\ncluster = \"c\"\n\
             gpu_hours = 2\n",
            &["6:8: budget[1].name: \"a\" is the name of another budget"],
        ),
    ] {
        let error = parse(text, "b.toml").unwrap_err();
        let BudgetsError::Wrong(mistakes) = &error else {
            panic!("{error}");
        };
        let found: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        let expected: Vec<String> = expected.iter().map(|one| format!("b.toml:{one}")).collect();
        assert_eq!(found, expected, "{text}");
    }
    // What is no TOML is said where it is, and nothing that only follows from it.
    let error = parse("[[budget]]\nname = \ncluster = \"c\"\n", "b.toml").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("b.toml:2:"), "{text}");
    assert!(!text.contains("is missing"), "{text}");
}

#[test]
fn texts_cannot_leave_their_place_in_an_expression() {
    let budgets = good(
        "[[budget]]\nname = \"it's: \\\"a\\\" # {{ $x }}\"\ncluster = \"a\\\"} or vector(1) # \\\\\"\ngpu_hours = 1\n\
         namespace_label = { \"app.kubernetes.io/part-of\" = \"x\\\"y\" }\n",
    );
    let text = rules::render(&budgets, None).unwrap();
    let rules: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    let used = &rules["groups"][0]["rules"][1];
    assert_eq!(used["labels"]["budget"], "it's: \"a\" # {{ $x }}");
    let expr = used["expr"].as_str().unwrap();
    for part in [
        r#"{cluster="a\"} or vector(1) # \\"}"#,
        r#"kube_namespace_labels{label_app_kubernetes_io_part_of="x\"y"}"#,
    ] {
        assert!(expr.contains(part), "{expr}");
    }
}

#[test]
fn prices_that_rules_cannot_use_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("budgets.toml");
    let budget = "prices = \"p.toml\"\n[[budget]]\nname = \"a\"\nnamespaces = [\"a\"]\nmoney = 5\n";
    std::fs::write(&file, budget).unwrap();
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"1\"\n";
    std::fs::write(dir.path().join("p.toml"), prices).unwrap();
    read(&file).unwrap();
    for (wrong, expected) in [
        (
            format!("{prices}[[for]]\nnode = \"a\"\n[for.default]\nbusy_hour = \"2\"\n"),
            "p.toml: found prices of nodes",
        ),
        (
            format!("{prices}[default.mig.\"1g.10gb\"]\nbusy_hour = \"2\"\n"),
            "p.toml: found prices of MIG profiles in [default]",
        ),
        (
            prices.replace("busy_hour", "allocated_hour"),
            "p.toml: found no busy_hour",
        ),
    ] {
        std::fs::write(dir.path().join("p.toml"), wrong).unwrap();
        let error = read(&file).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_model_that_costs_nothing_while_it_is_busy_was_billed_at_the_default() {
    let prices = "currency = \"EUR\"\n[default]\nbusy_hour = \"1.80\"\n[gpu.\"L4\"]\nallocated_hour = \"2\"\n";
    let prices = Prices::parse(prices, "p.toml").unwrap();
    let budgets =
        good("prices = \"p.toml\"\n[[budget]]\nname = \"a\"\ncluster = \"c\"\nmoney = 5\n");
    let text = rules::render(&budgets, Some(&prices)).unwrap();
    assert!(
        text.contains("vector(0)\n") && text.contains("model: L4"),
        "{text}"
    );
}

#[test]
fn a_label_of_a_namespace_has_the_name_that_kube_state_metrics_gives_it() {
    let budgets =
        good("[[budget]]\nname = \"a\"\nnamespace_label = { costCenter = \"7\" }\ngpu_hours = 5\n");
    let text = rules::render(&budgets, None).unwrap();
    assert!(
        text.contains("kube_namespace_labels{label_cost_center=\"7\"}"),
        "{text}"
    );
}
