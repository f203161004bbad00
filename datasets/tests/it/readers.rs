//! Tests faulty input. Every row is counted, no faulty row stops the others, and faults of a whole file are reported
//! plainly.

use crate::common::{cleaned, put, read, source_spec};
use crate::pack::{gz, zst};
use bytes::Bytes;
use llink_datasets::Result;
use llink_datasets::clean::{Rules, TooLong};
use llink_datasets::pairs::read_pairs;
use llink_datasets::read::{Column, Columns, Format, Source};
use llink_datasets::rows::Corpus;
use llink_datasets::shards::{CleanSpec, Cleaned};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tokio::runtime::Runtime;

async fn clean_bytes(name: &str, content: impl AsRef<[u8]>, spec: CleanSpec) -> Result<(Cleaned, Bytes)> {
    let Source { url, .. } = put(name, content).await;
    cleaned(&CleanSpec { source: Source { url, ..spec.source }, ..spec }).await
}

fn pairs_spec() -> CleanSpec {
    source_spec(Corpus::Pairs, "")
}

const FAULTY: &[u8] = b"\xEF\xBB\xBFA fish.\t\xE1\x9E\x8F\r\n\
    only one column\n\
    broken\t\xE1\x9E\n\
    nul\tx\0y\n\
    \tno English\n\
    no foreign\t \n\
    same\tSame\n\
    \n\
    A cow.\t\xE1\x9E\x82\tmore";

#[tokio::test]
async fn every_fault_is_counted_and_named_by_line() {
    let (rows, cleaned) = read(put("faulty.tsv", FAULTY).await).await.unwrap();
    let counts: Vec<(&str, u64)> = cleaned.counts.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let expected = [
        ("composed", 0),
        ("cut", 0),
        ("dropped_broken_utf8", 1),
        ("dropped_empty_english", 1),
        ("dropped_empty_foreign", 1),
        ("dropped_identical_sides", 1),
        ("dropped_missing_column", 2),
        ("dropped_nul_byte", 1),
        ("kept", 2),
        ("rows", 9),
        ("stripped", 0),
    ];
    assert_eq!(counts, expected);
    assert!(cleaned.warnings.contains(&"memory://files/faulty.tsv:3: broken_utf8".to_owned()));
    let english: Vec<&str> = rows.iter().map(|(english, _)| english.as_str()).collect();
    assert_eq!(english, ["A cow.", "A fish."], "no byte order mark, no carriage return");
}

#[tokio::test]
async fn a_large_compressed_file_keeps_every_line() {
    let text: String = (0..200_000).map(|n| format!("number {n}\tលេខ {n}\n")).collect();
    let (gz, zst) = (gz(&text), zst(&text));
    for (name, content) in [("large.tsv", text.into_bytes()), ("large.tsv.gz", gz), ("large.tsv.zst", zst)] {
        let (cleaned, _) = clean_bytes(name, content, pairs_spec()).await.unwrap();
        assert_eq!(cleaned.counts["kept"], 200_000, "{name}");
    }
}

#[tokio::test]
async fn endless_lines_are_counted_and_left_behind() {
    let mut content = vec![b'x'; 5 << 20];
    content.extend_from_slice("\na\tក\n".as_bytes());
    content.extend_from_slice(&vec![b'y'; (1 << 20) + 1]);
    let counts = clean_bytes("endless.tsv", content, pairs_spec()).await.unwrap().0.counts;
    assert_eq!((counts["dropped_line_too_long"], counts["kept"], counts["rows"]), (2, 1, 3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_stop_a_reader(
        noise in vec(select(&b"\t\n\r\0\"{}:,ab\xE1\x9E\x80\xEF\xBB\xBF"[..]), 0..400),
        format in select(&[Format::Tsv, Format::Jsonl][..]),
    ) {
        let content = [b"ok\t\xE1\x9E\x80\n{\"english\":\"a\",\"foreign\":\"b\"}\n".as_slice(), &noise].concat();
        let spec = CleanSpec { source: Source { format: Some(format), ..Source::default() }, ..pairs_spec() };
        let cleaned = Runtime::new().unwrap().block_on(clean_bytes("random", content, spec));
        prop_assert!(cleaned.is_ok(), "{cleaned:?}");
    }
}

#[tokio::test]
async fn columns_and_lengths_are_as_asked() {
    let spec = CleanSpec {
        source: Source {
            columns: Columns { english: Column::Number(3), foreign: Column::Number(1) },
            ..Source::default()
        },
        rules: Rules { min_chars: 2, max_chars: 4, too_long: TooLong::Drop, ..Rules::default() },
        ..pairs_spec()
    };
    let text = "កខ\tx\tright\nក\tx\tshort\nកខគឃង\tx\tlong\n";
    let (Cleaned { counts, .. }, table) = clean_bytes("columns.tsv", text, spec.clone()).await.unwrap();
    assert_eq!((counts["dropped_too_short"], counts["dropped_too_long"], counts["kept"]), (1, 1, 1));
    let table = read_pairs("x", table).unwrap();
    assert_eq!((table.english[0].as_str(), table.foreign[0].as_str()), ("right", "កខ"));

    let cut = CleanSpec { rules: Rules { too_long: TooLong::Cut, ..spec.rules }, ..spec };
    let counts = clean_bytes("columns.tsv", text, cut).await.unwrap().0.counts;
    assert_eq!((counts["cut"], counts["kept"]), (1, 2));
}

#[tokio::test]
async fn json_lines_are_read_and_those_that_are_none_are_counted() {
    let text = "{\"english\":\"a fish\",\"foreign\":\"ត្រី\",\"other\":1}\n{\"english\":\"a\"}\n[1]\n{\"english\":\"a\\u0000\",\"foreign\":\"ខ\"}\n";
    let counts = clean_bytes("pairs.jsonl", text, pairs_spec()).await.unwrap().0.counts;
    assert_eq!((counts["kept"], counts["dropped_missing_column"], counts["dropped_broken_json"]), (1, 1, 1));
    assert_eq!(counts["dropped_nul_byte"], 1);
}

#[tokio::test]
async fn a_source_that_cannot_be_used_is_an_error_that_says_why() {
    let (pairs, instructions) = (pairs_spec(), source_spec(Corpus::Instructions, ""));
    for (name, content, spec, words) in [
        ("empty.tsv", &b""[..], &pairs, ["empty.tsv", "is empty"]),
        ("useless.tsv", b"a\nb\n", &pairs, ["2 missing_column", "columns"]),
        ("wide.tsv", b"\xFF\xFE\0\0a\0\0\0\t\0\0\0", &pairs, ["UTF-32", "iconv"]),
        ("corpus.doc", b"x", &pairs, ["corpus.doc", "set `format`"]),
        ("i.tsv", b"x", &instructions, ["i.tsv", "JSONL"]),
    ] {
        let text = clean_bytes(name, content, spec.clone()).await.unwrap_err().to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    let absent = cleaned(&source_spec(Corpus::Pairs, "memory://files/absent.tsv")).await;
    assert_eq!(absent.unwrap_err().to_string(), "memory://files/absent.tsv: no such file or object");
}
