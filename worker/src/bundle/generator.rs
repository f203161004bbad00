//! A bundle with its models. A sentence is read once and may then be asked about any number of times.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::{DType, Device};
use half::f16;
use half::slice::HalfFloatSliceExt;
use llink_datasets::numbers::Scanner;
use llink_datasets::text::{Splitter, ZeroWidth, clean_line};
use tokio::runtime::Handle;

use super::config::PromptEntry;
use super::folder::BundleFolder;
use super::parts::Bundle;
use super::sources::{Wanted, find};
use super::vectors::VectorCache;
use crate::device::{Arithmetic, Compute, DeviceChoice};
use crate::models::{Backend, Decoder, Encoder, LoadedAdapter, PromptForm, Sampling, TextLimits};
use crate::{Error, Result};

/// The most tokens that go through the encoder at once.
const TOKEN_BUDGET: usize = 4_096;

/// The locations of the models and of the caches.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The encoder's location, if it differs from the bundle's.
    pub encoder: Option<String>,
    /// The decoder's location, if it differs from the bundle's.
    pub decoder: Option<String>,
    /// The folder of cached sentence vectors; `None` keeps none on disk.
    pub vectors: Option<PathBuf>,
    /// The folder of models from object stores.
    pub downloads: PathBuf,
    /// The number format of the decoder's products.
    pub compute: Arithmetic,
}

/// The settings of an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Answering {
    /// The most tokens in an answer.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
}

/// A text that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Sentence {
    pub(super) text: String,
    /// The slots, [K, width] for the text or for each of its sentences; none when the prompt holds the text itself.
    pub(super) slots: Option<Vec<f32>>,
    /// Number of characters beyond the encoder's limit, which were not read.
    pub unread_chars: usize,
}

/// A bundle with its models.
pub struct Generator {
    pub(super) bundle: Bundle,
    key: String,
    url: String,
    pub(super) prompt: PromptEntry,
    /// Finds the numbers that stand behind the slots, if any do.
    pub(super) numbers: Option<Scanner>,
    pub(super) decoder: Decoder,
    pub(super) adapter: LoadedAdapter,
    /// The encoder, loaded at the first sentence that is not in the cache.
    encoder: Option<Encoder>,
    vectors: VectorCache,
    /// The number of windows of a text or of a sentence that the slots read.
    windows: usize,
    /// Splits a text into sentences, if it is split.
    splitter: Option<Splitter>,
    opening: Opening,
    runtime: Handle,
}

impl Generator {
    /// Loads a bundle, its adapter and its decoder. Do not call it on a thread of the runtime.
    ///
    /// # Errors
    /// [`Error::Model`] for a bundle that is incomplete, has no Stage B, or whose decoder is missing or differs; those of the store.
    pub fn open(url: &str, opening: Opening, runtime: &Handle) -> Result<Self> {
        let folder = BundleFolder::open(url, runtime)?;
        let bundle = Bundle::read(&folder)?;
        let refuse = |reason: &str| Error::model(folder.describe(super::config::CONFIG), reason);
        let Some(prompt) = bundle.config.prompt.clone() else {
            return Err(refuse(
                "the bundle holds only a projector: the job that exported it has no [instruct], so it cannot answer",
            ));
        };
        let place = if bundle.expander.is_some() { "{slots}" } else { "{text}" };
        let form = PromptForm::parse(&prompt.form, place).ok_or_else(|| {
            refuse("`prompt.form` does not hold `{instruction}`, then the slots or the text, once each")
        })?;
        let numbers = prompt.numbers.as_ref().map(Scanner::new).transpose().map_err(|fault| refuse(&fault))?;
        let slots = bundle.config.slots.as_ref();
        let windows = slots.map_or(0, |slots| slots.windows);
        let splitter = slots.and_then(|slots| slots.sentences.as_ref()).map(Splitter::by).transpose();
        let splitter = splitter.map_err(|fault| refuse(&fault))?;
        let entry = &bundle.config.decoder;
        let wanted =
            Wanted { role: "decoder", name: &entry.name, source: &entry.source, fingerprint: &entry.fingerprint };
        let place = find(wanted, opening.decoder.as_deref(), &folder.url(), &opening.downloads, runtime)?;
        let compute = Compute::open(DeviceChoice::Cpu, opening.compute)?;
        let mut decoder = Decoder::load(&place, &compute.device, compute.dtype)?;
        decoder.set_prompt_form(form);
        let adapter = bundle.adapter(decoder.config())?;
        Ok(Self {
            key: folder.key().into(),
            url: folder.url(),
            adapter: LoadedAdapter::new(&adapter, decoder.model())?,
            vectors: VectorCache::new(opening.vectors.clone(), &bundle.config.encoder, windows),
            windows,
            splitter,
            prompt,
            numbers,
            decoder,
            bundle,
            encoder: None,
            opening,
            runtime: runtime.clone(),
        })
    }

    fn limits(&self) -> TextLimits {
        TextLimits {
            max_chars: self.bundle.config.encoder.max_chars,
            max_tokens: self.bundle.config.encoder.max_tokens,
        }
    }

    /// Returns the part of a clean line in which numbers are found.
    pub(super) fn seen<'a>(&self, line: &'a str) -> &'a str {
        if self.splitter.is_some() { line } else { self.limits().cut(line) }
    }

    /// Returns the sentences of a clean line, each cut to what the encoder reads, and the number of characters that were cut.
    fn sentences<'a>(&self, line: &'a str) -> (Vec<&'a str>, usize) {
        let whole = self.splitter.as_ref().map_or_else(|| vec![line], |splitter| splitter.split(line));
        let cut: Vec<&str> = whole.iter().map(|sentence| self.limits().cut(sentence)).collect();
        let unread = whole.iter().zip(&cut).map(|(whole, cut)| whole[cut.len()..].chars().count()).sum();
        (cut, unread)
    }

    pub(super) fn slot_count(&self, sentence: &Sentence) -> usize {
        sentence.slots.as_ref().map_or(0, Vec::len) / self.bundle.config.decoder.hidden_size
    }

    /// Returns the key that identifies the bundle.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the most frequent instruction of each task in training.
    pub fn instructions(&self) -> &BTreeMap<String, String> {
        &self.prompt.instructions
    }

    /// Returns the most frequent instruction of a task in training.
    ///
    /// # Errors
    /// [`Error::Input`] naming the tasks there are.
    pub fn instruction(&self, task: &str) -> Result<&str> {
        let known = &self.prompt.instructions;
        known.get(task).map(String::as_str).ok_or_else(|| {
            let tasks: Vec<&str> = known.keys().map(String::as_str).collect();
            Error::Input(format!(
                "the bundle was not trained on a task {task:?}: it knows {}. Any other instruction can be given as it is",
                tasks.join(", ")
            ))
        })
    }

    /// Reads texts, or takes their vectors from the cache. Each text is cleaned to one line, as in training.
    ///
    /// # Errors
    /// [`Error::Input`] for a text without visible characters; when the encoder is missing, differs or fails.
    pub fn read(&mut self, texts: &[&str]) -> Result<Vec<Sentence>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let lines: Vec<String> = texts.iter().map(|text| clean_line(text, ZeroWidth::Keep)).collect();
        if let Some(at) = lines.iter().position(String::is_empty) {
            return Err(Error::Input(format!("text {} has nothing to read in it", at + 1)));
        }
        let Some(expander) = &self.bundle.expander else {
            let sentence = |text| Sentence { text, slots: None, unread_chars: 0 };
            return Ok(lines.into_iter().map(sentence).collect());
        };
        let limits = self.limits();
        let read: Vec<(Vec<&str>, usize)> = lines.iter().map(|line| self.sentences(line)).collect();
        let seen: Vec<&str> = read.iter().flat_map(|(sentences, _)| sentences).copied().collect();
        let mut known: Vec<Option<Vec<f16>>> = seen.iter().map(|text| self.vectors.get(text)).collect();
        let unknown: Vec<usize> = (0..seen.len()).filter(|at| known[*at].is_none()).collect();
        if !unknown.is_empty() {
            if self.encoder.is_none() {
                self.encoder = Some(load_encoder(&self.bundle, &self.url, &self.opening, &self.runtime)?);
            }
            let new: Vec<&str> = unknown.iter().map(|at| seen[*at]).collect();
            let encoder = self.encoder.as_ref().expect("it was loaded just now");
            let ids = encoder.tokenize(&new, limits)?;
            let vectors = encoder.embed_windows(&ids, self.windows, TOKEN_BUDGET, &mut |_| {})?;
            for (at, vector) in unknown.into_iter().zip(vectors) {
                // The vector is rounded as it was for the projector in training.
                let vector: Vec<f16> = vector.into_iter().map(f16::from_f32).collect();
                self.vectors.put(seen[at], &vector);
                known[at] = Some(vector);
            }
        }
        let vectors = known.into_iter().flatten().flatten().collect::<Vec<f16>>();
        let mut wide = vec![0.0; vectors.len()];
        vectors.convert_to_f32_slice(&mut wide);
        let slots = expander.expand(&self.bundle.projector.project(&wide)?, self.windows)?;
        let shape = expander.shape();
        let mut left = slots.chunks_exact(shape.slots * shape.width);
        let sentence = |(text, (sentences, unread_chars)): (&String, (Vec<&str>, usize))| Sentence {
            text: text.clone(),
            slots: Some(left.by_ref().take(sentences.len()).flatten().copied().collect()),
            unread_chars,
        };
        Ok(lines.iter().zip(read).map(sentence).collect())
    }
}

fn load_encoder(bundle: &Bundle, url: &str, opening: &Opening, runtime: &Handle) -> Result<Encoder> {
    let entry = &bundle.config.encoder;
    let wanted = Wanted { role: "encoder", name: &entry.name, source: &entry.source, fingerprint: &entry.fingerprint };
    let folder = find(wanted, opening.encoder.as_deref(), url, &opening.downloads, runtime)?;
    Encoder::load_as(&folder, &entry.reading, &Backend::new(&Device::Cpu, DType::F32))
}
