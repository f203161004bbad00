//! The work of an operator: serve beyond loopback, make certificates and tokens, check health and metrics, back up.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::common::{LISTENS, Place, Running, SMALL, eventually, free_address, signal};
use llink_proto::report_request::Outcome;
use llink_proto::{Failure, FailureKind, RegisterRequest};

#[test]
fn listening_beyond_loopback_takes_tls_a_way_to_know_callers_and_roots_or_force() {
    let place = Place::new(SMALL);
    let wide = ["serve", "--listen", "0.0.0.0:0"];
    place.refuses(2, &wide, &["plain text", "--tls-cert"]);
    place.ok(&["certs", "certs"]);
    let tls = [&wide[..], &["--tls-cert", "certs/coordinator.crt", "--tls-key", "certs/coordinator.key"]].concat();
    assert!(place.fails(2, &tls).contains("could not be told apart"));
    let known = [&tls[..], &["--tls-client-ca", "certs/ca.crt"]].concat();
    assert!(place.fails(2, &known).contains("--allow-root"));
    place.refuses(2, &[&known[..], &["--allow-root", "data"]].concat(), &["absolute path"]);
    for sound in [[&known[..], &["--allow-root", "/data"]].concat(), [&wide[..], &["--insecure"]].concat()] {
        let _ = std::fs::remove_file(place.path("serve.log"));
        place.start(&sound).says(LISTENS);
    }
    let broken = [&wide[..], &["--tls-cert", "certs/coordinator.crt", "--tls-key", "certs/worker.crt"]].concat();
    let broken = [&broken[..], &["--tls-client-ca", "certs/ca.crt", "--allow-root", "/data"]].concat();
    place.refuses(2, &broken, &["certs/worker.crt"]);
}

#[test]
fn keys_and_tokens_are_for_their_owner_alone_and_an_authority_signs_again() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new(SMALL);
    let said = place.ok(&["certs", "certs", "--user", "ada:submit", "--name", "head.example"]);
    assert!(said.contains("ada, who may submit") && said.contains("head.example"), "{said}");
    let token = place.ok(&["token", "tokens.toml", "--name", "ada", "--role", "submit"]);
    for file in ["certs/ca.key", "certs/ada.key", "certs/worker.key", "certs/coordinator.key", "tokens.toml"] {
        let mode = std::fs::metadata(place.path(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    assert!(!place.read("tokens.toml").contains(token.trim()));
    let before = std::fs::read(place.path("certs/ca.crt")).unwrap();
    place.ok(&["certs", "certs"]);
    assert_eq!(std::fs::read(place.path("certs/ca.crt")).unwrap(), before, "the authority stays");
    let secrets: serde_json::Value = serde_json::from_str(&place.ok(&["certs", "certs", "--kubernetes"])).unwrap();
    let names: Vec<&str> =
        secrets["items"].as_array().unwrap().iter().map(|s| s["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["llink-coordinator-tls", "llink-worker-tls"]);
    // Keys of one kind begin alike and differ further on.
    let authority = place.read("certs/ca.key");
    let secret_part = &authority.lines().nth(2).unwrap()[..20];
    assert!(!secrets.to_string().contains(secret_part), "the authority's key stays at home");
    assert!(place.fails(2, &["certs", "certs", "--user", "ada:root"]).contains("ada:submit"));
    assert!(place.fails(2, &["certs", "certs", "--user", "../x:read"]).contains("name"));
    place.fails(2, &["token", "tokens.toml", "--name", "ada", "--role", "submit", "--once"]);
}

#[test]
fn a_whole_job_runs_over_mutual_tls_with_workers_that_joined_by_certificate_and_by_token() {
    let place = Place::new(SMALL);
    place.ok(&["certs", "certs", "--user", "ada:submit"]);
    let token = place.ok(&["token", "tokens.toml", "--name", "node-7", "--role", "worker", "--once"]);
    place.write("node-7.token", token);
    let root = place.dir.path().canonicalize().unwrap();
    let root = root.to_str().unwrap();
    let (health, metrics) = (free_address(), free_address());
    let tls = "--tls-cert certs/coordinator.crt --tls-key certs/coordinator.key --tls-client-ca certs/ca.crt";
    let line = format!("{tls} --tokens tokens.toml --allow-root {root} --health {health} --metrics {metrics}");
    let (_serve, url) = place.serve(&line.split(' ').collect::<Vec<_>>());
    assert!(url.starts_with("https://"), "{url}");
    let ready = format!("http://{health}");
    assert_eq!(place.ok(&["health", &ready, "--service", "ready"]).trim(), "serving");
    assert_eq!(place.ok(&["health", &ready]).trim(), "serving");
    place.fails(6, &["health", &format!("http://{}", free_address())]);

    let worker_health = free_address();
    // The second worker is idle for longer than a heartbeat takes, so the first one too hears that the job is over.
    let joins: [&[&str]; 2] = [
        &["--tls-cert", "certs/worker.crt", "--tls-key", "certs/worker.key", "--health", &worker_health],
        &["--token-file", "node-7.token", "--idle-exit", "8"],
    ];
    let mut workers: Vec<Running> = joins
        .iter()
        .map(|more| {
            let common = ["worker", "--coordinator", &url, "--tls-ca", "certs/ca.crt", "--threads", "1"];
            place.start(&[&common[..], *more].concat())
        })
        .collect();
    let as_whom = |command: &str, who: &str| {
        format!(
            "{command} --coordinator {url} --tls-ca certs/ca.crt --tls-cert certs/{who}.crt --tls-key certs/{who}.key"
        )
    };
    let submit = as_whom("submit job.toml", "ada");
    let said = place.ok(&submit.split(' ').collect::<Vec<_>>());
    assert!(said.contains("succeeded in"), "{said}");
    assert_eq!(place.ok(&["health", &format!("http://{worker_health}"), "--service", "ready"]).trim(), "serving");
    // With the wrong certificate, the exit code says why.
    place.refuses(8, &as_whom("list", "worker").split(' ').collect::<Vec<_>>(), &["role worker"]);

    let scraped = get(&metrics, "/metrics");
    for line in ["llink_jobs{state=\"succeeded\"} 1", "llink_calls_total{call=\"JobService/Submit\",outcome=\"ok\"} 1"]
    {
        assert!(scraped.contains(line), "{line}: {scraped}");
    }
    documented(&scraped);
    let denied = place.ok(&["audit", "--denied"]);
    assert_eq!(denied.lines().count(), 1, "{denied}");
    assert!(denied.contains("JobService/List") && denied.contains("role worker"), "{denied}");
    let ada = place.ok(&["audit", "--who", "ada", "--last", "1"]);
    assert!(ada.contains("\"who\":\"ada\""), "{ada}");
    let audit = place.read(".llink/audit.jsonl");
    let joined =
        |by: &str| audit.lines().any(|l| l.contains("WorkerService/Register") && l.contains(by) && l.contains("ok"));
    assert!(joined("\"by\":\"certificate\"") && joined("\"by\":\"token\""), "{audit}");

    // The job is over, so a worker that should leave when idle ends with success.
    let ended = eventually("the idle worker ends", || workers[1].child.try_wait().unwrap());
    assert!(ended.success(), "{}", workers[1].log());
    signal(workers[0].child.id(), "-TERM");
    assert!(workers[0].child.wait().unwrap().success());
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Checks that the run book explains every metric, and that each metric of an alert, the dashboard or the autoscaler
/// exists.
fn documented(scraped: &str) {
    let types = scraped.lines().filter_map(|l| l.strip_prefix("# TYPE "));
    let names: Vec<&str> = types.filter_map(|l| l.split(' ').next()).filter(|n| n.starts_with("llink_")).collect();
    assert!(names.len() >= 8, "{names:?}");
    let book = include_str!("../../../k8s/RUNBOOK.md");
    for name in &names {
        assert!(book.contains(&format!("`{name}")), "RUNBOOK.md does not explain {name}");
    }
    let alerts = include_str!("../../../k8s/components/monitoring/rules.yaml");
    for alert in alerts.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")) {
        assert!(book.contains(&format!("| {alert} |")), "RUNBOOK.md does not explain {alert}");
    }
    let dashboard = include_str!("../../../k8s/components/monitoring/dashboard.json");
    let autoscaler = include_str!("../../../k8s/components/autoscale/scaled-object.yaml");
    let all = [alerts, dashboard, autoscaler].join("\n");
    let asked = all.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("llink_"));
    for name in asked {
        let known = names
            .iter()
            .any(|n| name == *n || ["_total", "_bucket", "_count", "_sum"].iter().any(|s| name == format!("{n}{s}")));
        assert!(known, "{name} is asked for, and is none of {names:?}");
    }
}

#[test]
fn a_backup_taken_while_jobs_run_restores_them_elsewhere() {
    let place = Place::new(SMALL);
    let (serve, url) = place.serve(&[]);
    let id = &*place.submit_to(&url);
    let said = place.ok(&["backup", "saved.db"]);
    assert!(said.contains("1 jobs"), "{said}");
    place.refuses(6, &["restore", "saved.db", "--replace"], &["in use"]);
    assert!(place.fails(2, &["backup", "saved.db"]).contains("exists"));
    drop(serve);

    // The volume is lost.
    std::fs::remove_dir_all(place.path(".llink")).unwrap();
    let said = place.ok(&["restore", "saved.db"]);
    assert!(said.contains("1 jobs"), "{said}");
    assert!(place.fails(2, &["restore", "saved.db"]).contains("exists"));
    place.ok(&["restore", "saved.db", "--replace"]);
    assert!(place.path(".llink/state.db.replaced").exists());
    assert!(place.ok(&["list"]).contains(id));
    let (_serve, url) = place.serve(&[]);
    let _worker = place.start(&["worker", "--coordinator", &url, "--threads", "1"]);
    let followed = place.ok(&["watch", id, "--coordinator", &url]);
    assert!(followed.contains("succeeded in"), "the job goes on from the backup: {followed}");

    // A pipe copies the backup, as out of a pod and into one.
    let piped = place.run(&["backup", "-"]);
    assert!(piped.status.success(), "{piped:?}");
    place.write("piped.db", piped.stdout);
    let from = std::fs::File::open(place.path("piped.db")).unwrap();
    let restored = place.command(&["restore", "-", "--state", "piped"]).stdin(from).output();
    let said = String::from_utf8(restored.unwrap().stdout).unwrap();
    assert!(said.contains("1 jobs"), "{said}");

    let mut damaged = std::fs::read(place.path("saved.db")).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle..].fill(0x5a);
    place.write("damaged.db", damaged);
    place.refuses(4, &["restore", "damaged.db", "--state", "elsewhere"], &["damaged.db"]);
    assert!(!place.path("elsewhere").exists(), "nothing is put in place");
}

/// Returns the entries of the coordinator's file in the state directory: process, URL, and the token of its own user.
fn endpoint(place: &Place) -> Vec<String> {
    let text =
        eventually("the endpoint file", || std::fs::read_to_string(place.path(".llink/coordinator.endpoint")).ok());
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_local_submit_serves_its_own_user_alone() {
    use std::os::unix::fs::PermissionsExt;

    let place = Place::new(&SMALL.replace("steps = 60", "steps = 100000"));
    let submit = place.start(&["submit", "job.toml", "--workers", "1"]);
    let noted = endpoint(&place);
    assert_eq!(noted.len(), 3, "a process, a URL and a token");
    let (url, token) = (noted[1].as_str(), noted[2].as_str());
    let mode = std::fs::metadata(place.path(".llink/coordinator.endpoint")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Its workers have joined, and the token is not in their arguments, which every user of the machine sees.
    eventually("the worker is at work", || place.ok(&["list"]).contains("running").then_some(()));
    let workers =
        eventually("a worker", || Some(crate::common::workers_of(submit.child.id())).filter(|w| !w.is_empty()));
    for process in workers.iter().chain([&submit.child.id()]) {
        let arguments = std::fs::read(format!("/proc/{process}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&arguments).contains(token));
    }
    // Commands of the same user find it, by the state directory and by its URL.
    assert!(place.ok(&["list", "--coordinator", url]).contains("running"));
    // A caller who cannot read the state directory is refused, both as a person and as a worker.
    let stranger = Place::new(SMALL);
    for args in [
        &["list", "--coordinator", url][..],
        &["submit", "job.toml", "--coordinator", url],
        &["worker", "--coordinator", url],
    ] {
        stranger.refuses(8, args, &["--state DIR"]);
    }
    assert!(!place.ok(&["logs", "small", "--coordinator", url]).contains(token));
    place.ok(&["cancel", "small"]);
    drop(submit);
    for file in ["submit.log", ".llink/logs/worker-0.log"] {
        assert!(!std::fs::read_to_string(place.path(file)).unwrap_or_default().contains(token), "{file}");
    }
}

/// Reports as a hostile worker would, to a `serve` on loopback that has a job.
fn report_failures(url: &str, text: &str) {
    let info = RegisterRequest { host: "\u{1b}[2J".into(), ..crate::secure::register("hostile") };
    let mut worker = crate::secure::Worker::join(url, info);
    let lease = worker.lease();
    let failure = Failure { kind: FailureKind::Input.into(), text: text.into() };
    worker.report(&lease, Outcome::Failed(failure));
}

#[test]
fn what_a_worker_says_is_bounded_and_obeyed_by_no_terminal() {
    let place = Place::new(SMALL);
    let (serve, url) = place.serve(&[]);
    let id = &*place.submit_to(&url);
    let hostile = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}2J\r\u{202e}harmless\n00:00:00.000Z info  job      forged\n";
    report_failures(&url, &format!("{hostile}{}", "x".repeat(60 << 20)));
    let shown = |args: &[&str]| {
        let output = place.run(&[args, &["--coordinator", &url]].concat());
        crate::common::text(&output)
    };
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["get", id],
        &["get", id, "--json"],
        &["logs", id],
        &["watch", id],
        &["watch", id, "--json"],
    ] {
        let said = shown(args);
        assert!(said.contains("harmless"), "{args:?}: {}", &said[..said.len().min(500)]);
        let obeyed = |c: char| llink_proto::shown::acts(c) && c != '\n';
        assert!(!said.contains(obeyed), "{args:?}: {:?}", &said[..said.len().min(500)]);
        assert!(said.len() < 100 << 10, "{args:?}: {} bytes", said.len());
        let forged = said.lines().any(|line| line.starts_with("00:00:00.000Z"));
        assert!(!forged || args[0] == "watch", "{args:?}: a line looks like an event of its own");
    }
    for line in shown(&["list", "--json"]).lines() {
        let job: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(job["reason"].as_str().unwrap().contains('\u{1b}'), "programs get what was said");
    }
    let state: u64 = ["state.db", "state.db-wal"]
        .iter()
        .filter_map(|name| std::fs::metadata(place.path(".llink").join(name)).ok())
        .map(|file| file.len())
        .sum();
    assert!(state < 16 << 20, "{state} bytes of state");
    assert!(!serve.log().contains(|c: char| llink_proto::shown::acts(c) && c != '\n'), "nor is the server's log");
}

#[test]
fn connections_that_speak_no_http2_are_closed_within_seconds() {
    let place = Place::new(SMALL);
    let (_serve, url) = place.serve(&[]);
    let address = url.trim_start_matches("http://");
    let connect = |says: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(says).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(15))).unwrap();
        stream
    };
    let closed_after = |mut stream: TcpStream| {
        let began = std::time::Instant::now();
        let read = stream.read(&mut [0; 64]);
        let timed_out =
            |e: &std::io::Error| matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        assert!(!read.is_err_and(|e| timed_out(&e)), "it is held");
        began.elapsed().as_secs()
    };
    let silent = connect(b"");
    let halting = connect(b"PRI * HTTP/2.0\r\n");
    assert!(closed_after(connect(b"GET / HTTP/1.1\r\n\r\n")) < 3, "at once");
    assert!(closed_after(silent) < 10);
    assert!(closed_after(halting) < 10);
    assert!(place.ok(&["list"]).contains("no jobs yet"));
}

#[test]
fn running_out_of_descriptors_is_said_and_survived() {
    let place = Place::new(SMALL);
    // The limit is the lowest number that is free when it is idle, plus a few.
    let (idle, _) = place.serve(&[]);
    let folder = std::path::PathBuf::from(format!("/proc/{}/fd", idle.child.id()));
    let is_open = |number: &u32| std::fs::symlink_metadata(folder.join(number.to_string())).is_ok();
    let open = (0..).find(|number| !is_open(number)).unwrap();
    drop(idle);
    let log = std::fs::File::create(place.path("serve.log")).unwrap();
    let limited = format!("ulimit -n {}; exec '{}' serve --listen 127.0.0.1:0", open + 6, crate::common::BINARY);
    let child = std::process::Command::new("sh")
        .args(["-c", &limited])
        .current_dir(place.dir.path())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let mut serve = Running { child, log: place.path("serve.log") };
    let url = serve.says(LISTENS);
    let speaking = || {
        let mut stream = TcpStream::connect(url.trim_start_matches("http://")).ok()?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").ok()?;
        Some(stream)
    };
    let mut held = Vec::new();
    eventually("descriptors run out", || {
        held.extend(speaking());
        std::thread::sleep(std::time::Duration::from_millis(20));
        serve.log().contains("no connection can be accepted").then_some(())
    });
    // The coordinator waits, so it uses a small part of a second.
    let spent = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", serve.child.id())).unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<u64> = rest.split(' ').skip(11).take(2).map(|ticks| ticks.parse().unwrap()).collect();
        fields.iter().sum::<u64>()
    };
    let before = spent();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(spent() - before < 30, "hundredths of a second: {}", spent() - before);
    let said = serve.log().matches("no connection can be accepted").count();
    assert_eq!(said, 1, "it is said once");
    drop(held);
    eventually("it answers again", || place.run(&["list"]).status.success().then_some(()));
}
