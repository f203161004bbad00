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
    let (dir, wishes) = (folder.dir.clone(), wishes.clone());
    let checked = tokio::task::spawn_blocking(move || check_files(&dir, &names, role, &wishes));
    let (mut problems, weights) = checked.await.map_err(|e| Error::Input(format!("the check was interrupted: {e}")))?;
    let mut tensors = BTreeSet::new();
    for name in weights.files {
        let size = objects.iter().find(|object| object.path == name).map_or(0, |object| object.bytes);
        match header(store, &name, size).await? {
            Ok(header) => {
                problems.extend(unsupported(&name, &header));
                tensors.extend(header.iter().map(|(tensor, _)| todays_name(tensor)));
            }
            Err(reason) => problems.push(format!("{name} {reason}")),
        }
    }
    if problems.is_empty() {
        let lacking = weights.tensors.iter().filter(|names| !names.iter().any(|name| tensors.contains(name)));
        problems.extend(lacking.map(|names| {
            let name = &names[0];
            format!(
                "the weights lack the tensor {name}, which config.json needs: they are incomplete or of another model"
            )
        }));
    }
    Ok(problems.iter().map(|problem| folder.by_name(problem)).collect())
}

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

/// The weight files to check, and the names of tensors, of which one of each list must exist.
#[derive(Default)]
struct ExpectedWeights {
    files: Vec<String>,
    tensors: Vec<Vec<String>>,
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
    let shape = match role {
        _ if !names.contains("config.json") => {
            Err(Error::Input("config.json is missing: it says what the model is; download it with the weights".into()))
        }
        ModelRole::Decoder => LlamaConfig::load(dir).map(|config| (config.vocab_size, llama::landmarks(&config))),
        _ => EncoderConfig::load(dir).map(|config| (config.vocab_size, bert::landmarks(&config))),
    };
    let mut rows = usize::MAX;
    match shape {
        Ok((vocab_size, tensors)) => (rows, weights.tensors) = (vocab_size, tensors.into()),
        Err(error) => note(error),
    }
    if names.contains("tokenizer.json") {
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
            Ok(dense) => {
                let names = dense.iter().filter_map(|folder| folder.strip_prefix(dir).ok()?.to_str());
                folders.extend(names.map(|name| format!("{name}/")));
            }
            Err(error) => note(error),
        }
    }
    for folder in folders {
        let own: BTreeSet<String> =
            names.iter().filter_map(|name| name.strip_prefix(&folder)).map(str::to_owned).collect();
        match weight_names(&own, || json::read(&dir.join(&folder).join(INDEX))) {
            Ok(Ok(found)) => weights.files.extend(found.iter().map(|name| format!("{folder}{name}"))),
            Ok(Err(reason)) => {
                let place = folder.strip_suffix('/').map_or_else(String::new, |name| format!("{name}: "));
                note(Error::Input(format!("{place}{reason}")));
            }
            Err(error) => note(error),
        }
    }
    (problems, weights)
}

fn without_tokenizer(names: &BTreeSet<String>) -> String {
    let others = ["tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "vocab.json"];
    match others.iter().find(|name| names.contains(**name)) {
        Some(other) => format!(
            "tokenizer.json is missing and {other} alone is not read: make it once with Python: `from transformers import \
             AutoTokenizer`, then `AutoTokenizer.from_pretrained(\"FOLDER\").save_pretrained(\"FOLDER\")`"
        ),
        None => "tokenizer.json is missing: download it with the weights".into(),
    }
}

/// The files of a model that are read as a whole: in their place, or as copies.
struct SmallFiles {
    dir: PathBuf,
    /// The place of the files in problems.
    shown: String,
    _copies: Option<tempfile::TempDir>,
}

impl SmallFiles {
    async fn of(store: &Store, objects: &[ObjectInfo]) -> Result<Self> {
        if let Some(dir) = store.local_path("") {
            return Ok(Self { shown: dir.display().to_string(), dir, _copies: None });
        }
        let copies = tempfile::tempdir().map_err(Error::io(&std::env::temp_dir()))?;
        let wanted =
            |object: &&ObjectInfo| super::fetch::belongs(&object.path) && !object.path.ends_with(".safetensors");
        for object in objects.iter().filter(wanted) {
            let content = store.get(&object.path).await?;
            super::fetch::write_below(copies.path(), &object.path, &content)?;
        }
        Ok(Self { dir: copies.path().into(), shown: store.url().to_owned(), _copies: Some(copies) })
    }

    /// Returns a problem's text with the file names of the folder.
    fn by_name(&self, problem: &str) -> String {
        let text = problem.replace(&self.dir.display().to_string(), &self.shown);
        text.replace(&format!("{}/", self.shown.trim_end_matches('/')), "")
    }
}

/// The name and the number format of each tensor that a weight file's header lists.
type Header = Vec<(String, String)>;

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    data_offsets: [u64; 2],
}

fn unsupported(file: &str, header: &Header) -> Option<String> {
    // Position ids are integers, and nothing reads them.
    let known = |(name, dtype): &&(String, String)| {
        ["F32", "F16", "BF16"].contains(&dtype.as_str()) || name.ends_with("position_ids")
    };
    let (fine, other): (Vec<_>, Vec<_>) = header.iter().partition(known);
    let (name, dtype) = other.first()?;
    Some(format!(
        "{file} has {} tensors that are not F32, F16 or BF16 ({name} is {dtype}), beside {} that are: quantized weights are not \
         read; take the model that this one was made from",
        other.len(),
        fine.len()
    ))
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
        tensors.push((tensor, raw.dtype));
    }
    let whole = 8 + length + end;
    if size < whole {
        return damaged(format!("is cut off: it has {size} of {whole} bytes"));
    }
    Ok(Ok(tensors))
}
