//! Training that loses ranks, its coordinator or its checkpoints, or whose loss diverges.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::common::{
    Place, Random, Running, SMALL, are_gone, eventually, figure, json, projector, says_all, signal, trained_steps,
    workers_of,
};

/// The number of random faults that one training must survive.
const FAULTS: u64 = 22;
const LEASE_S: f64 = 1.0;

fn training(steps: u64, more: &str) -> String {
    SMALL
        .replace("steps = 60", &format!("steps = {steps}\n{more}"))
        .replace("checkpoint_every = 20", "checkpoint_every = 50\nvalidate_every = 100\nvalidation_pairs = 64")
}

struct Cluster {
    place: Place,
    url: String,
    id: String,
    /// The workers with their names.
    workers: Vec<(String, Running)>,
    started: u32,
    _serve: Running,
}

impl Cluster {
    fn new(job: &str, workers: usize) -> Self {
        let place = Place::new(job);
        let (serve, url) = place.serve(&["--state", "server", "--lease", "1", "--gather", "1"]);
        let id = place.submit_to(&url);
        let mut cluster = Self { place, url, id, workers: Vec::new(), started: 0, _serve: serve };
        (0..workers).for_each(|_| cluster.start_worker());
        cluster
    }

    fn start_worker(&mut self) {
        self.started += 1;
        let name = format!("n{}", self.started);
        let to = ["worker", "--name", &name, "--threads", "1", "--coordinator", &self.url];
        let worker = self.place.start(&to);
        self.workers.push((name, worker));
    }

    fn job(&self) -> serde_json::Value {
        let json = self.place.ok(&["get", &self.id, "--json", "--coordinator", &self.url]);
        serde_json::from_str(&json).unwrap()
    }

    fn logs(&self) -> String {
        self.place.ok(&["logs", &self.id, "--coordinator", &self.url])
    }

    /// Returns the number of steps so far, or `None` once the job has ended.
    fn steps(&self) -> Option<u64> {
        let job = self.job();
        (job["state"] == "running").then(|| match align_of(&job) {
            align if align["state"] == "running" => align["done"].as_u64().unwrap(),
            align if align["state"] == "done" => u64::MAX,
            _ => 0,
        })
    }

    /// Returns the places of the workers that train now, or `None` while a loss is not yet made up for.
    fn ranks(&self) -> Option<Vec<usize>> {
        let logs = self.logs();
        let last = logs.lines().rfind(|line| line.contains("train the projector: "))?;
        let (_, members) = last.split_once("train the projector: attempt ")?.1.split_once(" on ")?;
        // A member is called by its number and its name, as in `w7-n3`.
        let names = members.split(", ").map(|member| member.split_once('-').map_or(member, |(_, name)| name));
        names.map(|name| self.workers.iter().position(|(known, _)| known == name)).collect()
    }
}

fn align_of(job: &serde_json::Value) -> &serde_json::Value {
    let mut stages = job["stages"].as_array().unwrap().iter();
    stages.find(|stage| stage["stage"] == "align").unwrap()
}

#[test]
fn training_survives_ranks_that_are_killed_or_stopped_at_random() {
    let steps = 5_000;
    let job = training(steps, "");
    let mut random = Random::seeded();
    let mut cluster = Cluster::new(&job, 3);
    let (mut kills, mut stops, mut slowest) = (0, 0, Duration::ZERO);
    for fault in 0..FAULTS {
        // The fault comes at a random step in its share of the training.
        let at = fault * steps / (FAULTS + 2) + random.below(steps / (FAULTS + 2)) + 1;
        let ranks = eventually("training goes on", || {
            let done = cluster.steps().expect("the job ended before its faults did");
            assert!(done < u64::MAX, "trained before fault {fault}");
            (done >= at).then(|| cluster.ranks()).flatten()
        });
        std::thread::sleep(Duration::from_millis(random.below(40)));
        // A worker that came too late for the gang holds no task, and its loss is not told.
        let victim = ranks[random.below(ranks.len() as u64) as usize];
        let losses = cluster.logs().matches("was lost").count();
        if random.below(3) == 0 {
            stops += 1;
            let pid = cluster.workers[victim].1.child.id();
            signal(pid, "-STOP");
            let began = Instant::now();
            eventually("the silent rank is given up", || {
                (cluster.logs().matches("was lost").count() > losses).then_some(())
            });
            let took = began.elapsed();
            slowest = slowest.max(took);
            assert!(took < Duration::from_secs_f64(LEASE_S + 10.0), "given up after {took:?}");
            // The process continues late with an old generation and is refused. Then it may join the next one.
            signal(pid, "-CONT");
        } else {
            kills += 1;
            cluster.workers.remove(victim).1.child.kill().unwrap();
            cluster.start_worker();
        }
    }
    let job_ended = eventually("the job ends", || {
        let job = cluster.job();
        (job["state"] != "running").then_some(job)
    });
    assert_eq!(job_ended["state"], "succeeded", "{}", cluster.logs());
    let logs = cluster.logs();
    assert!(logs.contains("Last heard of: rank 0 at step"), "where each rank was is told: {logs}");
    let generations = logs.matches("train the projector: attempt").count();
    let effective = job_ended["report"]["training"]["effective_time"].as_f64().unwrap();
    println!(
        "{kills} kills, {stops} stops, {generations} generations; slowest to be given up {slowest:?}; effective training \
         time {:.0} %",
        100.0 * effective
    );
    assert!(generations > FAULTS as usize / 2, "{logs}");
    assert!(effective > 0.0 && effective <= 1.0);
    // Every step counts once, and the result is that of a run without faults.
    let trained = trained_steps(&cluster.place);
    assert_eq!(trained.iter().map(|(step, _)| *step).collect::<Vec<_>>(), (0..steps).collect::<Vec<_>>());
    let calm = Place::new(&job);
    calm.ok(&["submit", "job.toml", "--workers", "1"]);
    let expected = trained_steps(&calm);
    let last = steps as usize - 1;
    assert!((trained[last].1 - expected[last].1).abs() < 2e-2, "{:?} {:?}", trained[last], expected[last]);
    let (with, without) =
        (figure(&cluster.place, "retrieval.stage_a.cosine.mrr"), figure(&calm, "retrieval.stage_a.cosine.mrr"));
    assert!((with - without).abs() < 2e-2, "{with} {without}");
}

/// Returns the checkpoint files in a place, oldest first.
fn checkpoints(place: &Place, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for stage in std::fs::read_dir(place.path("out/align")).into_iter().flatten().flatten() {
        for file in std::fs::read_dir(stage.path().join("checkpoints")).into_iter().flatten().flatten() {
            let name = file.file_name().into_string().unwrap();
            if name.starts_with("step-") && name.ends_with(ending) {
                found.push(file.path());
            }
        }
    }
    found.sort();
    found
}

/// Starts a job, and cancels it in the middle of training.
fn cancelled(place: &Place) {
    let mut submit = place.start(&["submit", "job.toml"]);
    let id = eventually("training is under way", || {
        let list = place.run(&["list"]);
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        let under_way = list.contains("align: train") && checkpoints(place, ".json").len() > 1;
        under_way.then(|| list.split_whitespace().next().unwrap().to_owned())
    });
    says_all(&place.ok(&["cancel", &id]), &["cancelled"]);
    assert_eq!(submit.child.wait().unwrap().code(), Some(7), "{}", submit.log());
    says_all(&submit.log(), &["was cancelled"]);
}

#[test]
fn a_cancelled_training_saves_first_and_goes_on_to_the_same_bits_past_damaged_checkpoints() {
    let job = training(4_000, "max_ranks = 2\nmin_ranks = 2");
    let calm = Place::new(&job);
    calm.ok(&["submit", "job.toml"]);

    let place = Place::new(&job);
    cancelled(&place);
    let plan = place.ok(&["submit", "job.toml", "--dry-run"]);
    assert_eq!(plan.matches("cached").count(), 4, "what was finished is kept: {plan}");
    let states = checkpoints(&place, ".safetensors");
    let newest = states.last().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    let steps: u64 = newest["step-".len()..][..9].parse().unwrap();
    println!("saved after {steps} steps");
    // The newest is cut short, the one before it has a flipped bit, and the third is whole.
    assert!(states.len() >= 3, "{states:?}");
    let [.., before, newest] = &states[..] else { panic!() };
    let content = std::fs::read(newest).unwrap();
    std::fs::write(newest, &content[..content.len() / 2]).unwrap();
    let mut content = std::fs::read(before).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(before, content).unwrap();

    let shown = place.ok(&["submit", "job.toml"]);
    assert_eq!(shown.matches("a damaged checkpoint was passed over").count(), 2, "{shown}");
    assert!(shown.contains("was altered") && shown.contains("bytes"), "{shown}");
    assert_eq!(projector(&place), projector(&calm), "resumed and uninterrupted end with the same bits");
    assert_eq!(trained_steps(&place), trained_steps(&calm));

    // The newest three and the best are kept, and the best is named.
    let kept = checkpoints(&place, ".json");
    let damaged = 2;
    assert!((3..=4 + damaged).contains(&kept.len()), "{kept:?}");
    let best = kept[0].with_file_name("best.json");
    let best = json(best);
    assert!(place.path("out").join(best["state"]["path"].as_str().unwrap()).exists(), "{best}");
}

#[test]
fn ctrl_c_between_checkpoints_loses_no_step_and_leaves_no_worker_behind() {
    let job =
        training(100_000, "checkpoint_minutes = 0.0").replace("checkpoint_every = 50", "checkpoint_every = 1000000");
    let place = Place::new(&job);
    let mut submit = place.start(&["submit", "job.toml"]);
    eventually("training is under way", || {
        let list = place.run(&["get", "small", "--json"]);
        let job: serde_json::Value = serde_json::from_slice(&list.stdout).ok()?;
        (align_of(&job)["done"].as_u64()? > 150).then_some(())
    });
    let workers = workers_of(submit.child.id());
    signal(submit.child.id(), "-INT");
    assert_eq!(submit.child.wait().unwrap().code(), Some(130), "{}", submit.log());
    let advice = "llink-coord submit job.toml` goes on from there";
    says_all(&submit.log(), &["workers save what they have", advice]);
    are_gone(&workers);
    let last = checkpoints(&place, ".json").pop().expect("Ctrl-C saves first");
    let manifest = json(last);
    let steps = manifest["steps"].as_u64().unwrap();
    assert!(steps > 150, "{manifest}");
    assert!(manifest["score"].is_null(), "saved because of the interruption: {manifest}");
}

#[test]
fn numbers_that_run_away_end_the_job_with_step_ids_and_last_good_checkpoint() {
    let job = training(500, "").replace("learning_rate = 3e-3", "learning_rate = 1e30");
    let place = Place::new(&job.replace("checkpoint_every = 50", "checkpoint_every = 1"));
    let said = place.fails(3, &["submit", "job.toml"]);
    let words = ["training diverged at step", "the batch's pairs are", "and 48 more", "the last good checkpoint is"];
    says_all(&said, &words);
    let note = said.split_whitespace().find(|w| w.contains("diverged-at-step")).unwrap();
    let note = json(note.trim_end_matches(';').into());
    assert_eq!(note["ids"].as_array().unwrap().len(), 64);
    println!("{said}");
}
