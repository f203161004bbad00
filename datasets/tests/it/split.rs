//! Tests that no text is on both sides of a split, no row changes sides, and every row is counted.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::common::{Random, Stage, assert_sums, pairs_of, run_stage, sample_spec, source_spec};
use bytes::Bytes;
use llink_datasets::role::{Corpus, Role, Side};
use llink_datasets::shards::{CleanSpec, NearDuplicates, Share, SidesBy, SplitSpec};
use llink_datasets::store::Store;
use llink_datasets::text::comparison_form;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tokio::runtime::Runtime;

fn split(train_rows: impl Into<Option<u64>>, holdout_rows: u64) -> SplitSpec {
    crate::common::split(Corpus::Pairs, train_rows, holdout_rows, 64)
}

/// Up to three corpora in which sides repeat, sometimes in another spelling.
fn corpora() -> impl Strategy<Value = Vec<String>> {
    let corpus = |texts: u64| {
        let english = select(&["Sentence  number #", "sentence number #", "SENTENCE NUMBER #\u{200B}"][..]);
        let foreign = select(&["ប្រយោគ #", "ប្រយោគ\u{200B}# "][..]);
        let row = (english, 0..texts, foreign, 0..texts).prop_map(|(english, e, foreign, f)| {
            let side = |text: &str, number: u64| text.replace('#', &number.to_string());
            format!("{}\t{}\n", side(english, e), side(foreign, f))
        });
        vec(row, 20..320).prop_map(|rows| rows.concat())
    };
    (10..410_u64).prop_flat_map(move |texts| vec(corpus(texts), 1..=3))
}

/// Writes each corpus to a file of its own.
async fn write(store: &Store, corpora: Vec<String>) -> Vec<CleanSpec> {
    let mut sources = Vec::new();
    for (index, corpus) in corpora.into_iter().enumerate() {
        let name = format!("{index}.tsv");
        store.put(&name, Bytes::from(corpus)).await.unwrap();
        sources.push(source_spec(Corpus::Pairs, &store.describe(&name)));
    }
    sources
}

/// Runs the stage. A tiny corpus may leave a side empty, which is an error and leaks nothing.
async fn run_unless_empty(store: &Store, sources: &[CleanSpec], spec: &SplitSpec) -> Option<Stage> {
    let stage = run_stage(store, "out", sources, spec).await;
    if let Err(error) = &stage {
        assert!(error.to_string().contains("no row is left for pairs/"), "{error}");
    }
    stage.ok()
}

async fn sides(store: &Store, stage: &Stage) -> [Vec<(u64, String, String)>; 2] {
    [pairs_of(store, stage, Side::Train).await, pairs_of(store, stage, Side::Holdout).await]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_of_either_side_stands_in_both_parts_or_twice_in_one(
        corpora in corpora(), train in 1..200_u64, holdout in 1..60_u64,
    ) {
        Runtime::new().unwrap().block_on(async {
            let store = Store::open("memory://leak").unwrap();
            let sources = write(&store, corpora).await;
            let Some(stage) = run_unless_empty(&store, &sources, &split(train, holdout)).await else { return };
            assert_sums(&stage.split.counts, &["train", "holdout"]);
            let [train, holdout] = sides(&store, &stage).await;
            assert_eq!(train.len() as u64, stage.split.counts["train"]);
            assert_eq!(holdout.len() as u64, stage.split.counts["holdout"]);
            let mut seen = HashSet::new();
            for (_, english, foreign) in train.iter().chain(&holdout) {
                assert!(seen.insert(comparison_form(english)), "{english} occurs twice");
                assert!(seen.insert(comparison_form(foreign)), "{foreign} occurs twice");
            }
        });
    }

    #[test]
    fn the_order_of_sources_changes_nothing(corpora in corpora()) {
        Runtime::new().unwrap().block_on(async {
            let store = Store::open("memory://order").unwrap();
            let mut sources = write(&store, corpora).await;
            let first = run_unless_empty(&store, &sources, &split(150, 50)).await;
            sources.reverse();
            let second = run_unless_empty(&store, &sources, &split(150, 50)).await;
            let outcome = |stage: Stage| {
                let hashes: Vec<String> = stage.shards.into_iter().map(|shard| shard.sha256).collect();
                (stage.split.counts, hashes)
            };
            assert_eq!(first.map(outcome), second.map(outcome), "shards are the same bytes");
        });
    }

    #[test]
    fn a_new_source_moves_no_pair_across(corpora in corpora()) {
        Runtime::new().unwrap().block_on(async {
            let store = Store::open("memory://grow").unwrap();
            let sources = write(&store, corpora).await;
            let mut before: HashMap<u64, usize> = HashMap::new();
            for first in (0..sources.len()).rev() {
                let stage = run_unless_empty(&store, &sources[first..], &split(None, 10_000)).await;
                let Some(stage) = stage else { continue };
                for (side, rows) in sides(&store, &stage).await.into_iter().enumerate() {
                    for (id, english, _) in rows {
                        assert_eq!(*before.entry(id).or_insert(side), side, "{english} moved");
                    }
                }
            }
        });
    }
}

#[tokio::test]
async fn surplus_is_left_out_and_shortfall_is_said() {
    let store = Store::open("memory://surplus").unwrap();
    let source = [sample_spec(Corpus::Pairs, 2_000, 5)];
    let stage = run_stage(&store, "much", &source, &split(500, 100)).await.unwrap();
    let counts = &stage.split.counts;
    assert_sums(counts, &["train", "holdout"]);
    assert_eq!((counts["train"], counts["holdout"], counts["dropped_surplus"]), (500, 100, 1_400));
    assert!(stage.split.warnings.is_empty());
    let rows: Vec<u64> = stage.split.shards.iter().map(|shard| shard.rows).collect();
    assert_eq!(rows, [64, 64, 64, 64, 64, 64, 64, 52, 64, 36]);
    assert_eq!(stage.split.shards[8].path, "pairs/holdout/00000.parquet");

    let stage = run_stage(&store, "little", &source, &split(5_000, 1_000)).await.unwrap();
    let [train, holdout] = [stage.split.counts["train"], stage.split.counts["holdout"]];
    assert_eq!(train + holdout, 2_000);
    assert_eq!(stage.split.warnings.len(), 2);
    assert!(stage.split.warnings[0].contains(&format!("pairs/train has {train} rows of the 5000")));

    let everything = run_stage(&store, "all", &source, &split(None, 100)).await.unwrap();
    let expected = everything.split.counts["train"] as f64 / 2_000.0;
    assert!((0.87..0.93).contains(&expected), "a tenth is held out: {expected}");
}

#[tokio::test]
async fn an_empty_side_is_an_error_that_says_so() {
    let store = Store::open("memory://one-sided").unwrap();
    store.put("one.tsv", Bytes::from("a fish\tត្រី\n")).await.unwrap();
    let source = [source_spec(Corpus::Pairs, "memory://one-sided/one.tsv")];
    let error = run_stage(&store, "out", &source, &split(10, 10)).await.err().unwrap().to_string();
    assert!(error.contains("no row is left for pairs/") && error.contains("add a source"), "{error}");
    let error = run_stage(&store, "out", &source, &split(10, 0)).await.err().unwrap().to_string();
    assert!(error.contains("holdout_rows is 0"), "{error}");
}

/// Returns two lines of instructions about a text.
fn two_tasks(n: u32, text: &str) -> String {
    let line = |task: &str| {
        format!(
            "{{\"task_type\":\"{task}\",\"input\":\"Do {task}: <foreign_emb>\",\"output\":\"Answer {n}\",\"foreign_raw\":\"{text}\",\"english_ref\":\"Sentence {n}\"}}\n"
        )
    };
    ["translate", "summarize"].map(line).concat()
}

/// Asserts that this many texts of instructions are in one of the two shards each, whatever their tasks.
async fn assert_texts_stay_together(store: &Store, stage: &Stage, texts: usize) {
    let mut parts = Vec::new();
    for shard in &stage.shards {
        let rows = llink_datasets::instructions::read_instructions("x", store.get(&shard.path).await.unwrap()).unwrap();
        parts.push(rows.into_iter().map(|row| row.foreign).collect::<BTreeSet<_>>());
    }
    assert_eq!((parts[0].len() + parts[1].len(), parts[0].intersection(&parts[1]).count()), (texts, 0));
}

#[tokio::test]
async fn several_tasks_about_one_text_stay_together() {
    let store = Store::open("memory://tasks").unwrap();
    let content: String = (0..300).map(|n| two_tasks(n, &format!("ប្រយោគ {n}"))).collect();
    // The same lines again are duplicates.
    store.put("i.jsonl", Bytes::from(content.repeat(2))).await.unwrap();
    let source = [source_spec(Corpus::Instructions, "memory://tasks/i.jsonl")];
    let spec = crate::common::split(Corpus::Instructions, None, 600, 1_000);
    let stage = run_stage(&store, "out", &source, &spec).await.unwrap();
    assert_eq!(stage.split.counts["dropped_duplicate"], 600);
    assert_eq!(stage.shards[1].role, Role::Shard(Corpus::Instructions, Side::Holdout));
    assert_texts_stay_together(&store, &stage, 300).await;
}

#[tokio::test]
async fn what_is_left_over_on_the_other_side_is_said() {
    let store = Store::open("memory://left-over").unwrap();
    // The source has exactly as many rows as are requested. By chance one side has a few too many, and the other side
    // lacks them.
    let stage = run_stage(&store, "out", &[sample_spec(Corpus::Pairs, 1_000, 6)], &split(700, 300)).await.unwrap();
    let counts = &stage.split.counts;
    let surplus = counts.get("dropped_surplus").copied().unwrap_or(0);
    assert_eq!(counts["train"] + counts["holdout"] + surplus, 1_000);
    assert!(surplus > 0 && stage.split.warnings.len() == 1, "{counts:?}");
    let said = &stage.split.warnings[0];
    assert!(said.contains(&format!("{surplus} rows are left over on the other side")), "{said}");
}

/// Returns meaningless words of Latin or Khmer letters.
fn sentence(random: &mut Random, letters: &str, words: u64) -> Vec<String> {
    let letters: Vec<char> = letters.chars().collect();
    let word = |random: &mut Random| -> String {
        let length = 4 + random.below(5);
        (0..length).map(|_| letters[random.below(letters.len() as u64) as usize]).collect()
    };
    (0..words).map(|_| word(random)).collect()
}

/// Returns the character 5-grams of a text, as hashes.
fn shingles(text: &str) -> HashSet<u64> {
    let chars: Vec<char> = comparison_form(text).chars().collect();
    let hash = |five: &[char]| llink_datasets::text::form_key(&five.iter().collect::<String>());
    chars.windows(5).map(hash).collect()
}

/// Returns the share of character 5-grams that two texts have in common, counted and not estimated.
fn jaccard(a: &HashSet<u64>, b: &HashSet<u64>) -> f64 {
    let common = a.intersection(b).count();
    common as f64 / (a.len() + b.len() - common) as f64
}

const LATIN: &str = "abcdefghijklmnopqrstuvwxyz";
const KHMER: &str = "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហឡអ";

/// Writes families of pairs whose members differ by a letter: their similarity is about 0.9.
async fn families(store: &Store, name: &str, families: u64) -> CleanSpec {
    let mut random = Random(77);
    let mut content = String::new();
    for family in 0..families {
        let (english, foreign) = (sentence(&mut random, LATIN, 28), sentence(&mut random, KHMER, 28));
        for member in 0..6 {
            let (mut e, mut f) = (english.clone(), foreign.clone());
            // In turn, the English stays near, the foreign text stays near, or both do. The other side is another
            // sentence.
            match family % 3 {
                0 => f = sentence(&mut random, KHMER, 28),
                1 => e = sentence(&mut random, LATIN, 28),
                _ => {}
            }
            e[4 * member].replace_range(..1, "#");
            f[4 * member].replace_range(..3, "#");
            content.push_str(&format!("{}\t{}\n", e.join(" "), f.join(" ")));
        }
    }
    store.put(name, Bytes::from(content)).await.unwrap();
    CleanSpec { with_signatures: true, ..source_spec(Corpus::Pairs, &store.describe(name)) }
}

/// Returns the training texts that are similar to a held-out text on a side.
fn leaks(train: &[(u64, String, String)], holdout: &[(u64, String, String)], similarity: f64) -> usize {
    let sides = |rows: &[(u64, String, String)]| -> Vec<[HashSet<u64>; 2]> {
        rows.iter().map(|(_, english, foreign)| [shingles(english), shingles(foreign)]).collect()
    };
    let (train, holdout) = (sides(train), sides(holdout));
    let near =
        |a: &[HashSet<u64>; 2], b: &[HashSet<u64>; 2]| (0..2).any(|side| jaccard(&a[side], &b[side]) >= similarity);
    train.iter().map(|a| holdout.iter().filter(|b| near(a, b)).count()).sum()
}

#[tokio::test]
async fn near_duplicates_of_held_out_texts_are_not_trained_on_whichever_side_they_are_near_on() {
    let store = Store::open("memory://near").unwrap();
    let source = [families(&store, "families.tsv", 60).await];
    let spec = SplitSpec { near_duplicates: NearDuplicates::Across(0.8), ..split(None, 500) };
    let kept = run_stage(&store, "kept", &source, &split(None, 500)).await.unwrap();
    let [train, holdout] = sides(&store, &kept).await;
    let before = leaks(&train, &holdout, 0.85);
    assert!(before > 50, "the corpus is one that leaks: {before}");

    let stage = run_stage(&store, "across", &source, &spec).await.unwrap();
    assert_sums(&stage.split.counts, &["train", "holdout"]);
    let dropped = stage.split.counts["dropped_near_duplicate_in_holdout"];
    let [train, holdout] = sides(&store, &stage).await;
    let after = leaks(&train, &holdout, 0.85);
    println!("{before} near pairs across the split, {after} after {dropped} rows were dropped");
    assert_eq!(after, 0);
    // Families without a held-out member stay.
    assert!(train.len() > 100, "{}", train.len());
}

#[tokio::test]
async fn near_duplicates_are_dropped_everywhere_where_asked() {
    let store = Store::open("memory://near-everywhere").unwrap();
    let source = [families(&store, "families.tsv", 30).await];
    let spec = SplitSpec { near_duplicates: NearDuplicates::Everywhere(0.8), ..split(None, 500) };
    let stage = run_stage(&store, "out", &source, &spec).await.unwrap();
    assert_sums(&stage.split.counts, &["train", "holdout"]);
    let [train, holdout] = sides(&store, &stage).await;
    let rows = [train, holdout].concat();
    let near = leaks(&rows, &rows, 0.85) - rows.len();
    assert_eq!(near, 0, "{} rows are left", rows.len());
    assert!(rows.len() >= 30, "at least one of each family: {}", rows.len());
}

/// Writes instructions about texts whose hashes all lie above the pairs' holdout, as they do when training pairs were
/// asked about.
async fn made_from_training_pairs(store: &Store, pairs: Share, texts: usize) -> CleanSpec {
    let is_trained = |text: &String| !pairs.holds_out(llink_datasets::text::comparison_key(text));
    let training = (0..).map(|n| format!("ប្រយោគ {n}")).filter(is_trained);
    let content: String = (0..).zip(training.take(texts)).map(|(n, text)| two_tasks(n, &text)).collect();
    store.put("i.jsonl", Bytes::from(content)).await.unwrap();
    source_spec(Corpus::Instructions, &store.describe("i.jsonl"))
}

#[tokio::test]
async fn instructions_from_training_pairs_alone_are_explained_and_the_advice_works() {
    let store = Store::open("memory://one-side").unwrap();
    let pairs = Share { train_rows: Some(1_000), holdout_rows: 400 };
    let source = [made_from_training_pairs(&store, pairs, 300).await];
    let by_key = SplitSpec { pairs: Some(pairs), ..crate::common::split(Corpus::Instructions, 900, 100, 1_000) };
    let error = run_stage(&store, "by-key", &source, &by_key).await.err().unwrap().to_string();
    for expected in [
        "no row is left for instructions/validation",
        "all 600 cleaned rows fall on the training side",
        "lowest 10.0 %",
        "`instructions.validation_from = \"train\"`",
        "Stage A may have been trained",
    ] {
        assert!(error.contains(expected), "{expected:?} is not in {error}");
    }
    assert!(!error.contains("add a source"), "{error}");

    let advised = SplitSpec { sides_by: SidesBy::SecondHash, ..by_key };
    let stage = run_stage(&store, "advised", &source, &advised).await.unwrap();
    let counts = &stage.split.counts;
    assert_eq!(counts["train"] + counts["holdout"], 600);
    assert!((20..=100).contains(&counts["holdout"]), "about a tenth: {counts:?}");
    assert_eq!(counts["trained_as_pairs"], counts["holdout"], "all of them lie among the training pairs");
    let leak = stage.split.warnings.iter().find(|w| w.contains("Stage A may have been trained"));
    assert!(leak.unwrap().contains(&format!("{0} of {0} rows", counts["holdout"])), "{leak:?}");
    assert_texts_stay_together(&store, &stage, 300).await;
}

#[tokio::test]
async fn a_pair_too_few_is_told_how_to_get_both_sides() {
    let store = Store::open("memory://few").unwrap();
    let lines: String = (0..40).map(|n| format!("a fish {n}\tត្រី {n}\n")).collect();
    store.put("few.tsv", Bytes::from(lines)).await.unwrap();
    let source = [source_spec(Corpus::Pairs, "memory://few/few.tsv")];
    let error = run_stage(&store, "out", &source, &split(1_000_000, 2)).await.err().unwrap().to_string();
    assert!(
        error.contains("no row is left for pairs/holdout: all 40 cleaned rows fall on the training side"),
        "{error}"
    );
    assert!(error.contains("Raise `corpus.holdout_pairs`"), "{error}");
    assert!(run_stage(&store, "advised", &source, &split(1_000_000, 1_000_000)).await.is_ok());
}
