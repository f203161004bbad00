//! One shard of pairs to one shard of instructions, by asking a large model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use llink_datasets::clean::{Cleaner, FOREIGN_PLACEHOLDER};
use llink_datasets::pairs::read_pairs;
use llink_datasets::rows::InstructionExample;
use llink_datasets::shards::encode_instructions;
use llink_datasets::store::Store;
use llink_proto::{Synthesize, TaskResult};
use serde::{Deserialize, Serialize};

use super::{TaskContext, shard};
use crate::synthesize::{Answer, Client, Endpoint, Prompt, Request, is_refusal};
use crate::{Error, Result};

/// Answers of which not one can be used by chance.
const ENOUGH_TO_JUDGE: usize = 16;
const STOP_LOOKED_FOR: Duration = Duration::from_millis(200);

/// An answer as it lies in the cache. A request that was rejected is not kept: the endpoint may be set right.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kept {
    Text(String),
    CutOff,
}

/// What came of a question.
enum Outcome {
    /// Was answered before.
    Cached(Kept),
    /// Was answered now.
    Asked(Kept),
    Rejected(String),
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
        .skip(task.skip as usize)
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
    let client = Client::new(Endpoint::of("synthesize", endpoint))?;
    let asker = Asker {
        context,
        task,
        store: &store,
        client: &client,
    };
    let outcomes = context.wait(asker.ask_all(&asked))?;
    context.control.check()?;
    finish(task, &store, context, &Cleaner::new(rules, false), &asked, outcomes)
}

struct Asker<'a> {
    context: &'a TaskContext,
    task: &'a Synthesize,
    store: &'a Store,
    client: &'a Client,
}

impl Asker<'_> {
    /// What came of each question, in their order. Once one fails no other is begun, but those under way come to their
    /// end, so that their answers are not lost.
    async fn ask_all(&self, asked: &[Asked]) -> Result<Vec<Outcome>> {
        let concurrency = self.task.endpoint.as_ref().map_or(1, |e| e.concurrency.max(1));
        let (total, failed) = (asked.len() as u64, AtomicBool::new(false));
        let failed = &failed;
        let mut outcomes: Vec<(usize, Result<Outcome>)> = futures::stream::iter(asked.iter().enumerate())
            .take_while(|_| std::future::ready(!failed.load(Ordering::Relaxed)))
            .map(|(index, asked)| async move {
                let outcome = self.ask(asked).await;
                failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
                (index, outcome)
            })
            .buffer_unordered(concurrency as usize)
            .enumerate()
            .map(|(done, outcome)| {
                self.context.control.advance(done as u64 + 1, total);
                outcome
            })
            .collect()
            .await;
        outcomes.sort_by_key(|(index, _)| *index);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    async fn ask(&self, asked: &Asked) -> Result<Outcome> {
        self.context.control.check()?;
        let endpoint = self.task.endpoint.as_ref();
        let endpoint = endpoint.ok_or_else(|| Error::Input("a synthesize task without its endpoint".into()))?;
        let request = Request::new(
            &endpoint.model,
            &asked.prompt,
            &asked.english,
            endpoint.max_tokens,
            endpoint.temperature,
        );
        let hash = request.hash();
        let path = format!("{}/{}/{hash}.json", self.task.cache, &hash[..2]);
        match self.store.get(&path).await {
            // What cannot be read is asked again.
            Ok(content) => {
                if let Ok(kept) = serde_json::from_slice(&content) {
                    return Ok(Outcome::Cached(kept));
                }
            }
            Err(llink_datasets::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let answer = tokio::select! {
            answer = self.client.ask(&request) => answer?,
            stopped = self.stopped() => return Err(stopped),
        };
        let kept = match answer {
            Answer::Text(text) => Kept::Text(text),
            Answer::CutOff => Kept::CutOff,
            Answer::Rejected(said) => return Ok(Outcome::Rejected(said)),
        };
        let content = serde_json::to_vec(&kept).expect("an answer is plain data");
        self.store.put(&path, Bytes::from(content)).await?;
        Ok(Outcome::Asked(kept))
    }

    /// Waits for the order to stop: an endpoint may take minutes.
    async fn stopped(&self) -> Error {
        loop {
            if let Err(stopped) = self.context.control.check() {
                return stopped;
            }
            tokio::time::sleep(STOP_LOOKED_FOR).await;
        }
    }
}

/// Filters the answers, writes what is left, counts the rest.
fn finish(
    task: &Synthesize,
    store: &Store,
    context: &TaskContext,
    cleaner: &Cleaner,
    asked: &[Asked],
    outcomes: Vec<Outcome>,
) -> Result<TaskResult> {
    let refusals = task.endpoint.as_ref().map_or(&[][..], |e| &e.refusals);
    let mut counts = BTreeMap::<String, u64>::new();
    let mut count = |name: &str| *counts.entry(format!("synthesized.{name}")).or_default() += 1;
    let mut kept = Vec::new();
    let mut rejected = None;
    for (asked, outcome) in asked.iter().zip(outcomes) {
        count("rows");
        let (answer, how) = match outcome {
            Outcome::Cached(kept) => (kept, "cached"),
            Outcome::Asked(kept) => (kept, "asked"),
            Outcome::Rejected(said) => {
                count("dropped_rejected_request");
                rejected.get_or_insert(said);
                continue;
            }
        };
        count(how);
        let answer = match answer {
            Kept::CutOff => {
                count("dropped_cut_off");
                continue;
            }
            Kept::Text(text) if is_refusal(&text, refusals) => {
                count("dropped_refusal");
                continue;
            }
            Kept::Text(text) => text,
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
    let rejected = rejected.map(|said| format!("a request was rejected with {said}"));
    if kept.is_empty() && asked.len() < ENOUGH_TO_JUDGE {
        return Ok(TaskResult {
            counts,
            warnings: rejected.into_iter().collect(),
            ..TaskResult::default()
        });
    }
    if kept.is_empty() {
        return Err(Error::Input(format!(
            "no answer about {} can be used ({}){}; is `synthesize.model` the model that was meant, and are the prompts \
             right?",
            task.pairs.as_ref().map_or("its pairs", |p| p.path.as_str()),
            dropped(&counts),
            rejected.map_or_else(String::new, |said| format!(": {said}")),
        )));
    }
    let content = encode_instructions(&kept, &task.path, &task.role, &task.stage_key)?;
    let artifact = context.write(store, &task.path, &task.role, kept.len() as u64, content)?;
    Ok(TaskResult {
        artifacts: vec![artifact],
        counts,
        warnings: rejected.into_iter().collect(),
        ..TaskResult::default()
    })
}

/// What was dropped, in words: `3 refusal, 1 cut off`.
fn dropped(counts: &BTreeMap<String, u64>) -> String {
    let reason = |(name, rows): (&String, &u64)| {
        let reason = name.strip_prefix("synthesized.dropped_")?;
        Some(format!("{rows} {}", reason.replace('_', " ")))
    };
    counts.iter().filter_map(reason).collect::<Vec<_>>().join(", ")
}
