//! Tests repositories of the Hugging Face Hub against a small server with its protocol.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::server::{Answer, Asked, bind, serve};
use llink_datasets::manifest::sha256_hex;
use llink_datasets::store::Store;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const NEWER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const TOKEN: &str = "hf_open_sesame";
/// The server of large files closes the connection after this many bytes.
const PART: usize = 40_000;

/// The Hub and a second server for large files.
struct Hub {
    endpoint: String,
    large: String,
    /// Contents by path; paths that end in `.safetensors` are on the second server.
    files: BTreeMap<&'static str, Vec<u8>>,
    state: Mutex<State>,
}

struct State {
    commit: &'static str,
    /// The requests, with a `+` after those with the token.
    asked: Vec<String>,
    hangs_up: bool,
    busy: bool,
    /// Whether the server sends other bytes than it announces.
    lies: bool,
}

impl Hub {
    async fn start() -> Arc<Self> {
        let ((hub, endpoint), (elsewhere, large)) = (bind().await, bind().await);
        let weights = (0..100_000_u32).map(|i| (i * 7919 % 251) as u8).collect();
        let this = Arc::new(Self {
            endpoint,
            large,
            files: BTreeMap::from([
                ("config.json", b"{\"a\": 1}".to_vec()),
                ("1_Pooling/config.json", b"{}".to_vec()),
                ("model.safetensors", weights),
                ("data/pairs #1.tsv", b"a\tb\n".to_vec()),
            ]),
            state: Mutex::new(State { commit: COMMIT, asked: Vec::new(), hangs_up: false, busy: false, lies: false }),
        });
        for (listener, is_hub) in [(hub, true), (elsewhere, false)] {
            let own = Arc::clone(&this);
            serve(listener, move |asked| own.answer(&asked, is_hub));
        }
        this
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    fn open(&self, url: &str, home: &Path, more: &[(&str, &str)]) -> Store {
        let options = [("HF_ENDPOINT", self.endpoint.as_str()), ("HF_HOME", home.to_str().unwrap())];
        let options = options.iter().chain(more).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Store::open_with(url, options).unwrap()
    }

    fn answer(&self, asked: &Asked, is_hub: bool) -> Answer {
        let Asked { method, path, head } = asked;
        let knows = head.contains(&format!("Bearer {TOKEN}"));
        let (commit, hangs_up, busy, lies) = {
            let mut state = self.state.lock().unwrap();
            let place = if is_hub { "" } else { "elsewhere " };
            state.asked.push(format!("{place}{method} {path}{}", if knows { "+" } else { "" }));
            (state.commit, state.hangs_up, std::mem::take(&mut state.busy), state.lies)
        };
        if busy {
            return Answer::new("503 Busy", "", "");
        }
        if is_hub {
            return self.hub(path, commit, knows, asked.range(0).is_some());
        }
        let whole = &self.files[path.trim_start_matches("/large/")];
        let whole: Vec<u8> = whole.iter().map(|b| b ^ u8::from(lies)).collect();
        let answer = match asked.range(whole.len()) {
            Some(range) => Answer::new("206 Partial", "", &whole[range]),
            None => Answer::new("200 OK", "etag: \"of-the-store\"\r\n", whole),
        };
        Answer { most: if hangs_up { PART } else { usize::MAX }, ..answer }
    }

    fn hub(&self, path: &str, commit: &str, knows: bool, ranged: bool) -> Answer {
        let error = |status, code: &str| Answer::new(status, format!("x-error-code: {code}\r\n"), "");
        let (address, _) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = address.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["api", "models" | "datasets", "acme", "gated" | "small", "revision", ..] | ["acme", "gated", ..]
                if parts.contains(&"gated") && !knows =>
            {
                error("401 Unauthorized", "GatedRepo")
            }
            ["api", "models" | "datasets", "acme", "small" | "gated", "revision", revision] => {
                if !["main", "v1", "refs%2Fpr%2F1", commit, COMMIT].contains(revision) {
                    return error("404 Not Found", "RevisionNotFound");
                }
                let sha = if *revision == COMMIT { COMMIT } else { commit };
                let files = self.files.iter().map(|(path, content)| {
                    format!("{{\"rfilename\": \"{path}\", \"size\": {}, \"blobId\": \"x\"}}", content.len())
                });
                let files = files.collect::<Vec<_>>().join(", ");
                Answer::new("200 OK", "", format!("{{\"sha\": \"{sha}\", \"siblings\": [{files}]}}"))
            }
            ["api", ..] => error("401 Unauthorized", "RepoNotFound"),
            ["datasets", "acme", _, "resolve", sha, file @ ..] | ["acme", _, "resolve", sha, file @ ..] => {
                assert_eq!(sha.len(), 40, "files are asked for at their commit");
                let name = file.join("/").replace("%20", " ").replace("%23", "#");
                let Some(content) = self.files.get(name.as_str()) else {
                    return error("404 Not Found", "EntryNotFound");
                };
                let head = format!("x-repo-commit: {sha}\r\n");
                if name.ends_with(".safetensors") {
                    let (tag, size) = (sha256_hex(content), content.len());
                    let linked = format!("x-linked-etag: \"{tag}\"\r\nx-linked-size: {size}\r\n");
                    let to = format!("location: {}/large/{name}\r\n", self.large);
                    return Answer::new("302 Found", format!("{head}{linked}{to}"), "");
                }
                assert!(!ranged);
                Answer::new("200 OK", format!("{head}etag: \"tag-of-{}\"\r\n", content.len()), &content[..])
            }
            _ => error("404 Not Found", "RepoNotFound"),
        }
    }
}

#[tokio::test]
async fn a_repository_is_read_at_a_commit_into_the_usual_cache_once() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let store = hub.open("hf://acme/small@v1", home.path(), &[]);
    assert_eq!(store.pinned_url().await.unwrap(), format!("hf://acme/small@{COMMIT}"));
    let listed = store.list("").await.unwrap();
    let names: Vec<&str> = listed.iter().map(|object| object.path.as_str()).collect();
    assert_eq!(names, ["1_Pooling/config.json", "config.json", "data/pairs #1.tsv", "model.safetensors"]);
    assert_eq!(listed[3].bytes, 100_000);
    for (name, content) in &hub.files {
        assert_eq!(store.get(name).await.unwrap(), content, "{name}");
    }
    // The layout is that of huggingface_hub.
    let repo = home.path().join("hub/models--acme--small");
    assert_eq!(std::fs::read_to_string(repo.join("refs/v1")).unwrap(), COMMIT);
    let tag = sha256_hex(&hub.files["model.safetensors"]);
    let link = std::fs::read_link(repo.join(format!("snapshots/{COMMIT}/model.safetensors"))).unwrap();
    assert_eq!(link, Path::new(&format!("../../blobs/{tag}")));
    let nested = std::fs::read_link(repo.join(format!("snapshots/{COMMIT}/1_Pooling/config.json"))).unwrap();
    assert_eq!(nested, Path::new("../../../blobs/tag-of-2"));
    assert_eq!(store.folder().await.unwrap().unwrap(), repo.join(format!("snapshots/{COMMIT}")));

    // A cached file is not requested again, and a later commit fetches only the changed files.
    hub.asked();
    let again = hub.open(&store.pinned_url().await.unwrap(), home.path(), &[]);
    assert_eq!(again.get("config.json").await.unwrap(), hub.files["config.json"]);
    assert_eq!(hub.asked().len(), 1, "the list of files");
    hub.set(|state| state.commit = NEWER);
    let newer = hub.open("hf://acme/small", home.path(), &[]);
    assert_eq!(newer.get("model.safetensors").await.unwrap(), hub.files["model.safetensors"]);
    assert!(!hub.asked().iter().any(|request| request.starts_with("elsewhere")), "the blob was there");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), NEWER);
}

#[tokio::test]
async fn a_file_of_a_data_set_is_read_like_any_other() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let store = hub.open("hf://datasets/acme/small@refs/pr/1/data", home.path(), &[]);
    assert_eq!(store.get("pairs #1.tsv").await.unwrap(), "a\tb\n");
    assert_eq!(store.head("pairs #1.tsv").await.unwrap().unwrap().bytes, 4);
    assert_eq!(store.head("pairs #2.tsv").await.unwrap(), None);
    assert_eq!(store.list("").await.unwrap().len(), 1);
    let pinned = store.pinned_url().await.unwrap();
    assert_eq!(pinned, format!("hf://datasets/acme/small@{COMMIT}/data"));
    assert!(home.path().join("hub/datasets--acme--small/refs/refs/pr/1").is_file());
    assert!(store.put("x", "x".into()).await.unwrap_err().to_string().contains("only read"));
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke_and_a_wrong_one_is_thrown_away() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    hub.set(|state| (state.hangs_up, state.busy) = (true, true));
    let store = hub.open("hf://acme/small", home.path(), &[]);
    assert_eq!(store.get("model.safetensors").await.unwrap(), hub.files["model.safetensors"]);
    let parts = hub.asked().iter().filter(|request| request.starts_with("elsewhere GET")).count();
    assert_eq!(parts, 3, "100,000 bytes, 40,000 at a time");

    let home = tempfile::tempdir().unwrap();
    hub.set(|state| (state.hangs_up, state.lies) = (false, true));
    let store = hub.open("hf://acme/small", home.path(), &[]);
    let said = store.get("model.safetensors").await.unwrap_err().to_string();
    assert!(said.contains("SHA-256") && said.contains("model.safetensors"), "{said}");
    hub.set(|state| state.lies = false);
    assert_eq!(store.get("model.safetensors").await.unwrap(), hub.files["model.safetensors"]);
}

#[tokio::test]
async fn a_part_is_read_without_the_rest() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let store = hub.open("hf://acme/small", home.path(), &[]);
    let whole = &hub.files["model.safetensors"];
    assert_eq!(store.get_range("model.safetensors", 8..20).await.unwrap(), &whole[8..20]);
    assert!(!home.path().join("hub/models--acme--small/blobs").exists());
    store.keep("model.safetensors").await.unwrap();
    hub.asked();
    assert_eq!(store.get_range("model.safetensors", 99_990..200_000).await.unwrap(), &whole[99_990..]);
    assert!(hub.asked().is_empty());
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    std::fs::write(home.path().join("token"), format!("{TOKEN}\n")).unwrap();
    let store = hub.open("hf://acme/gated", home.path(), &[]);
    store.keep("model.safetensors").await.unwrap();
    let asked = hub.asked();
    assert!(asked.iter().any(|request| request.starts_with("elsewhere GET")), "{asked:?}");
    for request in asked {
        assert_eq!(request.ends_with('+'), !request.starts_with("elsewhere"), "{request}");
    }
}

#[tokio::test]
async fn what_the_hub_refuses_is_said_with_what_to_do() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let gated_page = format!("{}/acme/gated", hub.endpoint);
    for (url, token, words) in [
        ("hf://acme/gated", "", &["is gated", "license", gated_page.as_str(), "set HF_TOKEN"][..]),
        ("hf://acme/gated", "hf_another", &["is gated", "the one that is set may not"]),
        ("hf://acme/none", "", &["no such repository", "private", "HF_TOKEN"]),
        ("hf://acme/small@v9", "", &["no revision \"v9\""]),
    ] {
        let store = hub.open(url, home.path(), &[("HF_TOKEN", token)]);
        let said = store.list("").await.unwrap_err().to_string();
        for word in words {
            assert!(said.contains(word), "{url}: {word:?} is not in {said}");
        }
        assert!(said.starts_with(url) && !said.contains("hf_another"), "{said}");
    }
    let store = hub.open("hf://acme/small", home.path(), &[]);
    let said = store.get("nothing.json").await.unwrap_err().to_string();
    assert!(said.contains("nothing.json: no such file"), "{said}");
}

#[tokio::test]
async fn offline_the_cache_is_read_and_what_it_lacks_is_named() {
    let (hub, home) = (Hub::start().await, tempfile::tempdir().unwrap());
    let store = hub.open("hf://acme/small", home.path(), &[]);
    store.keep("config.json").await.unwrap();
    hub.asked();
    let offline = [("HF_HUB_OFFLINE", "1")];
    let store = hub.open("hf://acme/small", home.path(), &offline);
    assert_eq!(store.pinned_url().await.unwrap(), format!("hf://acme/small@{COMMIT}"));
    assert_eq!(store.get("config.json").await.unwrap(), hub.files["config.json"]);
    assert_eq!(store.list("").await.unwrap().len(), 1);
    for (url, file) in [("hf://acme/small", "model.safetensors"), ("hf://acme/gated", "config.json")] {
        let said = hub.open(url, home.path(), &offline).get(file).await.unwrap_err().to_string();
        assert!(said.contains("HF_HUB_OFFLINE") && said.contains("not in the Hub's cache"), "{said}");
    }
    assert!(hub.asked().is_empty());
    // A Hub that can't be reached is no problem if the cache has the files.
    let options = [
        ("HF_ENDPOINT".to_owned(), "http://127.0.0.1:9".to_owned()),
        ("HF_HOME".to_owned(), home.path().to_str().unwrap().to_owned()),
    ];
    let store = Store::open_with("hf://acme/small", options).unwrap();
    assert_eq!(store.get("config.json").await.unwrap(), hub.files["config.json"]);
}
