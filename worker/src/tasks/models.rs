//! Models: the `models` stage makes or fingerprints them, and other tasks find and load them.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use llink_datasets::pairs::{PairTable, read_pairs};
use llink_datasets::role::{Model, Role};
use llink_proto::{EncoderReading, ModelRef, ModelRole, PrepareModel, TaskResult};

use super::{OpenContext, TaskContext};
use crate::control::lock;
use crate::models::{Backend, Decoder, Encoder, FolderReading, Pooling, Reading, ReadingWishes, fingerprint};
use crate::{Error, Result};

/// The most texts on which a random model's tokenizer is trained; more change little and take time.
const TOKENIZER_TEXTS: usize = 20_000;

/// The sources of models that the program makes itself: shipped ones, and random ones with tokenizers made from the job's text.
const BUILT_IN: [&str; 2] = ["tiny", "random"];

/// The model of the last task, so that the next one need not load it again.
#[derive(Default)]
pub struct ModelCache {
    encoder: Mutex<Option<(String, Arc<Encoder>)>>,
    decoder: Mutex<Option<(String, Arc<Decoder>)>>,
}

impl ModelCache {
    /// Returns the encoder of `model`, and loads it unless it is in memory.
    pub(super) fn encoder(&self, context: &TaskContext, model: &ModelRef) -> Result<Arc<Encoder>> {
        let reading = reading_of(model)?;
        let key = format!("{} {reading:?}", model.fingerprint);
        cached(&self.encoder, &key, || {
            let backend = Backend::new(&context.compute.device, context.compute.dtype);
            Encoder::load_as(&folder(context, model)?, &reading, &backend)
        })
    }

    /// Returns the decoder of `model`, and loads it unless it is in memory.
    pub(super) fn decoder(&self, context: &TaskContext, model: &ModelRef) -> Result<Arc<Decoder>> {
        cached(&self.decoder, &model.fingerprint, || {
            Decoder::load(&folder(context, model)?, &context.compute.device, context.compute.dtype)
        })
    }
}

fn cached<M>(slot: &Mutex<Option<(String, Arc<M>)>>, key: &str, load: impl FnOnce() -> Result<M>) -> Result<Arc<M>> {
    let mut slot = lock(slot);
    if let Some((of, loaded)) = &*slot
        && of == key
    {
        return Ok(loaded.clone());
    }
    // The old model is dropped first, because two large models may not fit at once.
    *slot = None;
    let loaded = Arc::new(load()?);
    *slot = Some((key.to_owned(), loaded.clone()));
    Ok(loaded)
}

/// Returns the encoder's reading settings.
pub(super) fn reading_of(model: &ModelRef) -> Result<Reading> {
    let EncoderReading { pooling, normalize, prefix, lowercase } =
        model.reading.clone().ok_or_else(|| Error::Input(format!("{}: an encoder without a reading", model.url)))?;
    Ok(Reading { pooling: Pooling::of(&pooling)?, normalize, prefix, lowercase })
}

fn to_message(reading: &Reading) -> EncoderReading {
    EncoderReading {
        pooling: reading.pooling.as_str().into(),
        normalize: reading.normalize,
        prefix: reading.prefix.clone(),
        lowercase: reading.lowercase,
    }
}

/// Returns the model's folder, or its GGUF file, on this machine. A model in an object store is fetched once and kept
/// under its fingerprint. A model of the Hub is kept in the Hub's cache.
pub(super) fn folder(context: &TaskContext, model: &ModelRef) -> Result<PathBuf> {
    let place = context.place_of(model)?;
    let target = kept_models().join(&model.fingerprint);
    place.fetch(&target, &context.runtime, &|| context.control.check())
}

/// Returns the folder of models from object stores on this machine.
fn kept_models() -> PathBuf {
    std::env::temp_dir().join("llink-models")
}

/// Computes the fingerprint of an unknown model. A model in an object store is downloaded to a temporary folder, and
/// moved when its fingerprint is known.
fn identify(context: &TaskContext, url: &str) -> Result<String> {
    let place = context.place(url)?;
    if let Some(found) = place.in_place(&context.runtime, &|| context.control.check())? {
        return fingerprint(&found);
    }
    let failed = |source| Error::Io { path: kept_models().display().to_string(), source };
    std::fs::create_dir_all(kept_models()).map_err(failed)?;
    let unknown = tempfile::tempdir_in(kept_models()).map_err(failed)?;
    let folder = unknown.path().join("model");
    let fetched = place.fetch(&folder, &context.runtime, &|| context.control.check())?;
    let print = fingerprint(&fetched)?;
    let kept = kept_models().join(&print);
    // If the model is already kept, that copy is used.
    match std::fs::rename(&folder, &kept) {
        Err(source) if !kept.is_dir() => Err(failed(source)),
        _ => Ok(print),
    }
}

pub(super) fn prepare(context: &TaskContext, task: &PrepareModel) -> Result<TaskResult> {
    let role = match task.role() {
        ModelRole::Encoder => Model::Encoder,
        ModelRole::Decoder => Model::Decoder,
        ModelRole::Unspecified => return Err(Error::Input("a model without a role".into())),
    };
    let (mut result, url) = match BUILT_IN.contains(&task.source.as_str()) {
        true => (make(context, task, role)?, context.opened()?.store.describe(&task.path)),
        false => (TaskResult::default(), task.source.clone()),
    };
    let print = identify(context, &url)?;
    let mut checked = ModelRef { role: task.role, url: url.clone(), fingerprint: print.clone(), reading: None };
    // Loading the model here refuses an unusable one before half a corpus is embedded.
    let width = match task.role() {
        ModelRole::Encoder => {
            let found = FolderReading::of(&folder(context, &checked)?, &wishes(task)?)?;
            checked.reading = Some(to_message(&found.reading));
            let encoder = context.models.encoder(context, &checked)?;
            let positions = encoder.config().max_tokens();
            let most = found.max_tokens.map_or(positions, |most| most.min(positions));
            result.facts.extend(reading_facts(&found, most));
            encoder.width()
        }
        _ => {
            let decoder = context.models.decoder(context, &checked)?;
            let layers = decoder.config().num_hidden_layers.to_string();
            result.facts.insert(format!("{role}.layers"), layers);
            decoder.hidden_size()
        }
    };
    context.control.advance(1, 1);
    result.facts.insert(format!("{role}.fingerprint"), print);
    result.facts.insert(format!("{role}.url"), url);
    result.facts.insert(format!("{role}.width"), width.to_string());
    Ok(result)
}

fn wishes(task: &PrepareModel) -> Result<ReadingWishes> {
    Ok(ReadingWishes {
        pooling: task.pooling.as_deref().map(Pooling::of).transpose()?,
        normalize: task.normalize,
        prefix: task.prefix.clone(),
    })
}

/// Returns the facts for later stages about an encoder that reads this many tokens.
fn reading_facts(found: &FolderReading, max_tokens: usize) -> impl Iterator<Item = (String, String)> {
    let reading = &found.reading;
    let dense = found.dense.iter().filter_map(|folder| folder.file_name());
    let dense: Vec<_> = dense.map(|name| name.to_string_lossy()).collect();
    [
        ("dense", serde_json::to_string(&dense).expect("names are plain data")),
        ("max_tokens", max_tokens.to_string()),
        ("pooling", reading.pooling.as_str().to_owned()),
        ("normalize", reading.normalize.to_string()),
        ("prefix", reading.prefix.clone()),
        ("lowercase", reading.lowercase.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (format!("encoder.{name}"), value))
}

/// Makes one of llink's own models and writes it to the store.
fn make(context: &TaskContext, task: &PrepareModel, role: Model) -> Result<TaskResult> {
    let (context, built_in) = (&context.opened()?, context.built_in(&task.source)?);
    let texts = training_texts(context, task)?;
    let files = match task.role() {
        ModelRole::Encoder => built_in.encoder(&task.source, texts, task.seed)?,
        _ => built_in.decoder(&task.source, texts, task.seed)?,
    };
    let mut result = TaskResult::default();
    for (name, content) in files {
        let path = format!("{}/{name}", task.path);
        result.artifacts.push(context.write(&path, Role::Model(role), 0, content)?);
    }
    Ok(result)
}

/// Returns the training texts of a random model's tokenizer. The encoder's reads both sides, as XLM-R read many
/// languages. The decoder's reads English only, so that it splits the other language into many tokens.
fn training_texts(context: &OpenContext<'_>, task: &PrepareModel) -> Result<Vec<String>> {
    let mut texts = Vec::with_capacity(TOKENIZER_TEXTS);
    for path in &task.text_shards {
        context.control.check()?;
        let content = context.wait(context.store.get(path))?;
        let PairTable { english, foreign, .. } = read_pairs(&context.store.describe(path), content)?;
        for (english, foreign) in english.into_iter().zip(foreign) {
            texts.push(english);
            if task.role() == ModelRole::Encoder {
                texts.push(foreign);
            }
            if texts.len() >= TOKENIZER_TEXTS {
                return Ok(texts);
            }
        }
    }
    Ok(texts)
}
