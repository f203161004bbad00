//! Files that are gone, and reports that are not written yet.

use super::*;

#[test]
fn a_stage_whose_files_were_deleted_is_computed_again_and_never_committed_from_memory() {
    let mut s = Scene::new();
    s.join();
    s.submit(new_job());
    run_calmly(&mut s, "job-1");
    // Only one of several tasks' files.
    let embed = stage(&s, "job-1", StageName::Embed);
    let gone = embed.manifest.unwrap().artifacts[0].path.clone();
    s.shelf.committed.remove(&embed.key);
    s.shelf.removed.insert(gone.clone());
    s.submit(new_job());
    while stage(&s, "job-1", StageName::Embed).pursuit != Pursuit::Computing {
        still_runs(&s);
        s.act();
    }
    let open = |s: &Scene| {
        let tasks = s.cluster.tasks.values();
        let open = tasks.filter(|t| *t.job == *"job-1" && !matches!(t.state, TaskState::Done(_)));
        open.count()
    };
    assert_eq!(open(&s), 1, "what is there is kept, what is gone is made again");
    s.shelf.removed.clear();
    run_calmly(&mut s, "job-1");
    assert_eq!(stage(&s, "job-1", StageName::Embed).state, StageState::Done);
    assert_eq!(stage(&s, "job-1", StageName::Align).state, StageState::Cached);

    // All of a stage of several phases: it begins with the first.
    let shard = stage(&s, "job-1", StageName::Shard);
    s.shelf.committed.remove(&shard.key);
    for task in shard.phases.concat() {
        if let TaskState::Done(result) = &s.cluster.tasks[&task].state {
            s.shelf.removed.extend(result.decode().artifacts.into_iter().map(|a| a.path));
        }
    }
    s.submit(new_job());
    s.act();
    let again = stage(&s, "job-1", StageName::Shard);
    assert_eq!(again.phases.len(), 1, "later phases are planned anew");
    s.shelf.removed.clear();
    run_calmly(&mut s, "job-1");
    assert_eq!(s.cluster.jobs["job-1"].state, JobState::Succeeded);
    assert_eq!(manifests(&s.cluster), calm());
}

#[test]
fn a_job_has_succeeded_once_its_report_is_written_and_not_before() {
    let mut s = Scene::new();
    s.join();
    s.submit(new_job());
    let publish = loop {
        let publishes = |a: &Action| matches!(a, Action::Publish { .. });
        if let Some(at) = s.pending.iter().position(publishes) {
            break s.pending.remove(at);
        }
        still_runs(&s);
        s.now += 100;
        s.step(|_, _, _| ());
        s.act();
        s.work();
    };
    assert_eq!(s.cluster.jobs["job-1"].state, JobState::Running);
    assert!(matches!(publish, Action::Publish { files, .. } if !files.is_empty()));
    let full = Failure { kind: FailureKind::Storage.into(), text: "the disk is full".into() };
    s.step(|c, now, fx| c.published("job-1", Err(full), now, fx));
    let job = s.cluster.view("job-1").unwrap();
    assert_eq!(job.state(), JobState::Failed);
    assert_eq!(job.failure.unwrap().kind(), FailureKind::Storage);
}
