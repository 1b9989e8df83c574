//! Tests of `btf`.

use proptest::prelude::*;

use super::*;

/// Writes BTF by hand: a string table, types in order, a header before both.
#[derive(Default)]
struct Writer {
    types: Vec<u8>,
    strings: Vec<u8>,
}

impl Writer {
    fn new() -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0],
        }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap();
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    fn words(&mut self, words: &[u32]) {
        for word in words {
            self.types.extend_from_slice(&word.to_ne_bytes());
        }
    }

    /// A type with parts of `(name, a, b)`; `b` only where the kind has it.
    fn add(&mut self, kind: u32, flag: bool, name: &str, about: u32, parts: &[&[u32]]) {
        let name = self.string(name);
        let info = kind << 24 | u32::try_from(parts.len()).unwrap() | u32::from(flag) << 31;
        self.words(&[name, info, about]);
        for part in parts {
            self.words(part);
        }
    }

    fn finish(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC.to_ne_bytes());
        bytes.extend_from_slice(&[VERSION, 0]);
        let types = u32::try_from(self.types.len()).unwrap();
        let strings = u32::try_from(self.strings.len()).unwrap();
        for field in [24, 0, types, types, strings] {
            bytes.extend_from_slice(&u32::to_ne_bytes(field));
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}

/// `struct outer { int a; const union { struct { int deep; }; }; int flag:1; int wide:8; }`,
/// an enum, an enum64 and a typedef.
fn sample() -> Vec<u8> {
    let mut btf = Writer::new();
    btf.add(1, false, "int", 4, &[]);
    btf.words(&[32]); // 1: int
    let deep = btf.string("deep");
    btf.add(4, false, "", 4, &[&[deep, 1, 32]]); // 2: struct { int deep }
    btf.add(5, false, "", 8, &[&[0, 2, 0]]); // 3: union { struct }
    btf.add(10, false, "", 3, &[]); // 4: const union
    let (a, flag, wide) = (btf.string("a"), btf.string("flag"), btf.string("wide"));
    btf.add(
        4,
        true,
        "outer",
        32,
        &[
            &[a, 1, 0],
            &[0, 4, 64],
            &[flag, 1, 1 << 24 | 128],
            &[wide, 1, 8 << 24 | 136],
        ],
    ); // 5
    let (first, second) = (btf.string("first"), btf.string("second"));
    btf.add(6, false, "number", 4, &[&[first, 3], &[second, 7]]);
    let big = btf.string("big");
    btf.add(19, false, "large", 8, &[&[big, 9, 1]]);
    btf.add(8, false, "btf_trace_tick", 1, &[]);
    // Two structs of one name: the kernel has some, where deduplication gave up.
    btf.add(4, false, "twin", 4, &[]);
    let only_here = btf.string("only_here");
    btf.add(4, false, "twin", 4, &[&[only_here, 1, 16]]);
    // A struct that contains itself, anonymously.
    btf.add(4, false, "knot", 4, &[&[0, 11, 0]]);
    // A const of itself.
    btf.add(10, false, "", 12, &[]);
    btf.add(4, false, "bow", 4, &[&[0, 12, 0]]);
    btf.finish()
}

#[test]
fn members_are_found_by_name_and_through_anonymous_ones() {
    let bytes = sample();
    let btf = KernelTypes::parse(&bytes).unwrap();
    assert_eq!(btf.len(), 13);
    let rows: &[(&str, &[&str], Result<u32, &str>)] = &[
        ("outer", &["a"], Ok(0)),
        ("outer", &["deep"], Ok(12)),
        ("outer", &["__a", "a"], Ok(0)),
        ("twin", &["only_here"], Ok(2)),
        (
            "outer",
            &["flag"],
            Err("the kernel's `outer.flag` is a bit field at bit 128"),
        ),
        (
            "outer",
            &["wide"],
            Err("the kernel's `outer.wide` is a bit field at bit 136"),
        ),
        (
            "outer",
            &["b", "c"],
            Err("the kernel's struct `outer` has no member `b`, `c`"),
        ),
        ("oute", &["a"], Err("the kernel has no struct `oute`")),
        (
            "number",
            &["first"],
            Err("the kernel has no struct `number`"),
        ),
        (
            "knot",
            &["x"],
            Err("the kernel's struct `knot` has no member `x`"),
        ),
        (
            "bow",
            &["x"],
            Err("the kernel's struct `bow` has no member `x`"),
        ),
    ];
    for (structure, names, expected) in rows {
        let found = btf.member_offset(structure, names);
        assert_eq!(
            found.map_err(|error| error.to_string()),
            expected.map_err(str::to_owned),
            "{structure}.{names:?}"
        );
    }
}

#[test]
fn enumerators_and_typedefs_are_found_by_name() {
    let bytes = sample();
    let btf = KernelTypes::parse(&bytes).unwrap();
    assert_eq!(btf.enumerator("number", "second"), Ok(7));
    assert_eq!(btf.enumerator("large", "big"), Ok(9));
    assert_eq!(
        btf.enumerator("number", "third").unwrap_err().to_string(),
        "the kernel's enum `number` has no `third`"
    );
    assert_eq!(
        btf.enumerator("outer", "first").unwrap_err().to_string(),
        "the kernel has no enum `outer`"
    );
    assert!(btf.has_typedef("btf_trace_tick"));
    assert!(!btf.has_typedef("btf_trace_tic"));
    assert!(!btf.has_typedef("outer"));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = sample();
    for len in 0..bytes.len() {
        assert!(KernelTypes::parse(&bytes[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn what_is_not_btf_is_named() {
    let bytes = sample();
    let with = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        KernelTypes::parse(&bytes)
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(with(2, 9).unwrap(), "btf has version 9, expected 1");
    assert!(with(0, 0).unwrap().ends_with("expected 0xeb9f"));
    // The kind of the first type.
    assert_eq!(with(24 + 7, 31).unwrap(), "btf type 1 has unknown kind 31");
}

/// Header fields say 24 bytes, so the first type begins there, and its `info` 4 bytes later.
fn with_info_of_first_type(info: u32) -> Vec<u8> {
    let mut bytes = sample();
    bytes[28..32].copy_from_slice(&info.to_ne_bytes());
    bytes
}

#[test]
fn a_kind_beyond_five_bits_is_not_read_as_another_kind() {
    // The low five bits of 36 are those of a struct, of 34 those of a pointer.
    for kind in [20, 32 + 2, 32 + 4, 64 + 8, 127] {
        let error = KernelTypes::parse(&with_info_of_first_type(kind << 24)).err();
        assert_eq!(error, Some(BtfError::Kind { id: 1, kind }));
    }
    // Bit 31 is no part of the kind.
    let error = KernelTypes::parse(&with_info_of_first_type(0xff << 24)).err();
    assert_eq!(error, Some(BtfError::Kind { id: 1, kind: 127 }));
}

#[test]
fn a_struct_of_more_than_65535_members_is_read_whole() {
    let mut btf = Writer::new();
    let (member, last) = (btf.string("m"), btf.string("last"));
    let name = btf.string("inlined");
    let members = 0x1_0001;
    btf.words(&[name, 4 << 24 | members, 4 * members]);
    for at in 0..members {
        let called = if at == members - 1 { last } else { member };
        btf.words(&[called, 0, 8 * at]);
    }
    btf.add(8, false, "btf_trace_tick", 1, &[]);
    let bytes = btf.finish();
    let btf = KernelTypes::parse(&bytes).unwrap();
    assert_eq!(btf.len(), 2);
    assert_eq!(btf.member_offset("inlined", &["last"]), Ok(0x1_0000));
    assert!(btf.has_typedef("btf_trace_tick"));
}

/// It is 97 bytes long and took 30 s: each of its four members leads to it again, 16 deep.
#[test]
fn a_type_that_contains_itself_four_times_does_not_take_for_ever() {
    let mut btf = Writer::new();
    let itself: &[u32] = &[0, 1, 0];
    btf.add(4, false, "knot", 4, &[itself, itself, itself, itself]);
    let bytes = btf.finish();
    assert!(bytes.len() < 100, "{} bytes", bytes.len());
    let btf = KernelTypes::parse(&bytes).unwrap();
    assert_eq!(
        btf.member_offset("knot", &["x"]).unwrap_err().to_string(),
        "the kernel's struct `knot` has more than 262144 members to look through for `x`"
    );
}

#[test]
fn the_budget_is_one_for_all_names_and_all_structs_of_the_name() {
    let mut btf = Writer::new();
    let one = btf.string("one");
    let members = u32::try_from(MAX_VISITS / 4).unwrap();
    for _ in 0..3 {
        let name = btf.string("wide");
        btf.words(&[name, 4 << 24 | members, 4 * members]);
        for at in 0..members {
            btf.words(&[one, 0, 8 * at]);
        }
    }
    let bytes = btf.finish();
    let btf = KernelTypes::parse(&bytes).unwrap();
    let answer = |names: &[&str]| btf.member_offset("wide", names).unwrap_err();
    assert!(matches!(answer(&["x"]), BtfError::NoMember { .. }));
    assert!(matches!(answer(&["x", "y"]), BtfError::Budget { .. }));
}

#[test]
fn this_kernel_has_what_the_object_reads() {
    let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
        println!("skipped: this kernel has no /sys/kernel/btf/vmlinux");
        return;
    };
    let btf = KernelTypes::parse(&bytes).unwrap();
    assert!(btf.len() > 1000, "{} types", btf.len());
    for field in super::super::layout::KERNEL_FIELDS {
        btf.member_offset(field.structure, field.names).unwrap();
    }
    let optional = super::super::layout::OPTIONAL_TRACEPOINTS;
    for tracepoint in super::super::layout::TRACEPOINTS
        .into_iter()
        .chain(optional)
    {
        assert!(
            btf.has_typedef(&format!("btf_trace_{tracepoint}")),
            "{tracepoint}"
        );
    }
}

proptest! {
    #[test]
    fn garbage_is_an_error_or_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        ask_everything(&bytes);
    }

    /// Random bytes rarely get past the header; a real one with a few bytes changed does.
    #[test]
    fn damage_is_an_error_or_an_answer(
        hits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8)
    ) {
        let mut bytes = sample();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        ask_everything(&bytes);
    }
}

fn ask_everything(bytes: &[u8]) {
    if let Ok(btf) = KernelTypes::parse(bytes) {
        for structure in ["outer", "twin", "knot", "bow", ""] {
            for member in ["a", "deep", "x", ""] {
                let _ = btf.member_offset(structure, &[member]);
            }
        }
        let _ = btf.enumerator("number", "second");
        let _ = btf.enumerator("large", "big");
        let _ = btf.has_typedef("btf_trace_tick");
    }
}
