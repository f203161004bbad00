//! Embeds one shard with one model and caches the vectors in f16. Tokenizing, computing and rounding overlap. Reading
//! and writing overlap with the computation of another shard, because a worker holds the next shard meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use half::f16;
use llink_datasets::pairs::{Language, read_texts};
use llink_datasets::role::{Corpus, Role};
use llink_datasets::text::Splitter;
use llink_datasets::vectors::{VectorTable, write_vectors};
use llink_proto::settings::{EmbedSettings, PooledTeacher, Teacher};
use llink_proto::{Artifact, EmbedShard, ModelRef, ModelRole, TaskResult};

use super::overlap::overlapped;
use super::turn::Busy;
use super::{TaskContext, given, training};
use crate::models::{Decoder, Encoder, TeacherLayer, TextLimits};
use crate::{Error, Result};

/// Sentences that are embedded together. Batches are sorted by length within a chunk, and the order to stop is checked
/// between chunks.
const CHUNK: usize = 4_096;
/// The chunk size on a GPU, which takes larger batches and sorts more sentences.
const CHUNK_ON_DEVICE: usize = 16_384;

pub(super) fn run(context: &TaskContext, task: &EmbedShard) -> Result<TaskResult> {
    let began = Instant::now();
    let model = given(&task.model, "an embed task without its model")?;
    let shard = given(&task.shard, "an embed task without its shard")?;
    let context = &context.opened()?;
    let content = context.read(shard)?;
    let language = match (model.role(), Role::from(shard.role.as_str())) {
        (ModelRole::Encoder, _) if task.english => Language::English,
        (ModelRole::Encoder, _) => Language::Foreign,
        (_, Role::Shard(Corpus::Instructions, _)) => Language::EnglishRef,
        _ => Language::English,
    };
    let mut table = read_texts(&context.describe(shard), content, language)?;
    if let Some(rows) = task.rows {
        table.truncate(rows as usize);
    }
    if task.sentences > 0 {
        table = table.by_sentence(&Splitter::new(task.sentences as usize));
    }
    let settings: EmbedSettings = training::settings(&task.settings)?;
    let reader = Reader::of(context, &settings, model, task.windows)?;
    let pass = Pass {
        reader: &reader,
        url: &model.url,
        name: format!("{} {} {}", context.output_url, task.role, model.fingerprint),
        budget: settings.token_budget as usize,
        began,
    };
    let (values, busy) = vectors(context, &pass, &table.ids, &table.texts)?;
    let rows = table.ids.len() as u64;
    let vectors = VectorTable { ids: table.ids, width: reader.width(), values };
    let metadata = BTreeMap::from([
        ("llink.model_fingerprint".to_owned(), model.fingerprint.clone()),
        ("llink.shard_sha256".to_owned(), shard.sha256.clone()),
        ("llink.role".to_owned(), task.role.clone()),
    ]);
    let content = write_vectors(&vectors, &metadata)?;
    let artifact = Artifact { metadata, ..context.write(&task.path, task.role.as_str(), rows, content)? };
    tracing::info!(
        role = task.role,
        rows,
        seconds = busy.total.as_secs_f64(),
        idle = (busy.idle_share() * 1e4).round() / 1e4,
        "embedded on {}",
        context.compute.name
    );
    Ok(TaskResult { artifacts: vec![artifact], ..TaskResult::default() })
}

/// A model with its pooling.
enum Reader {
    /// The encoder, the limits of a text, and the number of its windows.
    Encoder(Arc<Encoder>, TextLimits, usize),
    /// The decoder's last state at the slot token.
    Slot(Arc<Decoder>),
    /// The mean of a layer of the decoder.
    Pooled(Arc<Decoder>, TeacherLayer),
}

impl Reader {
    fn of(context: &TaskContext, settings: &EmbedSettings, model: &ModelRef, windows: u32) -> Result<Self> {
        let limits = TextLimits { max_chars: settings.max_chars as usize, max_tokens: settings.max_tokens as usize };
        Ok(match model.role() {
            ModelRole::Encoder => Self::Encoder(context.models.encoder(context, model)?, limits, windows as usize),
            _ => {
                let decoder = context.models.decoder(context, model)?;
                match settings.teacher {
                    Teacher::Slot => Self::Slot(decoder),
                    Teacher::Pooled(PooledTeacher { layer, .. }) => Self::Pooled(decoder, layer),
                }
            }
        })
    }

    fn width(&self) -> usize {
        match self {
            Self::Encoder(encoder, _, windows) => (1 + windows) * encoder.width(),
            Self::Slot(decoder) | Self::Pooled(decoder, _) => decoder.hidden_size(),
        }
    }

    fn tokenize(&self, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        match self {
            Self::Encoder(encoder, limits, _) => encoder.tokenize(texts, *limits),
            Self::Slot(decoder) => decoder.tokenize_teacher(texts),
            Self::Pooled(decoder, _) => decoder.tokenize_sentences(texts),
        }
    }

    fn embed(&self, ids: &[Vec<u32>], budget: usize, progress: &mut dyn FnMut(u64)) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Encoder(encoder, _, windows) => encoder.embed_windows(ids, *windows, budget, progress),
            Self::Slot(decoder) => decoder.last_hidden(ids, budget, progress),
            Self::Pooled(decoder, layer) => decoder.pooled(ids, *layer, budget, progress),
        }
    }
}

/// The state that the shards of one pass share, and the start time of this one.
struct Pass<'a> {
    reader: &'a Reader,
    url: &'a str,
    name: String,
    /// The number of tokens in a batch.
    budget: usize,
    began: Instant,
}

/// Returns a vector for each text in f16, concatenated, and how busy the device was.
fn vectors(context: &TaskContext, pass: &Pass<'_>, ids: &[u64], texts: &[String]) -> Result<(Vec<f16>, Busy)> {
    let reader = pass.reader;
    let chunk = if context.compute.device.is_cpu() { CHUNK } else { CHUNK_ON_DEVICE };
    let tokenized = Tokenized::default();
    let mut done = 0;
    let mut values = Vec::with_capacity(texts.len() * reader.width());
    let mut left = ids.iter();
    let mut chunks = texts.len().div_ceil(chunk);
    let (mut turn, mut busy, mut computes_since) = (None, Busy::default(), pass.began);
    overlapped(
        texts.chunks(chunk),
        |texts| {
            let ids = reader.tokenize(texts)?;
            tokenized.add(&ids);
            Ok(ids)
        },
        |ids| {
            context.control.check()?;
            if turn.is_none() {
                let taken = context.turns.take(&pass.name, pass.began, || context.control.check())?;
                computes_since = Instant::now() - taken.idle;
                turn = Some(taken);
            }
            let before = done;
            let started = Instant::now();
            let vectors = reader.embed(&ids, pass.budget, &mut |tokens| {
                done = before + tokens;
                context.control.advance(done, tokenized.total(texts.len()));
            })?;
            busy.computing += started.elapsed();
            busy.total = computes_since.elapsed();
            context.control.show([("idle_share", busy.idle_share())]);
            chunks -= 1;
            if chunks == 0 {
                // The next shard computes while this one is written.
                turn = None;
            }
            Ok(vectors)
        },
        |vectors| {
            for (vector, id) in vectors.iter().zip(&mut left) {
                let first = values.len();
                values.extend(vector.iter().map(|v| f16::from_f32(*v)));
                if values[first..].iter().any(|v| !v.is_finite()) {
                    return Err(Error::Model {
                        path: pass.url.into(),
                        reason: format!(
                            "the vector of pair {id} is not finite in f16: the model or its dtype is broken"
                        ),
                    });
                }
            }
            Ok(())
        },
    )?;
    Ok((values, busy))
}

/// Number of tokens so far, and of their texts.
#[derive(Default)]
struct Tokenized {
    texts: AtomicU64,
    tokens: AtomicU64,
}

impl Tokenized {
    fn add(&self, ids: &[Vec<u32>]) {
        self.texts.fetch_add(ids.len() as u64, Ordering::Relaxed);
        let tokens: u64 = ids.iter().map(|ids| ids.len() as u64).sum();
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Estimates the tokens of this many texts from the first ones.
    fn total(&self, texts: usize) -> u64 {
        let (seen, tokens) = (self.texts.load(Ordering::Relaxed), self.tokens.load(Ordering::Relaxed));
        match seen {
            0 => 0,
            seen => (u128::from(tokens) * texts as u128 / u128::from(seen)) as u64,
        }
    }
}
