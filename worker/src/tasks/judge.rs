//! Compares the job's answers with those of the base decoder and of a direct fine-tuning, by a large model.

use std::collections::{BTreeMap, HashMap};

use futures::{StreamExt, TryStreamExt};
use llink_datasets::measured::{self, Arm, Judged};
use llink_datasets::role::Role;
use llink_datasets::shown::ShownUrl;
use llink_proto::{Artifact, Judge, ModelEndpoint, ModelRef, TaskResult, shown};
use serde_json::json;

use super::answers::Answered;
use super::ask::Asker;
use super::{OpenContext, TaskContext, given};
use crate::judge::{Comparison, JudgedPair, Order, SYSTEM, Verdict, tally};
use crate::models::{ChatPrompt, GenerateOptions, LoadedAdapter, Sampling};
use crate::synthesize::{Answer, Request, Unusable};
use crate::{Error, Result};

/// The most characters of a reply without a verdict that an error quotes.
const QUOTED: usize = 200;

/// An answer of the job, and the one that it is compared with.
struct Pair {
    /// The other answer's source.
    against: Arm,
    row: Answered,
    ours: String,
    theirs: String,
}

/// Adds wins, ties and losses to `result`, and the judgments themselves as JSON lines.
pub(super) fn run(
    context: &OpenContext<'_>,
    task: &Judge,
    answers: &Artifact,
    model: &ModelRef,
    result: &mut TaskResult,
) -> Result<()> {
    let endpoint = given(&task.endpoint, "a judge without its endpoint")?;
    let client = context.client("evaluate.judge", endpoint)?;
    let content = context.read(answers)?;
    let rows = rows(&context.describe(answers), &content, task.examples as usize)?;
    let mut pairs = against_base(context, task, model, &rows)?;
    pairs.extend(rows.iter().filter_map(against_other_arm));
    if let Some(direct) = &task.direct_answers {
        pairs.extend(against_direct(context, direct, &rows)?);
    }
    let mut replies: Vec<[Reply; 2]> = Vec::new();
    for run in 1..=task.runs.max(1) {
        let cache = match run {
            1 => task.cache.clone(),
            run => format!("{}/run-{run}", task.cache),
        };
        let asker = Asker { context, client: &client, cache: &cache };
        let of_run: Vec<[Reply; 2]> = context.wait(
            futures::stream::iter(&pairs)
                .map(|pair| both_orders(&asker, endpoint, pair))
                .buffered(endpoint.concurrency.max(1) as usize)
                .try_collect(),
        )?;
        replies.extend(of_run);
    }
    result.warnings.extend(client.warnings());
    result.warnings.extend(unread(&ShownUrl::of(&endpoint.url), &replies)?);
    let judged = pairs.iter().enumerate().map(|(at, pair)| JudgedPair {
        ours: &pair.ours,
        theirs: &pair.theirs,
        runs: verdicts(&replies, at, pairs.len()),
    });
    let judged: Vec<JudgedPair<'_>> = judged.collect();
    add_figures(&pairs, &judged, result);
    let lines: String = pairs.iter().zip(&judged).map(|(pair, judged)| line(pair, judged)).collect();
    let judgements = context.write(&task.path, Role::Judgements, pairs.len() as u64, lines.into())?;
    result.artifacts.push(judgements);
    Ok(())
}

/// Returns the verdicts of each run about pair `at` of `pairs`.
fn verdicts(replies: &[[Reply; 2]], at: usize, pairs: usize) -> Vec<[Option<Verdict>; 2]> {
    let of_pair = replies.iter().skip(at).step_by(pairs);
    of_pair.map(|both| both.each_ref().map(|reply| reply.as_ref().ok().copied())).collect()
}

/// Adds the counts against each arm, over all pairs and, if there are several tasks, by task.
fn add_figures(pairs: &[Pair], judged: &[JudgedPair<'_>], result: &mut TaskResult) {
    for against in [Arm::Base, Arm::Direct] {
        let mut by_task: BTreeMap<&str, Vec<&JudgedPair<'_>>> = BTreeMap::new();
        for (pair, judged) in pairs.iter().zip(judged).filter(|(pair, _)| pair.against == against) {
            by_task.entry(&pair.row.task).or_default().push(judged);
        }
        if by_task.is_empty() {
            continue;
        }
        let all: Vec<&JudgedPair<'_>> = by_task.values().flatten().copied().collect();
        measured::put(&mut result.figures, &Judged::against(against), &tally(&all));
        for (task, own) in by_task.iter().filter(|(_, own)| own.len() < all.len()) {
            measured::put(&mut result.figures, &Judged::by_task(against, task), &tally(own));
        }
    }
}

fn line(pair: &Pair, judged: &JudgedPair<'_>) -> String {
    let verdicts: Vec<&Option<Verdict>> = judged.runs.iter().flatten().collect();
    let line = json!({
        "id": pair.row.id, "against": pair.against, "task": pair.row.task, "instruction": pair.row.instruction,
        "english_ref": pair.row.english_ref, "ours": pair.ours, "theirs": pair.theirs,
        "verdicts": verdicts, "preference": judged.preference(),
    });
    format!("{line}\n")
}

fn rows(name: &str, content: &[u8], at_most: usize) -> Result<Vec<Answered>> {
    let lines = content.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let rows = lines.take(at_most).map(|line| {
        serde_json::from_slice(line)
            .map_err(|e| Error::Model { path: name.into(), reason: format!("is no file of answers: {e}") })
    });
    rows.collect()
}

/// Returns the answer of the job's own decoder.
fn ours(row: &Answered) -> String {
    let answer = [Arm::Slots, Arm::Direct].iter().find_map(|arm| row.answers.get(arm));
    answer.cloned().unwrap_or_default()
}

/// Pairs the answers with those of the decoder without any adapter, which gets the foreign text itself.
fn against_base(context: &TaskContext, task: &Judge, model: &ModelRef, rows: &[Answered]) -> Result<Vec<Pair>> {
    let known: Option<Vec<String>> = rows.iter().map(|row| row.answers.get(&Arm::Base).cloned()).collect();
    let theirs = match known {
        Some(answers) => answers,
        None => base_answers(context, task, model, rows)?,
    };
    let pair = |(row, theirs)| Pair { against: Arm::Base, theirs, ours: ours(row), row: row.clone() };
    Ok(rows.iter().zip(theirs).map(pair).collect())
}

fn base_answers(context: &TaskContext, task: &Judge, model: &ModelRef, rows: &[Answered]) -> Result<Vec<String>> {
    let decoder = context.models.decoder(context, model)?;
    let options = GenerateOptions {
        max_tokens: task.max_answer_tokens as usize,
        stop: decoder.chat().stop().to_vec(),
        sampling: Sampling::Greedy,
    };
    let prompts =
        rows.iter().map(|row| decoder.direct_prompt(&row.instruction, &row.foreign, task.max_tokens as usize));
    let prompts: Vec<ChatPrompt> = prompts.collect::<Result<_>>()?;
    let plain = LoadedAdapter::default();
    super::answers::answers(context, &decoder, &plain, &options, &prompts, &[])
}

/// Pairs the answer with that of the job's own direct fine-tuning, if both arms were trained.
fn against_other_arm(row: &Answered) -> Option<Pair> {
    Some(Pair {
        against: Arm::Direct,
        ours: row.answers.get(&Arm::Slots)?.clone(),
        theirs: row.answers.get(&Arm::Direct)?.clone(),
        row: row.clone(),
    })
}

/// Pairs the answers with those of another job in direct mode to the same examples.
fn against_direct(context: &TaskContext, url: &str, rows: &[Answered]) -> Result<Vec<Pair>> {
    let (store, name) = context.open(url)?;
    let content = context.wait(store.get(&name))?;
    let direct = self::rows(url, &content, usize::MAX)?;
    let by_id: HashMap<u64, &Answered> = direct.iter().map(|row| (row.id, row)).collect();
    let pair = |row: &Answered| {
        let theirs = by_id.get(&row.id)?.answers.get(&Arm::Direct)?.clone();
        Some(Pair { against: Arm::Direct, ours: ours(row), theirs, row: row.clone() })
    };
    let pairs: Vec<Pair> = rows.iter().filter_map(pair).collect();
    if pairs.is_empty() {
        return Err(Error::Input(format!(
            "{url}: has no direct answers to the instructions that were evaluated: `evaluate.judge.direct_answers` is the \
             answers.jsonl of a job with the same instructions and `mode = \"direct\"`"
        )));
    }
    Ok(pairs)
}

/// The verdict of one request to the judge, or what was said instead.
type Reply = std::result::Result<Verdict, String>;

async fn both_orders(asker: &Asker<'_>, endpoint: &ModelEndpoint, pair: &Pair) -> Result<[Reply; 2]> {
    Ok([ask(asker, endpoint, pair, Order::OursFirst).await?, ask(asker, endpoint, pair, Order::TheirsFirst).await?])
}

async fn ask(asker: &Asker<'_>, endpoint: &ModelEndpoint, pair: &Pair, order: Order) -> Result<Reply> {
    let comparison = Comparison {
        instruction: &pair.row.instruction,
        english: &pair.row.english_ref,
        ours: &pair.ours,
        theirs: &pair.theirs,
    };
    let prompt = comparison.prompt(order);
    let request = Request::chat(&endpoint.model, SYSTEM, &prompt, endpoint.max_tokens, 0.0);
    let says_one = |reply: &str| Verdict::of(reply, order).is_some();
    let (answer, _) = asker.ask(&request, says_one).await?;
    Ok(match answer {
        Answer::Text(text) => Verdict::of(&text, order).ok_or_else(|| format!("“{}”", shown::quoted(&text, QUOTED))),
        Answer::Unusable(Unusable::CutOff, beginning) => {
            Err(format!("“{beginning}”, cut off at {} tokens (`evaluate.judge.max_tokens`)", endpoint.max_tokens))
        }
        Answer::Unusable(why, beginning) => Err(format!("“{beginning}” ({})", why.name().replace('_', " "))),
        Answer::Rejected(said) => Err(format!("the request was rejected with {said}")),
    })
}

/// Returns a warning about replies without a verdict, if there are any.
///
/// # Errors
/// When no reply holds a verdict, so that nothing was judged.
fn unread(url: &ShownUrl, replies: &[[Reply; 2]]) -> Result<Option<String>> {
    let total = 2 * replies.len();
    let unread: Vec<&str> = replies.iter().flatten().filter_map(|reply| Some(reply.as_ref().err()?.as_str())).collect();
    match (unread.len(), unread.first()) {
        (_, None) => Ok(None),
        (count, Some(_)) if count == total => Err(Error::Input(format!(
            "{url}: none of the judge's {total} replies says A, B or T. The first of them: {}. Is `evaluate.judge.model` a \
             model that follows instructions, and is `evaluate.judge.max_tokens` enough for it?",
            unread[..count.min(3)].join("; ")
        ))),
        (count, Some(first)) => Ok(Some(format!(
            "{count} of the judge's {total} replies say neither A, B nor T and count as unclear, such as {first}"
        ))),
    }
}
