//! Keys change with their inputs and with nothing else.

use super::*;
use crate::job::parse;
use llink_datasets::role::{Corpus, Part, Side, Tower};
use llink_proto::settings::AlignSettings;
use llink_proto::task::Kind;

fn job(text: &str) -> JobFile {
    parse("job.toml", &format!("[corpus]\nsource = [\"/a.tsv\", \"/b.tsv\"]\n{text}")).unwrap()
}

fn artifact(path: &str, role: impl Into<Role>, rows: u64) -> ManifestArtifact {
    ManifestArtifact::of(path, role.into(), rows, b"x", BTreeMap::new())
}

fn done() -> BTreeMap<StageName, Manifest> {
    let mut done = BTreeMap::new();
    for stage in StageName::iter() {
        let mut manifest = manifest_of(stage, "k", &[]);
        let role = Role::Shard(Corpus::Pairs, Side::Train);
        let artifact = artifact(&format!("{stage}/k/x"), role, 3);
        manifest.artifacts.push(ManifestArtifact { sha256: "aa".into(), ..artifact });
        for (name, value) in fake::READING {
            manifest.facts.insert(format!("encoder.{name}"), value.into());
        }
        for name in ["encoder", "decoder"] {
            manifest.facts.insert(format!("{name}.fingerprint"), format!("{name}-fp"));
            manifest.facts.insert(format!("{name}.url"), format!("/models/{name}"));
        }
        done.insert(stage, manifest);
    }
    done
}

fn keys(job: &JobFile, stamps: &BTreeMap<String, String>, done: &BTreeMap<StageName, Manifest>) -> Vec<String> {
    let inputs = Inputs { job, stamps, done, claim: None };
    let stages = StageName::of(job);
    stages.iter().map(|s| stage_key(*s, &inputs).unwrap()).collect()
}

/// Returns the stages whose keys differ.
fn changed(a: &[String], b: &[String]) -> Vec<&'static str> {
    let names = StageName::of(&job("")).into_iter().map(StageName::as_str);
    names.zip(a.iter().zip(b)).filter(|(_, (a, b))| a != b).map(|(n, _)| n).collect()
}

#[test]
fn a_key_changes_with_its_own_part_of_the_job_alone() {
    let (stamps, done) = (BTreeMap::new(), done());
    let before = keys(&job(""), &stamps, &done);
    let after = |text: &str| keys(&job(text), &stamps, &done);
    assert_eq!(changed(&before, &after("")), [""; 0]);
    assert_eq!(changed(&before, &after("train_pairs = 500\n")), ["shard"]);
    assert_eq!(changed(&before, &after("[embed]\nmax_tokens = 128\n")), ["embed", "baseline", "export"]);
    assert_eq!(changed(&before, &after("[embed]\nteacher = { pool = \"mean\", layer = 0.5 }\n")), ["embed", "export"]);
    assert_eq!(changed(&before, &after("[align]\nmetric = \"whitened\"\n")), ["align", "export"]);
    assert_eq!(changed(&before, &after("[align]\nstart_at_teachers = false\n")), [""; 0]);
    assert_eq!(changed(&before, &after("[embed]\ntoken_budget = 512\n")), [""; 0]);
    assert_eq!(changed(&before, &after("[align]\nsteps = 10\n")), ["align", "export"]);
    assert_eq!(changed(&before, &after("[align]\ncheckpoint_every = 7\nmax_ranks = 4\n")), [""; 0]);
    assert_eq!(changed(&before, &after("[evaluate]\nbenchmark_pairs = 10\n")), ["evaluate"]);
    assert_eq!(changed(&before, &after("[cleaning]\nmargin = 0.9\n")), ["align"]);
    assert_eq!(changed(&before, &after("[workers]\nlocal = 5\n")), [""; 0]);
    assert_eq!(changed(&before, &after("[export]\nlicense = \"mit\"\n")), ["export"]);
}

/// A changed key throws away the results that people have. If it has to change, raise the stage's version too. The key of
/// `export`, the last one, changes with every word of the model card.
#[test]
fn the_keys_of_two_jobs_stay_what_they_were() {
    let with_b = "[instructions]\nsource = \"sample\"\n[instruct]\n";
    let paper = job(with_b);
    let other = job(&format!(
        "[align]\nqueue = 64\nprojector_hidden = 9\nmetric = \"centered\"\nmicro_batch = 3\nmax_ranks = 2\n\
         [embed]\nteacher = {{ pool = \"mean\", layer = 0.5 }}\n[workers]\nat_most = 7\n\
         {with_b}mode = \"both\"\nsteps = 5\nexpander_hidden = 8\nusage_every = 0\nvalidate_every = 0\n"
    ));
    let (stamps, done) = (BTreeMap::new(), done());
    let found = [paper, other].map(|job| keys(&job, &stamps, &done)[..7].join(" "));
    let expected = [
        "5c8cbd55ec26b399 60ebe94f96513b02 752a6a81b989e378 dc5f60af5b46f60c \
         7bb4637b5424e103 f5677ab781784e5a d25eeb515aa037aa",
        "5c8cbd55ec26b399 60ebe94f96513b02 c24d8f859f9fe7e8 dc5f60af5b46f60c \
         d44b15cf89b78747 9ad38720d3f4bf9d d25eeb515aa037aa",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_key_follows_content_and_not_paths() {
    let (job, stamps) = (job(""), BTreeMap::new());
    let mut other = done();
    let before = keys(&job, &stamps, &other);
    if let Some(shard) = other.get_mut(&StageName::Shard) {
        shard.artifacts[0].path = "elsewhere".into();
    }
    assert_eq!(changed(&before, &keys(&job, &stamps, &other)), [""; 0]);
    if let Some(shard) = other.get_mut(&StageName::Shard) {
        shard.artifacts[0].sha256 = "bb".into();
    }
    assert_eq!(changed(&before, &keys(&job, &stamps, &other)), ["embed", "baseline", "evaluate"]);
}

#[test]
fn stage_b_follows_the_content_of_the_bundle_that_it_starts_from() {
    let (mut stamps, done) = (BTreeMap::new(), done());
    let with_b = |from: &str| job(&format!("[instructions]\nsource = \"sample\"\n[instruct]\n{from}"));
    let (without, job) = (with_b(""), with_b("from = \"/bundle\"\n"));
    stamps.insert("/bundle".to_owned(), "one".to_owned());
    let before = keys(&job, &stamps, &done);
    let differ = |a: &[String], b: &[String]| a.iter().zip(b).filter(|(a, b)| a != b).count();
    assert_eq!(differ(&before, &keys(&without, &stamps, &done)), 2, "instruct and export");
    let moved = with_b("from = \"/moved\"\n");
    stamps.insert("/moved".to_owned(), "one".to_owned());
    assert_eq!(differ(&before, &keys(&moved, &stamps, &done)), 0, "the path does not matter");
    stamps.insert("/bundle".to_owned(), "two".to_owned());
    assert_eq!(differ(&before, &keys(&job, &stamps, &done)), 1, "instruct");
}

#[test]
fn windows_leave_the_other_vectors_and_stage_a_as_they_are() {
    let with_b = |more: &str| job(&format!("[instructions]\nsource = \"sample\"\n[instruct]\n{more}"));
    let (stamps, done) = (BTreeMap::new(), done());
    let keyed = |job: &JobFile| -> BTreeMap<StageName, String> {
        StageName::of(job).into_iter().zip(keys(job, &stamps, &done)).collect()
    };
    let paper = keyed(&with_b("windows = 0\n"));
    assert_eq!(paper, keyed(&with_b("")));
    let [eight, four] = ["windows = 8\n", "windows = 4\n"].map(|more| keyed(&with_b(more)));
    let changed = |a: &BTreeMap<StageName, String>, b: &BTreeMap<StageName, String>| -> Vec<&'static str> {
        let differs = b.iter().filter(|(stage, key)| a.get(stage) != Some(key));
        differs.map(|(stage, _)| stage.as_str()).collect()
    };
    assert_eq!(changed(&paper, &eight), ["windows", "instruct", "evaluate", "export"]);
    assert_eq!(changed(&four, &eight), ["windows", "instruct", "export"]);
    let [two, three] = ["sentences = 2\n", "sentences = 3\n"].map(|more| keyed(&with_b(more)));
    assert_eq!(changed(&paper, &two), ["windows", "instruct", "evaluate", "export"]);
    assert_eq!(changed(&two, &three), ["windows", "instruct", "export"]);
    // Without slots nothing reads windows or sentences.
    for parts in ["windows = 8\n", "sentences = 2\n"] {
        let direct = with_b(&format!("{parts}mode = \"direct\"\n"));
        assert!(!StageName::of(&direct).contains(&StageName::Windows));
    }
}

#[test]
fn only_random_models_follow_the_corpus() {
    let stamps = BTreeMap::new();
    let changed_by_text = |models: &str| {
        let (job, mut done) = (job(models), done());
        let before = keys(&job, &stamps, &done);
        if let Some(shard) = done.get_mut(&StageName::Shard) {
            shard.artifacts[0].sha256 = "bb".into();
        }
        changed(&before, &keys(&job, &stamps, &done)).contains(&"models")
    };
    assert!(!changed_by_text(""));
    assert!(changed_by_text("[models]\nencoder = \"random\"\n"));
}

#[test]
fn what_is_fitted_is_fitted_once_before_the_training_and_read_by_it() {
    let (stamps, done) = (BTreeMap::new(), done());
    let kind = |job: &JobFile, results: &[Vec<TaskResult>]| {
        let inputs = Inputs { job, stamps: &stamps, done: &done, claim: None };
        match phase(StageName::Align, "k", &inputs, results).unwrap() {
            Phase::Tasks { tasks, .. } => tasks.iter().next().unwrap().spec.kind,
            Phase::Complete(_) => None,
        }
    };
    let made = |part: Part| {
        let role = Role::Trained(part).to_string();
        vec![TaskResult {
            artifacts: vec![Artifact { path: format!("align/k/{role}"), role, ..Artifact::default() }],
            ..TaskResult::default()
        }]
    };
    // The paper's job fits no statistics.
    let paper = job("");
    assert!(matches!(kind(&paper, &[]), Some(Kind::Align(task)) if task.statistics.is_none()));
    assert!(kind(&paper, &[made(Part::Projector)]).is_none());

    let whitened = job("[align]\nmetric = \"whitened\"\n");
    let Some(Kind::FitStatistics(fit)) = kind(&whitened, &[]) else { panic!("nothing is fitted first") };
    let settings: AlignSettings = serde_json::from_str(&fit.settings).unwrap();
    assert!(settings == whitened.align && settings.starts_at_teachers() && !settings.standardize);
    let fitted = [made(Part::Statistics)];
    let Some(Kind::Align(train)) = kind(&whitened, &fitted) else { panic!("no training follows") };
    assert_eq!(train.statistics.unwrap().path, "align/k/statistics");
    let [fitted] = fitted;
    let results = [fitted, made(Part::Projector)];
    let inputs = Inputs { job: &whitened, stamps: &stamps, done: &done, claim: None };
    let Phase::Complete(manifest) = phase(StageName::Align, "k", &inputs, &results).unwrap() else {
        panic!("the stage is not complete")
    };
    let roles: Vec<&Role> = manifest.artifacts.iter().map(|a| &a.role).collect();
    assert_eq!(roles, [&Role::Trained(Part::Statistics), &Role::Trained(Part::Projector)]);
}

#[test]
fn pairs_are_filtered_before_anything_is_fitted_or_trained() {
    let (stamps, mut done) = (BTreeMap::new(), done());
    let vectors = |tower| Role::Vectors(tower, Corpus::Pairs, Side::Train);
    for (stage, tower) in [(StageName::Embed, Tower::Encoder), (StageName::Baseline, Tower::EncoderEnglish)] {
        done.get_mut(&stage).unwrap().artifacts.push(artifact("v", vectors(tower), 3));
    }
    let job = job("[cleaning]\nmargin = 0.9\n[align]\nmetric = \"whitened\"\n");
    let inputs = Inputs { job: &job, stamps: &stamps, done: &done, claim: None };
    let made = |role: Role| {
        vec![TaskResult {
            artifacts: vec![Artifact { role: role.into(), ..Artifact::default() }],
            ..TaskResult::default()
        }]
    };
    let mut results = Vec::new();
    let mut next = |role: Role| {
        let Phase::Tasks { tasks, .. } = phase(StageName::Align, "k", &inputs, &results).unwrap() else {
            panic!("the stage is complete before {role}")
        };
        results.push(made(role));
        tasks.iter().next().unwrap().spec.kind
    };
    assert!(matches!(next(Role::Dropped), Some(Kind::FilterPairs(filter)) if filter.margin == 0.9));
    assert!(matches!(next(Part::Statistics.into()), Some(Kind::FitStatistics(fit)) if fit.dropped.len() == 1));
    assert!(matches!(next(Part::Projector.into()), Some(Kind::Align(align)) if align.dropped.len() == 1));
    let complete = phase(StageName::Align, "k", &inputs, &results).unwrap();
    assert!(matches!(complete, Phase::Complete(manifest) if manifest.artifacts.len() == 3));
}

#[test]
fn a_layer_that_the_decoder_lacks_is_refused_before_anything_is_embedded() {
    let (stamps, mut done) = (BTreeMap::new(), done());
    if let Some(models) = done.get_mut(&StageName::Models) {
        models.facts.insert("decoder.layers".into(), "16".into());
    }
    let plan = |layer: &str| {
        let job = job(&format!("[embed]\nteacher = {{ pool = \"mean\", layer = {layer} }}\n"));
        let inputs = Inputs { job: &job, stamps: &stamps, done: &done, claim: None };
        phase(StageName::Embed, "k", &inputs, &[]).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!((plan("16"), plan("0.4")), (Ok(()), Ok(())));
    let error = plan("17").unwrap_err();
    assert!(error.contains("embed.teacher.layer is 17") && error.contains("16 layers"), "{error}");
}

#[test]
fn both_arms_are_trained_one_after_the_other_and_keep_their_names() {
    let job = job("[instructions]\nsource = \"sample\"\n[instruct]\nmode = \"both\"\n");
    let (stamps, mut done) = (BTreeMap::new(), done());
    if let Some(align) = done.get_mut(&StageName::Align) {
        align.artifacts[0].role = Role::Trained(Part::Projector);
    }
    let inputs = Inputs { job: &job, stamps: &stamps, done: &done, claim: None };
    let trained = |part: Part| TaskResult {
        artifacts: vec![Artifact { role: Role::Trained(part).into(), ..Artifact::default() }],
        figures: BTreeMap::from([("loss".to_owned(), 1.0)]),
        ..TaskResult::default()
    };
    let direct = |results: &[Vec<TaskResult>]| match phase(StageName::Instruct, "k", &inputs, results).unwrap() {
        Phase::Tasks { tasks, .. } => match tasks.iter().next().unwrap().spec.kind {
            Some(Kind::Instruct(task)) => (task.direct, task.directory),
            other => panic!("{other:?}"),
        },
        Phase::Complete(_) => panic!("an arm is missing"),
    };
    let first = vec![trained(Part::Adapter)];
    assert_eq!(direct(&[]), (false, "instruct/k".to_owned()));
    assert_eq!(direct(std::slice::from_ref(&first)), (true, "instruct/k/direct".to_owned()));
    let Phase::Complete(manifest) = phase(StageName::Instruct, "k", &inputs, &[first.clone(), first]).unwrap() else {
        panic!("both arms are there")
    };
    let roles: Vec<&Role> = manifest.artifacts.iter().map(|artifact| &artifact.role).collect();
    assert_eq!(roles, [&Role::Trained(Part::Adapter), &Role::Direct(Part::Adapter)]);
    assert!(manifest.figures.contains_key("loss") && manifest.figures.contains_key("direct.loss"));
}

#[test]
fn a_changed_source_changes_the_shards_key() {
    let (job, done) = (job(""), done());
    let stamp = |s: &str| BTreeMap::from([("/a.tsv".to_owned(), s.to_owned())]);
    let (a, b) = (keys(&job, &stamp("1"), &done), keys(&job, &stamp("2"), &done));
    assert_eq!(changed(&a, &b), ["shard"]);
}

#[test]
fn a_stage_whose_inputs_are_not_made_is_not_planned() {
    let job = job("");
    let (stamps, done) = (BTreeMap::new(), BTreeMap::new());
    let inputs = Inputs { job: &job, stamps: &stamps, done: &done, claim: None };
    let error = stage_key(StageName::Embed, &inputs).unwrap_err().to_string();
    assert_eq!(error, "cannot plan stage embed: stage shard has no result yet");
}

#[test]
fn shard_counts_are_summed_over_sources_by_corpus() {
    let job = job("");
    let (stamps, done) = (BTreeMap::new(), BTreeMap::new());
    let inputs = Inputs { job: &job, stamps: &stamps, done: &done, claim: None };
    let cleaned = |read| TaskResult {
        counts: BTreeMap::from([("read".to_owned(), read), ("kept".to_owned(), read)]),
        ..TaskResult::default()
    };
    let split = TaskResult { counts: BTreeMap::from([("train".to_owned(), 7)]), ..TaskResult::default() };
    let results = [vec![cleaned(3), cleaned(4)], vec![split], vec![]];
    let Phase::Complete(manifest) = phase(StageName::Shard, "k", &inputs, &results).unwrap() else {
        panic!("the stage is complete")
    };
    assert_eq!(manifest.counts["pairs.read"], 7);
    assert_eq!(manifest.counts["pairs.split.train"], 7);
}

/// Returns the portions (shard, skip, rows) that a phase of `synthesize` asks about, with the side of each.
fn portions(phase: &Phase) -> Vec<(String, String, u64, u64)> {
    let Phase::Tasks { tasks, .. } = phase else {
        return Vec::new();
    };
    let portion = |task: PlannedTask| match task.spec.kind {
        Some(Kind::Synthesize(s)) => {
            let shard = s.pairs.as_ref().map(|p| p.path.clone()).unwrap_or_default();
            (s.path.clone(), shard, s.skip, s.rows)
        }
        other => panic!("{other:?}"),
    };
    tasks.iter().map(portion).collect()
}

#[test]
fn synthesis_asks_about_further_pairs_in_place_of_those_that_gave_nothing() {
    let text = "[synthesize]\nurl = \"http://x/v1\"\nmodel = \"m\"\ntrain = 25\nvalidation = 5\n";
    let (job, stamps, mut done) = (job(text), BTreeMap::new(), BTreeMap::new());
    let mut shard = manifest_of(StageName::Shard, "s", &[]);
    for (path, side, rows) in
        [("train/0", Side::Train, 20), ("train/1", Side::Train, 20), ("holdout/0", Side::Holdout, 10)]
    {
        let role = Role::Shard(Corpus::Pairs, side);
        shard.artifacts.push(artifact(path, role, rows));
    }
    done.insert(StageName::Shard, shard);
    let inputs = Inputs { job: &job, stamps: &stamps, done: &done, claim: None };
    let plan = |results: &[Vec<TaskResult>]| phase(StageName::Synthesize, "k", &inputs, results).unwrap();
    let path = |side: &str, n: u32| format!("synthesize/k/instructions/{side}/{n:05}.parquet");
    let expected = |rows: &[(&str, u32, &str, u64, u64)]| -> Vec<_> {
        let one = |(side, n, shard, skip, rows): &(&str, u32, &str, u64, u64)| {
            (path(side, *n), (*shard).to_owned(), *skip, *rows)
        };
        rows.iter().map(one).collect()
    };
    let answered = |path: String, asked: u64, kept: u64| TaskResult {
        artifacts: vec![Artifact {
            path,
            role: Role::Shard(Corpus::Instructions, Side::Train).into(),
            rows: kept,
            ..Artifact::default()
        }],
        counts: BTreeMap::from([("synthesized.rows".to_owned(), asked)]),
        ..TaskResult::default()
    };
    assert_eq!(
        portions(&plan(&[])),
        expected(&[
            ("train", 0, "train/0", 0, 20),
            ("train", 1, "train/1", 0, 5),
            ("validation", 0, "holdout/0", 0, 5)
        ])
    );
    // In the first shard only 15 pairs had a fitting length, and two of the 20 answers can't be used.
    let first = vec![
        answered(path("train", 0), 15, 14),
        answered(path("train", 1), 5, 4),
        answered(path("validation", 0), 5, 5),
    ];
    let more = plan(std::slice::from_ref(&first));
    assert_eq!(portions(&more), expected(&[("train", 2, "train/1", 5, 7)]));
    let second = vec![answered(path("train", 2), 7, 7)];
    let Phase::Complete(manifest) = plan(&[first.clone(), second]) else { panic!("as many as were wanted") };
    assert!(manifest.warnings.is_empty(), "{:?}", manifest.warnings);
    assert_eq!(manifest.artifacts.iter().map(|a| a.rows).sum::<u64>(), 30);

    // A warning says that the pairs are used up.
    let second = vec![answered(path("train", 2), 6, 1)];
    let Phase::Complete(manifest) = plan(&[first, second]) else { panic!("nothing is left to be asked about") };
    assert!(
        manifest.warnings[0].contains("instructions/train has 19 rows of the 25 asked for, after 26 pairs"),
        "{:?}",
        manifest.warnings
    );
}

/// A stage can be planned when all stages in `reads` are done, and not while one of them is missing.
#[test]
fn a_stage_reads_what_it_says_and_nothing_else() {
    let instruct = "[instructions]\nsource = \"sample\"\n[instruct]\n";
    let synthesize = "[synthesize]\nurl = \"http://localhost:1/v1\"\nmodel = \"m\"\n[instruct]\n";
    let random = "[models]\nencoder = \"random\"\n";
    let windows = format!("{instruct}windows = 4\n");
    for text in ["", instruct, synthesize, random, &windows] {
        let (job, stamps) = (job(text), BTreeMap::new());
        for stage in StageName::of(&job) {
            let reads = stage.reads(&job);
            for missing in StageName::iter() {
                let mut done = done();
                for manifest in done.values_mut() {
                    for part in [Part::Projector, Part::Adapter, Part::AdapterConfig, Part::Slots] {
                        manifest.artifacts.push(artifact("", part, 0));
                    }
                }
                done.remove(&missing);
                let inputs = Inputs { job: &job, stamps: &stamps, done: &done, claim: None };
                let planned = stage_key(stage, &inputs).and_then(|key| phase(stage, &key, &inputs, &[]));
                let needs = reads.contains(&missing);
                assert_eq!(planned.is_err(), needs, "{text}: {stage} without {missing}: {planned:?}");
            }
        }
    }
}

#[test]
fn a_manifest_holds_finite_figures_alone_and_warns_of_others() {
    let result = TaskResult {
        figures: [("train_loss".to_owned(), 0.5), ("val_loss".to_owned(), f64::NAN)].into(),
        ..TaskResult::default()
    };
    let manifest = manifest_of(StageName::Align, "k", &[result]);
    assert_eq!(manifest.figures, [("train_loss".to_owned(), 0.5)].into());
    assert_eq!(manifest.warnings, ["val_loss is NaN, so it is not among the figures"]);
    let text = serde_json::to_string(&manifest).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
}
