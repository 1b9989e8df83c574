//! What is due when, over changes that come late. Hours are numbers, so no clock is needed.

use super::*;
use crate::outputs::store::schema;

/// A ledger with two accounts on one GPU: the first is a container with names, the second one whose
/// names are awaited. Both have used something in the hours 5 and 6.
fn ledger() -> Connection {
    let mut connection = Connection::open_in_memory().expect("memory is there");
    schema::migrate(&mut connection, 0).expect("the migrations are sound");
    connection
        .execute_batch(
            r#"INSERT INTO meta VALUES (1, 'ledger', 1, 7, 0, 0, 0, '', 'node');
            INSERT INTO lives VALUES (1, 'boot', 1234, 'first');
            INSERT INTO gpus VALUES (1, 'GPU-0', 0, 'H200', 'd', '{"mig":null}');
            INSERT INTO accounts VALUES
                (1, 1, 1, 'container', 'a', 'team', 'pod', 'main', 'uid', 'a', 'image', 'docker',
                    'named', 'docker', '{"team":"vision"}', 0, 0, NULL, 1, NULL),
                (2, 1, 1, 'container', 'b', '(unresolved)', '(unresolved)', '(unresolved)',
                    '(unresolved)', 'b', '(unresolved)', 'docker', 'held', NULL, '{}', 0, 0, NULL,
                    1, NULL);
            INSERT INTO hours (hour, account, busy, memory, memory_high) VALUES
                (5, 1, 10, 3, 1), (6, 1, 20, 0, 0), (5, 2, 5, 0, 0), (6, 2, 6, 0, 0);
            INSERT INTO hours (hour, account) VALUES (4, 1);
            INSERT INTO gpu_hours VALUES (5, 1, 100, 15, 60, 9, 2, 1), (6, 1, 100, 26, 74, 9, 2, 1);
            INSERT INTO reason_hours VALUES (5, 1, 'unobserved', 'agent_down', 25),
                (5, 1, 'unattributed', 'unknown_pid', 0);"#,
        )
        .expect("the rows fit");
    connection
}

/// What is offered: the subject, the hour and the revision.
fn offered(connection: &mut Connection) -> Vec<(Subject, i64, i64)> {
    let records = offer(connection, 100).expect("the ledger is sound");
    let keys = records.iter().map(|UsageRecord { key, .. }| key);
    keys.map(|key| (key.subject, key.hour, key.revision))
        .collect()
}

fn settle_all(connection: &mut Connection) -> usize {
    let records = offer(connection, 100).expect("the ledger is sound");
    let keys: Vec<_> = records.iter().map(|record| record.key).collect();
    settle(connection, &keys).expect("the ledger is sound");
    keys.len()
}

fn execute(connection: &Connection, change: &str) {
    connection.execute_batch(change).expect("the change fits");
}

const fn account(account: i64, hour: i64, revision: i64) -> (Subject, i64, i64) {
    (Subject::Account(account), hour, revision)
}

const fn gpu(hour: i64, revision: i64) -> (Subject, i64, i64) {
    (Subject::Gpu(1), hour, revision)
}

#[test]
fn an_hour_is_offered_again_until_it_is_settled_and_then_no_more() {
    let mut connection = ledger();
    assert_eq!(offered(&mut connection), [], "nothing has been entered");
    enter(&mut connection).expect("the ledger is sound");
    let standing_before = standing(&connection).expect("it can be counted");
    assert_eq!(standing_before.unsettled, 6, "an hour without use is none");
    assert_eq!(standing_before.oldest_ended, Some(WallTime(6 * HOUR)));
    let first = [
        account(1, 5, 1),
        account(2, 5, 1),
        // The names of account 2 are awaited, and its hour is the last one.
        account(1, 6, 1),
        gpu(5, 1),
        gpu(6, 1),
    ];
    assert_eq!(offered(&mut connection), first);
    assert_eq!(offered(&mut connection), first, "the same revisions");
    enter(&mut connection).expect("a second time changes nothing");
    assert_eq!(settle_all(&mut connection), 5);
    assert_eq!(offered(&mut connection), []);
    let now = standing(&connection).expect("it can be counted");
    assert_eq!(
        (now.unsettled, now.oldest_ended),
        (1, Some(WallTime(7 * HOUR)))
    );
}

#[test]
fn a_batch_begins_with_the_oldest_hour() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    let records = offer(&mut connection, 2).expect("the ledger is sound");
    let hours: Vec<_> = records.iter().map(|record| record.key.hour).collect();
    assert_eq!(hours, [5, 5]);
}

#[test]
fn a_record_says_what_the_ledger_has() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    let records = offer(&mut connection, 100).expect("the ledger is sound");
    let RecordContent::Account(of_account) = &records[0].content else {
        panic!("{records:?}");
    };
    assert_eq!(records[0].id, "ledger/1234/GPU-0/1/5");
    assert_eq!(&*of_account.namespace, "team");
    assert_eq!(&*of_account.labels, r#"{"team":"vision"}"#);
    assert_eq!(of_account.amounts.busy, Nanos(10));
    assert_eq!(of_account.amounts.memory.0, (1 << 62) + 3, "beyond 63 bits");
    let record = records.iter().find(|record| record.id == "ledger/GPU-0/5");
    let RecordContent::Gpu(hour) = &record.expect("it is there").content else {
        panic!("{record:?}");
    };
    assert_eq!(
        (hour.elapsed, hour.busy, hour.idle),
        (Nanos(100), Nanos(15), Nanos(60))
    );
    assert_eq!(hour.unobserved, [("agent_down".into(), Nanos(25))]);
    assert_eq!(hour.unattributed, []);
}

#[test]
fn a_name_that_comes_late_is_the_next_revision_of_each_hour() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    settle_all(&mut connection);
    // An upsert as the writer makes it; one that changes no name is none.
    let write = |names: &str, attribution: &str| {
        format!(
            "INSERT INTO accounts SELECT account, life, gpu, kind, owner, '{names}', pod, container,
                pod_uid, container_id, image, runtime, '{attribution}', source, labels, opened,
                held_since_boot, ended_boot, fed, closed
            FROM accounts WHERE account = 2
            ON CONFLICT (account) DO UPDATE SET namespace = excluded.namespace,
                attribution = excluded.attribution, fed = 0"
        )
    };
    execute(&connection, &write("(unresolved)", "held"));
    assert_eq!(offered(&mut connection), []);
    execute(&connection, &write("team", "named"));
    let expected = [account(2, 5, 2), account(2, 6, 1)];
    assert_eq!(
        offered(&mut connection),
        expected,
        "settled now, and hour 6 for the first time"
    );
}

#[test]
fn labels_that_come_late_were_never_sent() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    settle_all(&mut connection);
    execute(&connection, "UPDATE accounts SET labels = labels");
    assert_eq!(offered(&mut connection), [], "nothing has changed");
    execute(
        &connection,
        "UPDATE accounts SET labels = '{\"team\":\"language\"}' WHERE account = 1",
    );
    let again = offered(&mut connection);
    assert!(
        !again.is_empty() && again.iter().all(|key| key.2 == 2),
        "{again:?}"
    );
}

#[test]
fn names_that_never_come_are_waited_for_until_the_next_hour_is_over() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    settle_all(&mut connection);
    assert_eq!(offered(&mut connection), []);
    execute(&connection, "UPDATE meta SET hour = 8");
    assert_eq!(offered(&mut connection), [account(2, 6, 1)]);
    let mut connection = ledger();
    execute(
        &connection,
        "UPDATE accounts SET closed = 1 WHERE account = 2",
    );
    enter(&mut connection).expect("the ledger is sound");
    assert!(
        offered(&mut connection).contains(&account(2, 6, 1)),
        "a closed account is named no more"
    );
}

#[test]
fn what_is_booked_late_is_the_next_revision() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    assert_eq!(settle_all(&mut connection), 5);
    // The rest of an hour in which no agent ran, as it is written.
    execute(
        &connection,
        "INSERT INTO gpu_hours VALUES (5, 1, 7, 0, 0, 0, 0, 0)
            ON CONFLICT (hour, gpu) DO UPDATE SET elapsed = elapsed + excluded.elapsed;
        INSERT INTO reason_hours VALUES (5, 1, 'unobserved', 'agent_down', 7)
            ON CONFLICT (hour, gpu, kind, reason) DO UPDATE SET time = time + excluded.time;
        INSERT INTO hours (hour, account, busy) VALUES (5, 1, 3)
            ON CONFLICT (hour, account) DO UPDATE SET busy = busy + excluded.busy;",
    );
    assert_eq!(offered(&mut connection), [account(1, 5, 2), gpu(5, 2)]);
    settle_all(&mut connection);
    // An hour that had no row when it was entered.
    execute(
        &connection,
        "INSERT INTO hours (hour, account, busy) VALUES (3, 2, 3);
        INSERT INTO gpu_hours VALUES (3, 1, 7, 0, 0, 0, 0, 0);
        INSERT INTO reason_hours VALUES (6, 1, 'unattributed', 'unknown_pid', 7)",
    );
    let late = [account(2, 3, 1), gpu(3, 1), gpu(6, 2)];
    assert_eq!(offered(&mut connection), late);
}

#[test]
fn an_hour_that_had_nothing_when_it_was_entered_is_sent_once_it_has() {
    let mut connection = ledger();
    // A GPU whose driver did not answer: its hour has a row, and no time yet.
    execute(
        &connection,
        "INSERT INTO gpu_hours VALUES (4, 1, 0, 0, 0, 0, 0, 0)",
    );
    enter(&mut connection).expect("the ledger is sound");
    settle_all(&mut connection);
    execute(
        &connection,
        "UPDATE gpu_hours SET elapsed = 9 WHERE hour = 4;
        UPDATE hours SET busy = 3 WHERE hour = 4;",
    );
    assert_eq!(offered(&mut connection), [account(1, 4, 1), gpu(4, 1)]);
}

#[test]
fn what_changes_while_it_is_under_way_is_not_settled_by_the_answer() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    let records = offer(&mut connection, 1).expect("the ledger is sound");
    execute(
        &connection,
        "UPDATE hours SET busy = 99 WHERE account = 1 AND hour = 5",
    );
    settle(&mut connection, &[records[0].key]).expect("the ledger is sound");
    let again = offer(&mut connection, 1).expect("the ledger is sound");
    assert_eq!(again[0].key.revision, 2);
    // The answer to the first revision, once more and late.
    settle(&mut connection, &[records[0].key]).expect("the ledger is sound");
    assert_eq!(
        offer(&mut connection, 1).expect("it is sound")[0].key,
        again[0].key
    );
}

#[test]
fn a_clock_that_was_set_back_does_not_send_an_hour_that_goes_on() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    settle_all(&mut connection);
    execute(&connection, "UPDATE meta SET hour = 5");
    enter(&mut connection).expect("the ledger is sound");
    execute(
        &connection,
        "UPDATE hours SET busy = busy + 1 WHERE account = 1 AND hour = 5",
    );
    assert_eq!(offered(&mut connection), [], "hour 5 is the present one");
    execute(&connection, "UPDATE meta SET hour = 6");
    enter(&mut connection).expect("the ledger is sound");
    assert_eq!(offered(&mut connection), [account(1, 5, 2)]);
}

#[test]
fn records_that_are_dropped_with_their_hour_are_counted_unless_they_are_settled() {
    let mut connection = ledger();
    enter(&mut connection).expect("the ledger is sound");
    let records = offer(&mut connection, 1).expect("the ledger is sound");
    settle(&mut connection, &[records[0].key]).expect("the ledger is sound");
    let transaction = connection.transaction().expect("nobody else is here");
    // Of hour 5: account 2's and the GPU's.
    assert_eq!(forget(&transaction, 6), Ok(2));
    assert_eq!(forget(&transaction, 6), Ok(0), "they are gone");
    transaction.commit().expect("memory takes it");
    assert_eq!(standing(&connection).expect("it is sound").unsettled, 3);
}

#[test]
fn an_owner_that_outlived_a_reboot_has_a_record_for_each_life_of_the_hour() {
    let mut connection = ledger();
    // Accounts have their life in the upper half of their number.
    let number = (2_i64 << 32) | 1;
    execute(
        &connection,
        &format!(
            "INSERT INTO lives VALUES (2, 'another boot', 5678, 'reboot');
            INSERT INTO accounts SELECT {number}, 2, gpu, kind, owner, namespace, pod, container,
                pod_uid, container_id, image, runtime, attribution, source, labels, opened,
                held_since_boot, ended_boot, fed, closed FROM accounts WHERE account = 1;
            INSERT INTO hours (hour, account, busy) VALUES (6, {number}, 7);"
        ),
    );
    enter(&mut connection).expect("the ledger is sound");
    let records = offer(&mut connection, 100).expect("the ledger is sound");
    let of_hour = records.iter().filter(|record| record.key.hour == 6);
    let ids: Vec<&str> = of_hour.map(|record| record.id.as_str()).collect();
    let second = format!("ledger/5678/GPU-0/{number}/6");
    assert_eq!(ids, ["ledger/1234/GPU-0/1/6", &second, "ledger/GPU-0/6"]);
}
