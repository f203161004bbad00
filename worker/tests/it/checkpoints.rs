//! Checkpoints in a store: complete ones are found, damaged ones are skipped and named, and needed ones are kept.

use std::path::Path;

use llink_datasets::store::Store;
use llink_worker::Error;
use llink_worker::train::checkpoints::{CheckpointWriter, Checkpoints, Save};
use llink_worker::train::metrics::MetricsPiece;
use llink_worker::train::step_record::{StepRecord, StepSeconds};

/// The damage to the files of a state and of its manifest.
type Damage = fn(&Path, &Path);

struct Bench {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { runtime: tokio::runtime::Runtime::new().unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn checkpoints(&self, generation: u64, kept: usize) -> Checkpoints {
        self.checkpoints_in("align/k", generation, kept)
    }

    fn checkpoints_in(&self, directory: &str, generation: u64, kept: usize) -> Checkpoints {
        let store = Store::open(self.folder.path().to_str().unwrap()).unwrap();
        Checkpoints::new(store, self.runtime.handle().clone(), directory.into(), generation, kept)
    }

    /// Returns the names of the checkpoint files.
    fn files(&self) -> Vec<String> {
        let folder = std::fs::read_dir(self.folder.path().join("align/k/checkpoints")).unwrap();
        let mut names: Vec<String> = folder.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("align/k/checkpoints").join(name)
    }

    /// Writes a checkpoint after every ten steps, one for each score, and returns the writer.
    fn written(&self, kept: usize, scores: &[Option<f64>]) -> CheckpointWriter {
        let mut writer = CheckpointWriter::new(self.checkpoints(1, kept), None);
        for (score, first) in scores.iter().zip((0..).step_by(10)) {
            writer.save(save(first..first + 10, *score)).unwrap();
        }
        writer.wait().unwrap();
        writer
    }
}

fn save(steps: std::ops::Range<u64>, score: Option<f64>) -> Save {
    let mut metrics = MetricsPiece::default();
    for step in steps.clone() {
        let record = StepRecord {
            step,
            numbers: vec![("loss", 1.0 / (step + 1) as f64)],
            seconds: StepSeconds { total: 0.5, ..StepSeconds::default() },
            ..StepRecord::default()
        };
        metrics.push(&record, 2);
    }
    Save {
        steps: steps.end,
        state: format!("state after {} steps", steps.end).into_bytes().into(),
        score,
        metrics,
        warnings: Vec::new(),
    }
}

#[test]
fn the_newest_is_found_with_its_metrics_and_the_newest_and_the_best_are_kept() {
    let bench = Bench::new();
    assert!(bench.checkpoints(1, 2).newest().unwrap().0.is_none());
    let writer = bench.written(2, &[Some(3.0), Some(1.0), Some(2.0), None]);
    assert_eq!(writer.newest().unwrap().steps, 40);
    let manifests: Vec<String> =
        bench.files().into_iter().filter(|f| f.starts_with("step-") && f.ends_with(".json")).collect();
    let expected = ["000000020", "000000030", "000000040"].map(|s| format!("step-{s}-generation-000001.json"));
    assert_eq!(manifests, expected);
    assert!(std::fs::read_to_string(bench.file("best.json")).unwrap().contains("\"steps\": 20"));

    let checkpoints = bench.checkpoints(2, 2);
    let (restored, warnings) = checkpoints.newest().unwrap();
    let restored = restored.unwrap();
    assert!(warnings.is_empty());
    assert_eq!((restored.manifest.steps, restored.state.as_slice()), (40, &b"state after 40 steps"[..]));
    assert!((restored.manifest.step_seconds - 20.0).abs() < 1e-9);
    let (lines, lost) = checkpoints.read_lines(&restored.manifest.metrics);
    assert_eq!((lines.lines().count(), lost.len()), (40, 0));
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken() {
    let name = |steps: u64, ending: &str| format!("step-{steps:09}-generation-000001.{ending}");
    let damages: [(&str, Damage); 5] = [
        ("has 5 bytes, 20 were written", |state, _| std::fs::write(state, b"state").unwrap()),
        ("was altered", |state, _| std::fs::write(state, b"state after 31 steps").unwrap()),
        ("step-000000030-generation-000001.safetensors", |state, _| std::fs::remove_file(state).unwrap()),
        ("its seal does not match", |_, manifest| {
            let text = std::fs::read_to_string(manifest).unwrap();
            std::fs::write(manifest, text.replace("\"steps\": 30", "\"steps\": 29")).unwrap();
        }),
        ("it can't be read", |_, manifest| std::fs::write(manifest, b"{\"version\": 1, ").unwrap()),
    ];
    for (said, damage) in damages {
        let bench = Bench::new();
        bench.written(3, &[None; 3]);
        damage(&bench.file(&name(30, "safetensors")), &bench.file(&name(30, "json")));
        let (restored, warnings) = bench.checkpoints(2, 3).newest().unwrap();
        assert_eq!(restored.unwrap().manifest.steps, 20, "{said}");
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("passed over") && warnings[0].contains(said), "{said}: {warnings:?}");
        assert!(warnings[0].contains("step-000000030"), "the file is named: {warnings:?}");
        assert!(matches!(bench.checkpoints(2, 3).load(30, 1), Err(Error::Checkpoint { .. } | Error::Datasets(_))));
    }
}

#[test]
fn metrics_that_are_lost_cost_no_state_and_are_said_to_be() {
    let bench = Bench::new();
    bench.written(3, &[None; 2]);
    let metrics = bench.folder.path().join("align/k/metrics/steps-000000000-000000009-generation-000001.jsonl");
    std::fs::remove_file(metrics).unwrap();
    let checkpoints = bench.checkpoints(2, 3);
    let restored = checkpoints.newest().unwrap().0.unwrap();
    assert_eq!(restored.manifest.steps, 20);
    let (lines, lost) = checkpoints.read_lines(&restored.manifest.metrics);
    assert_eq!((lines.lines().count(), lost.len()), (10, 1));
    assert!(lost[0].contains("steps 0 to 9"), "{lost:?}");
}

#[test]
fn a_store_that_refuses_once_costs_nothing_and_one_that_goes_on_ends_training() {
    let bench = Bench::new();
    let blocked = bench.folder.path().join("align/k/checkpoints");
    std::fs::create_dir_all(blocked.parent().unwrap()).unwrap();
    std::fs::write(&blocked, b"a file where the folder should be").unwrap();
    let mut writer = bench.written(3, &[None]);
    assert!(writer.failure().is_some() && writer.newest().is_none());
    // The store works again, and no metrics are missing.
    std::fs::remove_file(&blocked).unwrap();
    writer.save(save(10..20, None)).unwrap();
    writer.wait().unwrap();
    assert!(writer.failure().is_none());
    let manifest = writer.newest().unwrap();
    let (lines, _) = bench.checkpoints(1, 3).read_lines(&manifest.metrics);
    assert_eq!((lines.lines().count(), manifest.step_seconds), (20, 10.0));
    // The store fails for good.
    std::fs::remove_dir_all(&blocked).unwrap();
    std::fs::write(&blocked, b"again").unwrap();
    let failed = (2..10).find_map(|i| {
        let saved = writer.save(save(i * 10..(i + 1) * 10, None)).and_then(|()| writer.wait());
        saved.err().map(|error| (i, error))
    });
    let (when, error) = failed.expect("a store that refuses forever ends training");
    assert_eq!(when, 4, "three failures in a row: {error}");
}

#[test]
fn an_attempt_that_writes_apart_goes_on_from_the_checkpoints_before_it_and_leaves_them_alone() {
    let bench = Bench::new();
    bench.written(1, &[None; 2]);
    let files = bench.files();
    let apart = || bench.checkpoints_in("align/k/attempt-2", 1, 1);
    let (restored, warnings) = apart().newest().unwrap();
    let restored = restored.unwrap();
    assert_eq!((restored.manifest.steps, warnings.len()), (20, 0));
    assert_eq!(apart().load(20, 1).unwrap().state, restored.state, "every rank finds the same one");
    let mut writer = CheckpointWriter::new(apart(), Some(restored.manifest));
    for steps in [20..30, 30..40] {
        writer.save(save(steps, None)).unwrap();
    }
    writer.wait().unwrap();
    assert_eq!(bench.files(), files, "a run from these checkpoints may continue");
    assert_eq!(apart().newest().unwrap().0.unwrap().manifest.steps, 40);
    assert_eq!(bench.checkpoints(1, 1).newest().unwrap().0.unwrap().manifest.steps, 20);
}
