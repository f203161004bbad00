//! Corpora, synthesis, `verify` and `inspect`, as a user runs them.

use std::collections::{HashMap, HashSet};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{Place, SMALL, done, eventually, says_all};
use crate::moto::{Moto, settings};
use crate::skip::python_with;
use axum::http::{Method, StatusCode};
use axum::response::IntoResponse;
use serde_json::json;

/// An endpoint that fails every third request, sometimes refuses or says nothing, and records its requests.
#[derive(Default)]
struct Endpoint {
    asked: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    /// The number of times that each question was answered with 200.
    answered: Mutex<HashMap<String, usize>>,
    keys: Mutex<HashSet<String>>,
}

impl Endpoint {
    fn start() -> (String, Arc<Self>) {
        let endpoint = Arc::new(Self::default());
        let own = Arc::clone(&endpoint);
        let url = crate::http::serve(move |request| own.answer(&request));
        (format!("{url}/v1"), endpoint)
    }

    fn answer(&self, request: &crate::http::Asked) -> (StatusCode, String) {
        let key = request.headers.get("authorization").map(|key| key.to_str().unwrap().to_owned());
        self.keys.lock().unwrap().extend(key);
        let under_way = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(under_way, Ordering::SeqCst);
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(5));
        let said = match number % 10 {
            3 => "I'm sorry, I cannot.",
            5 => "  ",
            _ => "It is about a day.",
        };
        let answer = json!({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).to_string();
        // The count changes before the answer is sent, because its reader may act at once.
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        if number % 3 == 1 {
            return (StatusCode::SERVICE_UNAVAILABLE, answer);
        }
        let question = String::from_utf8(request.body.to_vec()).unwrap();
        *self.answered.lock().unwrap().entry(question).or_default() += 1;
        (StatusCode::OK, answer)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn again(&self) -> usize {
        self.answered.lock().unwrap().values().filter(|times| **times > 1).count()
    }
}

fn synthesis(url: &str, train: u32) -> String {
    format!(
        "{SMALL}\n[synthesize]\nurl = \"{url}\"\nmodel = \"m\"\napi_key_env = \"LLINK_TEST_KEY\"\ntrain = {train}\n\
         validation = 20\nconcurrency = 4\nmax_tokens = 32\n"
    )
}

const KEY: &str = "sk-must-not-be-seen";

#[test]
fn answers_are_asked_for_once_and_counted_and_the_key_is_nowhere() {
    let (url, endpoint) = Endpoint::start();
    let place = Place::new(&synthesis(&url, 60));
    let submit = |args: &[&str]| {
        let output = done(place.command(args).env("LLINK_TEST_KEY", KEY).env("LLINK_LOG", "trace"));
        crate::common::text(&output)
    };
    let said = submit(&["submit", "job.toml", "--workers", "1"]);
    let report = place.report();
    let count = |name: &str| report["counts"][format!("synthesized.{name}")].as_u64().unwrap_or(0);
    assert!(count("dropped_refusal") > 0 && count("dropped_empty_answer") > 0, "{report:#}");
    // Other pairs were asked for in place of the answers that can't be used.
    assert_eq!((count("split.train"), count("split.validation")), (60, 20), "{report:#}");
    assert_eq!(count("rows"), 80 + count("dropped_refusal") + count("dropped_empty_answer"));
    let (once, together) = (endpoint.asked(), endpoint.most_in_flight.load(Ordering::SeqCst));
    assert!((2..=4).contains(&together), "concurrency is 4: {together}");
    let bearer = HashSet::from([format!("Bearer {KEY}")]);
    assert_eq!(*endpoint.keys.lock().unwrap(), bearer);
    assert!(!said.contains(KEY));
    is_in_no_file(&place, KEY);
    // The same job under another key asks for nothing.
    std::fs::remove_dir_all(place.path("out/synthesize")).unwrap();
    submit(&["submit", "job.toml", "--state", "other"]);
    assert_eq!(endpoint.asked(), once, "every answer was in the cache");
    assert_eq!(endpoint.again(), 0);
    assert!(place.ok(&["verify", "out"]).contains("all as the manifests say"));
}

#[test]
fn a_synthesis_that_is_killed_asks_nothing_twice() {
    let (url, endpoint) = Endpoint::start();
    let place = Place::new(&synthesis(&url, 300));
    let log = std::fs::File::create(place.path("killed.log")).unwrap();
    let mut submit = place
        .command(&["submit", "job.toml", "--workers", "2"])
        .env("LLINK_TEST_KEY", KEY)
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .spawn()
        .unwrap();
    eventually("some answers", || (endpoint.asked() > 150).then_some(()));
    let workers = crate::common::workers_of(submit.id());
    submit.kill().unwrap();
    submit.wait().unwrap();
    for worker in workers {
        // The process may have ended by itself, because no coordinator answers it.
        let _ = Command::new("kill").args(["-9", &worker.to_string()]).status();
    }
    let before = endpoint.asked();
    done(place.command(&["submit", "job.toml"]).env("LLINK_TEST_KEY", KEY));
    assert!(endpoint.asked() > before, "it was killed before it was done");
    // Each of two workers had four requests under way when it died.
    assert!(endpoint.again() <= 8, "{} answers were asked for again", endpoint.again());
    let report = place.report();
    assert_eq!(report["counts"]["synthesized.split.train"], 300);
}

#[test]
fn a_key_that_is_not_set_is_said_before_anything_is_asked() {
    let (url, endpoint) = Endpoint::start();
    let place = Place::new(&synthesis(&url, 60));
    place.refuses(3, &["submit", "job.toml", "--workers", "1"], &["LLINK_TEST_KEY", "not set"]);
    assert_eq!(endpoint.asked(), 0);
}

#[test]
fn verify_names_what_is_damaged_and_inspect_shows_what_is_there() {
    needs_inspect();
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    assert!(place.ok(&["verify", "out"]).contains("all as the manifests say"));

    let shown = place.ok(&["inspect", "out/shard"]);
    says_all(&shown, &["pairs/train: 1,200 rows", "characters of foreign", "█", "foreign_chars"]);
    says_all(&shown, &["llink.schema_version = 1", "source: 1 values", "… and 1,190 more rows"]);
    says_all(&place.ok(&["inspect", "out/embed"]), &["norms of the vectors: "]);
    let query = "select count(*) as n, max(foreign_chars) as longest from pairs_holdout";
    says_all(&place.ok(&["inspect", "out", "--sql", query]), &["300", "longest"]);
    place.refuses(2, &["inspect", "out", "--sql", "select * from paris_train"], &["pairs_train"]);

    let shards = walk(&place.path("out/shard"), "00000.parquet");
    let mut content = std::fs::read(&shards[0]).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    std::fs::write(&shards[0], content).unwrap();
    place.refuses(3, &["verify", "out"], &["00000.parquet: SHA-256 is"]);
}

#[test]
fn the_readmes_python_runs_as_it_stands() {
    let Some(python) = python_with(&["polars"]) else { return };
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let snippets: Vec<&str> = readme.split("```python\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!snippets.is_empty());
    let place = Place::new(&SMALL.replace("output = \"out\"", "output = \"llink-out\""));
    place.ok(&["submit", "job.toml"]);
    for snippet in snippets {
        done(Command::new(&python).args(["-c", snippet]).current_dir(place.dir.path()));
    }
}

/// Asserts that the program behind `inspect` is built, which these tests do not do by themselves.
fn needs_inspect() {
    let program = std::path::Path::new(crate::common::BINARY).with_file_name("llink-inspect");
    assert!(program.is_file(), "no {}: build it with `cargo build --release -p llink-inspect`", program.display());
}

#[test]
fn a_coordinator_whose_volume_is_lost_restores_itself_from_an_object_store() {
    let Some(s3) = Moto::start("jobs") else { return };
    let place = Place::new(SMALL);
    let serve = |state: &str| {
        let log = place.path(&format!("{state}.log"));
        let file = || std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let args = ["serve", "--listen", "127.0.0.1:0", "--state", state, "--replica", "s3://jobs/state"];
        let mut command = place.command(&args);
        let child = command.envs(settings(s3.port)).stdout(file()).stderr(file()).spawn().unwrap();
        let mut running = crate::common::Running { child, log };
        let url = running.says(crate::common::LISTENS);
        (running, url)
    };
    let (first, url) = serve("first");
    let id = &*place.submit_to(&url);
    drop(first);
    let (second, url) = serve("second");
    assert!(second.log().contains("is restored from s3://jobs/state"), "{}", second.log());
    assert!(place.ok(&["list", "--coordinator", &url]).contains(id));
}

#[test]
fn the_same_job_reads_from_and_writes_to_an_object_store() {
    needs_inspect();
    let Some(s3) = Moto::start("jobs") else { return };
    let place = Place::new(&SMALL.replace("source = \"sample\"\ntrain_pairs", "source = \"pairs.tsv\"\ntrain_pairs"));
    place.ok(&["sample", ".", "--pairs", "2500", "--instructions", "10"]);
    place.ok(&["submit", "job.toml"]);
    let upload = async {
        let store = llink_datasets::store::Store::open_with("s3://jobs/in", settings(s3.port)).unwrap();
        let content = std::fs::read(place.path("pairs.tsv")).unwrap();
        store.put("pairs.tsv", content.into()).await.unwrap();
    };
    tokio::runtime::Runtime::new().unwrap().block_on(upload);
    let job = place.read("job.toml");
    let job = job.replace("\"pairs.tsv\"", "\"s3://jobs/in/pairs.tsv\"").replace("\"out\"", "\"s3://jobs/out\"");
    place.write("s3.toml", job);
    let run = |args: &[&str]| String::from_utf8(done(place.command(args).envs(settings(s3.port))).stdout).unwrap();
    assert!(run(&["submit", "s3.toml", "--state", "s3-state"]).contains("succeeded in"));
    assert!(run(&["submit", "s3.toml", "--state", "s3-state"]).contains("nothing to do"));
    assert!(run(&["verify", "s3://jobs/out"]).contains("all as the manifests say"));
    // The rows equal those of the job on the local disk, because the source has the same name.
    let query = "select sum(id % 1000003) as ids, count(*) as n from pairs_train";
    let there = run(&["inspect", "s3://jobs/out", "--sql", query]);
    assert_eq!(there, place.ok(&["inspect", "out", "--sql", query]));
    assert!(there.contains("1200"), "{there}");
}

/// Returns the files below a folder, all or those with a name.
fn walk(folder: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path, name));
        } else if name.is_empty() || path.ends_with(name) {
            found.push(path);
        }
    }
    found
}

/// Checks that no file but the job's own holds a secret.
fn is_in_no_file(place: &Place, secret: &str) {
    for file in walk(place.dir.path(), "").into_iter().filter(|file| !file.ends_with("job.toml")) {
        let content = std::fs::read(&file).unwrap();
        let holds = content.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!holds, "the secret is in {}", file.display());
    }
}

/// Serves one file to GET requests with the right query only.
fn signed_file(query: &'static str, content: Vec<u8>) -> String {
    crate::http::serve(move |request| {
        let asked = request.uri.to_string();
        if request.method != Method::GET || !asked.contains(query) {
            return (StatusCode::FORBIDDEN, format!("<Signed>{asked}</Signed>")).into_response();
        }
        let range = request.headers.get("range").and_then(|range| range.to_str().unwrap().strip_prefix("bytes="));
        let (start, end) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(content.len(), |end: usize| (end + 1).min(content.len()));
        let headers = [
            ("content-range", format!("bytes {start}-{}/{}", end - 1, content.len())),
            ("etag", "\"1\"".to_owned()),
            ("last-modified", "Wed, 21 Oct 2026 07:28:00 GMT".to_owned()),
        ];
        let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        (status, headers, content[start..end].to_vec()).into_response()
    })
}

fn hundred_pairs() -> String {
    let words = ["river", "boat", "market", "rice", "school", "teacher", "water", "child", "house", "road"];
    let foreign = ["ទន្លេ", "ទូក", "ផ្សារ", "អង្ករ", "សាលា", "គ្រូ", "ទឹក", "កុមារ", "ផ្ទះ", "ផ្លូវ"];
    let pair = |n: usize| {
        let (i, j) = (n / 10, n % 10);
        format!("The {} is near the {} {n}.\t{}នៅជិត{}លេខ {n}\n", words[i], words[j], foreign[i], foreign[j])
    };
    (0..100).map(pair).collect()
}

fn own_corpus(source: &str) -> String {
    format!(
        "output = \"out\"\n[corpus]\nsource = {source}\ntrain_pairs = 0\nholdout_pairs = 10\n\
         [cleaning]\nnear_duplicates = \"keep\"\n[models]\nencoder = \"random\"\ndecoder = \"random\"\n\
         [align]\nsteps = 2\nbatch = 4\nqueue = 16\nhard_negatives = 4\nwarmup_steps = 0\nvalidate_every = 0\n\
         [evaluate]\nbenchmark_pairs = 10\n[workers]\nlocal = 1\n"
    )
}

#[test]
fn a_signed_url_is_read_and_its_signature_is_nowhere() {
    const SECRET: &str = "5ecretsignature";
    let faulty = format!("{}no tab\n", hundred_pairs());
    let url = signed_file("sv=2024&sig=5ecretsignature", faulty.into_bytes());
    let address = format!("{url}/corpora/km.tsv?sv=2024&sig=5ecretsignature");
    let place = Place::new(&own_corpus(&format!("{address:?}")));
    let said = crate::common::text(&done(place.command(&["submit", "job.toml"]).env("LLINK_LOG", "trace")));
    assert!(!said.contains(SECRET), "{said}");
    let report = place.read("out/report.json");
    assert!(report.contains(&format!("{url}/corpora/km.tsv:101: missing_column")), "{report}");
    is_in_no_file(&place, SECRET);
    // With a new signature it is the same job, and nothing is computed again.
    let again = format!("{url}/corpora/km.tsv?sv=2024&sig=5ecretsignature&se=2030");
    place.write("job.toml", own_corpus(&format!("{again:?}")));
    let plan = place.ok(&["submit", "job.toml", "--dry-run"]);
    assert!(!plan.contains("will run"), "{plan}");

    let expired = format!("{url}/corpora/km.tsv?sv=2024&sig=0ther5ecret");
    place.write("job.toml", own_corpus(&format!("{expired:?}")));
    let said = place.fails(4, &["submit", "job.toml"]);
    assert!(said.contains("/corpora/km.tsv") && said.contains("403") && !said.contains("0ther5ecret"), "{said}");
}

#[test]
fn sources_of_one_name_are_told_apart_and_a_lost_ending_is_reported() {
    needs_inspect();
    let place = Place::new(&own_corpus("[\"a/train.tsv\", \"b/train.tsv\"]"));
    let pairs = hundred_pairs();
    let (first, second) = pairs.split_at(pairs.match_indices('\n').nth(49).unwrap().0 + 1);
    place.write("a/train.tsv", first);
    place.write("b/train.tsv", second.replace('\n', "\r"));
    place.ok(&["submit", "job.toml"]);
    let report = place.report();
    for name in ["a/train.tsv", "b/train.tsv"] {
        assert_eq!(report["counts"][format!("pairs.source.{name}.kept")], 50, "{report:#}");
    }
    let warnings = report["warnings"].to_string();
    assert!(warnings.contains("b/train.tsv ends its lines with carriage returns"), "{warnings}");
    let table = place.ok(&["inspect", "out", "--sql", "select source, count(*) as n from pairs_train group by source"]);
    says_all(&table, &["a/train.tsv", "b/train.tsv"]);
}
