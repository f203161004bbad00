//! One shard through one model: sentences in, cached f16 vectors out.

use std::collections::BTreeMap;

use half::f16;
use llink_datasets::pairs::{Language, TextTable, read_texts};
use llink_datasets::vectors::{VectorTable, write_vectors};
use llink_proto::{Artifact, EmbedShard, ModelRef, ModelRole, TaskResult};

use super::TaskContext;
use crate::models::TextLimits;
use crate::{Error, Result};

/// Sentences between two looks whether the task is to stop; batches are sorted by length within it.
const CHUNK: usize = 4_096;

pub(super) fn run(context: &TaskContext, task: &EmbedShard) -> Result<TaskResult> {
    let missing = |what: &str| Error::Input(format!("an embed task without its {what}"));
    let model = task.model.as_ref().ok_or_else(|| missing("model"))?;
    let shard = task.shard.as_ref().ok_or_else(|| missing("shard"))?;
    let store = context.store()?;
    let content = context.read(&store, shard)?;
    let language = match (model.role(), shard.role.starts_with("instructions/")) {
        (ModelRole::Encoder, _) => Language::Foreign,
        (_, true) => Language::EnglishRef,
        (_, false) => Language::English,
    };
    let table = read_texts(&store.describe(&shard.path), content, language)?;
    let (width, vectors) = vectors(context, task, model, &table)?;
    let mut values = Vec::with_capacity(table.ids.len() * width);
    for (id, vector) in table.ids.iter().zip(&vectors) {
        let first = values.len();
        values.extend(vector.iter().map(|v| f16::from_f32(*v)));
        if values[first..].iter().any(|v| !v.is_finite()) {
            return Err(Error::Model {
                path: model.url.clone(),
                reason: format!("the vector of pair {id} is not finite in f16: the model or its dtype is broken"),
            });
        }
    }
    let rows = table.ids.len() as u64;
    let vectors = VectorTable {
        ids: table.ids,
        width,
        values,
    };
    let metadata = BTreeMap::from([
        ("llink.model_fingerprint".to_owned(), model.fingerprint.clone()),
        ("llink.shard_sha256".to_owned(), shard.sha256.clone()),
        ("llink.role".to_owned(), task.role.clone()),
    ]);
    let content = write_vectors(&vectors, &metadata)?;
    let artifact = Artifact {
        metadata,
        ..context.write(&store, &task.path, &task.role, rows, content)?
    };
    Ok(TaskResult {
        artifacts: vec![artifact],
        ..TaskResult::default()
    })
}

/// The width, and a vector for each text.
fn vectors(
    context: &TaskContext,
    task: &EmbedShard,
    model: &ModelRef,
    table: &TextTable,
) -> Result<(usize, Vec<Vec<f32>>)> {
    let limits = TextLimits {
        max_chars: task.max_chars as usize,
        max_tokens: task.max_tokens as usize,
    };
    let budget = task.token_budget as usize;
    let (width, ids, embed): (usize, Vec<Vec<u32>>, Embed) = if model.role() == ModelRole::Encoder {
        let encoder = context.models.encoder(context, model)?;
        let ids = encoder.tokenize(&table.texts, limits)?;
        let width = encoder.hidden_size();
        (
            width,
            ids,
            Box::new(move |ids, progress| encoder.embed_ids(ids, budget, progress)),
        )
    } else {
        let decoder = context.models.decoder(context, model)?;
        let ids = decoder.tokenize_teacher(&table.texts)?;
        let width = decoder.hidden_size();
        (
            width,
            ids,
            Box::new(move |ids, progress| decoder.last_hidden(ids, budget, progress)),
        )
    };
    let total: u64 = ids.iter().map(|ids| ids.len() as u64).sum();
    let (mut vectors, mut done) = (Vec::with_capacity(ids.len()), 0);
    for chunk in ids.chunks(CHUNK) {
        context.control.check()?;
        let before = done;
        vectors.extend(embed(chunk, &mut |tokens| {
            done = before + tokens;
            context.control.advance(done, total);
        })?);
    }
    Ok((width, vectors))
}

/// Token ids to vectors; told of the tokens done.
type Embed = Box<dyn Fn(&[Vec<u32>], &mut dyn FnMut(u64)) -> Result<Vec<Vec<f32>>>>;
