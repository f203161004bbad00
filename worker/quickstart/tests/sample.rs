//! The sample corpus is distinct, one-to-one and the same for the same seed, and its answers are exact.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::{HashMap, HashSet};

use llink_datasets::text::comparison_key;
use llink_quickstart::sample;

#[test]
fn there_are_half_a_million_pairs_and_no_two_share_a_side() {
    let rows = 600_000;
    assert!(sample::most_pairs() > 100 * rows);
    let (mut english, mut khmer) = (HashSet::new(), HashSet::new());
    for (row, (e, k)) in sample::pairs(rows, 3).enumerate() {
        assert!(english.insert(comparison_key(&e)), "row {row}: {e} occurs twice");
        assert!(khmer.insert(comparison_key(&k)), "row {row}: {k} ({e}) occurs twice");
    }
    assert_eq!((english.len() as u64, khmer.len() as u64), (rows, rows));
}

#[test]
fn seeds_decide_every_row_and_only_they() {
    let ten = |seed| sample::pairs(10, seed).collect::<Vec<_>>();
    assert_eq!(ten(1), ten(1));
    assert_ne!(ten(1), ten(2));
    assert_eq!(sample::pairs(500, 1).take(10).collect::<Vec<_>>(), ten(1));
}

#[test]
fn sentences_fit_the_papers_limits() {
    for (english, khmer) in sample::pairs(50_000, 9) {
        let chars = khmer.chars().count();
        assert!((12..=256).contains(&chars), "{chars}: {khmer}");
        assert!(khmer.chars().all(|c| ('\u{1780}'..='\u{17FF}').contains(&c) || " ?".contains(c)), "{khmer}");
        assert!(english.is_ascii() && english.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit()));
        assert!(!english.contains("  ") && !khmer.contains("  "), "{english} | {khmer}");
    }
}

#[test]
fn every_word_comes_often_in_a_small_corpus() {
    let mut words: HashMap<String, u32> = HashMap::new();
    for (english, _) in sample::pairs(20_000, 4) {
        for word in english.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()) {
            *words.entry(word.to_lowercase()).or_default() += 1;
        }
    }
    assert!(words.len() > 280, "{}", words.len());
    let rare: Vec<_> = words.iter().filter(|(_, count)| **count < 20).collect();
    assert!(rare.is_empty(), "{rare:?}");
}

#[test]
fn instructions_are_distinct_and_of_four_tasks() {
    let mut foreign = HashSet::new();
    let mut tasks: HashMap<String, u32> = HashMap::new();
    for example in sample::instructions(40_000, 1) {
        assert!(foreign.insert(comparison_key(&example.foreign)), "{} occurs twice", example.foreign);
        assert!((12..=256).contains(&example.foreign.chars().count()));
        assert!(example.instruction.ends_with("\n<foreign_emb>"));
        assert!(!example.answer.is_empty() && !example.english_ref.is_empty());
        *tasks.entry(example.task).or_default() += 1;
    }
    for task in ["translate", "summarize", "bullet_points", "question_answering"] {
        assert_eq!(tasks[task], 10_000, "{task}");
    }
}

#[test]
fn answers_follow_from_the_english() {
    for example in sample::instructions(20_000, 2) {
        let said = example.english_ref.to_lowercase();
        match example.task.as_str() {
            "translate" => assert_eq!(example.answer, example.english_ref),
            "question_answering" => {
                assert!(said.contains(&example.answer.to_lowercase()), "{} / {}", example.answer, said);
            }
            "bullet_points" => {
                for line in example.answer.lines() {
                    let (_, value) = line.split_once(": ").unwrap();
                    // A question puts its verb in the base form.
                    assert!(
                        line.starts_with("- ") && (said.contains(&value.to_lowercase()) || said.ends_with('?')),
                        "{line} / {said}"
                    );
                }
            }
            _ => assert!(example.answer.len() < example.english_ref.len(), "{} / {said}", example.answer),
        }
    }
}

#[test]
fn the_same_seed_writes_the_same_files() {
    let read = |folder: &std::path::Path| {
        ["pairs.tsv", "instructions.jsonl"].map(|name| std::fs::read(folder.join(name)).unwrap())
    };
    let [a, b] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    sample::write(&a.path().join("deep/er"), 300, 100, 7).unwrap();
    sample::write(b.path(), 300, 100, 7).unwrap();
    assert_eq!(read(&a.path().join("deep/er")), read(b.path()));
    let pairs = String::from_utf8(read(b.path())[0].clone()).unwrap();
    assert_eq!(pairs.lines().filter(|line| line.split('\t').count() == 2).count(), 300);
}
