//! Gangs: who is blamed, who is waited for, and what is forgiven.

use super::*;

#[test]
fn the_first_failing_ranks_error_counts_and_not_the_others_waiting() {
    let (mut s, workers) = training();
    s.end(&workers[0], failed(FailureKind::Peer, "rank 0 lost its peer"));
    s.end(&workers[1], failed(FailureKind::Input, "vectors do not fit"));
    let job = s.cluster.view("job-1").unwrap();
    assert!(job.failure.clone().unwrap().text.contains("vectors do not fit"), "{:?}", job.failure);
}

#[test]
fn a_gang_waits_for_a_lost_member_then_goes_on_with_fewer() {
    let (mut s, workers) = training();
    s.lose(&workers[1]);
    s.act();
    assert!(s.at_work.is_empty(), "the survivor was told to stop");
    assert!(align(&s).reason.contains("gathers 2 ranks: 1 of 1 workers are idle"), "{}", align(&s).reason);
    s.now += s.cluster.timing.gather + 1;
    let beat = s.now;
    s.cluster.heartbeat(&workers[0], &[], beat);
    s.tick();
    s.act();
    let seat = s.at_work[&workers[0]][0].seat.unwrap();
    assert_eq!((seat.rank, seat.world_size, seat.generation), (0, 1, 2));
}

fn trains(s: &Scene) -> bool {
    let mut stages = s.cluster.jobs["job-1"].stages.iter();
    stages.any(|stage| stage.name == StageName::Align && stage.state == StageState::Running)
}

/// A cluster of two workers that are in the middle of training.
fn training() -> (Scene, Vec<String>) {
    let mut s = Scene::new();
    s.submit(new_job());
    s.joins(2);
    while !trains(&s) || s.at_work.len() < 2 {
        still_runs(&s);
        s.act();
        if !trains(&s) {
            s.work();
        }
    }
    let by_rank = |rank| {
        let found = s.at_work.iter().find(|(_, held)| held[0].seat.unwrap().rank == rank);
        found.map(|(w, _)| w.clone()).unwrap()
    };
    let workers = vec![by_rank(0), by_rank(1)];
    (s, workers)
}

fn failed(kind: FailureKind, text: &str) -> Outcome {
    let (kind, text) = (kind.into(), text.into());
    Failure { kind, text }.into()
}

fn align(s: &Scene) -> llink_proto::Stage {
    let stages = s.cluster.view("job-1").unwrap().stages;
    stages.into_iter().find(|stage| stage.name == "align").unwrap()
}

fn align_task(s: &Scene) -> TaskRecord {
    let found = s.cluster.tasks.values().find(|t| t.stage == StageName::Align);
    found.unwrap().clone()
}

/// Everybody who lives says so, time passes.
fn pass(s: &mut Scene, millis: Millis) {
    let mut left = millis;
    while left > 0 {
        let now = left.min(1_000);
        s.now += now;
        left -= now;
        for worker in s.cluster.workers.keys().cloned().collect::<Vec<_>>() {
            let running = s.running(&worker);
            s.cluster.heartbeat(&worker, &running, s.now);
        }
        s.tick();
    }
    s.act();
}

#[test]
fn of_two_ranks_that_fail_by_themselves_the_first_is_the_cause() {
    let (mut s, workers) = training();
    s.end(&workers[1], failed(FailureKind::Storage, "the disk is full"));
    s.end(&workers[0], failed(FailureKind::Internal, "and then this"));
    let mut fx = Effects::default();
    s.cluster.tick(s.now, &mut fx);
    assert_eq!(align_task(&s).failures, 1);
    let TaskState::Waiting { .. } = align_task(&s).state else { panic!("{:?}", align_task(&s).state) };
}

#[test]
fn what_is_told_of_a_broken_gang_is_its_cause_and_where_each_rank_was() {
    let (mut s, workers) = training();
    for (worker, place) in workers.iter().zip(["step 41, in all_gather", "step 40, computing"]) {
        let beat = TaskProgress { place: place.into(), ..progress(&s.at_work[worker][0]) };
        s.cluster.heartbeat(worker, &[beat], s.now);
    }
    // Rank 0 notices first, but rank 1 is the cause.
    let first = s.at_work[&workers[0]][0].clone();
    let second = s.at_work[&workers[1]][0].clone();
    let mut fx = Effects::default();
    let peer = failed(FailureKind::Peer, "rank 0 of 2 lost its peer");
    s.cluster.report(&workers[0], first.task_id, first.token, peer, s.now, &mut fx);
    assert!(fx.events.is_empty(), "nothing is told before the cause is known: {:?}", fx.events);
    let own = failed(FailureKind::Storage, "the disk is full");
    s.cluster.report(&workers[1], second.task_id, second.token, own, s.now, &mut fx);
    let told: Vec<&str> = fx.events.iter().map(|e| e.text.as_str()).collect();
    assert_eq!(
        told,
        [
            "train the projector: rank 1: the disk is full. Last heard of: rank 0 at step 41, in all_gather; rank 1 at step \
          40, computing"
        ]
    );
}

#[test]
fn a_worker_that_was_told_to_stop_costs_nothing_and_is_given_nothing_more() {
    let (mut s, workers) = training();
    s.end(&workers[1], failed(FailureKind::Stopped, "its worker was told to stop"));
    s.act();
    let task = align_task(&s);
    assert_eq!((task.failures, task.losses), (0, 0));
    // It is still connected, but only the other one is leased to.
    pass(&mut s, 2 * Timing::default().gather);
    assert_eq!(s.at_work.keys().collect::<Vec<_>>(), [&workers[0]]);
}

#[test]
fn losses_are_forgotten_when_training_gets_further() {
    let (mut s, _) = training();
    s.cluster.timing.max_losses = 3;
    for round in 1..=20_u64 {
        let (worker, lease) = s.at_work.iter().next().map(|(w, held)| (w.clone(), held[0].clone())).unwrap();
        let beat = TaskProgress { done: round * 500, total: 20_000, ..progress(&lease) };
        s.cluster.heartbeat(&worker, &[beat], s.now);
        s.lose(&worker);
        s.act();
        s.join();
        pass(&mut s, Timing::default().gather + 1_000);
        assert!(!s.at_work.is_empty(), "round {round}: {}", align(&s).reason);
    }
    // And counted when it does not: the last one of those was the first of three.
    for _ in 0..2 {
        assert_eq!(s.cluster.jobs["job-1"].state, JobState::Running);
        let worker = s.at_work.keys().next().unwrap().clone();
        s.lose(&worker);
        s.act();
        s.join();
        pass(&mut s, Timing::default().gather + 1_000);
    }
    assert_eq!(s.cluster.jobs["job-1"].state, JobState::Failed);
}

#[test]
fn after_a_restart_of_the_coordinator_a_gang_waits_for_the_workers_that_come_back() {
    let (s, _) = training();
    let mut tasks: Vec<TaskRecord> = s.cluster.tasks.values().cloned().collect();
    for task in &mut tasks {
        // As the state store reads it.
        if let TaskState::Leased(_) = task.state {
            task.state = TaskState::Waiting { since: 0, not_before: 0 };
        }
    }
    let mut again = s.restarted(tasks, 1_000_000);
    again.shelf = s.shelf;
    again.step(|c, now, fx| c.wake(now, fx));
    again.act();
    again.join();
    again.act();
    assert!(again.at_work.is_empty(), "the first worker back is not the whole gang");
    again.join();
    again.act();
    assert_eq!(again.at_work.len(), 2);
}

#[test]
fn nobody_is_given_up_for_the_time_that_the_coordinator_itself_was_away() {
    let (mut s, workers) = training();
    s.tick();
    s.now += 10 * s.cluster.timing.lease;
    s.tick();
    s.act();
    assert_eq!(s.cluster.workers.len(), 2);
    assert_eq!(s.at_work.len(), workers.len(), "training goes on");
    // Who stays silent from then on is given up as ever.
    for _ in 0..20 {
        s.now += 1_000;
        s.tick();
    }
    assert!(s.cluster.workers.is_empty());
}

#[test]
fn a_worker_whose_lease_is_over_is_free_once_it_says_that_it_does_nothing() {
    let (mut s, workers) = training();
    // Its lease runs out though it beats: it never speaks of the task.
    for _ in 0..40 {
        s.now += 1_000;
        let of_rank_0 = s.running(&workers[0]);
        s.cluster.heartbeat(&workers[0], &of_rank_0, s.now);
        s.cluster.heartbeat(&workers[1], &[], s.now);
        s.at_work.remove(&workers[1]);
        s.tick();
        s.act();
        if s.at_work.contains_key(&workers[1]) {
            return;
        }
    }
    panic!("worker {} was never given work again", workers[1]);
}

#[test]
fn younger_jobs_do_not_starve_an_older_gang() {
    let (mut s, workers) = training();
    s.lose(&workers[1]);
    s.now += 1;
    s.submit(job("job-2", "[corpus]\nsource = [\"/x.tsv\", \"/y.tsv\"]\n"));
    s.act();
    s.join();
    s.act();
    let jobs: BTreeSet<String> =
        s.at_work.values().flatten().map(|a| s.cluster.tasks[&a.task_id].job.to_string()).collect();
    assert_eq!(jobs, BTreeSet::from(["job-1".to_owned()]), "the gang is whole again before others are served");
}

#[test]
fn an_answer_about_another_key_is_not_taken() {
    let mut s = Scene::new();
    s.submit(new_job());
    let other = calm().remove(0);
    let stale = Manifest { key: "another".into(), ..other };
    let work = Work { key: "another".into(), ..s.cluster.work("job-1", StageName::Shard).unwrap() };
    s.step(|c, now, fx| c.looked_up(&work, Ok(LookedUp::Whole(Box::new(stale))), now, fx));
    assert_eq!(s.cluster.jobs["job-1"].stages[0].state, StageState::Running);
}
