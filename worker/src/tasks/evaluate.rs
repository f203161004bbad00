//! Held-out retrieval before and after alignment and by the slots that Stage B made of it, beside chance, and what the decoder's tokenizer does to each language.

use llink_datasets::pairs::{PairTable, read_pairs};
use llink_datasets::store::Store;
use llink_proto::{Evaluate, TaskResult};
use serde_json::json;

use super::TaskContext;
use super::instruct::{first, widened};
use super::training::read_tables;
use crate::llink::projector::Projector;
use crate::llink::retrieval::{RetrievalMetrics, retrieval_metrics};
use crate::models::SpecialTokens;
use crate::{Error, Result};

pub(super) fn run(context: &TaskContext, task: &Evaluate) -> Result<TaskResult> {
    let store = context.store()?;
    let encoder = read_tables(context, &store, &task.encoder_vectors)?;
    let teacher = read_tables(context, &store, &task.teacher_vectors)?;
    if encoder.ids != teacher.ids {
        return Err(Error::Input(
            "the held-out encoder and teacher vectors are of different pairs".into(),
        ));
    }
    let artifact = task
        .projector
        .as_ref()
        .ok_or_else(|| Error::Input("an evaluate task without its projector".into()))?;
    let content = context.read(&store, artifact)?;
    let after = Projector::from_safetensors(&store.describe(&artifact.path), &content)?;
    let before = Projector::new(after.shape(), task.seed);
    // Shards stand in the order of the hash of their text, so the first rows are a fixed, fair sample of the holdout.
    let pairs = encoder.len().min(task.benchmark_pairs as usize);
    let slots = match &task.answers {
        Some(answers) => super::answers::Slots::read(context, &store, answers, &after)?,
        None => None,
    };
    let (read, taught) = (widened(&first(encoder, pairs)), first(teacher, pairs));
    let width = taught.width;
    let taught = widened(&taught);
    let measure = |found: Vec<f32>| retrieval_metrics(&found, &taught, width);
    let mut rows = vec![
        ("chance", RetrievalMetrics::chance(pairs)),
        ("before", measure(before.project(&read)?)?),
        ("after", measure(after.project(&read)?)?),
    ];
    if let Some(slots) = &slots {
        rows.push(("instructed", measure(slots.means(&read)?)?));
    }
    context.control.check()?;
    context.control.advance(pairs as u64, pairs as u64);

    let mut result = TaskResult::default();
    result.figures.insert("pairs".into(), pairs as f64);
    for (name, metrics) in &rows {
        let figures = [
            ("r1", metrics.r1),
            ("r5", metrics.r5),
            ("r10", metrics.r10),
            ("mrr", metrics.mrr),
            ("mean_rank", metrics.mean_rank),
        ];
        result
            .figures
            .extend(figures.map(|(figure, value)| (format!("{name}.{figure}"), value)));
    }
    if let Some((english, foreign)) = tokens(context, &store, task, pairs)? {
        result.figures.insert("decoder_tokens.english".into(), english);
        result.figures.insert("decoder_tokens.foreign".into(), foreign);
    }
    if let (Some(answers), Some(model)) = (&task.answers, &task.decoder) {
        super::answers::run(context, &store, answers, model, slots.as_ref(), &mut result)?;
        if let Some(judge) = &task.judge
            && let Some(answered) = result.artifacts.iter().find(|a| a.role == "answers").cloned()
        {
            super::judge::run(context, &store, judge, &answered, model, &mut result)?;
        }
    }
    if pairs < task.benchmark_pairs as usize {
        result.warnings.push(format!(
            "retrieval was measured on {pairs} pairs, evaluate.benchmark_pairs asks for {}: the holdout has no more",
            task.benchmark_pairs
        ));
    }
    let report = serde_json::to_vec_pretty(
        &json!({ "retrieval": rows.iter().map(|(name, m)| json!({ *name: m })).collect::<Vec<_>>(), "figures": result.figures }),
    )
    .expect("figures are plain data");
    result
        .artifacts
        .push(context.write(&store, &task.path, "report", 0, report.into())?);
    let page = super::report::page(context, &store, task, &result)?;
    result
        .artifacts
        .push(context.write(&store, &task.page, "report-page", 0, page.into())?);
    Ok(result)
}

/// Mean tokens that the decoder's tokenizer spends on an English and on a foreign sentence.
fn tokens(context: &TaskContext, store: &Store, task: &Evaluate, pairs: usize) -> Result<Option<(f64, f64)>> {
    let (Some(model), Some(shard)) = (&task.decoder, task.pair_shards.first()) else {
        return Ok(None);
    };
    let content = context.read(store, shard)?;
    let PairTable { english, foreign, .. } = read_pairs(&store.describe(&shard.path), content)?;
    let decoder = context.models.decoder(context, model)?;
    let mean = |texts: &[String]| -> Result<f64> {
        let texts: Vec<&str> = texts.iter().take(pairs).map(String::as_str).collect();
        let ids = decoder.tokenizer().encode_batch(&texts, SpecialTokens::Omit)?;
        Ok(ids.iter().map(Vec::len).sum::<usize>() as f64 / ids.len().max(1) as f64)
    };
    Ok(Some((mean(&english)?, mean(&foreign)?)))
}
