//! Generates answers to held-out instructions: with slots, with zeroed slots, and by the decoder alone.

use std::collections::BTreeMap;

use llink_datasets::instructions::InstructionRow;
use llink_datasets::measured::{self, Arm, Scored, TRAINED_AS_PAIRS};
use llink_datasets::numbers::Scanner;
use llink_datasets::role::Role;
use llink_datasets::store::Store;
use llink_proto::{Answers, Artifact, ModelRef, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::TaskContext;
use super::instruct::{first, read_projector, read_rows, widened};
use super::training::read_tables;
use crate::device::is_out_of_memory;
use crate::llink::answers::answer_scores;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::SlotExpander;
use crate::models::{
    ChatPrompt, Continuations, Decoder, GenerateOptions, LoadedAdapter, Sampling, Step, common_head, peft,
};
use crate::{Error, Result};

/// The number of answers that are computed at once.
const AT_ONCE: usize = 16;

/// A line of `answers.jsonl`: an instruction with the expected answer and those of the arms.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Answered {
    pub id: u64,
    pub task: String,
    pub instruction: String,
    pub foreign: String,
    pub english_ref: String,
    pub expected: String,
    pub answers: BTreeMap<Arm, String>,
}

/// The parts that make an answer.
struct Answerer<'a> {
    context: &'a TaskContext,
    decoder: &'a Decoder,
    adapter: LoadedAdapter,
    options: GenerateOptions,
    max_tokens: usize,
    /// Finds the numbers that stand behind the slots, if any do.
    numbers: Option<Scanner>,
}

/// Adds the scores to `result`, and the answers themselves as JSON lines.
pub(super) fn run(
    context: &TaskContext,
    store: &Store,
    task: &Answers,
    model: &ModelRef,
    slots: Option<&Slots>,
    result: &mut TaskResult,
) -> Result<()> {
    let missing = |what: &str| Error::Input(format!("answers without their {what}"));
    let decoder = context.models.decoder(context, model)?;
    let read = |artifact: &Option<Artifact>, what: &str| -> Result<bytes::Bytes> {
        context.read(store, artifact.as_ref().ok_or_else(|| missing(what))?)
    };
    let loaded = |config: &Option<Artifact>, weights: &Option<Artifact>| {
        let (config, weights) = (read(config, "adapter config")?, read(weights, "adapter")?);
        let adapter = peft::read(decoder.config(), "the adapter", &config, &weights)?;
        LoadedAdapter::new(&adapter, decoder.model())
    };
    let mut answerer = Answerer {
        context,
        decoder: &decoder,
        adapter: loaded(&task.adapter_config, &task.adapter)?,
        options: GenerateOptions {
            max_tokens: task.max_answer_tokens as usize,
            stop: decoder.chat().stop().to_vec(),
            sampling: Sampling::Greedy,
        },
        max_tokens: task.max_tokens as usize,
        numbers: task.numbers.then(Scanner::default),
    };
    let rows = read_rows(context, store, &task.instructions, task.examples as usize)?;
    let mut said: Vec<(Arm, Vec<String>)> = Vec::new();
    match slots {
        Some(slots) => {
            let vectors = first(read_tables(context, store, &task.encoder_vectors)?, rows.len());
            let values = slots.of(&widened(&vectors))?;
            let zeros = vec![0.0; values.len()];
            said.push((Arm::Slots, answerer.with_slots(&rows, &slots.expander, &values)?));
            said.push((Arm::Zeroed, answerer.with_slots(&rows, &slots.expander, &zeros)?));
        }
        None => said.push((Arm::Direct, answerer.direct(&rows)?)),
    }
    if task.direct_adapter.is_some() {
        answerer.adapter = loaded(&task.direct_adapter_config, &task.direct_adapter)?;
        said.push((Arm::Direct, answerer.direct(&rows)?));
    }
    let mut lines = String::new();
    for (index, row) in rows.iter().enumerate() {
        let row = row.clone();
        let line = Answered {
            id: row.id,
            task: row.task,
            instruction: row.instruction,
            foreign: row.foreign,
            english_ref: row.english_ref,
            expected: row.answer,
            answers: said
                .iter()
                .map(|(arm, answers)| (*arm, answers[index].clone()))
                .collect(),
        };
        lines.push_str(&format!("{}\n", json!(line)));
    }
    result
        .artifacts
        .push(context.write(store, &task.path, Role::Answers, rows.len() as u64, lines.into())?);
    let seen = task.trained_as_pairs as f64;
    result.figures.insert(TRAINED_AS_PAIRS.into(), seen);
    for (arm, answers) in &said {
        add_scores(result, *arm, &rows, answers);
    }
    Ok(())
}

impl Answerer<'_> {
    fn with_slots(&self, rows: &[InstructionRow], expander: &SlotExpander, slots: &[f32]) -> Result<Vec<String>> {
        let shape = expander.shape();
        let numbers = self.numbers.as_ref();
        let prompts = rows.iter().map(|row| {
            self.decoder
                .prompt_about(&row.instruction, shape.slots, &row.foreign, numbers)
        });
        let prompts: Vec<ChatPrompt> = prompts.collect::<Result<_>>()?;
        let each: Vec<&[f32]> = slots.chunks_exact(shape.slots * shape.width).collect();
        answers(
            self.context,
            self.decoder,
            &self.adapter,
            &self.options,
            &prompts,
            &each,
        )
    }

    fn direct(&self, rows: &[InstructionRow]) -> Result<Vec<String>> {
        let prompts = rows.iter().map(|row| {
            self.decoder
                .direct_prompt(&row.instruction, &row.foreign, self.max_tokens)
        });
        let prompts: Vec<ChatPrompt> = prompts.collect::<Result<_>>()?;
        answers(self.context, self.decoder, &self.adapter, &self.options, &prompts, &[])
    }
}

/// Returns the answer to each prompt. `slots` is empty, or has the slots of each. If memory runs out, fewer answers are
/// computed at once.
pub(super) fn answers(
    context: &TaskContext,
    decoder: &Decoder,
    adapter: &LoadedAdapter,
    options: &GenerateOptions,
    prompts: &[ChatPrompt],
    slots: &[&[f32]],
) -> Result<Vec<String>> {
    let model = decoder.model();
    let try_with = |at_once: usize| -> Result<Vec<Vec<u32>>> {
        let mut continuations = Continuations::new(at_once).begin_with(common_head(prompts), model, adapter)?;
        for (at, prompt) in prompts.iter().enumerate() {
            let slots = slots.get(at).map(|slots| slots.to_vec());
            continuations.add(model, prompt, slots, options.clone())?;
        }
        let mut generated = vec![Vec::new(); prompts.len()];
        while !continuations.is_empty() {
            context.control.check()?;
            for (at, step) in continuations.step(model, adapter)? {
                if let Step::Token(token) = step {
                    generated[at].push(token);
                }
            }
        }
        Ok(generated)
    };
    let mut at_once = AT_ONCE;
    let generated = loop {
        match try_with(at_once) {
            Err(error) if is_out_of_memory(&error) && at_once > 1 => {
                at_once /= 2;
                tracing::warn!(
                    at_once,
                    "out of memory on the device: fewer answers are computed at once"
                );
            }
            done => break done?,
        }
    };
    generated.iter().map(|ids| decoder.tokenizer().decode(ids)).collect()
}

/// The modules that turn a vector into slots.
pub(super) struct Slots {
    projector: Projector,
    expander: SlotExpander,
}

impl Slots {
    /// Reads the modules after Stage B. If Stage B left the projector unchanged, it is `aligned`. The result is `None`
    /// in direct mode.
    pub(super) fn read(
        context: &TaskContext,
        store: &Store,
        task: &Answers,
        aligned: &Projector,
    ) -> Result<Option<Self>> {
        let Some(artifact) = &task.slots else { return Ok(None) };
        let content = context.read(store, artifact)?;
        Ok(Some(Self {
            expander: SlotExpander::from_safetensors(&store.describe(&artifact.path), &content)?,
            projector: match &task.projector {
                Some(projector) => read_projector(context, store, projector)?,
                None => aligned.clone(),
            },
        }))
    }

    /// Returns the slots of encoder vectors `[n, d_e]`, as `[n, K, d]`.
    fn of(&self, vectors: &[f32]) -> Result<Vec<f32>> {
        self.expander.expand(&self.projector.project(vectors)?)
    }

    /// Returns the mean of the slots of each vector, `[n, d]`, which Stage B keeps near the teacher.
    pub(super) fn means(&self, vectors: &[f32]) -> Result<Vec<f32>> {
        let shape = self.expander.shape();
        let slots = self.of(vectors)?;
        let mean = |slots: &[f32]| -> Vec<f32> {
            let sum = |column: usize| slots.iter().skip(column).step_by(shape.width).sum::<f32>();
            (0..shape.width)
                .map(|column| sum(column) / shape.slots as f32)
                .collect()
        };
        Ok(slots.chunks_exact(shape.slots * shape.width).flat_map(mean).collect())
    }
}

/// Adds the scores over all answers, and over translations alone.
fn add_scores(result: &mut TaskResult, arm: Arm, rows: &[InstructionRow], answers: &[String]) {
    let pairs = || rows.iter().zip(answers);
    let all = answer_scores(pairs().map(|(row, answer)| (answer.as_str(), row.answer.as_str())));
    let translations = pairs().filter(|(row, _)| row.task == "translate");
    let translations = answer_scores(translations.map(|(row, answer)| (answer.as_str(), row.answer.as_str())));
    measured::put(&mut result.figures, &Scored::Answers.by(arm), &all);
    measured::put(&mut result.figures, &Scored::Translations.by(arm), &translations);
}
