//! The client against an endpoint on loopback that speaks the protocol and misbehaves.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use llink_worker::synthesize::{Answer, Client, Endpoint, Patience, Prompt, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Answers the n-th request with the n-th of `script`, the last one for ever; counts requests.
async fn server(script: Vec<&'static str>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let step = script[count.fetch_add(1, Ordering::SeqCst).min(script.len() - 1)];
            tokio::spawn(async move {
                let mut request = vec![0; 64 << 10];
                let read = stream.read(&mut request).await.unwrap();
                let request = String::from_utf8_lossy(&request[..read]).into_owned();
                assert!(request.starts_with("POST /v1/chat/completions"), "{request}");
                let reply = |status: &str, body: &str| {
                    format!(
                        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    )
                };
                let chat = |text: &str, finish: &str| {
                    format!(r#"{{"choices":[{{"message":{{"content":"{text}"}},"finish_reason":"{finish}"}}]}}"#)
                };
                let answer = match step {
                    "ok" => reply("200 OK", &chat("A fish swims.", "stop")),
                    "long" => reply("200 OK", &chat("A fi", "length")),
                    "malformed" => reply("200 OK", "{\"choices\": [oops"),
                    "other" => reply("200 OK", "{\"error\": \"overloaded\"}"),
                    "torn" => reply("200 OK", &chat("A fish swims.", "stop"))
                        .split_at(120)
                        .0
                        .to_owned(),
                    "429" => {
                        "HTTP/1.1 429 Too Many\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                            .into()
                    }
                    "slow" => {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        String::new()
                    }
                    "elsewhere" => {
                        "HTTP/1.1 307 Temporary Redirect\r\nlocation: /v1/chat/completions\r\ncontent-length: 0\r\n\
                                    connection: close\r\n\r\n"
                            .into()
                    }
                    status => reply(status, ""),
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (url, asked)
}

fn endpoint(url: &str) -> Endpoint {
    Endpoint {
        section: "synthesize",
        url: url.into(),
        api_key_env: String::new(),
        requests_per_minute: 0.0,
        timeout: Duration::from_millis(500),
        patience: Patience {
            attempts: 4,
            first_wait: Duration::from_millis(10),
        },
    }
}

fn request() -> Request {
    let prompt = Prompt {
        task: "summarize".into(),
        instruction: "Summarize.".into(),
        template: String::new(),
    };
    Request::new("m", &prompt, "a fish", 64, 0.0)
}

#[tokio::test]
async fn passing_faults_are_tried_again() {
    for fault in ["500 Oops", "503 Busy", "malformed", "other", "torn", "slow", "429"] {
        let (url, asked) = server(vec![fault, "ok"]).await;
        let began = Instant::now();
        let answer = Client::new(endpoint(&url)).unwrap().ask(&request()).await.unwrap();
        assert_eq!(answer, Answer::Text("A fish swims.".into()), "{fault}");
        assert_eq!(asked.load(Ordering::SeqCst), 2, "{fault}");
        if fault == "429" {
            assert!(began.elapsed() >= Duration::from_secs(1), "Retry-After is obeyed");
        }
    }
}

#[tokio::test]
async fn what_does_not_pass_is_said_and_not_tried_for_ever() {
    let (url, asked) = server(vec!["500 Oops"]).await;
    let said = Client::new(endpoint(&url))
        .unwrap()
        .ask(&request())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        said.contains("no answer after 4 tries") && said.contains("500"),
        "{said}"
    );
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    let (url, asked) = server(vec!["404 Not Found"]).await;
    let said = Client::new(endpoint(&url))
        .unwrap()
        .ask(&request())
        .await
        .unwrap_err()
        .to_string();
    assert!(said.contains("synthesize.model"), "{said}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let rejected = Answer::Rejected("400 Bad Request: ".into());
    for (step, expected) in [("long", Answer::CutOff), ("400 Bad Request", rejected)] {
        let (url, _) = server(vec![step]).await;
        assert_eq!(
            Client::new(endpoint(&url)).unwrap().ask(&request()).await.unwrap(),
            expected
        );
    }
}

#[tokio::test]
async fn the_key_comes_from_the_environment_and_is_never_shown() {
    // Cargo sets this for every test, so that no test has to change the environment of all of them.
    let name = "CARGO_PKG_NAME";
    let (url, _) = server(vec!["401 Unauthorized"]).await;
    let keyed = Endpoint {
        api_key_env: name.into(),
        ..endpoint(&url)
    };
    let client = Client::new(keyed).unwrap();
    let said = client.ask(&request()).await.unwrap_err().to_string();
    assert!(
        said.contains("api_key_env") && !said.contains(env!("CARGO_PKG_NAME")),
        "{said}"
    );
    assert!(!format!("{client:?}").contains("llink-worker"));
    let unset = Endpoint {
        api_key_env: "LLINK_TEST_NO_SUCH_KEY".into(),
        ..endpoint("http://127.0.0.1:1/v1")
    };
    let said = Client::new(unset).unwrap_err().to_string();
    assert!(said.contains("LLINK_TEST_NO_SUCH_KEY"), "{said}");
}

#[tokio::test]
async fn requests_keep_the_pace_that_is_allowed() {
    let (url, asked) = server(vec!["ok"]).await;
    let paced = Endpoint {
        requests_per_minute: 600.0,
        ..endpoint(&url)
    };
    let client = Client::new(paced).unwrap();
    let began = Instant::now();
    let request = request();
    let all = (0..6).map(|_| client.ask(&request));
    for answer in futures::future::join_all(all).await {
        answer.unwrap();
    }
    assert!(
        began.elapsed() >= Duration::from_millis(500),
        "six at ten a second: {:?}",
        began.elapsed()
    );
    assert_eq!(asked.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn an_endpoint_that_sends_elsewhere_is_not_followed() {
    let (url, asked) = server(vec!["elsewhere", "ok"]).await;
    let error = Client::new(endpoint(&url)).unwrap().ask(&request()).await.unwrap_err();
    assert!(error.to_string().contains("not followed"), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
