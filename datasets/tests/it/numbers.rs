//! Compares the numbers that Rust finds in a text with those that the Python of a bundle's card finds by the same rules.

use std::io::Write;
use std::process::{Command, Stdio};

use llink_datasets::numbers::{Rules, Scanner};
use llink_datasets::text::{ZeroWidth, clean_line};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// The card's code, which needs `config`, and a loop over lines of JSON.
const PYTHON: &str = concat!(
    "import json, re, sys, unicodedata\n",
    include_str!("../../../coordinator/src/plan/export/clean_text.py"),
    "\n",
    include_str!("../../../coordinator/src/plan/export/read_numbers.py"),
    "\nconfig = json.loads(sys.stdin.readline())\nfor line in sys.stdin:\n    print(json.dumps(numbers(json.loads(line))))\n"
);

/// Pieces of numbers, and what may stand around them, with `|` between them.
const PIECES: &str = "1|12|345|000|2020|០|៣០|١٢|५|９|.|,|'| | |\u{202F}|-|−|–|/|:|+|%|°C|$|€|៛|US$|USD|km|km²|m|MW|kW|KB|\
    kilometers|Hours|percent|million|k|លាន|ភាគរយ|ម៉ែត្រ|万|लाख|th|nd|a|É|ß|នាក់|(|)|٫|٬|½|²|１|pm|s";

#[test]
fn the_cards_python_finds_the_same_numbers() {
    let Some(python) = crate::skip::python_with(&["unicodedata"]) else {
        return;
    };
    let pieces: Vec<&str> = PIECES.split('|').collect();
    let text = vec(select(pieces), 1..14).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::deterministic();
    let mut texts: Vec<String> = vec(text, 4_000).new_tree(&mut runner).unwrap().current();
    texts.push("នៅថ្ងៃទី ១២ ខែឧសភា ឆ្នាំ ២០២០ មាន ៣០ MW និង 1.234.567,8 km² ក្នុង H1N1".into());
    let scanner = Scanner::default();
    let config = serde_json::json!({ "prompt": { "numbers": Rules::default() }, "encoder": { "max_chars": 256 } });
    let mut child = Command::new(python)
        .args(["-c", PYTHON])
        .env("PYTHONIOENCODING", "utf-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: String = texts.iter().map(|text| format!("{}\n", serde_json::json!(text))).collect();
    let writer = std::thread::spawn(move || stdin.write_all(format!("{config}\n{lines}").as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let found = String::from_utf8(output.stdout).unwrap();
    assert_eq!(found.lines().count(), texts.len());
    let mut with_numbers = 0;
    for (text, found) in texts.iter().zip(found.lines()) {
        let found: String = serde_json::from_str(found).unwrap();
        let ours = scanner.ascii(&clean_line(text, ZeroWidth::Keep));
        let ours = if ours.is_empty() { ours } else { format!("\n{ours}") };
        assert_eq!(ours, found, "{text}");
        with_numbers += usize::from(!found.is_empty());
    }
    assert!(with_numbers > 2_000);
}
