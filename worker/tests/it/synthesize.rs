//! Tests the client against an endpoint on loopback that follows the protocol but has faults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use llink_proto::{ModelEndpoint, SynthesisPrompt};
use llink_worker::synthesize::{Answer, Client, Request, Unusable};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// One answer of the endpoint.
#[derive(Clone)]
enum Step {
    /// The server sends status, headers (each with its line end) and body.
    Reply(&'static str, String, String),
    /// The server sends the first bytes of an answer only.
    Torn(usize),
    Silent(Duration),
    /// The server refuses parameters as OpenAI's models do, and answers a request without them.
    Picky,
}

fn reply(status: &'static str, body: impl ToString) -> Step {
    Step::Reply(status, String::new(), body.to_string())
}

fn chat(text: &str, finish: &str) -> Value {
    json!({ "choices": [{ "message": { "role": "assistant", "content": text }, "finish_reason": finish }] })
}

fn fish() -> Step {
    reply("200 OK", chat("A fish swims.", "stop"))
}

/// The requests to the endpoint.
#[derive(Default)]
struct Asked {
    count: AtomicUsize,
    bodies: Mutex<Vec<Value>>,
    paths: Mutex<Vec<String>>,
}

impl Asked {
    fn times(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

/// Answers the n-th request with the n-th step of `script`, and repeats the last one.
async fn server(script: Vec<Step>) -> (String, Arc<Asked>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(Asked::default());
    let notes = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let step = script[notes.count.fetch_add(1, Ordering::SeqCst).min(script.len() - 1)].clone();
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    if stream.read_buf(&mut request).await.unwrap() == 0 {
                        return;
                    }
                }
                let request = String::from_utf8(request).unwrap();
                let (head, body) = request.split_once("\r\n\r\n").unwrap();
                let body: Value = serde_json::from_str(body).unwrap();
                notes.paths.lock().unwrap().push(head.split(' ').nth(1).unwrap().to_owned());
                notes.bodies.lock().unwrap().push(body.clone());
                let _ = stream.write_all(&answer(step, &body).await).await;
            });
        }
    });
    (url, asked)
}

async fn answer(step: Step, request: &Value) -> Vec<u8> {
    let whole = |status: &str, headers: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
            .into_bytes()
    };
    match step {
        Step::Reply(status, headers, body) => whole(status, &headers, &body),
        Step::Torn(bytes) => whole("200 OK", "", &chat("A fish swims.", "stop").to_string())[..bytes].to_vec(),
        Step::Silent(wait) => {
            tokio::time::sleep(wait).await;
            Vec::new()
        }
        Step::Picky => {
            let refuse =
                |message: &str| whole("400 Bad Request", "", &json!({ "error": { "message": message } }).to_string());
            if request.get("max_tokens").is_some() {
                refuse(
                    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
                )
            } else if request.get("temperature").is_some() {
                refuse(
                    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
                )
            } else {
                whole("200 OK", "", &chat("A fish swims.", "stop").to_string())
            }
        }
    }
}

fn endpoint(url: &str) -> ModelEndpoint {
    ModelEndpoint { url: url.into(), timeout_s: 5.0, attempts: 4, ..ModelEndpoint::default() }
}

fn client(endpoint: ModelEndpoint) -> Client {
    Client::new("synthesize", endpoint).unwrap().with_first_wait(Duration::from_millis(10))
}

fn request() -> Request {
    let prompt = SynthesisPrompt { instruction: "Summarize.".into(), ..SynthesisPrompt::default() };
    Request::new("m", &prompt, "a fish", 64, 0.0)
}

/// Returns the answer that a new client gets.
async fn ask(url: &str) -> Result<Answer, String> {
    client(endpoint(url)).ask(&request()).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn passing_faults_are_tried_again() {
    let faults = [
        reply("500 Oops", ""),
        reply("503 Busy", ""),
        reply("200 OK", "{\"choices\": [oops"),
        reply("200 OK", json!({ "error": "overloaded" })),
        reply("200 OK", json!({ "error": { "message": "busy", "code": 502 } })),
        Step::Torn(120),
        Step::Silent(Duration::from_secs(60)),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let (url, asked) = server(vec![fault, fish()]).await;
        assert_eq!(ask(&url).await, Ok(Answer::Text("A fish swims.".into())), "{number}");
        assert_eq!(asked.times(), 2, "{number}");
    }
}

#[tokio::test]
async fn an_endpoint_is_left_alone_for_as_long_as_it_asks() {
    for header in ["retry-after: 1", "retry-after: 0.9", "retry-after-ms: 900", "x-ratelimit-reset-requests: 900ms"] {
        let busy = Step::Reply("429 Too Many Requests", format!("{header}\r\n"), String::new());
        let (url, asked) = server(vec![busy, fish()]).await;
        let client = client(endpoint(&url));
        let began = Instant::now();
        client.ask(&request()).await.unwrap();
        assert!(began.elapsed() >= Duration::from_millis(900), "{header}: {:?}", began.elapsed());
        assert_eq!(asked.times(), 2, "{header}");
    }
    // Other requests of the task wait too.
    let busy = Step::Reply("429 Too Many Requests", "retry-after: 1\r\n".into(), String::new());
    let (url, asked) = server(vec![busy, fish()]).await;
    let client = client(endpoint(&url));
    let request = request();
    let later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.ask(&request).await
    };
    let began = Instant::now();
    let (first, second) = tokio::join!(client.ask(&request), later);
    assert!(first.is_ok() && second.is_ok() && began.elapsed() >= Duration::from_secs(1));
    assert_eq!(asked.times(), 3, "nothing was asked in between");
}

#[tokio::test]
async fn what_does_not_pass_is_said_in_the_endpoints_words_and_not_tried_for_ever() {
    let message = |text: &str, kind: &str| json!({ "error": { "message": text, "type": kind, "code": kind } });
    for (step, tries, words) in [
        (reply("500 Oops", "no room"), 4, ["no answer after 4 tries", "no room"]),
        (reply("502 Bad Gateway", "<html><title>nginx is sad</title></html>"), 4, ["502", "nginx is sad"]),
        (reply("429 Too Many Requests", message("slow down", "rate_limit_exceeded")), 4, ["429", "slow down"]),
        (
            reply("429 Too Many Requests", message("You exceeded your current quota", "insufficient_quota")),
            1,
            ["current quota", "waiting"],
        ),
        (reply("402 Payment Required", message("Insufficient Balance", "invalid")), 1, ["402", "Insufficient Balance"]),
        (reply("404 Not Found", message("no model m", "x")), 1, ["no model m", "synthesize.model"]),
        (reply("401 Unauthorized", message("bad key", "x")), 1, ["bad key", "synthesize.api_key_env"]),
        (
            reply(
                "200 OK",
                json!({ "error": { "message": "No endpoints found that match your data policy", "code": 404 } }),
            ),
            1,
            ["data policy", "404"],
        ),
        (reply("200 OK", "<html><title>Sign in</title></html>"), 4, ["not a chat completion", "Sign in"]),
        (reply("307 Temporary Redirect", ""), 1, ["not followed", "synthesize.url"]),
    ] {
        let (url, asked) = server(vec![step]).await;
        let said = ask(&url).await.unwrap_err();
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        assert_eq!(asked.times(), tries, "{said}");
    }
    let (url, _) = server(vec![reply("400 Bad Request", message("the text is too long", "x"))]).await;
    let rejected = Answer::Rejected("400 Bad Request: the text is too long".into());
    assert_eq!(ask(&url).await, Ok(rejected));
}

#[tokio::test]
async fn only_whole_and_final_answers_are_answers() {
    for (text, finish, expected) in [
        ("<think>Okay, a fish?</think>\n\nA fish swims.", "stop", Answer::Text("A fish swims.".into())),
        ("Okay, a fish?</think>A fish swims.", "stop", Answer::Text("A fish swims.".into())),
        ("<think>Okay", "stop", Answer::Unusable(Unusable::CutOff, "<think>Okay".into())),
        ("A fi", "length", Answer::Unusable(Unusable::CutOff, "A fi".into())),
        ("A fi", "content_filter", Answer::Unusable(Unusable::Filtered, "A fi".into())),
    ] {
        let (url, _) = server(vec![reply("200 OK", chat(text, finish))]).await;
        assert_eq!(ask(&url).await, Ok(expected), "{text}");
    }
}

#[tokio::test]
async fn a_model_that_takes_other_parameters_is_asked_its_way_from_then_on() {
    let (url, asked) = server(vec![Step::Picky]).await;
    let client = client(endpoint(&url));
    assert!(client.warnings().is_empty());
    for _ in 0..3 {
        assert_eq!(client.ask(&request()).await.unwrap(), Answer::Text("A fish swims.".into()));
    }
    assert_eq!(asked.times(), 5, "it names its wish twice, and gets three requests");
    let last = asked.bodies.lock().unwrap().pop().unwrap();
    assert_eq!(last["max_completion_tokens"], 64);
    assert!(last.get("max_tokens").is_none() && last.get("temperature").is_none(), "{last}");
    assert!(client.warnings()[0].contains("temperature"), "{:?}", client.warnings());
}

#[tokio::test]
async fn parameters_of_the_url_stay_behind_the_path() {
    let (url, asked) = server(vec![fish()]).await;
    ask(&format!("{url}/?api-version=preview")).await.unwrap();
    assert_eq!(*asked.paths.lock().unwrap(), ["/v1/chat/completions?api-version=preview"]);
}

#[tokio::test]
async fn the_key_comes_from_the_environment_and_is_never_shown() {
    // Cargo sets this variable for every test, so no test has to change the shared environment.
    let name = "CARGO_PKG_NAME";
    let key = env!("CARGO_PKG_NAME");
    let echo = json!({ "error": { "message": format!("Incorrect API key provided: {key}") } });
    for status in ["401 Unauthorized", "500 Oops"] {
        let (url, _) = server(vec![reply(status, echo.clone())]).await;
        let client = client(ModelEndpoint { api_key_env: name.into(), ..endpoint(&url) });
        let said = client.ask(&request()).await.unwrap_err().to_string();
        assert!(said.contains("Incorrect API key") && !said.contains(key), "{said}");
        assert!(!format!("{client:?}").contains(key));
    }
    let unset = ModelEndpoint { api_key_env: "LLINK_TEST_NO_SUCH_KEY".into(), ..endpoint("http://127.0.0.1:1/v1") };
    let said = Client::new("synthesize", unset).unwrap_err().to_string();
    assert!(said.contains("LLINK_TEST_NO_SUCH_KEY"), "{said}");
}

#[tokio::test]
async fn requests_keep_the_pace_that_is_allowed() {
    let (url, asked) = server(vec![fish()]).await;
    let client = client(ModelEndpoint { requests_per_minute: Some(600.0), ..endpoint(&url) });
    let began = Instant::now();
    let request = request();
    let all = (0..6).map(|_| client.ask(&request));
    for answer in futures::future::join_all(all).await {
        answer.unwrap();
    }
    assert!(began.elapsed() >= Duration::from_millis(500), "six at ten a second: {:?}", began.elapsed());
    assert_eq!(asked.times(), 6);
}
