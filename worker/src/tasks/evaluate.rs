//! Evaluates held-out retrieval (by chance, by the encoder alone and after each stage), answers to held-out
//! instructions, and the decoder's token inflation.

mod benchmark;

use llink_datasets::measured::{self, CENTERED_ON, PAIRS, Tokens};
use llink_datasets::pairs::{PairTable, read_pairs};
use llink_datasets::role::Role;
use llink_proto::{Evaluate, TaskResult};
use serde_json::json;

use super::{OpenContext, TaskContext, given};
use crate::Result;
use crate::models::SpecialTokens;
use benchmark::Benchmark;

pub(super) fn run(context: &TaskContext, task: &Evaluate) -> Result<TaskResult> {
    let context = &context.opened()?;
    let projector = given(&task.projector, "an evaluate task without its projector")?;
    let aligned = super::instruct::read_projector(context, projector)?;
    let read = |answers| super::answers::Slots::read(context, answers, &aligned).transpose();
    let slots = task.answers.as_ref().and_then(read).transpose()?;
    let mut benchmark = Benchmark::read(context, task)?;
    let centered_on = benchmark.encoder_alone(context, task)?;
    benchmark.projected(&aligned)?;
    if let Some(slots) = &slots {
        benchmark.by_mean_slot(slots)?;
    }
    context.control.check()?;
    let pairs = benchmark.pairs();
    context.control.advance(pairs as u64, pairs as u64);

    let mut result = TaskResult::default();
    let rows = benchmark.rows();
    result.figures.insert(PAIRS.into(), pairs as f64);
    rows.iter().for_each(|row| row.put(&mut result.figures));
    if let Some(rows) = centered_on {
        result.figures.insert(CENTERED_ON.into(), rows as f64);
    }
    let ranks = benchmark.lines();
    result.artifacts.push(context.write(&task.benchmark, Role::Benchmark, pairs as u64, ranks.into())?);
    if let Some(tokens) = tokens(context, task, pairs)? {
        measured::put(&mut result.figures, Tokens::NAME, &tokens);
    }
    if let (Some(answers), Some(model)) = (&task.answers, &task.decoder) {
        super::answers::run(context, answers, model, slots.as_ref(), &mut result)?;
        if let Some(judge) = &task.judge
            && let Some(answered) = result.artifacts.iter().find(|a| a.role == Role::Answers).cloned()
        {
            super::judge::run(context, judge, &answered, model, &mut result)?;
        }
    }
    if pairs < task.benchmark_pairs as usize {
        result.warnings.push(format!(
            "retrieval was measured on {pairs} pairs, evaluate.benchmark_pairs asks for {}: the holdout has no more",
            task.benchmark_pairs
        ));
    }
    let report = json!({ "retrieval": rows, "benchmark": task.benchmark, "figures": result.figures });
    let report = serde_json::to_vec_pretty(&report).expect("figures are plain data");
    result.artifacts.push(context.write(&task.path, Role::Report, 0, report.into())?);
    let page = super::report::page(context, task, &result)?;
    result.artifacts.push(context.write(&task.page, Role::ReportPage, 0, page.into())?);
    Ok(result)
}

/// Returns the mean number of decoder tokens in an English and in a foreign sentence.
fn tokens(context: &OpenContext<'_>, task: &Evaluate, pairs: usize) -> Result<Option<Tokens>> {
    let (Some(model), Some(shard)) = (&task.decoder, task.pair_shards.first()) else {
        return Ok(None);
    };
    let content = context.read(shard)?;
    let PairTable { english, foreign, .. } = read_pairs(&context.describe(shard), content)?;
    let decoder = context.models.decoder(context, model)?;
    let mean = |texts: &[String]| -> Result<f64> {
        let texts: Vec<&str> = texts.iter().take(pairs).map(String::as_str).collect();
        let ids = decoder.tokenizer().encode_batch(&texts, SpecialTokens::Omit)?;
        Ok(ids.iter().map(Vec::len).sum::<usize>() as f64 / ids.len().max(1) as f64)
    };
    Ok(Some(Tokens { english: mean(&english)?, foreign: mean(&foreign)? }))
}
