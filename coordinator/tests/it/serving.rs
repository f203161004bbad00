//! A bundle answers over HTTP as `generate` answers, by OpenAI's API, to several clients at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use crate::common::{Place, Running, done, eventually};
use crate::skip::python_with;
use serde_json::{Value, json};

const TEXTS: [&str; 6] = ["ក្មេងៗស្រឡាញ់ត្រី។", "ឆ្មាដេក។", "គាត់ញ៉ាំបាយ។", "ត្រី", "ផ្ទះធំ", "ខ្ញុំទៅផ្សារ។"];

struct Served {
    running: Running,
    address: String,
}

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl Response {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}", self.body))
    }

    fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        assert!(error["message"].is_string(), "{}", self.body);
        error
    }

    fn answer(&self) -> (String, u64) {
        assert_eq!(self.status, 200, "{}", self.body);
        let answer = self.json();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        (content.to_owned(), answer["usage"]["completion_tokens"].as_u64().unwrap())
    }
}

impl Served {
    fn start(place: &Place, more: &[&str]) -> Self {
        let mut running = place.start(&[&["serve-bundle", "out", "--listen", "127.0.0.1:0"], more].concat());
        let url = running.says("llink-coord answers at ");
        let address = url.trim_end_matches("/v1").rsplit('/').next().unwrap().to_owned();
        Self { running, address }
    }

    /// Sends a request, and returns the connection before anything is read from it.
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut tcp = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n",
            self.address
        );
        // A server that refuses a large request may close the connection before it has read everything.
        let _ = tcp.write_all(format!("{head}{body}").as_bytes());
        tcp
    }

    fn call(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        let mut response = String::new();
        self.send(method, path, headers, body).read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        Response {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    fn ask(&self, request: &Value) -> Response {
        self.call("POST", "/v1/chat/completions", JSON, &request.to_string())
    }
}

const JSON: &str = "content-type: application/json\r\n";

fn about(text: &str, more: Value) -> Value {
    let content = json!([
        {"type": "text", "text": "Translate the sentence into English."},
        {"type": "text", "text": text, "llink": "passage"},
    ]);
    let mut request = json!({"model": "llink", "max_tokens": 12, "messages": [{"role": "user", "content": content}]});
    let more = more.as_object().unwrap().clone();
    request.as_object_mut().unwrap().extend(more);
    request
}

/// Returns a request whose answer is long, because it is mostly random.
fn long() -> Value {
    about(TEXTS[0], json!({"temperature": 2, "seed": 5, "max_tokens": 60_000, "stream": true}))
}

fn job() -> Place {
    let place = Place::new(crate::common::BUNDLED);
    place.ok(&["submit", "job.toml"]);
    place
}

#[test]
fn a_served_bundle_answers_as_generate_does_alone_and_to_several_at_once() {
    let place = job();
    let served = Served::start(&place, &[]);
    let lines =
        TEXTS.map(|text| json!({"text": text, "instruction": "Translate the sentence into English."}).to_string());
    place.write("in.jsonl", lines.join("\n"));
    let said = place.ok(&["generate", "--bundle", "out", "--max-tokens", "12", "--jsonl", "in.jsonl"]);
    let generated: Vec<String> = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["generated"].as_str().unwrap().to_owned())
        .collect();
    let alone = TEXTS.map(|text| served.ask(&about(text, json!({}))).answer());
    // The encoder reads a batch there and single texts here, so its vectors agree to rounding.
    let equal = alone.iter().zip(&generated).filter(|(alone, generated)| alone.0 == **generated);
    assert!(equal.count() >= TEXTS.len() - 1, "{alone:?} {generated:?}");
    assert!(alone.iter().all(|(text, tokens)| !text.is_empty() && (2..=12).contains(tokens)), "{alone:?}");

    let together: Vec<(String, u64)> = std::thread::scope(|scope| {
        let asked = TEXTS.map(|text| scope.spawn(|| served.ask(&about(text, json!({}))).answer()));
        asked.map(|asked| asked.join().unwrap()).into()
    });
    assert_eq!(together, alone);

    let sampled = |seed| served.ask(&about(TEXTS[0], json!({"temperature": 1.9, "seed": seed}))).answer();
    assert_eq!(sampled(1), sampled(1));
    assert!((2..12).any(|seed| sampled(seed) != sampled(1)), "seeds differ");
    streams_and_stops_agree_with_whole_answers(&served, &alone[0].0);
    conversations_without_a_passage_and_with_several_are_answered(&served);
}

fn streams_and_stops_agree_with_whole_answers(served: &Served, whole: &str) {
    let streamed = served.ask(&about(TEXTS[0], json!({"stream": true, "stream_options": {"include_usage": true}})));
    assert!(streamed.head.contains("text/event-stream"), "{}", streamed.head);
    let data: Vec<&str> = streamed.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let (done, chunks) = data.split_last().unwrap();
    assert_eq!(*done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let pieces: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(pieces, whole);
    assert!(chunks.len() > 4, "the answer comes word by word: {chunks:?}");
    let [.., last, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert!(last["choices"][0]["finish_reason"].is_string() && last["usage"].is_null(), "{last}");
    assert_eq!((&usage["choices"], usage["usage"]["prompt_tokens"].as_u64() > Some(8)), (&json!([]), true));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk["object"] == "chat.completion.chunk"));

    let middle: String = whole.chars().skip(3).take(4).collect();
    let stop = json!(["nowhere in it", middle]);
    let stopped = served.ask(&about(TEXTS[0], json!({ "stop": stop })));
    let (before, _) = whole.split_once(middle.as_str()).unwrap();
    assert_eq!(stopped.answer().0, before);
    assert_eq!(stopped.json()["choices"][0]["finish_reason"], "stop");
}

fn conversations_without_a_passage_and_with_several_are_answered(served: &Served) {
    let passage = |text: &str| json!({"type": "text", "text": text, "llink": "passage"});
    let messages = json!([
        {"role": "user", "content": "Are these two the same?"},
        {"role": "assistant", "content": "Which two?"},
        {"role": "user", "content": [passage(TEXTS[0]), passage(TEXTS[1])]},
    ]);
    let request = json!({"model": "llink", "max_tokens": 5, "messages": messages});
    let asked = |messages: &Value| {
        let answer = served.ask(&json!({"model": "llink", "max_tokens": 5, "messages": messages}));
        answer.answer();
        answer.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let english = asked(&json!([messages[0]]));
    assert!(asked(&request["messages"]) > english + 8, "two passages have slots");
    let long = "ត្រី ".repeat(400);
    let cut = served.ask(&about(&long, json!({}))).json();
    assert!(cut["llink"]["unread_chars"].as_u64() > Some(1000), "{cut}");
}

#[test]
fn requests_that_cannot_be_answered_are_refused_with_what_to_do() {
    let place = job();
    let served = Served::start(&place, &["--name", "khmer"]);
    let asked = |request: Value| served.ask(&request).error();
    let named = |more: Value| asked(about("ត្រី", more));
    assert_eq!(named(json!({}))["code"], "model_not_found");
    let khmer = |mut more: Value| {
        more["model"] = json!("khmer");
        named(more)
    };
    assert_eq!(khmer(json!({"n": 2}))["param"], "n");
    assert_eq!(
        khmer(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}))["param"],
        "messages[0].content[0].type"
    );
    let path = "/v1/chat/completions";
    for (method, path, headers, body, status, code) in [
        ("POST", path, JSON, "{", 400, "invalid_json"),
        ("POST", path, "content-type: text/plain\r\n", "{}", 415, "unsupported_media_type"),
        ("GET", path, "", "", 405, "method_not_allowed"),
        ("POST", "/v1/completions", JSON, "{}", 404, "unknown_url"),
        ("GET", "/v1/models/gpt-4o", "", "", 404, "model_not_found"),
    ] {
        let response = served.call(method, path, headers, body);
        assert_eq!((response.status, &response.error()["code"]), (status, &json!(code)), "{method} {path}");
        assert!(response.head.contains("application/json"), "{}", response.head);
    }
    let large = about(&"ត".repeat(500_000), json!({"model": "khmer"}));
    assert_eq!(served.ask(&large).status, 413);
    let models = served.call("GET", "/v1/models", "", "").json();
    assert_eq!(models["data"][0]["id"], "khmer");
    assert_eq!(served.call("GET", "/v1/models/khmer", "", "").json()["object"], "model");
    assert_eq!(served.call("GET", "/health", "", "").json(), json!({"status": "ok"}));

    place.refuses(2, &["serve-bundle", "out", "--listen", "0.0.0.0:0"], &["--tls-cert", "--tokens"]);
    place.refuses(6, &["serve-bundle", "out", "--listen", &served.address], &["cannot listen on"]);
    place.refuses(3, &["serve-bundle", "out", "--encoder", "/nowhere"], &["/nowhere"]);
}

#[test]
fn a_client_that_leaves_ends_its_answer_and_a_full_server_says_when_to_come_back() {
    let place = job();
    let served = Served::start(&place, &["--at-once", "1", "--queue", "0"]);
    let mut first = BufReader::new(served.send("POST", "/v1/chat/completions", JSON, &long().to_string()));
    let mut line = String::new();
    while !line.starts_with("data: ") {
        line.clear();
        assert!(first.read_line(&mut line).unwrap() > 0, "the answer begins");
    }
    let full = served.ask(&about(TEXTS[1], json!({})));
    assert_eq!(full.status, 429, "{}", full.body);
    assert_eq!(full.error()["code"], "queue_full");
    assert!(full.head.contains("retry-after: "), "{}", full.head);
    drop(first);
    let answered = eventually("the place is free", || {
        let response = served.ask(&about(TEXTS[1], json!({})));
        (response.status != 429).then_some(response)
    });
    answered.answer();
    let log = served.running.log();
    assert!(log.contains("the client is gone"), "{log}");
}

#[test]
fn openais_own_client_asks_with_a_token_over_tls() {
    let Some(python) = python_with(&["openai"]) else {
        return;
    };
    let place = job();
    place.ok(&["certs", "certs"]);
    let token = place.ok(&["token", "tokens.toml", "--name", "ada", "--role", "read"]);
    let guards =
        ["--tokens", "tokens.toml", "--tls-cert", "certs/coordinator.crt", "--tls-key", "certs/coordinator.key"];
    let served = Served::start(&place, &guards);
    let arguments = ["-c", CLIENT, &format!("https://{}/v1", served.address), token.trim(), TEXTS[0]];
    done(Command::new(python).args(arguments).current_dir(place.dir.path()));
}

/// Uses OpenAI's package as its documentation does.
const CLIENT: &str = r#"
import ssl, sys
import httpx, openai

url, token, text = sys.argv[1:]
http = httpx.Client(verify=ssl.create_default_context(cafile="certs/ca.crt"))
client = openai.OpenAI(base_url=url, api_key=token, http_client=http, max_retries=0)
assert [model.id for model in client.models.list()] == ["llink"]
passage = {"type": "text", "text": text, "llink": "passage"}
content = [{"type": "text", "text": "Translate the sentence into English."}, passage]
asked = dict(model="llink", messages=[{"role": "user", "content": content}], max_completion_tokens=12, temperature=0)

whole = client.chat.completions.create(**asked)
answer = whole.choices[0].message.content
assert answer and whole.choices[0].finish_reason in ("stop", "length"), whole
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0, whole

pieces, usage = [], None
for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
    pieces += [choice.delta.content or "" for choice in chunk.choices]
    usage = chunk.usage or usage
assert "".join(pieces) == answer and len(pieces) > 3, pieces
assert usage == whole.usage, (usage, whole.usage)

try:
    client.chat.completions.create(**asked, n=2)
    raise SystemExit("two answers were not refused")
except openai.BadRequestError as error:
    assert error.param == "n" and error.code == "unsupported_parameter", error
try:
    openai.OpenAI(base_url=url, api_key="llk_wrong", http_client=http).models.list()
    raise SystemExit("a wrong token was not refused")
except openai.AuthenticationError as error:
    assert error.code == "invalid_api_key", error
"#;
