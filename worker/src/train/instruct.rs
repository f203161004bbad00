//! Stage B: training slots and LoRA on a frozen decoder.

use std::ops::ControlFlow;
use std::time::Instant;

use super::agreement::{agree_on, hash, same_options};
use super::batch::{BatchPlan, rank_slice};
use super::dropout::Dropout;
use super::instruct_batch::{InstructBatch, InstructExample, micro_batches};
use super::instruct_data::InstructData;
use super::instruct_options::{InstructMode, InstructOptions};
use super::instruct_state::{self, InstructState};
use super::instruct_step::{InstructInput, InstructOutcome, InstructTrainer, LearningRates};
use super::observer::Observer;
use super::step_record::{StepRecord, StepSeconds, Validation};
use super::upkeep::Upkeep;
use crate::collective::Collective;
use crate::llink::slot_expander::{ExpanderActivations, SlotExpander, SlotExpanderShape};
use crate::models::lora::LoraAdapter;
use crate::models::{Activations, Decoder, TrainingBatch};
use crate::{Error, Result};

/// What is trained, on what, from where.
pub struct InstructRun<'a> {
    /// What it is trained with.
    pub options: &'a InstructOptions,
    /// The frozen decoder.
    pub decoder: &'a Decoder,
    /// The lower median of its embeddings' norms.
    pub median_norm: f32,
    /// Examples and vectors.
    pub data: &'a InstructData,
    /// The state to go on from.
    pub resume: Option<InstructState>,
    /// Tokens that go through the decoder at once.
    pub token_budget: usize,
    /// What a forward pass keeps.
    pub activations: Activations,
    /// Held-out examples, and the steps after which rank 0 looks at them.
    pub validation: Option<(&'a InstructData, &'a Upkeep)>,
}

/// What training left.
pub struct InstructTrained {
    /// The same on all ranks.
    pub adapter: LoraAdapter,
    /// The same on all ranks.
    pub expander: SlotExpander,
    /// The last step taken here, if any was.
    pub last: Option<StepRecord>,
}

/// Trains adapter and slots. Every rank calls this with the same options, data and state; `observer` is called after each step
/// and may end training, on all ranks at the same step.
///
/// # Errors
/// [`Error::Input`] when options, data and state do not fit each other; [`Error::Diverged`]; those of the decoder, the collective
/// and the observer.
pub fn instruct(
    run: InstructRun<'_>,
    collective: &mut dyn Collective,
    observer: &mut dyn Observer,
) -> Result<InstructTrained> {
    let InstructRun { options, data, .. } = run;
    options.check()?;
    let plan = BatchPlan::new(options.seed, data.len(), options.batch.min(data.len()))?;
    let (mut next_step, mut trainer) = start(&run)?;
    agree(options, data, next_step, &trainer, collective)?;
    let mut last = None;
    while next_step < options.steps {
        let step = next_step;
        collective.begin_step(step);
        let started = Instant::now();
        let rows = plan.rows(step);
        let rates = options.learning_rates(step);
        let outcome = match take_step(&run, &mut trainer, step, &rows, rates, collective) {
            Ok(outcome) => outcome,
            Err(error) => {
                observer.interrupted(&error, next_step, &|| {
                    instruct_state::to_safetensors(options, next_step, &trainer)
                });
                return Err(error);
            }
        };
        next_step = step + 1;
        let looks =
            |(_, upkeep): &(_, &Upkeep)| collective.rank() == 0 && upkeep.validation_due(next_step, options.steps);
        let validation = match run.validation.filter(looks) {
            Some((held_out, _)) => Some(validate(&run, held_out, &trainer)?),
            None => None,
        };
        let examples = || rows.iter().map(|row| &data.examples()[*row]);
        let record = StepRecord {
            step,
            numbers: numbers(&outcome, rates, options.mode),
            pairs: rows.len() as u64,
            tokens: examples().map(|example| example.tokens() as u64).sum(),
            seconds: StepSeconds {
                total: started.elapsed().as_secs_f64(),
                ..outcome.seconds
            },
            validation,
        };
        let state = || instruct_state::to_safetensors(options, next_step, &trainer);
        let told = observer.stepped(&record, &state);
        last = Some(record);
        match told {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(error) => {
                observer.interrupted(&error, next_step, &state);
                return Err(error);
            }
        }
    }
    Ok(InstructTrained {
        adapter: trainer.adapter,
        expander: trainer.expander,
        last,
    })
}

/// The step to begin with, and what moves: as a checkpoint says, or anew.
fn start(run: &InstructRun<'_>) -> Result<(u64, InstructTrainer)> {
    let InstructRun { options, decoder, .. } = run;
    if let Some(state) = &run.resume {
        same_options(*options, &state.options)?;
        let state = state.clone();
        let trainer = InstructTrainer::new(state.adapter, state.expander, state.optimizers, options.weights());
        return Ok((state.step, trainer));
    }
    let width = decoder.hidden_size();
    let shape = SlotExpanderShape {
        width,
        hidden: match options.expander_hidden {
            0 => 2 * width,
            hidden => hidden,
        },
        slots: options.slots.max(1),
    };
    let adapter = LoraAdapter::new(decoder.config(), options.lora.clone(), options.seed)?;
    let expander = SlotExpander::new(shape, run.median_norm, options.seed);
    let optimizers = InstructTrainer::optimizers(&adapter, &expander, options.adamw());
    Ok((
        0,
        InstructTrainer::new(adapter, expander, optimizers, options.weights()),
    ))
}

fn take_step(
    run: &InstructRun<'_>,
    trainer: &mut InstructTrainer,
    step: u64,
    rows: &[usize],
    learning_rates: LearningRates,
    collective: &mut dyn Collective,
) -> Result<InstructOutcome> {
    let InstructRun { options, data, .. } = run;
    let started = Instant::now();
    let own = rank_slice(rows.len(), collective.rank(), collective.world_size());
    let ids: Vec<u64> = rows.iter().map(|row| data.ids()[*row]).collect();
    let examples: Vec<&InstructExample> = rows[own.clone()].iter().map(|row| &data.examples()[*row]).collect();
    let (projected, teacher) = match options.mode {
        InstructMode::Slots => (data.projected(&rows[own.clone()])?, data.teacher(rows)),
        InstructMode::Direct => (Vec::new(), Vec::new()),
    };
    let dropout = options.lora.dropout;
    let input = InstructInput {
        step,
        ids: &ids,
        own,
        examples: &examples,
        projected: &projected,
        teacher: &teacher,
        answer_tokens: rows.iter().map(|row| data.examples()[*row].answer.len()).sum(),
        learning_rates,
        dropout: (dropout > 0.0).then(|| Dropout::new(dropout, options.seed, step)),
        token_budget: run.token_budget,
        activations: run.activations,
    };
    let data_seconds = started.elapsed().as_secs_f64();
    let mut outcome = trainer.step(run.decoder.model(), &input, collective)?;
    outcome.seconds.data = data_seconds;
    Ok(outcome)
}

fn numbers(outcome: &InstructOutcome, rates: LearningRates, mode: InstructMode) -> Vec<(&'static str, f64)> {
    let losses = &outcome.losses;
    let mut numbers = vec![("loss", losses.loss), ("sft", losses.sft)];
    if mode == InstructMode::Slots {
        numbers.extend([
            ("usage", losses.usage),
            ("cosine", losses.cosine),
            ("info_nce", losses.info_nce),
        ]);
    }
    // How much the slots are worth: L_zero − L_sft, on the steps that compare.
    numbers.extend(losses.zero.map(|zero| ("usage_gap", zero - losses.sft)));
    numbers.extend([
        ("grad_norm", outcome.grad_norm),
        ("learning_rate", rates.lora),
        ("expander_learning_rate", rates.expander),
        ("scale_learning_rate", rates.scale),
    ]);
    numbers
}

/// The loss on held-out examples, with slots and with zeros in their place.
fn validate(run: &InstructRun<'_>, data: &InstructData, trainer: &InstructTrainer) -> Result<Validation> {
    let rows: Vec<usize> = (0..data.len()).collect();
    let lengths: Vec<usize> = data.examples().iter().map(InstructExample::tokens).collect();
    let answer_tokens = data.examples().iter().map(|example| example.answer.len()).sum();
    let width = run.decoder.hidden_size();
    let (mut sft, mut zero) = (0.0, 0.0);
    let mut activations = ExpanderActivations::default();
    for part in micro_batches(&lengths, run.token_budget) {
        let batch = InstructBatch::new(&data.examples()[part.clone()]);
        let answer = batch.answer();
        let training = TrainingBatch {
            ids: &batch.ids,
            offsets: &batch.offsets,
            answer: &answer,
            answer_tokens,
            dropout: None,
        };
        let mut embeddings = run.decoder.model().embed_f32(&batch.ids)?;
        let loss = |embeddings: &[f32]| run.decoder.model().answer_loss(&trainer.adapter, &training, embeddings);
        if run.options.mode == InstructMode::Slots {
            for row in &batch.slot_rows {
                embeddings[row * width..(row + 1) * width].fill(0.0);
            }
            zero += loss(&embeddings)?;
            trainer
                .expander
                .forward(&data.projected(&rows[part])?, &mut activations);
            for (row, slot) in batch.slot_rows.iter().zip(activations.slots.chunks_exact(width)) {
                embeddings[row * width..(row + 1) * width].copy_from_slice(slot);
            }
        }
        sft += loss(&embeddings)?;
    }
    let mut numbers = vec![("sft", sft)];
    if run.options.mode == InstructMode::Slots {
        numbers.push(("usage_gap", zero - sft));
    }
    Ok(Validation { numbers, score: sft })
}

fn agree(
    options: &InstructOptions,
    data: &InstructData,
    step: u64,
    trainer: &InstructTrainer,
    collective: &mut dyn Collective,
) -> Result<()> {
    let text = serde_json::to_vec(options).map_err(|error| Error::Input(error.to_string()))?;
    let facts = [
        ("step", step),
        ("adapters", hash(bytemuck::cast_slice(&trainer.adapter.parameters))),
        (
            "slot expanders",
            hash(bytemuck::cast_slice(&trainer.expander.parameters)),
        ),
        ("instructions", hash(bytemuck::cast_slice(data.ids()))),
        ("projectors", hash(bytemuck::cast_slice(&data.projector().parameters))),
        ("options", hash(&text)),
    ];
    agree_on(&facts, collective)
}
