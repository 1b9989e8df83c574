//! The ledger with rows of anybody's making, as the next agent and a report read it.

use std::cell::RefCell;

use arbitrary::{Arbitrary, Unstructured};
use gpuacct::outputs::store::fuzzing::Rows;
use rusqlite::types::Value;

/// Texts that the columns may have, and some that they may not.
const TEXTS: [&str; 24] = [
    "",
    "container",
    "pod",
    "host",
    "named",
    "id_only",
    "held",
    "overflow",
    "unattributed",
    "unobserved",
    "no_row",
    "sample_gap",
    "agent_down",
    "docker",
    "cri",
    "(none)",
    "{}",
    "[]",
    "{\"a\":\"b\"}",
    "[[0,\"/a\"]]",
    "null",
    "first",
    "GPU-1",
    "99999999999999999999",
];
/// Rows of one run.
const MOST: usize = 64;

thread_local! {
    static ROWS: RefCell<Rows> = RefCell::default();
}

#[derive(Arbitrary)]
enum Cell<'a> {
    Null,
    Small(i8),
    Number(i64),
    Real(f64),
    Known(u8),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl From<Cell<'_>> for Value {
    fn from(cell: Cell<'_>) -> Self {
        match cell {
            Cell::Null => Self::Null,
            Cell::Small(number) => Self::Integer(number.into()),
            Cell::Number(number) => Self::Integer(number),
            Cell::Real(number) => Self::Real(number),
            Cell::Known(at) => Self::Text(TEXTS[usize::from(at) % TEXTS.len()].to_owned()),
            Cell::Text(text) => Self::Text(text.to_owned()),
            Cell::Bytes(bytes) => Self::Blob(bytes.to_owned()),
        }
    }
}

/// The row that says that a commit is in the ledger.
fn meta() -> Vec<Value> {
    let text = |text: &str| Value::Text(text.to_owned());
    let number = Value::Integer;
    vec![
        number(1),
        text("store"),
        number(1),
        number(497_222),
        number(7),
        number(1_000_000_000),
        number(1_790_000_000_000_000_000),
        text("0.1.0"),
    ]
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    ROWS.with_borrow_mut(|ledger| {
        let mut rows = Vec::new();
        // Without this row nothing else is read.
        if bool::arbitrary(&mut input).unwrap_or(true) {
            rows.push((ledger.table("meta"), meta()));
        }
        while rows.len() < MOST && !input.is_empty() {
            let Ok(table) = input.choose_index(ledger.tables()) else {
                break;
            };
            let cells = (0..ledger.columns(table)).map(|_| Cell::arbitrary(&mut input));
            let Ok(cells) = cells.map(|cell| cell.map(Value::from)).collect() else {
                break;
            };
            rows.push((table, cells));
        }
        ledger.read(&rows);
    });
}
