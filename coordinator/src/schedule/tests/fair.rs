//! Jobs that share the workers: who is given how many, who waits, and what they are told.

use super::*;

/// A job of so many tasks that all are ready at once.
fn wide(number: usize, tasks: usize, workers: &str, owner: Option<&str>) -> NewJob {
    let sources: Vec<String> = (0..tasks).map(|i| format!("\"/{number}/{i}.tsv\"")).collect();
    let text = format!("[corpus]\nsource = [{}]\n[align]\nmax_ranks = 2\n[workers]\n{workers}", sources.join(", "));
    NewJob { owner: owner.map(str::to_owned), ..job(&format!("job-{number}"), &text) }
}

fn submit(s: &mut Scene, job: NewJob) {
    s.now += 1;
    s.submit(job);
    s.act();
    s.act();
}

fn at_work(s: &Scene) -> BTreeMap<String, usize> {
    let mut held = BTreeMap::new();
    for assignment in s.at_work.values().flatten() {
        let job = s.cluster.tasks[&assignment.task_id].job.to_string();
        *held.entry(job).or_default() += 1;
    }
    held
}

/// The worker that has been at work longest is done.
fn one_ends(s: &mut Scene) {
    let oldest = s.at_work.iter().min_by_key(|(_, held)| held[0].task_id);
    let worker = oldest.unwrap().0.clone();
    s.done(&worker);
    s.act();
}

fn expect(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(job, workers)| ((*job).to_owned(), *workers)).collect()
}

fn reason(s: &Scene, id: &str) -> String {
    s.cluster.view(id).unwrap().stages[0].reason.clone()
}

#[test]
fn a_long_job_does_not_starve_a_short_one() {
    let mut s = Scene::new();
    s.joins(4);
    submit(&mut s, wide(1, 100, "", None));
    assert_eq!(at_work(&s), expect(&[("job-1", 4)]));
    submit(&mut s, wide(2, 10, "", None));
    assert!(reason(&s, "job-2").contains("all 4 workers are busy"), "{}", reason(&s, "job-2"));
    one_ends(&mut s);
    one_ends(&mut s);
    for _ in 0..6 {
        assert_eq!(at_work(&s), expect(&[("job-1", 2), ("job-2", 2)]));
        one_ends(&mut s);
    }
}

#[test]
fn on_one_worker_jobs_take_turns() {
    let mut s = Scene::new();
    s.join();
    (1..=3).for_each(|number| submit(&mut s, wide(number, 20, "", None)));
    one_ends(&mut s);
    let mut served = Vec::new();
    for _ in 0..6 {
        served.extend(at_work(&s).into_keys());
        one_ends(&mut s);
    }
    assert_eq!(served, ["job-2", "job-3", "job-1", "job-2", "job-3", "job-1"]);
}

#[test]
fn a_higher_priority_goes_first_whoever_came_before() {
    let mut s = Scene::new();
    s.joins(2);
    submit(&mut s, wide(1, 20, "", None));
    submit(&mut s, wide(2, 20, "priority = 1", None));
    one_ends(&mut s);
    one_ends(&mut s);
    for _ in 0..10 {
        assert_eq!(at_work(&s), expect(&[("job-2", 2)]));
        one_ends(&mut s);
    }
}

#[test]
fn a_job_holds_no_more_workers_than_it_may_and_says_so() {
    let mut s = Scene::new();
    s.joins(5);
    submit(&mut s, wide(1, 20, "at_most = 2", None));
    assert_eq!(at_work(&s), expect(&[("job-1", 2)]));
    assert!(reason(&s, "job-1").contains("`workers.at_most` = 2"), "{}", reason(&s, "job-1"));
    submit(&mut s, wide(2, 20, "", None));
    for _ in 0..10 {
        assert_eq!(at_work(&s), expect(&[("job-1", 2), ("job-2", 3)]));
        one_ends(&mut s);
    }
}

#[test]
fn one_persons_jobs_leave_workers_to_others_and_say_whose_they_are() {
    let mut s = Scene::new();
    s.cluster.at_most_per_person = 3;
    s.joins(5);
    submit(&mut s, wide(1, 20, "", Some("ada")));
    submit(&mut s, wide(2, 20, "", Some("ada")));
    assert_eq!(at_work(&s), expect(&[("job-1", 3)]));
    let told = reason(&s, "job-2");
    assert!(told.contains("the jobs of ada") && told.contains("limit of 3"), "{told}");
    submit(&mut s, wide(3, 20, "", Some("eve")));
    assert_eq!(at_work(&s), expect(&[("job-1", 3), ("job-3", 2)]));
    // Ada's second job has its share of her workers.
    one_ends(&mut s);
    assert_eq!(at_work(&s), expect(&[("job-1", 2), ("job-2", 1), ("job-3", 2)]));
}

#[test]
fn a_gang_is_no_larger_than_its_job_may_be() {
    let mut s = Scene::new();
    s.joins(4);
    let text = "[corpus]\nsource = \"/a.tsv\"\n[workers]\nat_most = 3\n";
    submit(&mut s, job("job-1", text));
    let seat = |s: &Scene| s.at_work.values().flatten().find_map(|held| held.seat);
    run_until(&mut s, |s| seat(s).is_some());
    assert_eq!((seat(&s).unwrap().world_size, s.at_work.len()), (3, 3));
}
