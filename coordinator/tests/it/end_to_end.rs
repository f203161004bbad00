//! Runs the real binary as a user does.

use std::time::{Duration, Instant};

use crate::common::{Place, SMALL, eventually, figure, states, without_figures, words};
use crate::skip::python_with;

#[test]
fn a_job_runs_end_to_end_and_again_does_nothing() {
    let place = Place::new(SMALL);
    let first = place.ok(&["submit", "job.toml"]);
    assert!(first.contains("succeeded in"), "{first}");
    assert!(first.contains("Retrieval among 200 held-out pairs"), "{first}");
    let chance = figure(&place, "retrieval.chance.r1");
    assert!((chance - 1.0 / 200.0).abs() < 1e-9, "{chance}");
    assert!(figure(&place, "retrieval.stage_a.cosine.r1") > 3.0 * chance, "60 steps beat chance: {first}");
    assert!(figure(&place, "retrieval.stage_a.cosine.mean_rank") < figure(&place, "retrieval.chance.mean_rank"));

    let before = place.artifacts(&["shard", "models", "embed", "baseline", "align", "evaluate"]);
    let began = Instant::now();
    let second = place.ok(&["submit", "job.toml"]);
    let took = began.elapsed();
    assert!(second.contains("nothing to do, every stage was finished before"), "{second}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert_eq!(place.artifacts(&["shard", "models", "embed", "baseline", "align", "evaluate"]), before);

    // Another job with this output shares the stages with the same key.
    let longer = SMALL.replace("steps = 60", "steps = 70");
    place.write("longer.toml", longer);
    let plan = place.ok(&["submit", "longer.toml", "--dry-run"]);
    assert_eq!(plan.matches("cached").count(), 4, "{plan}");
    let json = place.ok(&["submit", "longer.toml", "--json"]);
    let states = states(&json);
    assert_eq!(words(&states), ["cached", "cached", "cached", "cached", "done", "done", "done"]);

    // The commands that only read work without a coordinator too.
    let list = place.ok(&["list"]);
    let id = list.split_whitespace().next().unwrap();
    let said = [list.as_str(), &place.ok(&["get", id])].join("\n");
    let folder = place.path("").canonicalize().unwrap();
    insta::assert_snapshot!(without_figures(&said.replace(folder.to_str().unwrap(), "FOLDER")));
    assert!(place.ok(&["logs", id]).contains("succeeded"));
    assert!(place.ok(&["cancel", id]).contains("has ended already"));
}

#[test]
fn the_same_seed_gives_the_same_bytes_with_any_number_of_workers() {
    let stages = ["shard", "models", "embed"];
    let run = |workers: &str| {
        let place = Place::new(SMALL);
        place.ok(&["submit", "job.toml", "--workers", workers]);
        (place.artifacts(&stages), figure(&place, "retrieval.stage_a.cosine.mrr"))
    };
    let (one, one_mrr) = run("1");
    let (three, three_mrr) = run("3");
    assert_eq!(one, three);
    assert!((one_mrr - three_mrr).abs() < 1e-2, "one rank and three agree to rounding: {one_mrr} {three_mrr}");
}

#[test]
fn coordinator_workers_and_submit_work_as_separate_processes() {
    let place = Place::new(SMALL);
    let (_serve, url) = place.serve(&["--state", "server"]);
    let to = ["--coordinator", url.as_str()];
    let id = &*place.submit_to(&url);
    let waiting = eventually("the reason for waiting", || {
        let shown = place.ok(&[&["get", id], &to[..]].concat());
        shown.contains("no worker is connected").then_some(shown)
    });
    assert!(waiting.contains("running (0 workers)"), "{waiting}");
    let _workers: Vec<_> =
        ["a", "b"].map(|name| place.start(&[&["worker", "--name", name, "--threads", "1"], &to[..]].concat())).into();
    let watched = place.ok(&[&["watch", id], &to[..]].concat());
    assert!(watched.contains("succeeded in"), "{watched}");
    let again = place.ok(&[&["submit", "job.toml"], &to[..]].concat());
    assert!(again.contains("nothing to do"), "{again}");
}

#[test]
fn python_polars_opens_every_shard() {
    let Some(python) = python_with(&["polars"]) else { return };
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    let script = r#"
import polars as pl, sys
root = sys.argv[1]
pairs = pl.scan_parquet(root + "/shard/*/pairs/train/*.parquet").collect()
assert pairs.height == 1200, pairs.height
assert pairs.columns == ["id", "english", "foreign", "foreign_chars", "source"], pairs.columns
assert pairs["id"].dtype == pl.UInt64 and pairs["id"].n_unique() == 1200
holdout = pl.scan_parquet(root + "/shard/*/pairs/holdout/*.parquet").collect()
assert holdout.height == 300 and holdout.join(pairs, on="foreign").height == 0
vectors = pl.scan_parquet(root + "/embed/*/embeddings/teacher/train/*.parquet").collect()
assert isinstance(vectors["vector"].dtype, pl.Array), vectors["vector"].dtype
joined = pairs.join(vectors, on="id")
assert joined.height == 1200
instructions = pl.scan_parquet(root + "/shard/*/instructions/train/*.parquet").collect()
assert instructions.height == 150
print("ok", vectors["vector"].dtype)
"#;
    let out = place.path("out");
    crate::common::done(std::process::Command::new(python).args(["-c", script]).arg(&out));
}
