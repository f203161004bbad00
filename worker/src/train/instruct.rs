//! Stage B: training slots and LoRA on a frozen decoder.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};
use std::thread::Scope;
use std::time::Instant;

use super::agreement::{agree_on, hash, same_options};
use super::ahead::{Ahead, Reading};
use super::batch::{BatchPlan, rank_slice};
use super::dropout::Dropout;
use super::instruct_batch::{InstructBatch, InstructExample, micro_batches};
use super::instruct_data::InstructData;
use super::instruct_options::{InstructMode, InstructOptions};
use super::instruct_state::{self, InstructState};
use super::instruct_step::{InstructInput, InstructOutcome, InstructTrainer, LearningRates};
use super::moving_projector::MovingProjector;
use super::observer::Observer;
use super::on_device::DeviceInstructTrainer;
use super::optimizer::AdamW;
use super::step_record::{StepRecord, StepSeconds, Validation};
use super::upkeep::Upkeep;
use crate::collective::Collective;
use crate::llink::projector::Projector;
use crate::llink::slot_expander::{ExpanderActivations, SlotExpander, SlotExpanderShape};
use crate::models::lora::LoraAdapter;
use crate::models::{Activations, Decoder, Form, Llama, TrainingBatch};
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
    /// The same on all ranks, where it was trained.
    pub projector: Option<Projector>,
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
    std::thread::scope(|scope| instruct_within(scope, run, collective, observer))
}

fn instruct_within<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    run: InstructRun<'env>,
    collective: &mut dyn Collective,
    observer: &mut dyn Observer,
) -> Result<InstructTrained> {
    let InstructRun { options, data, .. } = run;
    options.check()?;
    let plan = BatchPlan::new(options.seed, data.len(), options.batch.min(data.len()))?;
    let (mut next_step, mut trainer) = start(&run)?;
    agree(options, data, next_step, &trainer, collective)?;
    let reading = match trainer {
        Trainer::Slices(_) => Reading::InTurn,
        Trainer::Tensors(_) => Reading::Ahead,
    };
    let (rank, ranks) = (collective.rank(), collective.world_size());
    let mut inputs = Ahead::new(scope, reading, move |step| {
        let rows = plan.rows(step);
        let own = rank_slice(rows.len(), rank, ranks);
        StepRows::read(data, options, rows, own)
    });
    let mut last = None;
    while next_step < options.steps {
        let step = next_step;
        collective.begin_step(step);
        let started = Instant::now();
        let rates = options.learning_rates(step);
        let taken = inputs.take(step, options.steps).and_then(|input| {
            let read = started.elapsed().as_secs_f64();
            let mut outcome = take_step(&run, &mut trainer, step, &input, rates, collective)?;
            outcome.seconds.data = read;
            Ok((input, outcome))
        });
        let (StepRows { rows, .. }, outcome) = match taken {
            Ok(outcome) => outcome,
            Err(error) => {
                observer.interrupted(&error, next_step, &|| snapshot(options, next_step, &trainer));
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
        let state = || snapshot(options, next_step, &trainer);
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
    let parts = trainer.parts()?;
    Ok(InstructTrained {
        adapter: parts.adapter.into_owned(),
        expander: parts.expander.into_owned(),
        projector: parts.projector.map(|moving| moving.into_owned().projector),
        last,
    })
}

/// The checkpoint after `steps` steps.
fn snapshot(options: &InstructOptions, steps: u64, trainer: &Trainer) -> Result<Vec<u8>> {
    let parts = trainer.parts()?;
    let projector = parts.projector.as_deref();
    instruct_state::to_safetensors(
        options,
        steps,
        &parts.adapter,
        &parts.expander,
        &parts.optimizers,
        projector,
    )
}

/// What takes the steps: on slices or in tensors, as the decoder computes.
enum Trainer {
    Slices(Box<InstructTrainer>),
    Tensors(Box<DeviceInstructTrainer>),
}

/// What moves with the steps, on the host.
struct Parts<'a> {
    adapter: Cow<'a, LoraAdapter>,
    expander: Cow<'a, SlotExpander>,
    optimizers: Cow<'a, [AdamW; 3]>,
    projector: Option<Cow<'a, MovingProjector>>,
}

impl Trainer {
    fn new(
        run: &InstructRun<'_>,
        adapter: LoraAdapter,
        expander: SlotExpander,
        optimizers: [AdamW; 3],
        projector: Option<MovingProjector>,
    ) -> Result<Self> {
        let (decoder, weights) = (run.decoder.model(), run.options.weights());
        Ok(match decoder.form() {
            Form::Slices => {
                let trainer = InstructTrainer::new(adapter, expander, optimizers, weights);
                Self::Slices(Box::new(trainer.with_projector(projector)))
            }
            Form::Tensors => {
                let trainer = DeviceInstructTrainer::new(decoder, adapter, &expander, &optimizers, weights)?;
                Self::Tensors(Box::new(trainer.with_projector(projector)?))
            }
        })
    }

    fn step(
        &mut self,
        decoder: &Llama,
        input: &InstructInput<'_>,
        collective: &mut dyn Collective,
    ) -> Result<InstructOutcome> {
        match self {
            Self::Slices(trainer) => trainer.step(decoder, input, collective),
            Self::Tensors(trainer) => trainer.step(decoder, input, collective),
        }
    }

    fn parts(&self) -> Result<Parts<'_>> {
        Ok(match self {
            Self::Slices(trainer) => Parts {
                adapter: Cow::Borrowed(&trainer.adapter),
                expander: Cow::Borrowed(&trainer.expander),
                optimizers: Cow::Borrowed(&trainer.optimizers),
                projector: trainer.projector.as_ref().map(Cow::Borrowed),
            },
            Self::Tensors(trainer) => {
                let (adapter, expander, optimizers) = trainer.to_host()?;
                Parts {
                    adapter: Cow::Owned(adapter),
                    expander: Cow::Owned(expander),
                    optimizers: Cow::Owned(optimizers),
                    projector: trainer.projector()?.map(Cow::Owned),
                }
            }
        })
    }
}

/// The step to begin with, and what moves: as a checkpoint says, or anew.
fn start(run: &InstructRun<'_>) -> Result<(u64, Trainer)> {
    let InstructRun { options, decoder, .. } = run;
    if let Some(state) = &run.resume {
        same_options(*options, &state.options)?;
        let state = state.clone();
        let trainer = Trainer::new(run, state.adapter, state.expander, state.optimizers, state.projector)?;
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
    let moving = || MovingProjector::new(run.data.projector().clone(), options.adamw());
    let projector = options.moves_projector().then(moving);
    Ok((0, Trainer::new(run, adapter, expander, optimizers, projector)?))
}

/// What a step is fed with.
struct StepRows {
    rows: Vec<usize>,
    own: Range<usize>,
    vectors: Vec<f32>,
    teacher: Vec<f32>,
}

impl StepRows {
    fn read(data: &InstructData, options: &InstructOptions, rows: Vec<usize>, own: Range<usize>) -> Result<Self> {
        let (vectors, teacher) = match options.mode {
            InstructMode::Slots if options.moves_projector() => (data.encoder(&rows[own.clone()]), data.teacher(&rows)),
            InstructMode::Slots => (data.projected(&rows[own.clone()])?, data.teacher(&rows)),
            InstructMode::Direct => (Vec::new(), Vec::new()),
        };
        Ok(Self {
            rows,
            own,
            vectors,
            teacher,
        })
    }
}

fn take_step(
    run: &InstructRun<'_>,
    trainer: &mut Trainer,
    step: u64,
    read: &StepRows,
    learning_rates: LearningRates,
    collective: &mut dyn Collective,
) -> Result<InstructOutcome> {
    let InstructRun { options, data, .. } = run;
    let (rows, own) = (&read.rows, read.own.clone());
    let ids: Vec<u64> = rows.iter().map(|row| data.ids()[*row]).collect();
    let examples: Vec<&InstructExample> = rows[own.clone()].iter().map(|row| &data.examples()[*row]).collect();
    let dropout = options.lora.dropout;
    let input = InstructInput {
        step,
        ids: &ids,
        own,
        examples: &examples,
        vectors: &read.vectors,
        teacher: &read.teacher,
        answer_tokens: rows.iter().map(|row| data.examples()[*row].answer.len()).sum(),
        learning_rates,
        dropout: (dropout > 0.0).then(|| Dropout::new(dropout, options.seed, step)),
        token_budget: run.token_budget,
        activations: run.activations,
    };
    trainer.step(run.decoder.model(), &input, collective)
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
    if rates.projector > 0.0 && mode == InstructMode::Slots {
        numbers.push(("projector_learning_rate", rates.projector));
    }
    numbers
}

/// The loss on held-out examples, with slots and with zeros in their place.
fn validate(run: &InstructRun<'_>, data: &InstructData, trainer: &Trainer) -> Result<Validation> {
    let parts = trainer.parts()?;
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
        let loss = |embeddings: &[f32]| run.decoder.model().answer_loss(&parts.adapter, &training, embeddings);
        if run.options.mode == InstructMode::Slots {
            for row in &batch.slot_rows {
                embeddings[row * width..(row + 1) * width].fill(0.0);
            }
            zero += loss(&embeddings)?;
            let projected = match &parts.projector {
                Some(moving) => moving.projector.project(&data.encoder(&rows[part]))?,
                None => data.projected(&rows[part])?,
            };
            parts.expander.forward(&projected, &mut activations);
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
    trainer: &Trainer,
    collective: &mut dyn Collective,
) -> Result<()> {
    let text = serde_json::to_vec(options).map_err(|error| Error::Input(error.to_string()))?;
    let parts = trainer.parts()?;
    let projector = parts
        .projector
        .as_ref()
        .map_or(data.projector(), |moving| &moving.projector);
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
