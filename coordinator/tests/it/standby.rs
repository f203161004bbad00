//! A replica of the state: a lost volume and a lost coordinator, with real processes that are killed.

use std::time::{Duration, Instant};

use crate::common::{LISTENS, Place, Running, SMALL, eventually, free_address};

/// Starts a coordinator on a replica, with a log of its own.
fn serve(place: &Place, address: &str, state: &str, more: &[&str]) -> Running {
    let args = ["serve", "--listen", address, "--state", state, "--replica", "replica"];
    place.start_with_log(state, &[&args, more].concat())
}

/// A coordinator, and another one that waits until the first is gone.
struct Pair {
    url: String,
    /// The time in which the first one started.
    start: Duration,
    first: Running,
    second: Running,
}

impl Pair {
    fn start(place: &Place, more: &[&str]) -> Self {
        let address = free_address();
        let began = Instant::now();
        let mut first = serve(place, &address, "first", &[]);
        let url = first.says(LISTENS);
        let start = began.elapsed();
        let mut second = serve(place, &address, "second", more);
        second.says("standby: process");
        Self { url, start, first, second }
    }
}

/// Returns a worker without devices.
fn fake_worker(url: &str) -> crate::secure::Worker {
    crate::secure::Worker::join(url, crate::secure::register("fake"))
}

/// A job with this number of tasks that are ready at once.
fn wide(sources: usize) -> Place {
    let sources: Vec<String> = (0..sources).map(|number| format!("{number}.tsv")).collect();
    let place = Place::new(&format!("output = \"out\"\n[corpus]\nsource = {sources:?}\n"));
    for source in sources {
        place.write(&source, "hello\tworld\n");
    }
    place
}

#[test]
fn a_standby_takes_over_within_15_seconds_and_a_task_is_acknowledged_once() {
    let place = wide(5);
    let health = free_address();
    let Pair { url, start, first, mut second } = Pair::start(&place, &["--health", &health]);
    let id = place.submit_to(&url);
    let mut worker = fake_worker(&url);
    let done = worker.lease();
    assert!(worker.is_done(&done));
    let lease = worker.lease();
    assert_ne!(lease.task_id, done.task_id);
    let health = format!("http://{health}");
    assert!(place.fails(6, &["health", &health, "--service", "ready"]).contains("NotServing"));
    place.ok(&["health", &health]);

    let began = Instant::now();
    drop(first);
    second.says(LISTENS);
    // A slow machine starts slowly, and the standby does what a start does.
    let limit = Duration::from_secs(15) + 3 * start;
    assert!(began.elapsed() < limit, "{:?}\n{}", began.elapsed(), second.log());
    let mut worker = fake_worker(&url);
    let again = worker.lease();
    assert!(again.task_id == lease.task_id && again.token > lease.token, "{again:?}");
    // What the first coordinator acknowledged is done, and its leases count no more.
    assert!(!worker.is_done(&lease));
    assert!(worker.is_done(&again));
    eventually("calls are answered", || {
        let output = place.run(&["health", &health, "--service", "ready"]);
        output.status.success().then_some(())
    });
    assert!(place.ok(&["get", &id, "--coordinator", &url]).contains("running"));
}

#[test]
fn a_coordinator_that_is_stopped_hands_over_to_the_standby_and_a_task_is_acknowledged_once() {
    let place = wide(2);
    let Pair { url, mut first, mut second, .. } = Pair::start(&place, &[]);
    place.submit_to(&url);
    let mut worker = fake_worker(&url);
    let done = worker.lease();
    assert!(worker.is_done(&done));
    let lease = worker.lease();
    crate::common::signal(first.child.id(), "-TERM");
    let ended = eventually("the first one ends", || first.child.try_wait().unwrap());
    assert!(ended.success(), "{ended:?}: {}", first.log());
    second.says("has given up the lead on");
    second.says(LISTENS);

    let mut worker = fake_worker(&url);
    let again = worker.lease();
    assert!(again.task_id == lease.task_id && again.token > lease.token, "{again:?}");
    assert!(!worker.is_done(&lease));
    assert!(!worker.is_done(&done));
    assert!(worker.is_done(&again));
}

#[test]
fn a_coordinator_that_was_held_up_while_another_took_over_ends_and_acknowledges_nothing() {
    let place = Place::new(SMALL);
    let (address, other) = (free_address(), free_address());
    let mut first = serve(&place, &address, "first", &[]);
    first.says(LISTENS);
    let mut second = serve(&place, &other, "second", &[]);
    second.says("standby: process");
    let pid = first.child.id();
    crate::common::signal(pid, "-STOP");
    second.says(LISTENS);
    crate::common::signal(pid, "-CONT");
    let ended = eventually("the first one ends", || first.child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(4), "{}", first.log());
    let said = first.log();
    assert!(said.contains("leads on the state's replica"), "{said}");
    place.submit_to(&format!("http://{other}"));
}

#[test]
fn a_coordinator_whose_volume_is_lost_restores_itself() {
    let place = Place::new(SMALL);
    let address = free_address();
    let url = format!("http://{address}");
    let mut first = serve(&place, &address, "state", &[]);
    first.says(LISTENS);
    let id = place.submit_to(&url);
    let listed = || assert!(place.ok(&["list", "--coordinator", &url]).contains(&id));
    listed();
    drop(first);
    std::fs::remove_dir_all(place.path("state")).unwrap();
    let log = place.path("state.log");
    std::fs::remove_file(&log).unwrap();
    let mut again = serve(&place, &address, "state", &[]);
    again.says("is restored from");
    again.says(LISTENS);
    listed();
    // In its own directory it does not wait for itself.
    drop(again);
    std::fs::remove_file(&log).unwrap();
    let mut again = serve(&place, &address, "state", &[]);
    again.says(LISTENS);
    assert!(!again.log().contains("standby"), "{}", again.log());
    assert!(place.path("state/state.db.replaced").exists());
    listed();
}

/// The same with real workers and tasks: the job of a coordinator that was killed ends under the next one.
#[cfg(feature = "embedded")]
#[test]
fn a_job_goes_on_under_the_standby_with_the_workers_of_before() {
    let place = Place::new(SMALL);
    let Pair { url, first, mut second, .. } = Pair::start(&place, &[]);
    let _worker = place.start(&["worker", "--coordinator", &url, "--threads", "1"]);
    let id = place.submit_to(&url);
    eventually("a stage is done", || place.path("out/shard").exists().then_some(()));
    drop(first);
    second.says(LISTENS);
    let followed = place.ok(&["watch", &id, "--coordinator", &url]);
    assert!(followed.contains("succeeded in"), "{followed}");
}
