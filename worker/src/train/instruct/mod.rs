//! Stage B, which trains slots and LoRA on a frozen decoder.

pub mod batch;
pub mod data;
mod extent;
pub mod options;
mod runs;
pub mod state;
pub mod step;
mod trainer;

use std::ops::Range;

pub use trainer::InstructTrainer;

use self::batch::{InstructExample, micro_batches};
use self::data::InstructData;
use self::options::{InstructArm, InstructOptions};
use self::state::{InstructParts, InstructState};
use self::step::{InstructInput, InstructOutcome, LearningRates};
use super::agreement::{agree_on, checked, hash, same_options};
use super::batch::{BatchPlan, rank_slice};
use super::observer::Observer;
use super::stage::{Stage, take_steps};
use super::step_record::{StepRecord, Validation};
use super::upkeep::Upkeep;
use crate::collective::Collective;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::{SlotExpander, SlotExpanderShape};
use crate::models::lora::LoraAdapter;
use crate::models::{Activations, Decoder};
use crate::numerics::dropout::Dropout;
use crate::{Error, Result};

/// The input of the training.
pub struct InstructRun<'a> {
    /// The hyperparameters.
    pub options: &'a InstructOptions,
    /// The frozen decoder.
    pub decoder: &'a Decoder,
    /// The lower median of the norms of the decoder's embeddings.
    pub median_norm: f32,
    /// The examples and their vectors.
    pub data: &'a InstructData,
    /// Trained parts to start from, instead of random numbers.
    pub start: Option<InstructStart>,
    /// The state to continue from.
    pub resume: Option<InstructState>,
    /// The held-out examples on which rank 0 measures.
    pub validation: Option<&'a InstructData>,
}

/// The trained parts of a bundle, from which a training starts.
pub struct InstructStart {
    /// The name of the bundle in errors.
    pub bundle: String,
    /// The adapter.
    pub adapter: LoraAdapter,
    /// The slot expander.
    pub expander: SlotExpander,
    /// The projector, which is used if the training trains it.
    pub projector: Projector,
    /// The number of windows that the slots were trained with.
    pub windows: usize,
}

/// The result of the training. It is the same on all ranks.
pub struct InstructTrained {
    /// The trained adapter.
    pub adapter: LoraAdapter,
    /// The trained slot expander.
    pub expander: SlotExpander,
    /// The trained projector, if Stage B trains it.
    pub projector: Option<Projector>,
    /// The last step that this call took, if any.
    pub last: Option<StepRecord>,
}

/// Trains adapter and slots. Every rank calls this with the same options, data and state. `observer` is called after
/// each step and may end training, on all ranks at the same step.
///
/// # Errors
/// [`Error::Input`] when options, data and state do not match; [`Error::Diverged`]; those of the decoder, the
/// collective and the observer.
pub fn instruct(
    run: InstructRun<'_>,
    collective: &mut dyn Collective,
    observer: &mut dyn Observer,
) -> Result<InstructTrained> {
    let InstructRun { options, data, .. } = run;
    let settings = &options.settings;
    checked(|expect| settings.check(expect))?;
    let examples = data.examples().len();
    let plan = BatchPlan::new(options.seed, examples, examples.min(settings.batch as usize))?;
    let (first_step, trainer) = start(&run)?;
    agree(options, data, first_step, &trainer, collective)?;
    let (rank, ranks) = (collective.rank(), collective.world_size());
    let prepare = move |step| -> Result<StepRows> {
        let rows = plan.rows(step);
        let own = rank_slice(rows.len(), rank, ranks);
        Ok(StepRows { vectors: data.vectors(&rows[own.clone()])?, teacher: data.teacher(&rows), rows, own })
    };
    let upkeep = Upkeep::from(settings);
    let validation = run.validation.map(|_| &upkeep);
    let device = run.decoder.model().activations().0;
    let mut stage = InstructStage { run, trainer };
    let ended = take_steps(&mut stage, first_step, prepare, device, validation, collective, observer)?;
    let InstructParts { adapter, expander, projector, .. } = stage.trainer.store()?;
    Ok(InstructTrained { adapter, expander, projector, last: ended.last })
}

struct InstructStage<'a> {
    run: InstructRun<'a>,
    trainer: InstructTrainer,
}

impl Stage for InstructStage<'_> {
    type Input = StepRows;

    fn steps(&self) -> u64 {
        self.run.options.steps
    }

    fn take_step(&mut self, step: u64, read: &StepRows, collective: &mut dyn Collective) -> Result<StepRecord> {
        let InstructRun { options, data, decoder, .. } = self.run;
        let (settings, rates) = (&options.settings, options.learning_rates(step));
        let (rows, own) = (&read.rows, read.own.clone());
        let example = |row: &usize| &data.examples()[*row];
        let ids: Vec<u64> = rows.iter().map(|row| data.ids()[*row]).collect();
        let examples: Vec<&InstructExample> = rows[own.clone()].iter().map(example).collect();
        let dropout = settings.lora_dropout;
        let input = InstructInput {
            step,
            ids: &ids,
            own,
            examples: &examples,
            vectors: &read.vectors,
            teacher: &read.teacher,
            answer_tokens: rows.iter().map(|row| example(row).answer.len()).sum(),
            learning_rates: rates,
            dropout: (dropout > 0.0).then(|| Dropout::new(dropout, options.seed, step)),
            token_budget: settings.token_budget as usize,
            activations: match settings.recompute {
                true => Activations::Recomputed,
                false => Activations::Kept,
            },
        };
        let outcome = self.trainer.step(decoder.model(), &input, collective)?;
        Ok(StepRecord {
            step,
            numbers: numbers(&outcome, rates, options.arm),
            pairs: rows.len() as u64,
            tokens: rows.iter().map(|row| example(row).tokens() as u64).sum(),
            seconds: outcome.seconds,
            validation: None,
        })
    }

    /// Measures the loss on held-out examples, with slots and with zeros in their place.
    fn validate(&mut self) -> Result<Validation> {
        let InstructRun { validation: Some(data), options, decoder, .. } = self.run else {
            return Ok(Validation::default());
        };
        let examples = data.examples();
        let rows: Vec<usize> = (0..examples.len()).collect();
        let lengths: Vec<usize> = examples.iter().map(InstructExample::tokens).collect();
        let answer_tokens = examples.iter().map(|example| example.answer.len()).sum();
        let (mut sft, mut zero) = (0.0, None);
        for part in micro_batches(&lengths, options.settings.token_budget as usize) {
            let vectors = data.vectors(&rows[part.clone()])?;
            let losses = self.trainer.held_out(decoder.model(), &examples[part], &vectors, answer_tokens)?;
            sft += losses.0;
            if let Some(of_part) = losses.1 {
                zero = Some(zero.unwrap_or(0.0) + of_part);
            }
        }
        let mut numbers = vec![("sft", sft)];
        numbers.extend(zero.map(|zero| ("usage_gap", zero - sft)));
        Ok(Validation { numbers, score: sft })
    }

    fn snapshot(&self, step: u64) -> Result<Vec<u8>> {
        let state = InstructState { options: self.run.options.clone(), step, parts: self.trainer.store()? };
        state.to_safetensors()
    }
}

/// Returns the first step and the trainer, from a checkpoint or newly initialized.
fn start(run: &InstructRun<'_>) -> Result<(u64, InstructTrainer)> {
    let InstructRun { options, decoder, .. } = run;
    let (step, parts) = match &run.resume {
        Some(state) => {
            same_options(&options.deciding(), &state.options.deciding())?;
            (state.step, state.parts.clone())
        }
        None => (0, fresh(run)?),
    };
    Ok((step, InstructTrainer::new(decoder.model(), parts, (&options.settings).into())?))
}

fn fresh(run: &InstructRun<'_>) -> Result<InstructParts> {
    let InstructRun { options, decoder, .. } = run;
    let (settings, width) = (&options.settings, decoder.hidden_size());
    let shape = SlotExpanderShape {
        width,
        hidden: settings.expander_hidden.map_or(2 * width, |hidden| hidden as usize),
        slots: settings.slots.max(1) as usize,
    };
    let mut adapter = LoraAdapter::new(decoder.config(), settings.into(), options.seed)?;
    let mut expander = SlotExpander::new(shape, run.median_norm, options.seed);
    let mut projector = options.moves_projector().then(|| run.data.projector().clone());
    if let Some(start) = &run.start {
        start.check(settings.windows, &adapter, shape, projector.as_ref())?;
        adapter.parameters.clone_from(&start.adapter.parameters);
        expander.parameters.clone_from(&start.expander.parameters);
        projector = projector.map(|_| start.projector.clone());
    }
    Ok(InstructParts::new(adapter, expander, projector, options.adamw()))
}

impl InstructStart {
    /// Refuses a bundle whose parts have other shapes than those of the job, or whose slots read other windows.
    fn check(
        &self,
        windows: u32,
        adapter: &LoraAdapter,
        slots: SlotExpanderShape,
        projector: Option<&Projector>,
    ) -> Result<()> {
        let (own, found) = (adapter.options(), self.adapter.options());
        let expander = self.expander.shape();
        let mut pairs = vec![
            ("instruct.slots", slots.slots as f64, expander.slots as f64),
            ("instruct.windows", f64::from(windows), self.windows as f64),
            ("instruct.expander_hidden", slots.hidden as f64, expander.hidden as f64),
            ("the decoder's width", slots.width as f64, expander.width as f64),
            ("instruct.lora_rank", own.rank as f64, found.rank as f64),
            ("instruct.lora_alpha", own.alpha, found.alpha),
        ];
        if let Some(projector) = projector {
            let (own, found) = (projector.shape(), self.projector.shape());
            pairs.push(("the encoder's width", own.input as f64, found.input as f64));
            pairs.push(("align.projector_hidden", own.hidden as f64, found.hidden as f64));
        }
        match pairs.iter().find(|(_, own, found)| own != found) {
            Some((key, own, found)) => Err(Error::Input(format!(
                "`instruct.from`: the bundle {} was trained with {found} as {key}, and the job has {own}: give both the same",
                self.bundle
            ))),
            None if own.targets != found.targets => Err(Error::Input(format!(
                "`instruct.from`: the adapter of the bundle {} corrects other layers of the decoder than llink trains",
                self.bundle
            ))),
            None => Ok(()),
        }
    }
}

struct StepRows {
    rows: Vec<usize>,
    own: Range<usize>,
    vectors: Vec<f32>,
    teacher: Vec<f32>,
}

fn numbers(outcome: &InstructOutcome, rates: LearningRates, arm: InstructArm) -> Vec<(&'static str, f64)> {
    let losses = &outcome.losses;
    let mut numbers = vec![("loss", losses.loss), ("sft", losses.sft)];
    if arm == InstructArm::Slots {
        numbers.extend([("usage", losses.usage), ("cosine", losses.cosine), ("info_nce", losses.info_nce)]);
    }
    // The usage gap, L_zero − L_sft, is the benefit of the slots. Steps that compare the two have it.
    numbers.extend(losses.zero.map(|zero| ("usage_gap", zero - losses.sft)));
    numbers.extend([
        ("grad_norm", outcome.grad_norm),
        ("learning_rate", rates.lora),
        ("expander_learning_rate", rates.expander),
        ("scale_learning_rate", rates.scale),
    ]);
    if rates.projector > 0.0 && arm == InstructArm::Slots {
        numbers.push(("projector_learning_rate", rates.projector));
    }
    numbers
}

fn agree(
    options: &InstructOptions,
    data: &InstructData,
    step: u64,
    trainer: &InstructTrainer,
    collective: &mut dyn Collective,
) -> Result<()> {
    let text = serde_json::to_vec(options).map_err(|error| Error::Input(error.to_string()))?;
    let parts = trainer.store()?;
    let projector = parts.projector.as_ref().unwrap_or(data.projector());
    let facts = [
        ("step", step),
        ("adapters", hash(bytemuck::cast_slice(&parts.adapter.parameters))),
        ("slot expanders", hash(bytemuck::cast_slice(&parts.expander.parameters))),
        ("instructions", hash(bytemuck::cast_slice(data.ids()))),
        ("projectors", hash(bytemuck::cast_slice(&projector.parameters))),
        ("options", hash(&text)),
    ];
    agree_on(&facts, collective)
}
