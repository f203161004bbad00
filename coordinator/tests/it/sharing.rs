//! Jobs that share stages, on one coordinator, and as separate processes with one output.

use std::process::{Child, Command};
use std::time::Instant;

use crate::common::{Place, Running, eventually, says_all, text, workers_of};

/// One job of a sweep over Stage A's learning rate.
fn job(number: usize) -> String {
    format!(
        "name = \"sweep-{number}\"\noutput = \"out\"\nseed = 11\n[corpus]\nsource = \"sample\"\ntrain_pairs = 1600\n\
         holdout_pairs = 200\nshard_rows = 200\n[align]\nsteps = 20\nbatch = 32\nqueue = 64\nhard_negatives = 8\n\
         warmup_steps = 4\nlearning_rate = {}e-4\nlearning_rate_floor = 0\n[evaluate]\nbenchmark_pairs = 100\n",
        number + 1
    )
}

fn sweep(jobs: usize) -> Place {
    let place = Place::new("");
    for number in 0..jobs {
        place.write(&file(number), job(number));
    }
    place
}

fn file(number: usize) -> String {
    format!("job-{number}.toml")
}

struct Cluster {
    url: String,
    _processes: Vec<Running>,
}

fn cluster(place: &Place, workers: usize) -> Cluster {
    let (serve, url) = place.serve(&["--state", "server"]);
    let worker = |n| place.start(&["worker", "--name", &format!("n{n}"), "--threads", "1", "--coordinator", &url]);
    let processes = (0..workers).map(worker).chain([serve]).collect();
    Cluster { url, _processes: processes }
}

/// Waits for a job that must succeed, and returns what it prints.
fn succeeds(submit: Child) -> String {
    let output = submit.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// Returns how many times each shard was leased for embedding, over all jobs in a state.
fn embedded(place: &Place, reach: &[&str]) -> Vec<String> {
    let list = place.ok(&[&["list", "--json"], reach].concat());
    let mut found = Vec::new();
    for line in list.lines() {
        let job: serde_json::Value = serde_json::from_str(line).unwrap();
        let logs = place.ok(&[&["logs", job["id"].as_str().unwrap()], reach].concat());
        let leased = logs.lines().filter(|line| line.contains(" vectors of ") && line.contains(": attempt "));
        found.extend(leased.map(|line| {
            let (before, after) = line.split_once(" vectors of ").unwrap();
            [before.rsplit(' ').next().unwrap(), after.split(':').next().unwrap()].concat()
        }));
    }
    found
}

fn once(mut shards: Vec<String>) {
    let all = shards.len();
    shards.sort();
    shards.dedup();
    assert_eq!(shards.len(), all, "a shard was embedded twice: {shards:?}");
    // There are 8 shards of training pairs and one held out, through two models, and their English through the encoder.
    assert_eq!(all, 27, "{shards:?}");
}

#[test]
fn a_sweep_of_20_jobs_embeds_once() {
    let place = sweep(20);
    let cluster = cluster(&place, 2);
    let reach = ["--coordinator", cluster.url.as_str()];
    let began = Instant::now();
    let submits: Vec<Child> =
        (0..20).map(|n| place.command(&[&["submit", &file(n)], &reach[..]].concat()).spawn().unwrap()).collect();
    submits.into_iter().for_each(|submit| drop(succeeds(submit)));
    println!("20 jobs over learning rates took {:.1} s", began.elapsed().as_secs_f64());
    once(embedded(&place, &reach));
    assert_eq!(std::fs::read_dir(place.path("out/embed")).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(place.path("out/align")).unwrap().count(), 20);
    place.ok(&["verify", "out"]);
}

#[test]
fn a_cancel_in_the_middle_of_a_shared_stage_harms_no_other_job() {
    let place = sweep(4);
    let cluster = cluster(&place, 2);
    let reach = ["--coordinator", cluster.url.as_str()];
    let submits: Vec<Child> =
        (0..4).map(|n| place.command(&[&["submit", &file(n)], &reach[..]].concat()).spawn().unwrap()).collect();
    let (leader, reason) = eventually("one computes and another says so", || {
        let list = place.ok(&[&["list"], &reach[..]].concat());
        let says =
            list.lines().find(|line| line.contains("embed: job ") && line.contains("is computing this stage"))?;
        let leader = says.split("embed: job ").nth(1)?.split(' ').next()?;
        Some((leader.to_owned(), says.to_owned()))
    });
    assert!(!reason.starts_with(&leader), "{reason}");
    place.ok(&[&["cancel", &leader], &reach[..]].concat());
    let code = |submit: Child| submit.wait_with_output().unwrap().status.code().unwrap();
    let mut codes: Vec<i32> = submits.into_iter().map(code).collect();
    codes.sort_unstable();
    assert_eq!(codes, [0, 0, 0, 7]);
    once(embedded(&place, &reach));
    place.ok(&["verify", "out"]);
}

#[test]
fn processes_of_their_own_on_one_output_share_what_is_the_same() {
    let place = sweep(4);
    let submit = |n: usize| {
        let (file, state) = (file(n), format!("state-{n}"));
        place.command(&["submit", &file, "--state", &state, "--workers", "1"]).spawn().unwrap()
    };
    let submits: Vec<Child> = (0..4).map(submit).collect();
    submits.into_iter().for_each(|submit| drop(succeeds(submit)));
    once((0..4).flat_map(|n| embedded(&place, &["--state", &format!("state-{n}")])).collect());
    place.ok(&["verify", "out"]);
}

#[test]
fn what_a_killed_process_was_computing_is_taken_over_by_one_that_waits_and_says_so() {
    let place = sweep(2);
    let slow = |n: usize| {
        job(n).replace("train_pairs = 1600", "train_pairs = 16_000").replace("shard_rows = 200", "shard_rows = 500")
    };
    (0..2).for_each(|n| place.write(&file(n), slow(n)));
    let mut first = place.start(&["submit", &file(0), "--state", "state-0", "--workers", "1"]);
    place.lists("embed: embed", &["--state", "state-0"]);
    let second = place.command(&["submit", &file(1), "--state", "state-1", "--workers", "1"]).spawn().unwrap();
    place.lists("embed: another coordinator, process ", &["--state", "state-1"]);
    let workers = workers_of(first.child.id());
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    let began = Instant::now();
    for worker in workers {
        // The process may have ended by itself, because its coordinator is gone.
        let _ = Command::new("kill").args(["-KILL", &worker.to_string()]).status();
    }
    place.lists("embed: embed", &["--state", "state-1"]);
    // A claim that nobody renews lasts for at least 45 seconds.
    assert!(began.elapsed().as_secs() < 40, "the claim of a process that is gone is not waited for");
    says_all(&succeeds(second), &["is computing this stage: its result is waited for"]);
    place.ok(&["verify", "out"]);
}
