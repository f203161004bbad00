//! Corpora, synthesis, `verify` and `inspect`, as their user runs them.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "inspect")]

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Place, SMALL, python_with_polars};

/// An endpoint that fails every third request, and refuses or says nothing now and then.
fn endpoint() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let number = count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                let mut request = vec![0; 64 << 10];
                let mut read = 0;
                while !request[..read].ends_with(b"}") {
                    match stream.read(&mut request[read..]) {
                        Ok(more) if more > 0 => read += more,
                        _ => return,
                    }
                }
                let body = match number % 10 {
                    3 => r#"{"choices":[{"message":{"content":"I'm sorry, I cannot."},"finish_reason":"stop"}]}"#,
                    5 => r#"{"choices":[{"message":{"content":"  "},"finish_reason":"stop"}]}"#,
                    _ => r#"{"choices":[{"message":{"content":"It is about a day."},"finish_reason":"stop"}]}"#,
                };
                let status = if number % 3 == 1 { "503 Busy" } else { "200 OK" };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes());
            });
        }
    });
    (url, asked)
}

#[test]
fn answers_are_asked_for_once_and_counted() {
    let (url, asked) = endpoint();
    let section = format!(
        "\n[synthesize]\nurl = \"{url}\"\nmodel = \"m\"\ntrain = 60\nvalidation = 20\nconcurrency = 4\nmax_tokens = 32\n"
    );
    let place = Place::new(&format!("{SMALL}{section}"));
    let said = place.ok(&["submit", "job.toml"]);
    let report = std::fs::read(place.path("out/report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    let count = |name: &str| report["counts"][format!("instructions.{name}")].as_u64().unwrap_or(0);
    // `[instructions]` of the job is sharded too, and counted under the same heading.
    assert!(
        count("dropped_refusal") > 0 && count("dropped_empty_answer") > 0,
        "{said}\n{report:#}"
    );
    let once = asked.load(Ordering::SeqCst);
    // The same again under another key asks for nothing.
    std::fs::remove_dir_all(place.path("out/synthesize")).unwrap();
    place.ok(&["submit", "job.toml", "--state", "other"]);
    assert_eq!(asked.load(Ordering::SeqCst), once, "every answer was in the cache");
    assert!(place.ok(&["verify", "out"]).contains("all as the manifests say"));
}

#[test]
fn verify_names_what_is_damaged_and_inspect_shows_what_is_there() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    assert!(place.ok(&["verify", "out"]).contains("all as the manifests say"));

    let shown = place.ok(&["inspect", "out/shard"]);
    for part in [
        "pairs/train: 1,200 rows",
        "characters of foreign",
        "█",
        "foreign_chars",
        "llink.schema_version = 1",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(place.ok(&["inspect", "out/embed"]).contains("norm of the vectors"));
    let query = "select count(*) as n, max(foreign_chars) as longest from pairs_holdout";
    let answer = place.ok(&["inspect", "out", "--sql", query]);
    assert!(answer.contains("300") && answer.contains("longest"), "{answer}");
    let said = place.fails(2, &["inspect", "out", "--sql", "select * from paris_train"]);
    assert!(said.contains("pairs_train"), "{said}");

    let shards = walk(&place.path("out/shard"), "00000.parquet");
    let mut content = std::fs::read(&shards[0]).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&shards[0], content).unwrap();
    let said = place.fails(3, &["verify", "out"]);
    assert!(said.contains("00000.parquet: SHA-256 is"), "{said}");
}

#[test]
fn the_readmes_python_runs_as_it_stands() {
    let Some(python) = python_with_polars() else {
        eprintln!("skipped: no Python with polars (set LLINK_PYTHON to one)");
        return;
    };
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let snippets: Vec<&str> = readme
        .split("```python\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!snippets.is_empty());
    let place = Place::new(&SMALL.replace("output = \"out\"", "output = \"llink-out\""));
    place.ok(&["submit", "job.toml"]);
    for snippet in snippets {
        let run = std::process::Command::new(&python)
            .args(["-c", snippet])
            .current_dir(place.dir.path())
            .output()
            .unwrap();
        assert!(run.status.success(), "{snippet}\n{}", common::text(&run));
    }
}

fn walk(folder: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path, name));
        } else if path.ends_with(name) {
            found.push(path);
        }
    }
    found
}
