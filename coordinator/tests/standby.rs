//! A replica of the state: a lost volume and a lost coordinator, with real processes that are killed.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Place, Running, SMALL, eventually};
use llink_proto::reach::Credentials;
use llink_proto::worker_service_client::WorkerServiceClient;
use llink_proto::{
    Assignment, AssignmentsRequest, RegisterRequest, ReportRequest, ReportResponse, TaskResult, instruction,
    report_request,
};
use tokio::runtime::Runtime;

fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Starts a coordinator on a replica, with a log of its own.
fn serve(place: &Place, address: &str, state: &str, more: &[&str]) -> Running {
    let log = place.path(&format!("{state}.log"));
    let file = || std::fs::File::options().create(true).append(true).open(&log).unwrap();
    let args = ["serve", "--listen", address, "--state", state, "--replica", "replica"];
    let mut command = place.command(&[&args, more].concat());
    let child = command.stdout(file()).stderr(file()).spawn().unwrap();
    Running { child, log }
}

/// Waits until a coordinator says something.
fn says(serve: &mut Running, text: &str) {
    eventually(text, || {
        let ended = serve.child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", serve.log());
        serve.log().contains(text).then_some(())
    });
}

/// A worker that does nothing, and reports what it is told to.
struct Worker {
    client: WorkerServiceClient<
        tonic::service::interceptor::InterceptedService<tonic::transport::Channel, llink_proto::reach::Caller>,
    >,
    id: String,
    instructions: tonic::Streaming<llink_proto::Instruction>,
}

impl Worker {
    async fn register(url: &str) -> Self {
        let (endpoint, caller) = Credentials::default().endpoint(url).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let caller = caller.with_instance(&"a".repeat(64)).unwrap();
        let mut client = WorkerServiceClient::with_interceptor(channel, caller);
        let request = RegisterRequest {
            name: "fake".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..RegisterRequest::default()
        };
        let id = client.register(request).await.unwrap().into_inner().worker_id;
        let request = AssignmentsRequest { worker_id: id.clone() };
        let instructions = client.assignments(request).await.unwrap().into_inner();
        Self { client, id, instructions }
    }

    async fn lease(&mut self) -> Assignment {
        let first = self.instructions.message().await.unwrap().unwrap();
        match first.kind {
            Some(instruction::Kind::Start(lease)) => lease,
            other => panic!("{other:?}"),
        }
    }

    /// Reports a lease's task done, with a token.
    async fn done(&mut self, lease: &Assignment, token: u64) -> ReportResponse {
        let request = ReportRequest {
            worker_id: self.id.clone(),
            task_id: lease.task_id,
            token,
            outcome: Some(report_request::Outcome::Done(TaskResult::default())),
        };
        self.client.report(request).await.unwrap().into_inner()
    }
}

fn submit(place: &Place, url: &str) -> String {
    let id = place.ok(&["submit", "job.toml", "--coordinator", url, "--detach"]);
    id.trim().to_owned()
}

#[test]
fn a_standby_takes_over_within_15_seconds_and_a_task_is_acknowledged_once() {
    // Five tasks that are ready at once.
    let sources = ["0.tsv", "1.tsv", "2.tsv", "3.tsv", "4.tsv"];
    let place = Place::new(&format!("output = \"out\"\n[corpus]\nsource = {sources:?}\n"));
    for source in sources {
        std::fs::write(place.path(source), "hello\tworld\n").unwrap();
    }
    let (address, health) = (free_address(), free_address());
    let url = format!("http://{address}");
    let mut first = serve(&place, &address, "first", &[]);
    says(&mut first, "llink-coord listens on");
    let mut second = serve(&place, &address, "second", &["--health", &health]);
    says(&mut second, "standby: process");
    let id = submit(&place, &url);

    let runtime = Runtime::new().unwrap();
    let mut worker = runtime.block_on(Worker::register(&url));
    let done = runtime.block_on(worker.lease());
    assert!(runtime.block_on(worker.done(&done, done.token)).accepted);
    let lease = runtime.block_on(worker.lease());
    assert_ne!(lease.task_id, done.task_id);
    let health = format!("http://{health}");
    assert!(place.fails(6, &["health", &health, "--service", "ready"]).contains("NotServing"));
    place.ok(&["health", &health]);

    let began = Instant::now();
    drop(first);
    says(&mut second, "llink-coord listens on");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}\n{}", began.elapsed(), second.log());
    let mut worker = runtime.block_on(Worker::register(&url));
    let again = runtime.block_on(worker.lease());
    assert!(again.task_id == lease.task_id && again.token > lease.token, "{again:?}");
    // What the first coordinator acknowledged is done, and its leases count no more.
    let late = runtime.block_on(worker.done(&lease, lease.token));
    assert!(!late.accepted, "{late:?}");
    assert!(runtime.block_on(worker.done(&again, again.token)).accepted);
    eventually("calls are answered", || {
        let output = place.run(&["health", &health, "--service", "ready"]);
        output.status.success().then_some(())
    });
    assert!(place.ok(&["get", &id, "--coordinator", &url]).contains("running"));
}

#[test]
fn a_coordinator_that_is_stopped_hands_over_to_the_standby_and_a_task_is_acknowledged_once() {
    let sources = ["0.tsv", "1.tsv"];
    let place = Place::new(&format!("output = \"out\"\n[corpus]\nsource = {sources:?}\n"));
    for source in sources {
        std::fs::write(place.path(source), "hello\tworld\n").unwrap();
    }
    let address = free_address();
    let url = format!("http://{address}");
    let mut first = serve(&place, &address, "first", &[]);
    says(&mut first, "llink-coord listens on");
    let mut second = serve(&place, &address, "second", &[]);
    says(&mut second, "standby: process");
    submit(&place, &url);
    let runtime = Runtime::new().unwrap();
    let mut worker = runtime.block_on(Worker::register(&url));
    let done = runtime.block_on(worker.lease());
    assert!(runtime.block_on(worker.done(&done, done.token)).accepted);
    let lease = runtime.block_on(worker.lease());

    common::signal(first.child.id(), "-TERM");
    let ended = eventually("the first one ends", || first.child.try_wait().unwrap());
    assert!(ended.success(), "{ended:?}: {}", first.log());
    says(&mut second, "has given up the lead on");
    says(&mut second, "llink-coord listens on");
    let mut worker = runtime.block_on(Worker::register(&url));
    let again = runtime.block_on(worker.lease());
    assert!(again.task_id == lease.task_id && again.token > lease.token, "{again:?}");
    assert!(!runtime.block_on(worker.done(&lease, lease.token)).accepted);
    assert!(!runtime.block_on(worker.done(&done, done.token)).accepted);
    assert!(runtime.block_on(worker.done(&again, again.token)).accepted);
}

#[test]
fn a_coordinator_that_was_held_up_while_another_took_over_ends_and_acknowledges_nothing() {
    let place = Place::new(SMALL);
    let (address, other) = (free_address(), free_address());
    let mut first = serve(&place, &address, "first", &[]);
    says(&mut first, "llink-coord listens on");
    let mut second = serve(&place, &other, "second", &[]);
    says(&mut second, "standby: process");
    let pid = first.child.id();
    common::signal(pid, "-STOP");
    says(&mut second, "llink-coord listens on");
    common::signal(pid, "-CONT");
    let ended = eventually("the first one ends", || first.child.try_wait().unwrap());
    assert_eq!(ended.code(), Some(4), "{}", first.log());
    let said = first.log();
    assert!(said.contains("leads on the state's replica"), "{said}");
    submit(&place, &format!("http://{other}"));
}

#[test]
fn a_coordinator_whose_volume_is_lost_restores_itself() {
    let place = Place::new(SMALL);
    let address = free_address();
    let url = format!("http://{address}");
    let mut first = serve(&place, &address, "state", &[]);
    says(&mut first, "llink-coord listens on");
    let id = submit(&place, &url);
    let listed = || assert!(place.ok(&["list", "--coordinator", &url]).contains(&id));
    listed();
    drop(first);
    std::fs::remove_dir_all(place.path("state")).unwrap();
    let log = place.path("state.log");
    std::fs::remove_file(&log).unwrap();
    let mut again = serve(&place, &address, "state", &[]);
    says(&mut again, "is restored from");
    says(&mut again, "llink-coord listens on");
    listed();
    // In its own directory it does not wait for itself.
    drop(again);
    std::fs::remove_file(&log).unwrap();
    let mut again = serve(&place, &address, "state", &[]);
    says(&mut again, "llink-coord listens on");
    assert!(!again.log().contains("standby"), "{}", again.log());
    assert!(place.path("state/state.db.replaced").exists());
    listed();
}

/// The same with real workers and tasks: the job of a coordinator that was killed ends under the next one.
#[cfg(feature = "embedded")]
#[test]
fn a_job_goes_on_under_the_standby_with_the_workers_of_before() {
    let place = Place::new(SMALL);
    let address = free_address();
    let url = format!("http://{address}");
    let mut first = serve(&place, &address, "first", &[]);
    says(&mut first, "llink-coord listens on");
    let mut second = serve(&place, &address, "second", &[]);
    says(&mut second, "standby: process");
    let _worker = place.start(&["worker", "--coordinator", &url, "--threads", "1"]);
    let id = submit(&place, &url);
    eventually("a stage is done", || place.path("out/shard").exists().then_some(()));
    drop(first);
    says(&mut second, "llink-coord listens on");
    let followed = place.ok(&["watch", &id, "--coordinator", &url]);
    assert!(followed.contains("succeeded in"), "{followed}");
}
