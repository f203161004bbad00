//! The external inputs of a job. Paths are made absolute, each file gets a stamp, and a missing file is named.

mod flores;
mod models;

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use llink_datasets::manifest::Manifest;
use llink_datasets::roots::{Roots, check_key_variable};
use llink_datasets::shown::{ShownUrl, credential_of, redacted};
use llink_datasets::store::{ObjectInfo, Store};
use llink_proto::{Failure, FailureKind, ModelRole};

use super::engine::failure;
use super::track;
use super::withheld::{self, Addresses};
use crate::job::{JobFile, SourceEntry, TrackSection, is_built_in, is_gguf};
use crate::plan::{StageName, short_hash};
use crate::schedule::NewJob;

/// Resolves a parsed job. Its paths become absolute, its inputs are checked, and it gets an id. The result includes the
/// addresses that must not be saved with the job.
/// An error says which URL lies below none of the roots or holds a key that would be saved. Otherwise it says which
/// source or model folder is missing or cannot be reached.
pub(super) async fn resolve(file: JobFile, base_dir: &Path, roots: &Roots) -> Result<(NewJob, Addresses), Failure> {
    let file = absolute(file, base_dir);
    check_roots(&file, roots)?;
    check_credentials(&file)?;
    track::check_secrets(&file).map_err(missing)?;
    let mut file = pinned(file).await?;
    flores::find_files(&mut file).await?;
    let addresses = withheld::keep_back(&mut file);
    Store::open(&file.output).map_err(|e| of_key("output", &failure(&e)))?;
    let mut stamps = BTreeMap::new();
    for (key, url) in read_urls(&file) {
        let stamp = match key {
            "models.decoder" if is_gguf(url) => gguf_stamp(url).await,
            "models.encoder" if is_gguf(url) => {
                Err(missing(format!("{url}: an encoder is a folder in Hugging Face layout, not a GGUF file")))
            }
            "models.encoder" => models::model_stamp(&file.models, ModelRole::Encoder, url, base_dir).await,
            "models.decoder" => models::model_stamp(&file.models, ModelRole::Decoder, url, base_dir).await,
            "instruct.from" => bundle_stamp(url).await,
            _ => object_stamp(addresses.get(url).map_or(url, String::as_str)).await,
        };
        stamps.insert(url.to_owned(), stamp.map_err(|f| of_key(key, &f))?);
    }
    let content = serde_json::to_string(&file).expect("a job file is plain data");
    let id = format!("{}-{}", file.name, &short_hash(&content)[..8]);
    Ok((NewJob { stamps, ..NewJob::new(id, file) }, addresses))
}

/// Refuses URLs that hold a key and are saved or shown.
fn check_credentials(file: &JobFile) -> Result<(), Failure> {
    const STORES: &str = "set the variables of its store, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
    const ENDPOINTS: &str = "put the key into a variable that `api_key_env` names";
    const TRACKERS: &str =
        "put the token into a variable that `mlflow_token_env`, `trackio_token_env` or `webhook_secret_env` names";
    let mut urls = vec![("output", file.output.as_str(), STORES)];
    urls.extend(file.models.paths().map(|(key, folder)| (key, folder, STORES)));
    urls.extend(start_of(file).map(|url| ("instruct.from", url, STORES)));
    urls.extend(file.endpoints().into_iter().map(|[(key, url), _]| (key, url, ENDPOINTS)));
    let track = file.track.iter().flat_map(TrackSection::urls);
    urls.extend(track.map(|(key, url)| (key, url, TRACKERS)));
    for (key, url, advice) in urls {
        if let Some(credential) = credential_of(url) {
            let shown = ShownUrl::of(url);
            let text = format!("`{key}`: {shown} is given with {credential}, which would be saved; {advice}");
            return Err(missing(text));
        }
    }
    Ok(())
}

/// Refuses a job that reads or writes where it may not, before any file is read.
fn check_roots(file: &JobFile, roots: &Roots) -> Result<(), Failure> {
    if *roots == Roots::Any {
        return Ok(());
    }
    let mut urls = vec![("output", file.output.as_str())];
    urls.extend(read_urls(file));
    let (endpoints, mut key_variables): (Vec<_>, Vec<_>) =
        file.endpoints().into_iter().map(|[url, key]| (url, key)).unzip();
    urls.extend(endpoints);
    urls.extend(file.track.iter().flat_map(TrackSection::urls));
    key_variables.extend(file.track.iter().flat_map(TrackSection::variables));
    let admitted = urls.into_iter().map(|(key, url)| (key, roots.admit(url)));
    let keys = key_variables.into_iter().map(|(key, name)| (key, check_key_variable(name)));
    admitted.chain(keys).try_for_each(|(key, checked)| checked.map_err(|text| missing(format!("`{key}`: {text}"))))
}

fn of_key(key: &str, failure: &Failure) -> Failure {
    Failure { kind: failure.kind, text: format!("`{key}`: {}", redacted(&failure.text)) }
}

fn missing(text: String) -> Failure {
    Failure { kind: FailureKind::Input.into(), text }
}

async fn object_stamp(url: &str) -> Result<String, Failure> {
    let (store, name) = Store::open_object(url).map_err(|e| failure(&e))?;
    match store.head(&name).await.map_err(|e| failure(&e))? {
        Some(info) => Ok(stamp(&info)),
        None => Err(missing(format!("{}: no such file", ShownUrl::of(url)))),
    }
}

/// Returns the stamp of a GGUF file. A file on this machine is checked, except for its tensors.
async fn gguf_stamp(url: &str) -> Result<String, Failure> {
    let stamp = object_stamp(url).await?;
    #[cfg(feature = "embedded")]
    {
        let (store, name) = Store::open_object(url).map_err(|e| failure(&e))?;
        if let Some(path) = store.local_path(&name) {
            let checked = tokio::task::spawn_blocking(move || llink_worker::models::check_gguf(&path));
            let checked = checked.await.map_err(|e| missing(format!("{url}: the check was cut off: {e}")))?;
            checked.map_err(|e| missing(e.to_string()))?;
        }
    }
    Ok(stamp)
}

/// Returns the stamp of a bundle, which is the hash of its files' hashes. A copy of the bundle has the same stamp.
async fn bundle_stamp(url: &str) -> Result<String, Failure> {
    let store = Store::open(url).map_err(|e| failure(&e))?;
    let manifest = Manifest::read(&store, "manifest.json").await.map_err(|e| failure(&e))?;
    match manifest.filter(|manifest| manifest.stage == StageName::Export.to_string()) {
        Some(manifest) => {
            let hashes: Vec<&str> = manifest.artifacts.iter().map(|file| file.sha256.as_str()).collect();
            Ok(short_hash(&hashes.join("\n")))
        }
        None => Err(missing(format!(
            "{}: there is no bundle here: name a folder below export/ in the output of a job that came to its end, as a path from \
             the job file's folder, or leave the key out, and Stage B starts from random numbers",
            ShownUrl::of(url)
        ))),
    }
}

fn stamp(info: &ObjectInfo) -> String {
    format!("{} {} {}", info.bytes, info.modified_ms, info.e_tag.as_deref().unwrap_or(""))
}

fn absolute(mut file: JobFile, base: &Path) -> JobFile {
    file.output = absolute_path(&file.output, base);
    change_urls(&mut file, &|path| absolute_path(path, base));
    file
}

/// Pins each `hf://` URL to a commit, so that a resumed job reads the same content.
async fn pinned(mut file: JobFile) -> Result<JobFile, Failure> {
    let mut pins = BTreeMap::new();
    for (key, url) in read_urls(&file) {
        if url.starts_with("hf://") {
            let pinned = Store::pinned(url).await.map_err(|e| of_key(key, &failure(&e)))?;
            pins.insert(url.to_owned(), pinned);
        }
    }
    if !pins.is_empty() {
        change_urls(&mut file, &|url| pins.get(url).map_or(url, String::as_str).to_owned());
    }
    Ok(file)
}

/// Returns the URLs that a job reads from outside, with their keys in the job file.
fn read_urls(file: &JobFile) -> Vec<(&'static str, &str)> {
    let mut sources = vec![("corpus.source", &file.corpus.source)];
    if let Some(instructions) = &file.instructions {
        sources.push(("instructions.source", &instructions.source));
    }
    sources.extend(file.evaluate.set.iter().map(|set| ("evaluate.set", set)));
    let mut urls = Vec::new();
    for (key, sources) in sources {
        let files = sources.as_slice().iter().filter(|s| !s.is_sample());
        urls.extend(files.flat_map(SourceEntry::files).map(|url| (key, url)));
    }
    let folders = file.models.paths().into_iter();
    urls.extend(folders.filter(|(_, folder)| !is_built_in(folder)));
    urls.extend(start_of(file).map(|url| ("instruct.from", url)));
    let judge = file.evaluate.judge.as_ref();
    let direct = judge.and_then(|judge| judge.direct_answers.as_deref());
    urls.extend(direct.map(|url| ("evaluate.judge.direct_answers", url)));
    urls
}

/// Returns the URL of the bundle from which Stage B starts.
fn start_of(file: &JobFile) -> Option<&str> {
    file.instruct.as_ref()?.from.as_deref()
}

fn change_urls(file: &mut JobFile, f: &dyn Fn(&str) -> String) {
    file.change_files(f);
    for model in file.models.paths_mut() {
        if !is_built_in(model) {
            *model = f(model);
        }
    }
    if let Some(instruct) = &mut file.instruct {
        instruct.from = instruct.from.as_deref().map(f);
    }
}

fn absolute_path(path: &str, base: &Path) -> String {
    if path.contains("://") {
        return path.into();
    }
    let mut clean = PathBuf::new();
    for part in base.join(path).components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            part => clean.push(part),
        }
    }
    clean.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_belong_to_the_job_files_folder_and_urls_stay() {
        let base = Path::new("/jobs/khmer");
        assert_eq!(absolute_path("../data/a.tsv", base), "/jobs/data/a.tsv");
        assert_eq!(absolute_path("./out", base), "/jobs/khmer/out");
        assert_eq!(absolute_path("/abs/x", base), "/abs/x");
        assert_eq!(absolute_path("s3://bucket/x", base), "s3://bucket/x");
    }

    const JOB: &str = "output = \"/data/out\"\n\
        [corpus]\nsource = { english = \"/data/en\", foreign = \"/data/km\" }\n\
        [models]\nencoder = \"/data/encoder\"\ndecoder = \"/data/decoder\"\n\
        [instruct]\n\
        [evaluate.judge]\nurl = \"https://models.example/v1/judge\"\nmodel = \"m\"\napi_key_env = \"JUDGE_KEY\"\n\
        direct_answers = \"/data/answers.jsonl\"\n\
        [track]\nmlflow = \"https://models.example/v1/mlflow\"\nwebhook = \"https://models.example/v1/hook\"\n\
        webhook_secret_env = \"HOOK_KEY\"\n";
    const READ: &str = "[instructions]\nsource = \"/data/instructions.jsonl\"\n";
    const MADE: &str =
        "[synthesize]\nurl = \"https://models.example/v1/made\"\nmodel = \"m\"\napi_key_env = \"MADE_KEY\"\n";

    #[test]
    fn a_url_that_is_saved_holds_no_key() {
        for (key, line) in [
            ("output", "output = \"s3://AKIA:5ecret@bucket/out\"\n[corpus]\nsource = \"sample\"\n"),
            ("models.encoder", "[corpus]\nsource = \"sample\"\n[models]\nencoder = \"https://h/e?token=5ecret\"\n"),
            (
                "synthesize.url",
                "[corpus]\nsource = \"sample\"\n[synthesize]\nurl = \"https://h/v1?api-key=5ecret\"\nmodel = \"m\"\n[instruct]\n",
            ),
        ] {
            let file = crate::job::parse("job.toml", line).unwrap();
            let text = check_credentials(&file).unwrap_err().text;
            assert!(text.contains(key) && text.contains("; ") && !text.contains("5ecret"), "{text}");
        }
    }

    #[test]
    fn every_url_of_a_job_must_lie_below_a_root_and_no_key_is_the_workers_own() {
        let roots = Roots::of(&["/data".into(), "https://models.example/v1".into()]).unwrap();
        let check = |text: &str| check_roots(&crate::job::parse("job.toml", text).unwrap(), &roots);
        let jobs = [format!("{JOB}{READ}"), format!("{JOB}{MADE}")];
        let mut changed = 0;
        for job in &jobs {
            assert_eq!(check(job), Ok(()));
            for (good, bad, key) in [
                ("/data/out", "/etc", "output"),
                ("/data/en\"", "/etc/passwd\"", "corpus.source"),
                ("/data/km", "s3://elsewhere/km", "corpus.source"),
                ("/data/encoder", "/data/../root", "models.encoder"),
                ("/data/decoder", "https://models.example/other", "models.decoder"),
                ("/data/instructions.jsonl", "http://169.254.169.254/x", "instructions.source"),
                ("https://models.example/v1/judge", "http://models.example/v1", "evaluate.judge.url"),
                ("/data/answers.jsonl", "/root/answers.jsonl", "evaluate.judge.direct_answers"),
                ("https://models.example/v1/made", "https://attacker.example/v1", "synthesize.url"),
                ("JUDGE_KEY", "AWS_SECRET_ACCESS_KEY", "evaluate.judge.api_key_env"),
                ("MADE_KEY", "llink_token", "synthesize.api_key_env"),
                ("https://models.example/v1/mlflow", "http://10.0.0.1:5000", "track.mlflow"),
                ("https://models.example/v1/hook", "https://attacker.example", "track.webhook"),
                ("HOOK_KEY", "AZURE_KEY", "track.webhook_secret_env"),
            ] {
                if job.contains(good) {
                    changed += 1;
                    let failure = check(&job.replace(good, bad)).expect_err(key);
                    assert!(failure.text.contains(&format!("`{key}`")), "{key}: {}", failure.text);
                }
            }
        }
        assert_eq!(changed, 25, "11 of both jobs, 1 of the one and 2 of the other");
    }
}
