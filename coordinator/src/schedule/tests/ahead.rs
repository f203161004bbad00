//! Shards that workers hold ahead, to read the next while the device is busy.

use super::*;

/// A cluster in the middle of embedding, of workers that take so many shards ahead.
fn embedding(takes: &[u32], shards: usize) -> Scene {
    let mut s = Scene::submitted();
    s.join_with(0);
    let embeds = |s: &Scene| {
        s.cluster.jobs["job-1"]
            .stages
            .iter()
            .any(|stage| stage.name == StageName::Embed && stage.state == StageState::Running)
    };
    let mut rounds = 0;
    while !embeds(&s) {
        rounds += 1;
        assert!(rounds < 1000, "it never embeds: {:?}", s.cluster.jobs["job-1"].failure);
        s.act();
        for worker in s.at_work.keys().cloned().collect::<Vec<_>>() {
            let task = s.at_work[&worker][0].task.clone().unwrap();
            let mut result = result_of(&task);
            if let Some(Kind::SplitCorpus(_)) = &task.kind {
                let role = Role::Shard(Corpus::Pairs, Side::Train);
                result.artifacts.retain(|a| a.role != role);
                result.artifacts.extend((0..shards).map(|i| Artifact {
                    path: format!("pairs/train/{i:05}.parquet"),
                    role: role.to_string(),
                    rows: 10,
                    sha256: format!("hash of {i}"),
                    ..Artifact::default()
                }));
            }
            s.end(&worker, Outcome::Done(result));
        }
    }
    s.act();
    takes.iter().for_each(|&takes| s.join_with(takes));
    s.step(|_, _, _| ());
    s.act();
    s
}

/// How many leases each worker holds, in the order in which they came.
fn held(s: &Scene) -> Vec<usize> {
    s.cluster.workers.values().map(|w| w.seats.len()).collect()
}

#[test]
fn who_can_holds_one_more_shard_and_who_cannot_holds_one() {
    let mut s = embedding(&[1, 0], 12);
    assert_eq!(held(&s), [1, 2, 1]);
    // The one that ends is followed at once by the one that was held, and that by another.
    let ahead = s.cluster.workers.keys().nth(1).unwrap().clone();
    let second = s.at_work[&ahead][1].task_id;
    s.done(&ahead);
    s.act();
    assert_eq!(s.at_work[&ahead][0].task_id, second);
    assert_eq!(held(&s), [1, 2, 1]);
}

#[test]
fn the_last_shards_go_to_whoever_is_free_first() {
    let mut s = embedding(&[1, 1], 4);
    let mut rounds = 0;
    while s.cluster.jobs["job-1"].stages.iter().any(|stage| stage.name == StageName::Embed && !stage.is_complete()) {
        let waiting = s.cluster.tasks.values().filter(|t| matches!(t.state, TaskState::Waiting { .. })).count();
        let idle = held(&s).iter().filter(|seats| **seats == 0).count();
        assert!(waiting == 0 || idle == 0, "{waiting} shards wait, {idle} workers are idle");
        let two_held = held(&s).iter().filter(|seats| **seats > 1).count();
        assert!(two_held == 0 || idle == 0, "a worker holds a shard that an idle one could compute");
        // All are equally fast.
        s.work();
        s.act();
        rounds += 1;
        assert!(rounds < 100);
    }
}

#[test]
fn a_shard_that_was_only_held_is_not_blamed_for_the_loss_of_its_worker() {
    let mut s = embedding(&[1], 12);
    let (worker, leases) = s.at_work.iter().find(|(_, held)| held.len() == 2).unwrap();
    let (worker, leases) = (worker.clone(), leases.clone());
    s.lose(&worker);
    let losses = |lease: &Assignment| s.cluster.tasks[&lease.task_id].losses;
    assert_eq!((losses(&leases[0]), losses(&leases[1])), (1, 0));
    let job = s.cluster.jobs["job-1"].state;
    assert_eq!(job, JobState::Running);
}

#[test]
fn a_worker_that_asks_for_everything_holds_a_few() {
    let mut s = embedding(&[u32::MAX], 200);
    for _ in 0..50 {
        s.step(|_, _, _| ());
        s.act();
    }
    let most = held(&s).into_iter().max().unwrap();
    assert_eq!(most, 1 + MOST_LEASES_AHEAD as usize);
}
