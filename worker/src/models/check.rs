//! Checks whether a model folder can be used, before anything is computed. The files may lie anywhere. It reads the
//! configuration, the tokenizer and the headers of the weight files, and reports all problems at once.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use llink_datasets::store::{ObjectInfo, Store};
use llink_proto::ModelRole;
use serde::Deserialize;
use serde_json::Value;

use super::config::{EncoderConfig, LlamaConfig};
use super::placeholder::placeholder;
use super::sentence::{FolderReading, ReadingWishes, dense_folders};
use super::tokenizer::Tokenizer;
use super::weights::{INDEX, todays_name, weight_names};
use super::{bert, json, llama, model_files};
use crate::{Error, Result};

/// The largest header of a weight file.
const LARGEST_HEADER: u64 = 100_000_000;

/// Returns all problems that keep the model in `store` from being used, each with what to do.
///
/// # Errors
/// Those of the store and of the disk.
pub async fn check(store: &Store, role: ModelRole, wishes: &ReadingWishes) -> Result<Vec<String>> {
    let objects = store.list("").await?;
    let names: BTreeSet<String> = objects.iter().map(|object| object.path.clone()).collect();
    if let Some(reason) = no_model_folder(&names) {
        return Ok(vec![reason]);
    }
    let folder = SmallFiles::of(store, &objects).await?;
    let dir = folder.path().to_owned();
    let wishes = wishes.clone();
    let checked = tokio::task::spawn_blocking(move || check_files(&dir, &names, role, &wishes));
    let (mut problems, weights) = checked.await.map_err(|e| Error::Input(format!("the check was interrupted: {e}")))?;
    let mut tensors = BTreeSet::new();
    for name in weights.files {
        let size = objects.iter().find(|object| object.path == name).map_or(0, |object| object.bytes);
        match header(store, &name, size).await? {
            Ok(header) => {
                problems.extend(header.unsupported(&name));
                tensors.extend(header.tensors.into_iter().map(|tensor| todays_name(&tensor.name)));
            }
            Err(reason) => problems.push(format!("{name} {reason}")),
        }
    }
    if problems.is_empty() {
        problems.extend(weights.expected.iter().filter_map(|expected| expected.missing_from(&tensors)));
    }
    Ok(problems.iter().map(|problem| folder.by_name(problem)).collect())
}

/// Describes a folder without a model at its top.
fn no_model_folder(names: &BTreeSet<String>) -> Option<String> {
    if names.is_empty() {
        return Some("there is no such folder, or nothing in it".into());
    }
    if names.contains("config.json") {
        return None;
    }
    let inner: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix("/config.json")).collect();
    if let Some(snapshot) = inner.iter().find(|folder| folder.starts_with("snapshots/")) {
        let snapshot: String = snapshot.split('/').take(2).collect::<Vec<_>>().join("/");
        return Some(format!("is a folder of the Hub's cache: the model itself is in {snapshot} within it"));
    }
    let models = inner.iter().filter(|folder| names.contains(&format!("{folder}/tokenizer.json")));
    let models: Vec<&str> = models.copied().collect();
    (!models.is_empty()).then(|| format!("holds no config.json; a model is in {} within it", models.join(", ")))
}

/// The weight files to check, and the tensors that one of them must have.
#[derive(Default)]
struct ExpectedWeights {
    files: Vec<String>,
    expected: Vec<ExpectedTensor>,
}

/// The names of a tensor, one of which must exist.
struct ExpectedTensor {
    names: Vec<String>,
}

impl ExpectedTensor {
    fn of(prefixes: &[&str], names: &[String]) -> Self {
        let names = names.iter().flat_map(|name| prefixes.iter().map(move |prefix| format!("{prefix}{name}")));
        Self { names: names.collect() }
    }

    fn missing_from(&self, tensors: &BTreeSet<String>) -> Option<String> {
        let there = self.names.iter().any(|name| tensors.contains(name));
        (!there).then(|| {
            let name = &self.names[0];
            format!(
                "the weights lack the tensor {name}, which config.json needs: they are incomplete or of another model"
            )
        })
    }
}

/// Checks the files below `dir`, among all `names` of the folder.
fn check_files(
    dir: &Path,
    names: &BTreeSet<String>,
    role: ModelRole,
    wishes: &ReadingWishes,
) -> (Vec<String>, ExpectedWeights) {
    let mut problems = Vec::new();
    let mut weights = ExpectedWeights::default();
    // Errors name their file with its folder, which is removed from the start of the message.
    let mut note = |error: Error| problems.push(error.to_string());
    let mut rows = None;
    match role {
        _ if !names.contains("config.json") => {
            note(Error::Input("config.json is missing: it says what the model is; download it with the weights".into()))
        }
        ModelRole::Decoder => match LlamaConfig::load(dir) {
            Ok(config) => {
                rows = Some(config.vocab_size);
                weights.expected =
                    llama::landmarks(&config).map(|names| ExpectedTensor::of(llama::PREFIXES, &names)).into();
            }
            Err(error) => note(error),
        },
        _ => match EncoderConfig::load(dir) {
            Ok(config) => {
                rows = Some(config.vocab_size);
                weights.expected =
                    bert::landmarks(&config).map(|names| ExpectedTensor::of(bert::PREFIXES, &names)).into();
            }
            Err(error) => note(error),
        },
    }
    if names.contains("tokenizer.json") {
        let rows = rows.unwrap_or(usize::MAX);
        let loaded = Tokenizer::load(dir).and_then(|tokenizer| match role {
            ModelRole::Decoder => model_files::check_folder(dir, tokenizer, rows),
            _ => tokenizer.for_rows(rows).map(|_| ()),
        });
        loaded.unwrap_or_else(&mut note);
    } else {
        note(Error::Input(without_tokenizer(names)));
    }
    let mut folders = vec![String::new()];
    if role == ModelRole::Encoder {
        match FolderReading::of(dir, wishes).and_then(|_| dense_folders(dir)) {
            Ok(dense) => folders.extend(dense.iter().filter_map(|folder| below(dir, folder))),
            Err(error) => note(error),
        }
    }
    for folder in folders {
        let own: BTreeSet<String> =
            names.iter().filter_map(|name| name.strip_prefix(&folder)).map(str::to_owned).collect();
        match weight_names(&own, || json::read(&dir.join(&folder).join(INDEX))) {
            Ok(Ok(found)) => weights.files.extend(found.iter().map(|name| format!("{folder}{name}"))),
            Ok(Err(reasons)) => {
                let place = folder.strip_suffix('/').map_or_else(String::new, |name| format!("{name}: "));
                for reason in reasons {
                    note(Error::Input(format!("{place}{reason}")));
                }
            }
            Err(error) => note(error),
        }
    }
    (problems, weights)
}

/// Returns the prefix of the file names in a folder within `dir`.
fn below(dir: &Path, folder: &Path) -> Option<String> {
    let name = folder.strip_prefix(dir).ok()?;
    Some(format!("{}/", name.to_str()?))
}

fn without_tokenizer(names: &BTreeSet<String>) -> String {
    let other = ["tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json"]
        .into_iter()
        .find(|name| names.contains(*name));
    match other {
        Some(other) => format!(
            "tokenizer.json is missing and {other} alone is not read: make it once with Python: `from transformers import \
             AutoTokenizer`, then `AutoTokenizer.from_pretrained(\"FOLDER\").save_pretrained(\"FOLDER\")`"
        ),
        None => "tokenizer.json is missing: download it with the weights".into(),
    }
}

/// The files of a model that are read as a whole: in their place, or as copies.
enum SmallFiles {
    Here(PathBuf),
    Copied { copies: tempfile::TempDir, url: String },
}

impl SmallFiles {
    async fn of(store: &Store, objects: &[ObjectInfo]) -> Result<Self> {
        if let Some(dir) = store.local_path("") {
            return Ok(Self::Here(dir));
        }
        let failed = |path: &Path, source| Error::Io { path: path.display().to_string(), source };
        let copies = tempfile::tempdir().map_err(|e| failed(&std::env::temp_dir(), e))?;
        let wanted =
            |object: &&ObjectInfo| super::fetch::belongs(&object.path) && !object.path.ends_with(".safetensors");
        for object in objects.iter().filter(wanted) {
            let path = copies.path().join(&object.path);
            let parent = path.parent().unwrap_or(&path);
            std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
            let content = store.get(&object.path).await?;
            std::fs::write(&path, content).map_err(|e| failed(&path, e))?;
        }
        let url = store.url().to_owned();
        Ok(Self::Copied { copies, url })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Here(dir) => dir,
            Self::Copied { copies, .. } => copies.path(),
        }
    }

    /// Returns a problem's text with the file names of the folder.
    fn by_name(&self, problem: &str) -> String {
        let text = match self {
            Self::Here(_) => problem.to_owned(),
            Self::Copied { copies, url } => problem.replace(&copies.path().display().to_string(), url),
        };
        let folder = match self {
            Self::Here(dir) => dir.display().to_string(),
            Self::Copied { url, .. } => url.clone(),
        };
        text.replace(&format!("{}/", folder.trim_end_matches('/')), "")
    }
}

/// The tensors that a weight file's header lists.
struct Header {
    tensors: Vec<HeaderTensor>,
}

struct HeaderTensor {
    name: String,
    dtype: String,
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    data_offsets: [u64; 2],
}

impl Header {
    /// Describes tensors with number formats that are not supported.
    fn unsupported(&self, file: &str) -> Option<String> {
        let known = |tensor: &&HeaderTensor| {
            // Position ids are integers, and nothing reads them.
            ["F32", "F16", "BF16"].contains(&tensor.dtype.as_str()) || tensor.name.ends_with("position_ids")
        };
        let (fine, other): (Vec<_>, Vec<_>) = self.tensors.iter().partition(known);
        let first = other.first()?;
        Some(format!(
            "{file} has {} tensors that are not F32, F16 or BF16 ({} is {}), beside {} that are: quantized weights are not \
             read; take the model that this one was made from",
            other.len(),
            first.name,
            first.dtype,
            fine.len()
        ))
    }
}

/// Reads the header of a safetensors file of `size` bytes. The inner error says why it has none.
async fn header(store: &Store, name: &str, size: u64) -> Result<std::result::Result<Header, String>> {
    let start = match size {
        0 => Default::default(),
        size => store.get_range(name, 0..size.min(512)).await?,
    };
    if let Some(reason) = placeholder(&start) {
        return Ok(Err(reason));
    }
    let damaged = |what: String| Ok(Err(format!("{what}: download or copy it again")));
    let Some(length) = start.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return damaged(format!("has {size} bytes and is not a safetensors file"));
    };
    if length > LARGEST_HEADER {
        return damaged("is not a safetensors file".into());
    }
    if 8 + length > size {
        return damaged(format!("is cut off: it has {size} bytes, but its header alone needs {}", 8 + length));
    }
    let text = store.get_range(name, 8..8 + length).await?;
    let Ok(Value::Object(mut entries)) = serde_json::from_slice(&text) else {
        return damaged("is not a safetensors file".into());
    };
    entries.remove("__metadata__");
    let mut tensors = Vec::with_capacity(entries.len());
    let mut end = 0;
    for (tensor, value) in entries {
        let Ok(raw) = RawTensor::deserialize(value) else {
            return damaged(format!("has a header that does not give the place of {tensor}"));
        };
        end = end.max(raw.data_offsets[1]);
        tensors.push(HeaderTensor { name: tensor, dtype: raw.dtype });
    }
    let whole = 8 + length + end;
    if size < whole {
        return damaged(format!("is cut off: it has {size} of {whole} bytes"));
    }
    Ok(Ok(Header { tensors }))
}
