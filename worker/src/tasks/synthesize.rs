//! Makes one shard of instructions from one shard of pairs, by asking a large model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use llink_datasets::clean::{Cleaner, FOREIGN_PLACEHOLDER};
use llink_datasets::pairs::read_pairs;
use llink_datasets::role::{Role, Side};
use llink_datasets::rows::InstructionExample;
use llink_datasets::shards::encode_instructions;
use llink_proto::{ModelEndpoint, SynthesisPrompt, Synthesize, TaskResult, shown};

use super::ask::{Asker, From};
use super::{OpenContext, TaskContext, given, shard};
use crate::synthesize::{Answer, Request, is_refusal};
use crate::{Error, Result};

/// After this many answers without a usable one, it is not chance.
const ENOUGH_TO_JUDGE: usize = 16;
/// The most characters of an unusable answer that an error quotes.
const QUOTED: usize = 200;

struct Asked<'a> {
    english: String,
    foreign: String,
    prompt: &'a SynthesisPrompt,
}

pub(super) fn run(context: &TaskContext, task: &Synthesize) -> Result<TaskResult> {
    let pairs = given(&task.pairs, "a synthesize task without its pairs")?;
    let rules = shard::rules(given(&task.rules, "a synthesize task without its rules")?)?;
    let endpoint = given(&task.endpoint, "a synthesize task without its endpoint")?;
    if task.prompts.is_empty() {
        return Err(Error::Input("a synthesize task without its prompts".into()));
    }
    let context = &context.opened()?;
    let content = context.read(pairs)?;
    let table = read_pairs(&context.describe(pairs), content)?;
    let fits = |foreign: &String| {
        let chars = foreign.chars().count();
        (rules.min_chars as usize..=rules.max_chars as usize).contains(&chars)
    };
    let rows = table.ids.iter().zip(table.english.into_iter().zip(table.foreign));
    let asked: Vec<Asked<'_>> = rows
        .filter(|(_, (_, foreign))| fits(foreign))
        .skip(task.skip as usize)
        .take(task.rows as usize)
        .map(|(id, (english, foreign))| {
            // The pair's own id chooses the prompt, so that its place and other pairs do not matter.
            let prompt = &task.prompts[(id % task.prompts.len() as u64) as usize];
            Asked { english, foreign, prompt }
        })
        .collect();
    let client = context.client("synthesize", endpoint)?;
    let asker = Asker { context, client: &client, cache: &task.cache };
    let answers = context.wait(ask_all(&asker, endpoint, &asked))?;
    context.control.check()?;
    let mut result = finish(task, context, &Cleaner::new(rules, false), &asked, answers)?;
    result.warnings.extend(client.warnings());
    Ok(result)
}

/// Asks all questions and returns the results in order. After a failure no other request starts, but those under way
/// finish, so that their answers are kept.
async fn ask_all(asker: &Asker<'_>, endpoint: &ModelEndpoint, asked: &[Asked<'_>]) -> Result<Vec<(Answer, From)>> {
    let (total, failed) = (asked.len() as u64, &AtomicBool::new(false));
    let mut answers: Vec<(usize, Result<(Answer, From)>)> = futures::stream::iter(asked.iter().enumerate())
        .take_while(|_| std::future::ready(!failed.load(Ordering::Relaxed)))
        .map(|(index, asked)| async move {
            let request =
                Request::new(&endpoint.model, asked.prompt, &asked.english, endpoint.max_tokens, endpoint.temperature);
            let answer = asker.ask(&request, |_| true).await;
            failed.fetch_or(answer.is_err(), Ordering::Relaxed);
            (index, answer)
        })
        .buffer_unordered(endpoint.concurrency.max(1) as usize)
        .enumerate()
        .map(|(done, answer)| {
            asker.context.control.advance(done as u64 + 1, total);
            answer
        })
        .collect()
        .await;
    answers.sort_by_key(|(index, _)| *index);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// Filters the answers, writes the usable ones, and counts the rest.
fn finish(
    task: &Synthesize,
    context: &OpenContext<'_>,
    cleaner: &Cleaner,
    asked: &[Asked<'_>],
    answers: Vec<(Answer, From)>,
) -> Result<TaskResult> {
    let role = Role::from(task.role.as_str());
    let refusals = task.endpoint.as_ref().map_or(&[][..], |e| &e.refusals);
    let mut counts = BTreeMap::<String, u64>::new();
    let mut count = |name: &str| *counts.entry(format!("synthesized.{name}")).or_default() += 1;
    let mut kept = Vec::new();
    let (mut rejected, mut unusable) = (None, None);
    for (asked, (answer, from)) in asked.iter().zip(answers) {
        count("rows");
        match (&answer, from) {
            (Answer::Rejected(_), _) => count("dropped_rejected_request"),
            (_, From::Cache) => count("cached"),
            (_, From::Endpoint) => count("asked"),
        }
        let answer = match answer {
            Answer::Rejected(said) => {
                rejected.get_or_insert(said);
                continue;
            }
            Answer::Unusable(why, beginning) => {
                count(&format!("dropped_{}", why.name()));
                unusable.get_or_insert(beginning);
                continue;
            }
            Answer::Text(text) if is_refusal(&text, refusals) => {
                count("dropped_refusal");
                unusable.get_or_insert_with(|| shown::quoted(&text, QUOTED));
                continue;
            }
            Answer::Text(text) => text,
        };
        let example = cleaner.instruction(&InstructionExample {
            task: asked.prompt.task.clone(),
            instruction: format!("{}\n{FOREIGN_PLACEHOLDER}", asked.prompt.instruction),
            foreign: asked.foreign.clone(),
            english_ref: asked.english.clone(),
            answer,
            source: "synthesized".into(),
        });
        match example {
            Ok(example) => {
                count("kept");
                count(match role {
                    Role::Shard(_, Side::Train) => "split.train",
                    _ => "split.validation",
                });
                kept.push(example.row);
            }
            Err(reason) => count(&format!("dropped_{reason}")),
        }
    }
    let rejected = rejected.map(|said| format!("a request was rejected with {said}"));
    if kept.is_empty() && asked.len() < ENOUGH_TO_JUDGE {
        return Ok(TaskResult { counts, warnings: rejected.into_iter().collect(), ..TaskResult::default() });
    }
    if kept.is_empty() {
        return Err(Error::Input(nothing_usable(task, &counts, rejected, unusable)));
    }
    let content = encode_instructions(&kept, &task.path, &role, &task.stage_key)?;
    let artifact = context.write(&task.path, role, kept.len() as u64, content)?;
    Ok(TaskResult {
        artifacts: vec![artifact],
        counts,
        warnings: rejected.into_iter().collect(),
        ..TaskResult::default()
    })
}

/// Makes the error for many answers without a usable one: why, with an example, and what to do.
fn nothing_usable(
    task: &Synthesize,
    counts: &BTreeMap<String, u64>,
    rejected: Option<String>,
    unusable: Option<String>,
) -> String {
    let pairs = task.pairs.as_ref().map_or("its pairs", |p| p.path.as_str());
    let example = rejected.or_else(|| Some(format!("one of them begins with “{}”", unusable?)));
    let example = example.map_or_else(String::new, |example| format!(": {example}"));
    let all_cut = counts.get("synthesized.dropped_cut_off") == counts.get("synthesized.rows");
    let advice = match all_cut {
        true => "raise `synthesize.max_tokens`: a model that thinks before it answers spends them on its thoughts",
        false => "is `synthesize.model` the model that was meant, and are the prompts right?",
    };
    format!("no answer about {pairs} can be used ({}){example}; {advice}", dropped(counts))
}

/// Lists the dropped answers: `3 refusal, 1 cut off`.
fn dropped(counts: &BTreeMap<String, u64>) -> String {
    let reason = |(name, rows): (&String, &u64)| {
        let reason = name.strip_prefix("synthesized.dropped_")?;
        Some(format!("{rows} {}", reason.replace('_', " ")))
    };
    counts.iter().filter_map(reason).collect::<Vec<_>>().join(", ")
}
