//! Generates answers to held-out instructions and to an evaluation set: with slots, with zeroed slots, and by the decoder alone.

mod cost;
mod set;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use llink_datasets::instructions::InstructionRow;
use llink_datasets::measured::{self, AnswerCost, Arm, SET_TRAINED_ON, Scored, TRAINED_AS_PAIRS};
use llink_datasets::numbers::Scanner;
use llink_datasets::role::Role;
use llink_datasets::text::Splitter;
use llink_datasets::vectors::VectorTable;
use llink_proto::settings::EmbedSettings;
use llink_proto::{Answers, Artifact, EvaluationSet, ModelRef, TaskResult};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::instruct::{read_projector, read_rows};
use super::training::{self, read_first};
use super::{OpenContext, TaskContext, given};
use crate::Result;
use crate::device::is_out_of_memory;
use crate::llink::answers::answer_scores;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::SlotExpander;
use crate::models::{
    ChatPrompt, Continuations, Decoder, Encoder, GenerateOptions, LoadedAdapter, Sampling, Step, TextLimits,
    common_head, peft,
};
use cost::FromVectors;

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
    context: &OpenContext<'_>,
    task: &Answers,
    model: &ModelRef,
    slots: Option<&Slots>,
    result: &mut TaskResult,
) -> Result<()> {
    let decoder = context.models.decoder(context, model)?;
    let mut answerer = Answerer {
        context,
        decoder: &decoder,
        adapter: read_adapter(context, &decoder, [&task.adapter_config, &task.adapter])?,
        options: GenerateOptions {
            max_tokens: task.max_answer_tokens as usize,
            stop: decoder.chat().stop().to_vec(),
            sampling: Sampling::Greedy,
        },
        max_tokens: task.max_tokens as usize,
        numbers: task.numbers.then(Scanner::default),
    };
    let rows = read_rows(context, &task.instructions, task.examples as usize)?;
    let (vectors, windows) = match slots {
        Some(slots) => {
            let table = read_first(context, &task.encoder_vectors, rows.len())?;
            let windows = slots.windows(table.width);
            (TextVectors { values: table.values.to_f32_vec(), width: table.width, rows: table.texts() }, windows)
        }
        None => (TextVectors::default(), 0),
    };
    let encoder = task.encoder.as_ref().map(|model| TextReader::of(context, task, model, windows)).transpose()?;
    let mut sets = vec![Asked { rows, vectors }];
    if let Some(set) = &task.set {
        sets.push(outside(context, set, encoder.as_ref(), result)?);
    }
    let mut said = sets.iter().map(|asked| answerer.own(asked, slots)).collect::<Result<Vec<_>>>()?;
    let asked = &sets[0];
    let from = slots.zip(encoder.as_ref()).map(|(slots, reader)| FromVectors { slots, reader });
    let mut cost = |answerer: &Answerer<'_>, arm: Arm, answers: Option<&[String]>| -> Result<()> {
        let cost = answerer.cost(asked, answers, from.as_ref().filter(|_| arm == Arm::Slots))?;
        measured::put(&mut result.figures, &AnswerCost::of(arm), &cost);
        Ok(())
    };
    let (own, answers) = &said[0][0];
    cost(&answerer, *own, Some(answers))?;
    for (arm, answers) in [(Arm::Base, task.base), (Arm::Direct, task.direct_adapter.is_some())] {
        answerer.adapter = match arm {
            Arm::Base => LoadedAdapter::default(),
            _ if answers => read_adapter(context, &decoder, [&task.direct_adapter_config, &task.direct_adapter])?,
            _ => continue,
        };
        if answers {
            for (said, asked) in said.iter_mut().zip(&sets) {
                said.push((arm, answerer.direct(&asked.rows)?));
            }
        }
        let answers = said[0].last().filter(|_| answers);
        cost(&answerer, arm, answers.map(|(_, answers)| answers.as_slice()))?;
    }
    result.figures.insert(TRAINED_AS_PAIRS.into(), task.trained_as_pairs as f64);
    write(context, task, sets.iter().zip(&said), result)
}

fn read_adapter(
    context: &OpenContext<'_>,
    decoder: &Decoder,
    [config, weights]: [&Option<Artifact>; 2],
) -> Result<LoadedAdapter> {
    let config = context.read(given(config, "answers without their adapter config")?)?;
    let weights = context.read(given(weights, "answers without their adapter")?)?;
    let adapter = peft::read(decoder.config(), "the adapter", &config, &weights)?;
    LoadedAdapter::new(&adapter, decoder.model())
}

/// Writes the answers of the arms to each set, and adds their scores.
fn write<'a>(
    context: &OpenContext<'_>,
    task: &Answers,
    answered: impl Iterator<Item = (&'a Asked, &'a Vec<(Arm, Vec<String>)>)>,
    result: &mut TaskResult,
) -> Result<()> {
    let places = [(Role::Answers, &task.path)].into_iter();
    let places = places.chain(task.set.iter().map(|set| (Role::SetAnswers, &set.path)));
    for ((role, path), (asked, said)) in places.zip(answered) {
        let scored: &[Scored] = match role {
            Role::SetAnswers => &[Scored::Set],
            _ => &[Scored::Answers, Scored::Translations],
        };
        let (lines, rows) = (lines(&asked.rows, said), asked.rows.len() as u64);
        let artifact = context.write(path, role, rows, lines.into())?;
        result.artifacts.push(artifact);
        for (arm, answers) in said {
            scored.iter().for_each(|of| add_scores(result, *of, *arm, &asked.rows, answers));
        }
    }
    Ok(())
}

/// Texts to answer instructions about, with their encoder vectors, which are empty in direct mode.
struct Asked {
    rows: Vec<InstructionRow>,
    vectors: TextVectors,
}

/// The encoder's vectors of texts. A row, `[1 + W, d_e]`, has those of a text and of its windows. A text that is split has a row
/// for each sentence.
#[derive(Default)]
struct TextVectors {
    values: Vec<f32>,
    width: usize,
    /// The rows of each text.
    rows: Vec<Range<usize>>,
}

impl TextVectors {
    /// Returns the vectors of a text.
    fn of(&self, text: usize) -> &[f32] {
        let Range { start, end } = self.rows[text];
        &self.values[start * self.width..end * self.width]
    }
}

/// Reads the evaluation set, and counts what training has seen of it.
fn outside(
    context: &OpenContext<'_>,
    set: &EvaluationSet,
    encoder: Option<&TextReader>,
    result: &mut TaskResult,
) -> Result<Asked> {
    let (rows, unusable) = set::read(context, set)?;
    if unusable > 0 {
        let warning = format!("{unusable} rows of `evaluate.set` lack a side or cannot be read, and were left out");
        result.warnings.push(warning);
    }
    let seen = set::trained_on(context, &rows, &set.trained)?;
    result.figures.insert(SET_TRAINED_ON.into(), seen as f64);
    let vectors = match encoder {
        Some(reader) => set::vectors(context, reader, &rows)?,
        None => TextVectors::default(),
    };
    Ok(Asked { rows, vectors })
}

/// The job's encoder, for texts without a cached vector.
struct TextReader {
    encoder: Arc<Encoder>,
    limits: TextLimits,
    budget: usize,
    /// The number of windows of a text or of a sentence, W.
    windows: usize,
    splitter: Option<Splitter>,
}

impl TextReader {
    fn of(context: &TaskContext, task: &Answers, model: &ModelRef, windows: usize) -> Result<Self> {
        let settings: EmbedSettings = training::settings(&task.embed_settings)?;
        Ok(Self {
            encoder: context.models.encoder(context, model)?,
            limits: TextLimits { max_chars: settings.max_chars as usize, max_tokens: settings.max_tokens as usize },
            budget: settings.token_budget as usize,
            windows,
            splitter: (task.sentences > 0).then(|| Splitter::new(task.sentences as usize)),
        })
    }

    /// Returns the vectors of each sentence and of its windows, `[1 + W, d_e]`. A text that is not split is one sentence.
    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<Vec<f32>>>> {
        let split = texts.iter().map(|text| match &self.splitter {
            Some(splitter) => splitter.split(text),
            None => vec![*text],
        });
        let sentences: Vec<Vec<&str>> = split.collect();
        let ids = self.encoder.tokenize(&sentences.concat(), self.limits)?;
        let mut vectors = self.encoder.embed_windows(&ids, self.windows, self.budget, &mut |_| {})?.into_iter();
        Ok(sentences.iter().map(|of_text| vectors.by_ref().take(of_text.len()).collect()).collect())
    }
}

/// Returns a JSON line for each row, with the answers of all arms.
fn lines(rows: &[InstructionRow], said: &[(Arm, Vec<String>)]) -> String {
    let line = |(index, row): (usize, &InstructionRow)| {
        let row = row.clone();
        let answers = said.iter().map(|(arm, answers)| (*arm, answers[index].clone()));
        let line = Answered {
            id: row.id,
            task: row.task,
            instruction: row.instruction,
            foreign: row.foreign,
            english_ref: row.english_ref,
            expected: row.answer,
            answers: answers.collect(),
        };
        format!("{}\n", json!(line))
    };
    rows.iter().enumerate().map(line).collect()
}

impl Answerer<'_> {
    /// Returns the answers of the arms that the job's own adapter has.
    fn own(&self, asked: &Asked, slots: Option<&Slots>) -> Result<Vec<(Arm, Vec<String>)>> {
        let Some(slots) = slots else {
            return Ok(vec![(Arm::Direct, self.direct(&asked.rows)?)]);
        };
        let vectors = &asked.vectors;
        let values = slots.of(&vectors.values, vectors.width)?;
        let zeros = vec![0.0; values.len()];
        let prompts = self.slot_prompts(asked, &slots.expander)?;
        let shape = slots.expander.shape();
        let width = shape.slots * shape.width;
        let answers = |values: &[f32]| {
            let each = vectors.rows.iter().map(|rows| &values[rows.start * width..rows.end * width]);
            self.answers(&prompts, &each.collect::<Vec<_>>())
        };
        Ok(vec![(Arm::Slots, answers(&values)?), (Arm::Zeroed, answers(&zeros)?)])
    }

    fn direct(&self, rows: &[InstructionRow]) -> Result<Vec<String>> {
        self.answers(&self.direct_prompts(rows)?, &[])
    }

    fn answers(&self, prompts: &[ChatPrompt], slots: &[&[f32]]) -> Result<Vec<String>> {
        answers(self.context, self.decoder, &self.adapter, &self.options, prompts, slots)
    }

    fn slot_prompts(&self, asked: &Asked, expander: &SlotExpander) -> Result<Vec<ChatPrompt>> {
        let (slots, numbers) = (expander.shape().slots, self.numbers.as_ref());
        let prompt = |(row, sentences): (&InstructionRow, &Range<usize>)| {
            self.decoder.prompt_about(&row.instruction, slots * sentences.len(), &row.foreign, numbers)
        };
        asked.rows.iter().zip(&asked.vectors.rows).map(prompt).collect()
    }

    fn direct_prompts(&self, rows: &[InstructionRow]) -> Result<Vec<ChatPrompt>> {
        let prompt = |row: &InstructionRow| self.decoder.direct_prompt(&row.instruction, &row.foreign, self.max_tokens);
        rows.iter().map(prompt).collect()
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
                tracing::warn!(at_once, "out of memory on the device: fewer answers are computed at once");
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
    pub(super) fn read(context: &OpenContext<'_>, task: &Answers, aligned: &Projector) -> Result<Option<Self>> {
        let Some(artifact) = &task.slots else { return Ok(None) };
        let content = context.read(artifact)?;
        Ok(Some(Self {
            expander: SlotExpander::from_safetensors(&context.describe(artifact), &content)?,
            projector: match &task.projector {
                Some(projector) => read_projector(context, projector)?,
                None => aligned.clone(),
            },
        }))
    }

    /// Returns the number of windows W of a row with `width` numbers, (1 + W) · d_e.
    fn windows(&self, width: usize) -> usize {
        (width / self.projector.shape().input).saturating_sub(1)
    }

    /// Returns the slots of n texts or sentences, as `[n, K, d]`, from rows of `width` numbers: the encoder's vectors of each and
    /// of its windows, `[n, 1 + W, d_e]`.
    fn of(&self, vectors: &[f32], width: usize) -> Result<Vec<f32>> {
        self.expander.expand(&self.projector.project(vectors)?, self.windows(width))
    }

    /// Returns the mean of the slots of each text, `[n, d]`, which Stage B keeps near the teacher.
    pub(super) fn means(&self, vectors: &VectorTable) -> Result<Vec<f32>> {
        let shape = self.expander.shape();
        let slots = self.of(&vectors.values.to_f32_vec(), vectors.width)?;
        let mean = |rows: Range<usize>| -> Vec<f32> {
            let count = rows.len() * shape.slots;
            let slots = &slots[rows.start * shape.slots * shape.width..][..count * shape.width];
            let sum = |column: usize| slots.iter().skip(column).step_by(shape.width).sum::<f32>();
            (0..shape.width).map(|column| sum(column) / count as f32).collect()
        };
        Ok(vectors.texts().into_iter().flat_map(mean).collect())
    }
}

/// Adds an arm's scores over the answers of one kind.
fn add_scores(result: &mut TaskResult, of: Scored, arm: Arm, rows: &[InstructionRow], answers: &[String]) {
    let wanted = |row: &InstructionRow| of != Scored::Translations || row.task == "translate";
    let pairs = rows.iter().zip(answers).filter(|(row, _)| wanted(row));
    let scores = answer_scores(pairs.map(|(row, answer)| (answer.as_str(), row.answer.as_str())));
    measured::put(&mut result.figures, &of.by(arm), &scores);
}
