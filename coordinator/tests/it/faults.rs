//! Faults in the middle of a job, and what they cost.

use std::path::Path;
use std::process::Command;

use crate::common::{Place, SMALL, are_gone, figure, says_all, signal, states, words, workers_of};
use crate::skip::skip;

/// Returns a job that is long enough to be interrupted in every stage.
fn longer() -> String {
    SMALL
        .replace("train_pairs = 1200", "train_pairs = 4000")
        .replace("steps = 60", "steps = 800")
        .replace("checkpoint_every = 20", "checkpoint_every = 100")
}

#[test]
fn killed_workers_cost_their_tasks_only_and_change_no_result() {
    let stages = ["shard", "models", "embed", "baseline", "align", "evaluate"];
    let longer = longer();
    let calm = Place::new(&longer);
    calm.ok(&["submit", "job.toml"]);

    for stage in ["embed: embed", "align: train"] {
        let place = Place::new(&longer);
        let mut submit = place.start(&["submit", "job.toml"]);
        place.lists(stage, &[]);
        // One of them alone may hold no task.
        workers_of(submit.child.id()).into_iter().for_each(|worker| signal(worker, "-KILL"));
        let status = submit.child.wait().unwrap();
        assert!(status.success(), "{}", submit.log());
        assert!(submit.log().contains("was lost"), "the loss is told of: {}", submit.log());
        // Names carry the keys and the shards; bytes are compared by their hashes.
        assert_eq!(place.artifacts(&stages[..3]), calm.artifacts(&stages[..3]), "{stage}");
        let (a, b) =
            (figure(&place, "retrieval.stage_a.cosine.mean_rank"), figure(&calm, "retrieval.stage_a.cosine.mean_rank"));
        assert!((a - b).abs() < 1e-9, "{stage}: {a} {b}");
    }
}

#[test]
fn a_killed_coordinator_goes_on_where_it_stopped_and_leaves_no_worker_behind() {
    let place = Place::new(&longer());
    let mut submit = place.start(&["submit", "job.toml"]);
    place.lists("align: train", &[]);
    let workers = workers_of(submit.child.id());
    assert!(!workers.is_empty());
    submit.child.kill().unwrap();
    submit.child.wait().unwrap();
    are_gone(&workers);

    let json = place.ok(&["submit", "job.toml", "--json"]);
    let states = states(&json);
    assert_eq!(words(&states), ["cached", "cached", "cached", "cached", "done", "done", "done"]);
}

#[test]
fn a_wrong_job_file_starts_nothing() {
    let place = Place::new("[corpus]\nsource = \"sample\"\n[align]\nbacth = 3\n");
    let words = ["job.toml:4:1: unknown key `bacth` in [align]", "did you mean `batch`?"];
    place.refuses(2, &["submit", "job.toml"], &words);
    place.refuses(2, &["submit", "nowhere.toml"], &["nowhere.toml", "A job file is needed"]);
    assert!(!place.path(".llink").exists() && !place.path("llink-out").exists(), "nothing was started");
}

#[test]
fn a_missing_corpus_or_model_is_named_before_anything_starts() {
    let place = Place::new("[corpus]\nsource = \"no/such.tsv\"\n");
    place.refuses(3, &["submit", "job.toml"], &["`corpus.source`", "no/such.tsv: no such file"]);
    let place = Place::new("[corpus]\nsource = \"sample\"\n[models]\nencoder = \"no/model\"\n");
    place.refuses(3, &["submit", "job.toml"], &["`models.encoder`", "no/model"]);
    place.write("no/model/config.json", "{}");
    place.refuses(3, &["submit", "job.toml"], &["tokenizer.json is missing"]);
}

#[test]
fn everything_that_is_wrong_with_a_model_is_said_before_the_first_stage() {
    let place = Place::new(&SMALL.replace("[align]", "[models]\nencoder = \"model\"\n[align]"));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/fixtures/golden/seed8/encoder");
    let config = std::fs::read_to_string(golden.join("config.json")).unwrap();
    let config = config.replace("XLMRobertaModel", "T5EncoderModel").replace("xlm-roberta", "t5");
    place.write("model/config.json", config);
    std::fs::copy(golden.join("tokenizer.json"), place.path("model/tokenizer.json")).unwrap();
    place.write("model/model.safetensors", "");
    let words = ["`models.encoder`", "T5EncoderModel", "XLMRobertaModel", "model.safetensors is empty"];
    place.refuses(3, &["submit", "job.toml"], &words);
    assert!(!place.path("out/shard").exists(), "nothing was computed");
}

#[test]
fn a_name_of_the_hub_is_no_folder_and_what_to_do_is_said() {
    let place = Place::new("[corpus]\nsource = \"sample\"\n[models]\nencoder = \"intfloat/multilingual-e5-small\"\n");
    place.refuses(3, &["submit", "job.toml"], &["intfloat/multilingual-e5-small is a model of the Hugging Face Hub"]);
}

#[test]
fn broken_rows_are_counted_and_shown_and_never_silently_lost() {
    let place = Place::new(&SMALL.replace("source = \"sample\"\ntrain_pairs", "source = \"rows.tsv\"\ntrain_pairs"));
    place.ok(&["sample", "made", "--pairs", "2500", "--instructions", "1", "--seed", "3"]);
    let mut rows = std::fs::read(place.path("made/pairs.tsv")).unwrap();
    rows.extend_from_slice(b"no second column\n");
    rows.extend_from_slice(b"broken\t\xff\xfe\xfd\n");
    rows.extend_from_slice(b"\t\xe1\x9e\x80\n");
    place.write("rows.tsv", &rows);
    let shown = place.ok(&["submit", "job.toml"]);
    // The first offender is named.
    says_all(&shown, &["2,503 read", "1 missing column", "1 broken utf8", "1 empty english", "rows.tsv:2501"]);
}

#[test]
fn a_taken_port_and_a_used_state_directory_are_told_apart_from_faults() {
    let place = Place::new(SMALL);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    place.refuses(6, &["serve", "--listen", &address], &["cannot listen on", &address]);
    let (_serve, _) = place.serve(&[]);
    place.refuses(6, &["submit", "job.toml"], &["is in use by process"]);
    place.refuses(6, &["list", "--coordinator", "http://127.0.0.1:1"], &["no coordinator at http://127.0.0.1:1"]);
}

#[test]
fn a_full_disk_is_told_plainly() {
    let place = Place::new(SMALL);
    let disk = place.path("disk");
    std::fs::create_dir_all(&disk).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk).output();
    if !mounted.is_ok_and(|o| o.status.success()) {
        skip("mount");
        return;
    }
    place.write("job.toml", SMALL.replace("output = \"out\"", "output = \"disk/out\""));
    let output = place.run(&["submit", "job.toml"]);
    let said = crate::common::text(&output);
    Command::new("umount").arg("-l").arg(&disk).status().unwrap();
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
}
