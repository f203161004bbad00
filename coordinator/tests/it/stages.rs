//! When a stage or a job counts as done: its files exist, and its report is written.

use crate::common::{Place, SMALL, json_lines, states, text};

fn computed(json: &str) -> Vec<String> {
    let done = states(json).into_iter().filter(|(_, state)| state == "done");
    done.map(|(stage, _)| stage).collect()
}

#[test]
fn a_deleted_stage_is_computed_again_and_exit_code_0_means_that_its_files_are_there() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    let first = place.artifacts(&["shard", "models", "embed", "export"]);
    // This follows the advice of the error texts: delete the stage's folder and submit the job again.
    for stage in ["align", "shard"] {
        std::fs::remove_dir_all(place.path("out").join(stage)).unwrap();
        let said = place.ok(&["submit", "job.toml", "--json"]);
        assert_eq!(computed(&said), [stage]);
        assert!(place.artifact("align", "projector.safetensors").exists());
        place.ok(&["verify", "out"]);
    }
    std::fs::remove_dir_all(place.path("out")).unwrap();
    let said = place.ok(&["submit", "job.toml", "--json"]);
    assert_eq!(computed(&said).len(), states(&said).len(), "{said}");
    place.ok(&["verify", "out"]);
    assert_eq!(place.artifacts(&["shard", "models", "embed", "export"]), first);
}

#[test]
fn a_stage_that_lost_some_of_its_files_or_a_part_of_one_is_computed_again() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    let shard = place.artifact("embed", "00000.parquet");
    std::fs::remove_file(&shard).unwrap();
    let said = place.ok(&["submit", "job.toml", "--json"]);
    assert_eq!(computed(&said), ["embed"]);
    assert!(shard.exists());
    let whole = std::fs::read(&shard).unwrap();
    std::fs::write(&shard, &whole[..whole.len() / 2]).unwrap();
    assert!(place.ok(&["submit", "job.toml", "--dry-run"]).contains("will run"));
    let said = text(&place.run(&["submit", "job.toml"]));
    assert!(said.contains("1 of the") && said.contains("00000.parquet for one"), "{said}");
    assert_eq!(std::fs::read(&shard).unwrap(), whole);
    place.ok(&["verify", "out"]);
    assert!(computed(&place.ok(&["submit", "job.toml", "--json"])).is_empty());
}

#[test]
fn pairs_below_the_margin_are_counted_shown_and_not_trained_on_and_the_split_stays() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    let before = place.artifacts(&["shard", "embed"]);
    let filtered = SMALL.replace("[instructions]", "[cleaning]\nmargin = 0.5\n\n[instructions]");
    place.write("job.toml", &filtered);
    let said = place.ok(&["submit", "job.toml"]);
    assert_eq!(place.artifacts(&["shard", "embed"]), before, "neither the split nor its vectors change");

    let report = place.report();
    let counted = report["counts"]["pairs.dropped_below_margin"].as_u64().unwrap();
    assert!(said.contains(&format!("{counted} below margin")), "{said}");
    let folder = place.artifact("align", "dropped/00000.jsonl");
    let mut listed = 0;
    for shard in std::fs::read_dir(folder.parent().unwrap()).unwrap() {
        for row in json_lines(shard.unwrap().path()) {
            assert!(row["margin"].as_f64().unwrap() < 0.5 && row["english"].is_string(), "{row}");
            listed += 1;
        }
    }
    assert_eq!(listed, counted);
    assert!((1..1200).contains(&counted), "{counted} of 1,200 training pairs");
    let page = place.read("out/report.html");
    assert!(page.contains("left out for their low margin"));

    // A margin that hardly any pair has is refused with the key.
    place.write("job.toml", filtered.replace("margin = 0.5", "margin = 10.0"));
    place.refuses(3, &["submit", "job.toml"], &["`cleaning.margin` leaves", "fewer than a batch of 64"]);
}

#[test]
fn another_state_directory_trusts_the_files_and_not_what_the_first_one_remembers() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    std::fs::remove_dir_all(place.path("out/evaluate")).unwrap();
    let said = place.ok(&["submit", "job.toml", "--json", "--state", "other"]);
    assert_eq!(computed(&said), ["evaluate"]);
    place.ok(&["verify", "out"]);
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_and_writing_it_later_costs_nothing() {
    let place = Place::new(SMALL);
    // A folder is in the place of report.json.
    std::fs::create_dir_all(place.path("out/report.json/in-the-way")).unwrap();
    place.refuses(4, &["submit", "job.toml"], &["report can't be written", "submit again"]);
    std::fs::remove_dir_all(place.path("out/report.json")).unwrap();
    let said = place.ok(&["submit", "job.toml", "--json"]);
    assert!(computed(&said).is_empty());
    assert!(place.path("out/report.json").is_file() && place.path("out/report.html").is_file());
}
