//! One shard of pairs to one shard of instructions, by asking a large model.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use llink_datasets::clean::{Cleaner, FOREIGN_PLACEHOLDER};
use llink_datasets::pairs::read_pairs;
use llink_datasets::rows::InstructionExample;
use llink_datasets::shards::encode_instructions;
use llink_datasets::store::Store;
use llink_proto::{Synthesize, TaskResult};
use serde::{Deserialize, Serialize};

use super::{TaskContext, shard};
use crate::synthesize::{Answer, Client, Endpoint, Patience, Prompt, Request, is_refusal};
use crate::{Error, Result};

const FIRST_WAIT: Duration = Duration::from_millis(500);

/// An answer as it lies in the cache.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cached {
    Text(String),
    CutOff,
    Rejected,
}

/// A pair that is asked about.
struct Asked {
    english: String,
    foreign: String,
    prompt: Prompt,
}

pub(super) fn run(context: &TaskContext, task: &Synthesize) -> Result<TaskResult> {
    let missing = |what: &str| Error::Input(format!("a synthesize task without its {what}"));
    let pairs = task.pairs.as_ref().ok_or_else(|| missing("pairs"))?;
    let rules = shard::rules(task.rules.as_ref().ok_or_else(|| missing("rules"))?)?;
    let endpoint = task.endpoint.as_ref().ok_or_else(|| missing("endpoint"))?;
    if task.prompts.is_empty() {
        return Err(missing("prompts"));
    }
    let store = context.store()?;
    let content = context.read(&store, pairs)?;
    let table = read_pairs(&store.describe(&pairs.path), content)?;
    let fits = |foreign: &String| {
        let chars = foreign.chars().count();
        (rules.min_chars as usize..=rules.max_chars as usize).contains(&chars)
    };
    let rows = table.ids.iter().zip(table.english.into_iter().zip(table.foreign));
    let asked: Vec<Asked> = rows
        .filter(|(_, (_, foreign))| fits(foreign))
        .take(task.rows as usize)
        .map(|(id, (english, foreign))| {
            // By the pair's own id, so that neither its place nor other pairs decide what is asked of it.
            let prompt = &task.prompts[(id % task.prompts.len() as u64) as usize];
            Asked {
                english,
                foreign,
                prompt: Prompt {
                    task: prompt.task.clone(),
                    instruction: prompt.instruction.clone(),
                    template: prompt.prompt.clone(),
                },
            }
        })
        .collect();
    let client = Client::new(Endpoint {
        section: "synthesize",
        url: endpoint.url.clone(),
        api_key_env: endpoint.api_key_env.clone(),
        requests_per_minute: endpoint.requests_per_minute,
        timeout: Duration::from_secs_f64(endpoint.timeout_s),
        patience: Patience {
            attempts: endpoint.attempts,
            first_wait: FIRST_WAIT,
        },
    })?;
    let asker = Asker {
        context,
        task,
        store: &store,
        client: &client,
    };
    let answers = context.wait(asker.ask_all(&asked))?;
    context.control.check()?;
    finish(task, &store, context, &Cleaner::new(rules, false), &asked, answers)
}

struct Asker<'a> {
    context: &'a TaskContext,
    task: &'a Synthesize,
    store: &'a Store,
    client: &'a Client,
}

impl Asker<'_> {
    /// The answers in the order of what is asked, and whether each was in the cache.
    async fn ask_all(&self, asked: &[Asked]) -> Result<Vec<(Cached, bool)>> {
        let concurrency = self.task.endpoint.as_ref().map_or(1, |e| e.concurrency.max(1));
        let total = asked.len() as u64;
        futures::stream::iter(asked)
            .map(|asked| self.ask(asked))
            .buffered(concurrency as usize)
            .enumerate()
            .map(|(done, answer)| {
                self.context.control.advance(done as u64 + 1, total);
                answer
            })
            .try_collect()
            .await
    }

    async fn ask(&self, asked: &Asked) -> Result<(Cached, bool)> {
        self.context.control.check()?;
        let (model, max_tokens, temperature) = match &self.task.endpoint {
            Some(endpoint) => (endpoint.model.as_str(), endpoint.max_tokens, endpoint.temperature),
            None => return Err(Error::Input("a synthesize task without its endpoint".into())),
        };
        let request = Request::new(model, &asked.prompt, &asked.english, max_tokens, temperature);
        let hash = request.hash();
        let path = format!("{}/{}/{hash}.json", self.task.cache, &hash[..2]);
        match self.store.get(&path).await {
            // What cannot be read is asked again.
            Ok(content) => {
                if let Ok(cached) = serde_json::from_slice(&content) {
                    return Ok((cached, true));
                }
            }
            Err(llink_datasets::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let answer = match self.client.ask(&request).await? {
            Answer::Text(text) => Cached::Text(text),
            Answer::CutOff => Cached::CutOff,
            Answer::Rejected => Cached::Rejected,
        };
        let content = serde_json::to_vec(&answer).expect("an answer is plain data");
        self.store.put(&path, Bytes::from(content)).await?;
        Ok((answer, false))
    }
}

/// Filters the answers, writes what is left, counts the rest.
fn finish(
    task: &Synthesize,
    store: &Store,
    context: &TaskContext,
    cleaner: &Cleaner,
    asked: &[Asked],
    answers: Vec<(Cached, bool)>,
) -> Result<TaskResult> {
    let refusals = task.endpoint.as_ref().map_or(&[][..], |e| &e.refusals);
    let mut counts = BTreeMap::<String, u64>::new();
    let mut count = |name: &str| *counts.entry(format!("instructions.{name}")).or_default() += 1;
    let mut kept = Vec::new();
    for (asked, (answer, cached)) in asked.iter().zip(answers) {
        count("rows");
        count(if cached { "cached" } else { "asked" });
        let answer = match answer {
            Cached::CutOff => {
                count("dropped_cut_off");
                continue;
            }
            Cached::Rejected => {
                count("dropped_rejected_request");
                continue;
            }
            Cached::Text(text) if is_refusal(&text, refusals) => {
                count("dropped_refusal");
                continue;
            }
            Cached::Text(text) => text,
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
                count(if task.role.ends_with("train") {
                    "split.train"
                } else {
                    "split.validation"
                });
                kept.push(example.row);
            }
            Err(reason) => count(&format!("dropped_{reason}")),
        }
    }
    if kept.is_empty() {
        return Err(Error::Input(format!(
            "no answer about {} can be used ({counts:?}); is `synthesize.model` the model that was meant, and are the \
             prompts right?",
            task.pairs.as_ref().map_or("its pairs", |p| p.path.as_str())
        )));
    }
    let content = encode_instructions(&kept, &task.path, &task.role, &task.stage_key)?;
    let artifact = context.write(store, &task.path, &task.role, kept.len() as u64, content)?;
    Ok(TaskResult {
        artifacts: vec![artifact],
        counts: counts.into_iter().collect(),
        ..TaskResult::default()
    })
}
