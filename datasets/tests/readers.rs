//! Tests faulty input. Every row is counted, no faulty row stops the others, and faults of a whole file are reported
//! plainly.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::Write;

use bytes::Bytes;
use common::{assert_sums, clean, source_spec};
use llink_datasets::Result;
use llink_datasets::clean::{Rules, TooLong};
use llink_datasets::instructions::read_instructions;
use llink_datasets::pairs::read_pairs;
use llink_datasets::read::{Column, Columns, Format, Source};
use llink_datasets::rows::Corpus;
use llink_datasets::shards::{CleanSpec, Cleaned};
use llink_datasets::store::Store;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tokio::runtime::Runtime;

async fn clean_bytes(name: &str, content: &[u8], spec: CleanSpec) -> (Store, Result<Cleaned>) {
    let store = Store::open("memory://readers").unwrap();
    store.put(name, Bytes::copy_from_slice(content)).await.unwrap();
    let spec = CleanSpec { source: Source { url: format!("memory://readers/{name}"), ..spec.source }, ..spec };
    let cleaned = clean(&store, &spec, &format!("{name}.parquet")).await;
    if let Ok(cleaned) = &cleaned {
        assert_sums(&cleaned.counts, &["kept"]);
    }
    (store, cleaned)
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
    let (store, cleaned) = clean_bytes("faulty.tsv", FAULTY, pairs_spec()).await;
    let cleaned = cleaned.unwrap();
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
    assert!(cleaned.warnings.contains(&"memory://readers/faulty.tsv:3: broken_utf8".to_owned()));
    let mut english = read_pairs("x", store.get("faulty.tsv.parquet").await.unwrap()).unwrap().english;
    english.sort();
    assert_eq!(english, ["A cow.", "A fish."], "no byte order mark, no carriage return");
}

#[tokio::test]
async fn compressed_files_give_the_same_rows() {
    let (_, plain) = clean_bytes("c.tsv", FAULTY, pairs_spec()).await;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(FAULTY).unwrap();
    let gz = gz.finish().unwrap();
    let zst = zstd::encode_all(FAULTY, 3).unwrap();
    // Two concatenated members or frames are one file.
    for (name, content) in [
        ("c.tsv.gz", gz.clone()),
        ("c.tsv.zst", zst.clone()),
        ("two.tsv.gz", [gz.clone(), gz.clone()].concat()),
        ("two.tsv.zst", [zst.clone(), zst.clone()].concat()),
    ] {
        let (_, cleaned) = clean_bytes(name, &content, pairs_spec()).await;
        let rows = cleaned.unwrap().counts["rows"];
        // The last line has no break: the next member's first line continues it.
        assert_eq!(rows, if name.starts_with("two") { 17 } else { plain.as_ref().unwrap().counts["rows"] });
    }
    for (name, content) in [("t.tsv.gz", &gz[..gz.len() - 9]), ("t.tsv.zst", &zst[..zst.len() - 9])] {
        let (_, cleaned) = clean_bytes(name, content, pairs_spec()).await;
        let text = cleaned.unwrap_err().to_string();
        assert!(text.contains(name) && text.contains("decompressed"), "{text}");
    }
    let (_, cleaned) = clean_bytes("lies.tsv.zst", b"\x28\xB5\x2F\xFE\0\0", pairs_spec()).await;
    assert!(cleaned.unwrap_err().to_string().contains("decompressed"));
}

#[tokio::test]
async fn a_large_compressed_file_keeps_every_line() {
    let text: String = (0..200_000).map(|n| format!("number {n}\tលេខ {n}\n")).collect();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(text.as_bytes()).unwrap();
    for (name, content) in [
        ("large.tsv", text.clone().into_bytes()),
        ("large.tsv.gz", gz.finish().unwrap()),
        ("large.tsv.zst", zstd::encode_all(text.as_bytes(), 1).unwrap()),
    ] {
        let (_, cleaned) = clean_bytes(name, &content, pairs_spec()).await;
        assert_eq!(cleaned.unwrap().counts["kept"], 200_000, "{name}");
    }
}

#[tokio::test]
async fn endless_lines_are_counted_and_left_behind() {
    let mut content = vec![b'x'; 5 << 20];
    content.extend_from_slice("\na\tក\n".as_bytes());
    content.extend_from_slice(&vec![b'y'; (1 << 20) + 1]);
    let (_, cleaned) = clean_bytes("endless.tsv", &content, pairs_spec()).await;
    let counts = cleaned.unwrap().counts;
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
        let spec = CleanSpec {
            source: Source {
                format: Some(format),
                ..Source::default()
            },
            ..pairs_spec()
        };
        let (_, cleaned) = Runtime::new().unwrap().block_on(clean_bytes("random", &content, spec));
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
    let (store, cleaned) = clean_bytes("columns.tsv", text.as_bytes(), spec.clone()).await;
    let counts = cleaned.unwrap().counts;
    assert_eq!((counts["dropped_too_short"], counts["dropped_too_long"], counts["kept"]), (1, 1, 1));
    let table = read_pairs("x", store.get("columns.tsv.parquet").await.unwrap()).unwrap();
    assert_eq!((table.english[0].as_str(), table.foreign[0].as_str()), ("right", "កខ"));

    let cut = CleanSpec { rules: Rules { too_long: TooLong::Cut, ..spec.rules }, ..spec };
    let (_, cleaned) = clean_bytes("columns.tsv", text.as_bytes(), cut).await;
    let counts = cleaned.unwrap().counts;
    assert_eq!((counts["cut"], counts["kept"]), (1, 2));
}

#[tokio::test]
async fn json_lines_of_both_kinds_are_read() {
    let text = "{\"english\":\"a fish\",\"foreign\":\"ត្រី\",\"other\":1}\n{\"english\":\"a\"}\n[1]\n{\"english\":\"a\\u0000\",\"foreign\":\"ខ\"}\n";
    let (_, cleaned) = clean_bytes("pairs.jsonl", text.as_bytes(), pairs_spec()).await;
    let counts = cleaned.unwrap().counts;
    assert_eq!((counts["kept"], counts["dropped_missing_column"], counts["dropped_broken_json"]), (1, 1, 1));
    assert_eq!(counts["dropped_nul_byte"], 1);

    let text = concat!(
        r#"{"task_type":"translate","input":"Translate:\n<foreign_emb>","output":"A fish.","foreign_raw":"ត្រី","english_ref":"a fish"}"#,
        "\n",
        r#"{"task_type":"qa","input":"<foreign_emb> What?","response":"A cow.","foreign_raw":"គោ","english_ref":"a cow"}"#,
        "\n",
        r#"{"task_type":"qa","input":"What?","response":"A cow.","foreign_raw":"គោ","english_ref":"a cow"}"#,
        "\n",
    );
    let spec = source_spec(Corpus::Instructions, "");
    let (store, cleaned) = clean_bytes("i.jsonl", text.as_bytes(), spec.clone()).await;
    let counts = cleaned.unwrap().counts;
    assert_eq!((counts["kept"], counts["dropped_no_placeholder"]), (2, 1));
    let mut rows = read_instructions("x", store.get("i.jsonl.parquet").await.unwrap()).unwrap();
    rows.sort_by(|a, b| a.task.cmp(&b.task));
    assert_eq!((rows[0].instruction.as_str(), rows[0].answer.as_str()), ("What?", "A cow."));
    assert_eq!((rows[1].instruction.as_str(), rows[1].foreign.as_str()), ("Translate:", "ត្រី"));
}

#[tokio::test]
async fn a_source_that_cannot_be_used_is_an_error_that_says_why() {
    let fails = async |name: &str, content: &[u8], spec: CleanSpec| {
        let (_, cleaned) = clean_bytes(name, content, spec).await;
        cleaned.unwrap_err().to_string()
    };
    let text = fails("empty.tsv", b"", pairs_spec()).await;
    assert!(text.contains("empty.tsv") && text.contains("is empty"), "{text}");
    let text = fails("useless.tsv", b"a\nb\n", pairs_spec()).await;
    assert!(text.contains("2 missing_column") && text.contains("columns"), "{text}");
    let text = fails("wide.tsv", b"\xFF\xFE\0\0a\0\0\0\t\0\0\0", pairs_spec()).await;
    assert!(text.contains("UTF-32") && text.contains("iconv"), "{text}");
    let text = fails("corpus.doc", b"x", pairs_spec()).await;
    assert!(text.contains("set `format`"), "{text}");
    let text = fails("i.tsv", b"x", source_spec(Corpus::Instructions, "")).await;
    assert!(text.contains("JSONL"), "{text}");

    let store = Store::open("memory://readers").unwrap();
    let spec = source_spec(Corpus::Pairs, "memory://readers/absent.tsv");
    let text = clean(&store, &spec, "out").await.unwrap_err().to_string();
    assert_eq!(text, "memory://readers/absent.tsv: no such file or object");
}
