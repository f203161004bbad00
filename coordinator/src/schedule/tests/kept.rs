//! What is forgotten of jobs that have ended, and what stays.

use super::*;

const HOUR: Millis = 3_600_000;

/// A cluster that keeps one hour and so many jobs, in which the job has succeeded.
fn ended(jobs: usize) -> Scene {
    let mut s = Scene::new();
    s.cluster.keep = Keep { millis: HOUR, jobs };
    s.join();
    s.submit(new_job());
    run_calmly(&mut s, "job-1");
    assert_eq!(s.cluster.jobs["job-1"].state, JobState::Succeeded);
    s
}

fn tick_after(s: &mut Scene, millis: Millis) -> Effects {
    s.now += millis;
    let mut fx = Effects::default();
    s.cluster.tick(s.now, &mut fx);
    s.cluster.tasks.check("after a tick");
    fx
}

/// What people see, but for the counts of tasks.
fn shown(s: &Scene) -> Vec<(String, StageState, BTreeMap<String, f64>, Millis)> {
    let stages = s.cluster.view("job-1").unwrap().stages.into_iter();
    stages.map(|stage| (stage.name.clone(), stage.state(), stage.figures, stage.ended_at)).collect()
}

#[test]
fn a_job_is_folded_after_its_time_and_its_history_stays() {
    let mut s = ended(usize::MAX);
    let (before, report) = (shown(&s), s.cluster.jobs["job-1"].report.clone());
    let tasks: BTreeSet<u64> = s.cluster.tasks.keys().copied().collect();
    assert!(tick_after(&mut s, HOUR - 1_000).folded.is_empty());
    let fx = tick_after(&mut s, 2_000);
    assert_eq!(fx.folded, BTreeSet::from(["job-1".to_owned()]));
    assert_eq!(fx.dropped_tasks, tasks);
    assert!(s.cluster.tasks.is_empty());
    assert_eq!((shown(&s), &s.cluster.jobs["job-1"].report), (before, &report));
    assert!(report.is_some());
    assert!(tick_after(&mut s, HOUR).folded.is_empty(), "once");
    // Submitted again, it finds what it made, and is kept anew.
    s.join();
    s.submit(new_job());
    run_calmly(&mut s, "job-1");
    assert_eq!(manifests(&s.cluster), calm());
}

#[test]
fn of_more_jobs_than_are_kept_the_oldest_is_folded() {
    let mut s = ended(1);
    assert!(tick_after(&mut s, 1).folded.is_empty());
    let second = NewJob { id: "job-2".into(), ..new_job() };
    s.submit(second);
    assert!(tick_after(&mut s, 1).folded.is_empty(), "one that runs does not count");
    run_calmly(&mut s, "job-2");
    assert_eq!(tick_after(&mut s, 1).folded, BTreeSet::from(["job-1".to_owned()]));
}

#[test]
fn a_job_that_runs_again_is_not_folded_for_its_earlier_end() {
    let mut s = Scene::new();
    s.cluster.keep = Keep { millis: HOUR, jobs: 9 };
    s.submit(new_job());
    s.act();
    s.step(|c, now, fx| c.cancel("job-1", now, fx)).unwrap();
    s.now += 1;
    s.step(|c, now, fx| c.resume("job-1", now, fx)).unwrap();
    s.act();
    assert!(tick_after(&mut s, 2 * HOUR).folded.is_empty());
    assert!(!s.cluster.tasks.is_empty());
}

#[test]
fn after_a_restart_what_was_due_meanwhile_is_folded() {
    let s = ended(usize::MAX);
    let mut again = s.restarted(s.cluster.tasks.values().cloned().collect(), s.now);
    again.cluster.keep = s.cluster.keep;
    let fx = tick_after(&mut again, HOUR + 1);
    assert_eq!(fx.folded, BTreeSet::from(["job-1".to_owned()]));
}
