//! Trackers and webhooks against small servers that fail or hang.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, Mac};
use serde_json::{Value, json};

use super::*;
use crate::schedule::NewJob;
use crate::serve::{self, Running, ServeOptions};

/// A variable that every test of Rust has, with the secret of a webhook.
const SECRET_ENV: &str = "CARGO_PKG_NAME";
const SECRET: &str = env!("CARGO_PKG_NAME");

#[derive(Debug, Clone)]
struct Seen {
    path: String,
    headers: HeaderMap,
    body: Value,
}

struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Starts a server. `answer` gets the request and the number of those before it. Without an answer the request hangs.
    async fn start(answer: impl Fn(&Seen, usize) -> Option<(u16, Value)> + Clone + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = seen.clone();
        let handle = move |request: Request| async move {
            let (parts, body) = request.into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap();
            let new = Seen {
                path: parts.uri.path().to_owned(),
                headers: parts.headers,
                body: serde_json::from_slice(&body).unwrap_or(Value::String(String::from_utf8(body.into()).unwrap())),
            };
            let before = {
                let mut seen = kept.lock().unwrap();
                seen.push(new.clone());
                seen.len() - 1
            };
            match answer(&new, before) {
                Some((status, body)) => (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response(),
                None => std::future::pending().await,
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(handle)).await });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn coordinator(directory: &Path) -> Running {
    let options = ServeOptions::new(SocketAddr::from(([127, 0, 0, 1], 0)), directory.into());
    serve::start(options).await.unwrap()
}

/// Submits a job with this `[track]`, and cancels it.
async fn submit_and_cancel(running: &Running, track: &str) {
    let text = format!("output = \"memory://track\"\n[corpus]\nsource = \"sample\"\n[track]\n{track}");
    let new = NewJob::new("job-1", crate::job::parse("job.toml", &text).unwrap());
    let steps = running.engine.call(|engine| {
        engine.step(|cluster, now, fx| cluster.submit(new, now, fx));
        engine.step(|cluster, now, fx| cluster.cancel("job-1", now, fx))
    });
    steps.await.unwrap().unwrap();
}

async fn eventually<T>(mut f: impl AsyncFnMut() -> Option<T>) -> T {
    loop {
        if let Some(found) = f().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn told(running: &Running, program: &'static str) -> Millis {
    let told = async || running.engine.call(|engine| engine.told("job-1", program)).await.unwrap();
    eventually(told).await
}

async fn warnings(running: &Running) -> Vec<String> {
    let events = running.engine.call(|engine| engine.store.events("job-1", 0, 100)).await;
    let events = events.unwrap().unwrap().events.into_iter();
    let ours = events.filter(|event| event.level == "warn" && event.text != "cancelled");
    ours.map(|event| event.text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jobs_end_is_posted_signed_until_it_is_taken_and_no_more_after_that() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|_, before| Some((if before == 0 { 503 } else { 204 }, Value::Null))).await;
    let running = coordinator(directory.path()).await;
    let track = format!("webhook = \"{}/hook\"\nwebhook_secret_env = \"{SECRET_ENV}\"\n", server.url);
    submit_and_cancel(&running, &track).await;
    told(&running, "track.webhook").await;
    let warned = warnings(&running).await;
    assert!(warned.len() == 1 && warned[0].contains("503"), "{warned:?}");

    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    for Seen { path, headers, body } in &seen {
        let header = |name: &str| headers[name].to_str().unwrap();
        let signed = format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp"));
        let mac = Hmac::<sha2::Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
        let expected = mac.chain_update(signed).finalize().into_bytes();
        let expected = format!("v1,{}", BASE64_STANDARD.encode(expected));
        assert_eq!((path.as_str(), header("webhook-signature")), ("/hook", expected.as_str()));
        assert_eq!(header("webhook-id"), seen[0].headers["webhook-id"]);
        assert_eq!((&body["type"], &body["data"]["state"]), (&json!("job.ended"), &json!("cancelled")));
        assert_eq!((&body["data"]["job"], &body["data"]["report"]), (&json!("job-1"), &Value::Null));
    }

    running.stop().await.unwrap();
    let again = coordinator(directory.path()).await;
    let open = again.engine.call(|engine| look(engine, &HashMap::new()).len()).await;
    assert_eq!(open.unwrap(), 0, "a coordinator that starts again tells nobody twice");
    again.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_nobody_took_is_told_by_the_next_coordinator() {
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(|_, before| Some((if before == 0 { 500 } else { 200 }, Value::Null))).await;
    let running = coordinator(directory.path()).await;
    submit_and_cancel(&running, &format!("webhook = \"{}\"\n", server.url)).await;
    eventually(async || (!warnings(&running).await.is_empty()).then_some(())).await;
    // The stop does not wait for a program that fails.
    running.stop().await.unwrap();
    let again = coordinator(directory.path()).await;
    told(&again, "track.webhook").await;
    let seen = server.seen();
    assert_eq!(seen[0].headers["webhook-id"], seen.last().unwrap().headers["webhook-id"]);
    again.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_delays_neither_the_job_nor_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let hanging = Server::start(|_, _| None).await;
    let refusing = Server::start(|_, _| Some((401, json!({"error": "no token"})))).await;
    let webhook = Server::start(|_, _| Some((200, Value::Null))).await;
    let running = coordinator(directory.path()).await;
    let (mlflow, trackio) = (&hanging.url, &refusing.url);
    let track = format!("mlflow = \"{mlflow}\"\ntrackio = \"{trackio}\"\nwebhook = \"{}\"\n", webhook.url);
    submit_and_cancel(&running, &track).await;
    told(&running, "track.webhook").await;
    told(&running, "track.trackio").await;
    eventually(async || (!hanging.seen().is_empty()).then_some(())).await;
    let untold = running.engine.call(|engine| engine.told("job-1", "track.mlflow")).await;
    assert_eq!(untold.unwrap(), None);
}

fn point(name: &str, step: u64, value: f64) -> Point {
    Point { name: name.into(), step, value, at: 1_000 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_takes_no_more_and_waits_for_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let hanging = Server::start(|_, _| None).await;
    let running = coordinator(directory.path()).await;
    let text = format!("[corpus]\nsource = \"sample\"\n[track]\ntrackio = \"{}\"\n", hanging.url);
    let file = crate::job::parse("job.toml", &text).unwrap();
    let program = Program::all_of(&file, &Job::default()).remove(0).1;
    let mut feed = Feed::start(program, running.engine.clone(), "job-1");
    // The first batch leaves the queue for the request that hangs.
    feed.pass(&[point("align/loss", 0, 0.5)], None);
    eventually(async || (!hanging.seen().is_empty()).then_some(())).await;
    for step in 1..2_000 {
        feed.pass(&[point("align/loss", step, 0.5)], None);
    }
    let (last, _) = feed.passed["align/loss"];
    assert!((600..1_999).contains(&last), "{last}");
    feed.pass(&[point("align/loss", 2_000, 0.5)], Some(&Job::default()));
    assert!(feed.points.is_some(), "the end waits for the last figures");
    running.stop().await.unwrap();
}

/// Answers as MLflow does, with one experiment that exists once it was created.
fn mlflow(request: &Seen, _: usize) -> Option<(u16, Value)> {
    let call = request.path.strip_prefix("/api/2.0/mlflow/").unwrap_or_default();
    Some(match call {
        "experiments/get-by-name" => (404, json!({"error_code": "RESOURCE_DOES_NOT_EXIST"})),
        "experiments/create" => (200, json!({"experiment_id": "7"})),
        "runs/search" => (200, json!({})),
        "runs/create" => (200, json!({"run": {"info": {"run_id": "r"}}})),
        _ => (200, json!({})),
    })
}

#[tokio::test]
async fn mlflow_gets_the_settings_the_figures_and_the_end() {
    let server = Server::start(mlflow).await;
    let text = format!("[corpus]\nsource = \"sample\"\n[track]\nmlflow = \"{}/\"\nexperiment = \"a b\"\n", server.url);
    let file = crate::job::parse("job.toml", &text).unwrap();
    let job = Job { id: "job-1".into(), state: JobState::Succeeded.into(), ended_at: 5, ..Job::default() };
    let mut program = Program::all_of(&file, &job).remove(0).1.unwrap();
    let points: Vec<Point> = (0..1_001).map(|step| point("align/loss", step, 0.5)).collect();
    program.tell(&points, None).await.unwrap();
    program.tell(&[], Some(&job)).await.unwrap();
    let seen = server.seen();
    let calls: Vec<&str> = seen.iter().map(|seen| seen.path.rsplit("mlflow/").next().unwrap()).collect();
    let params = calls.iter().filter(|call| **call == "runs/log-batch").count() - 3;
    assert_eq!(
        (&calls[..4], &calls[4 + params..]),
        (
            &["experiments/get-by-name", "experiments/create", "runs/search", "runs/create"][..],
            &["runs/log-batch", "runs/log-batch", "runs/log-batch", "runs/update"][..]
        )
    );
    let all = seen[4..4 + params].iter().flat_map(|seen| seen.body["params"].as_array().unwrap());
    let steps = all.clone().find(|param| param["key"] == "align.steps").unwrap();
    assert_eq!(steps["value"], "20000");
    assert_eq!(seen[4 + params].body["metrics"].as_array().unwrap().len(), 1_000);
    assert_eq!(
        seen[5 + params].body,
        json!({"run_id": "r", "metrics": [{"key": "align/loss", "value": 0.5, "timestamp": 1_000, "step": 1_000}]})
    );
    let end = json!({"run_id": "r", "status": "FINISHED", "end_time": 5});
    assert_eq!(seen.last().unwrap().body, end);
}
