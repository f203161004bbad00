//! The page over HTTP: what it brings, and who is shown it.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::serve::access::{Role, Token, TokenUse};
use crate::serve::{self, Running, ServeOptions};

fn options(directory: &Path) -> ServeOptions {
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    ServeOptions { page: Some(local), ..ServeOptions::new(local, directory.into()) }
}

fn address(running: &Running) -> &str {
    let url = running.page.as_ref().unwrap();
    url.trim_start_matches("http://").trim_end_matches('/')
}

/// Sends a request with these header lines, and reads until the answer's end or until it contains `until`.
async fn ask(running: &Running, line: &str, headers: &str, body: &str, until: &str) -> String {
    let at = address(running);
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {at}\r\n") };
    let length = body.len();
    let request =
        format!("{line} HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let read = tcp.read(&mut piece).await.unwrap();
        answer.extend(&piece[..read]);
        let said = String::from_utf8_lossy(&answer);
        if read == 0 || (!until.is_empty() && said.contains(until)) {
            return said.into_owned();
        }
    }
}

async fn get(running: &Running, path: &str, headers: &str) -> String {
    ask(running, &format!("GET {path}"), headers, "", "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_brings_all_that_it_needs_and_ends_its_streams_when_the_coordinator_stops() {
    let directory = tempfile::tempdir().unwrap();
    let running = serve::start(options(directory.path())).await.unwrap();
    let page = get(&running, "/", "").await;
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("There are no jobs yet"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'self'"), "{page}");
    for word in page.split('"').filter(|word| word.starts_with("/assets/")) {
        assert!(get(&running, word, "").await.starts_with("HTTP/1.1 200"), "{word}");
    }
    for missing in ["/jobs/none", "/plans/1", "/assets/none", "/none"] {
        assert!(get(&running, missing, "").await.starts_with("HTTP/1.1 404"), "{missing}");
    }
    // A foreign name that resolves to this machine is an attack.
    assert!(get(&running, "/", "Host: evil.example\r\n").await.starts_with("HTTP/1.1 421"));
    let live = ask(&running, "GET /live/", "", "", "event: parts").await;
    assert!(live.contains("text/event-stream"), "{live}");
    let at = address(&running).to_owned();
    let mut tcp = TcpStream::connect(&at).await.unwrap();
    tcp.write_all(format!("GET /live/ HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 64];
    tcp.read_exact(&mut first).await.unwrap();
    let mut rest = String::new();
    let (read, stopped) = tokio::join!(tcp.read_to_string(&mut rest), running.stop());
    read.unwrap();
    stopped.unwrap();
    assert!(rest.contains("event: end"), "{rest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_are_tokens_one_that_may_look_is_shown_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.toml");
    let make = |name: &str, role| Token::make(name, role, None, TokenUse::Any).unwrap();
    let ((eve, secret), (worker, workers)) = (make("eve", Role::Read), make("w", Role::Worker));
    std::fs::write(&file, eve.entry() + &worker.entry()).unwrap();
    let mut options = options(directory.path());
    options.security.tokens = Some(file);
    options.security.audit = Some(directory.path().join("audit.jsonl"));
    let running = serve::start(options).await.unwrap();
    let stranger = get(&running, "/", "").await;
    assert!(stranger.starts_with("HTTP/1.1 401") && stranger.contains("<form"), "{stranger}");
    assert!(get(&running, "/live/", "").await.starts_with("HTTP/1.1 401"));
    let log_in = |token: &str| {
        let form = format!("token={token}");
        let running = &running;
        async move { ask(running, "POST /login", "", &form, "").await }
    };
    for wrong in ["", "guess", &workers] {
        let said = log_in(wrong).await;
        assert!(said.starts_with("HTTP/1.1 401") && !said.contains("set-cookie"), "{said}");
    }
    let said = log_in(&secret).await;
    assert!(said.starts_with("HTTP/1.1 303") && said.contains("HttpOnly; SameSite=Strict"), "{said}");
    let cookie = said.split_once("set-cookie: ").unwrap().1.split(';').next().unwrap();
    let seen = get(&running, "/", &format!("Cookie: {cookie}\r\n")).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    let seen = get(&running, "/", &format!("Authorization: Bearer {secret}\r\n")).await;
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    assert!(get(&running, "/", &format!("Cookie: {cookie}0\r\n")).await.starts_with("HTTP/1.1 401"));
    running.stop().await.unwrap();
    let audit = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    assert!(audit.contains("\"eve\"") && audit.contains("Page/Look") && !audit.contains(&secret), "{audit}");
}
