//! Jobs that share stages: each key is computed once, whoever is cancelled or fails.

use llink_proto::settings::AlignSettings;

use super::*;

/// Jobs that differ in one setting of Stage A.
fn job_of(number: usize) -> NewJob {
    let text =
        format!("[corpus]\nsource = [\"/a.tsv\", \"/b.tsv\"]\n[align]\nlearning_rate = 0.{number:03}\nmax_ranks = 2\n");
    job(&format!("job-{number}"), &text)
}

fn submit(s: &mut Scene, number: usize) {
    s.now += 1;
    s.submit(job_of(number));
}

fn cancel(s: &mut Scene, id: &str) {
    s.step(|c, now, fx| c.cancel(id, now, fx)).unwrap();
}

/// The stage that the job is at, as people see it.
fn at(s: &Scene, id: &str) -> llink_proto::Stage {
    let stages = s.cluster.view(id).unwrap().stages;
    stages.into_iter().find(|stage| stage.state() == StageState::Running).unwrap()
}

fn all_ended(s: &Scene) -> bool {
    s.cluster.jobs.values().all(|job| job.state != JobState::Running)
}

fn computed_once(s: &Scene, told: &str) {
    for (path, times) in s.counted.iter().filter(|(path, _)| path.starts_with("embed/")) {
        assert_eq!(*times, 1, "{told}: {path}");
    }
}

#[test]
fn a_sweep_of_20_jobs_computes_what_they_share_once() {
    let mut s = Scene::new();
    s.joins(3);
    (1..=9).for_each(|n| submit(&mut s, n));
    run_until(&mut s, |s| at_embed(s, "job-1"));
    (10..=20).for_each(|n| submit(&mut s, n));
    s.act();
    let follower = at(&s, "job-7");
    assert!(follower.reason.starts_with("job job-1 is computing this stage"), "{}", follower.reason);
    assert_eq!(follower.total, at(&s, "job-1").total, "who waits sees how far it is");
    run_until(&mut s, all_ended);
    assert!(s.cluster.jobs.values().all(|job| job.state == JobState::Succeeded));
    computed_once(&s, "sweep");
    let aligned = s.counted.keys().filter(|path| path.starts_with("align/")).count();
    assert_eq!(aligned, 20, "what differs is computed for each");
    assert_eq!(stage(&s, "job-7", StageName::Embed).state, StageState::Cached);
    assert!(s.shelf.claims.is_empty());
}

fn at_embed(s: &Scene, id: &str) -> bool {
    let stage = stage(s, id, StageName::Embed);
    stage.pursuit == Pursuit::Computing && s.at_work.len() == s.cluster.workers.len()
}

#[test]
fn a_cancel_harms_no_job_that_waits_for_the_same_stage_and_stops_no_work() {
    let mut s = Scene::new();
    s.join_with(0);
    s.join_with(0);
    (1..=3).for_each(|n| submit(&mut s, n));
    run_until(&mut s, |s| at_embed(s, "job-1"));
    let held = s.at_work.clone();
    cancel(&mut s, "job-1");
    s.act();
    s.act();
    assert_eq!(s.at_work, held, "what was being computed is computed on");
    assert_eq!(stage(&s, "job-2", StageName::Embed).pursuit, Pursuit::Computing);
    assert!(at(&s, "job-3").reason.starts_with("job job-2 is computing this stage"));
    // A follower's cancel is nobody's business but its own.
    cancel(&mut s, "job-3");
    run_until(&mut s, all_ended);
    assert_eq!(s.cluster.jobs["job-2"].state, JobState::Succeeded);
    computed_once(&s, "cancelled");
    // The one that was cancelled goes on from what the other one made.
    submit(&mut s, 1);
    run_until(&mut s, all_ended);
    assert_eq!(s.cluster.jobs["job-1"].state, JobState::Succeeded);
    computed_once(&s, "resumed");
}

#[test]
fn when_the_first_fails_the_next_takes_over_what_is_finished() {
    let mut s = Scene::new();
    s.join_with(0);
    s.join_with(0);
    submit(&mut s, 1);
    submit(&mut s, 2);
    run_until(&mut s, |s| at_embed(s, "job-1"));
    let worker = s.at_work.keys().next().unwrap().clone();
    s.done(&worker);
    s.act();
    let wrong = Failure { kind: FailureKind::Input.into(), text: "this worker's disk is broken".into() };
    s.end(&worker, Outcome::Failed(wrong));
    assert_eq!(s.cluster.jobs["job-1"].state, JobState::Failed);
    run_until(&mut s, all_ended);
    assert_eq!(s.cluster.jobs["job-2"].state, JobState::Succeeded);
    computed_once(&s, "taken over");
}

#[test]
fn a_job_that_comes_after_a_cancelled_one_goes_on_where_that_one_stopped() {
    let mut s = Scene::new();
    s.join_with(0);
    submit(&mut s, 1);
    run_until(&mut s, |s| at_embed(s, "job-1"));
    let worker = s.at_work.keys().next().unwrap().clone();
    s.done(&worker);
    cancel(&mut s, "job-1");
    s.act();
    assert!(s.shelf.claims.is_empty(), "nobody else need wait");
    submit(&mut s, 2);
    run_until(&mut s, |s| at_embed(s, "job-2"));
    assert_eq!(at(&s, "job-2").reason, "embed", "it says what it does with the tasks of that one");
    run_until(&mut s, all_ended);
    assert_eq!(s.cluster.jobs["job-2"].state, JobState::Succeeded);
    computed_once(&s, "left");
}

#[test]
fn tasks_that_another_job_planned_are_planned_anew_where_they_differ() {
    let mut s = Scene::new();
    s.join();
    for (id, every) in [("job-1", 100), ("job-2", 7)] {
        s.submit(job(id, &format!("[corpus]\nsource = \"/a.tsv\"\n[align]\ncheckpoint_every = {every}\n")));
    }
    run_until(&mut s, |s| stage(s, "job-1", StageName::Align).pursuit == Pursuit::Computing && !s.at_work.is_empty());
    assert!(at(&s, "job-2").reason.starts_with("job job-1 is computing this stage"), "the key is the same");
    cancel(&mut s, "job-1");
    run_until(&mut s, |s| {
        let held = s.at_work.values().flatten();
        let aligns = held.filter_map(|a| match a.task.as_ref()?.kind.as_ref()? {
            Kind::Align(align) => {
                let settings: AlignSettings = serde_json::from_str(&align.settings).unwrap();
                settings.checkpoint_every
            }
            _ => None,
        });
        aligns.into_iter().next() == Some(7)
    });
    run_until(&mut s, all_ended);
    assert_eq!(s.cluster.jobs["job-2"].state, JobState::Succeeded);
}

#[test]
fn what_another_coordinator_computes_is_waited_for_and_taken_over_when_it_gives_up() {
    let mut s = Scene::new();
    s.join();
    submit(&mut s, 1);
    let work = s.cluster.work("job-1", StageName::Shard).unwrap();
    s.shelf.claims.insert(work.key.clone(), "theirs".into());
    submit(&mut s, 2);
    s.act();
    s.act();
    let reason = at(&s, "job-1").reason;
    assert!(reason.starts_with("another coordinator, another, is computing this stage"), "{reason}");
    assert!(at(&s, "job-2").reason.starts_with("job job-1 is computing this stage"));
    for _ in 0..100 {
        s.now += 100;
        s.tick();
        s.act();
        s.cluster.check();
    }
    assert!(s.cluster.tasks.is_empty());
    let theirs = Claim { attempt: "theirs".into(), apart: false };
    s.shelf.release(&work, &theirs);
    run_until(&mut s, all_ended);
    assert!(s.cluster.jobs.values().all(|job| job.state == JobState::Succeeded));
}

#[test]
fn a_stage_that_another_coordinator_took_over_is_left_to_it() {
    let mut s = Scene::new();
    s.join_with(0);
    submit(&mut s, 1);
    run_until(&mut s, |s| at_embed(s, "job-1"));
    let embed = stage(&s, "job-1", StageName::Embed);
    let work = s.cluster.work("job-1", StageName::Embed).unwrap();
    s.shelf.claims.insert(embed.key, "theirs".into());
    s.step(|c, now, fx| c.claim_lost(&work, &embed.claim.unwrap().attempt, now, fx));
    s.act();
    s.act();
    assert!(s.at_work.is_empty(), "its tasks are stopped");
    assert!(at(&s, "job-1").reason.contains("another coordinator"), "{}", at(&s, "job-1").reason);
    s.shelf.claims.clear();
    run_until(&mut s, all_ended);
    assert_eq!(s.cluster.jobs["job-1"].state, JobState::Succeeded);
}
