//! The plan that `submit --dry-run` shows, before and after parts of the job have run.

use crate::common::{Place, SMALL, states, without_hashes, words};

const SHIPPED: &str = include_str!("../../../job.toml");

#[test]
fn the_shipped_job_is_planned_on_a_clean_folder() {
    let shipped = SHIPPED.replace("examples/", concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/"));
    let place = Place::new(&shipped);
    let plan = place.ok(&["submit", "job.toml", "--dry-run"]);
    insta::assert_snapshot!(without_hashes(&plan));
    assert!(!place.path("llink-out").exists(), "nothing was started");
}

#[test]
fn another_coordinator_plans_alike_and_says_what_will_not_be_had() {
    let asks_too_much = SMALL
        .replace("warmup_steps = 10", "warmup_steps = 60\nmin_ranks = 2")
        .replace("benchmark_pairs = 200", "benchmark_pairs = 301");
    let place = Place::new(&asks_too_much);
    let (_serve, url) = place.serve(&["--state", "server"]);
    let here = place.ok(&["submit", "job.toml", "--dry-run"]);
    let there = place.ok(&["submit", "job.toml", "--dry-run", "--coordinator", &url]);
    assert_eq!(here, there);
    insta::assert_snapshot!(without_hashes(&here));
    let json = place.ok(&["submit", "job.toml", "--dry-run", "--json"]);
    let json: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
    assert!(json["warnings"].as_array().unwrap().len() >= 2, "{json}");
}

#[test]
fn random_models_wait_for_the_text_that_they_are_made_from() {
    let place = Place::new(&format!("{SMALL}\n[models]\nencoder = \"random\"\n"));
    insta::assert_snapshot!(without_hashes(&place.ok(&["submit", "job.toml", "--dry-run"])));
}

#[test]
fn what_is_there_is_cached_and_what_follows_from_it_is_planned() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    let longer = SMALL.replace("steps = 60", "steps = 61");
    place.write("longer.toml", longer);
    let stages = states(&place.ok(&["submit", "longer.toml", "--dry-run", "--json"]));
    assert_eq!(
        words(&stages),
        ["cached", "cached", "cached", "cached", "will run", "depends", "depends"],
        "{stages:?}"
    );
    let all = states(&place.ok(&["submit", "job.toml", "--dry-run", "--json"]));
    assert!(words(&all).iter().all(|state| *state == "cached"), "{all:?}");
}
