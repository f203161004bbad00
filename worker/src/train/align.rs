//! Stage A: training the projector on cached vectors.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::thread::Scope;
use std::time::Instant;

use super::agreement::{agree_on, hash, same_options};
use super::ahead::{Ahead, Reading};
use super::align_data::{AlignBatchRows, AlignData};
use super::align_options::AlignOptions;
use super::align_state::{self, AlignState};
use super::align_step::{AlignTrainer, StepInput, StepOutcome};
use super::align_validation::AlignValidation;
use super::batch::{BatchPlan, rank_slice};
use super::dropout::Dropout;
use super::observer::Observer;
use super::on_device::DeviceAlignTrainer;
use super::optimizer::AdamW;
use super::schedule::{cosine_lr, temperature};
use super::step_record::{StepRecord, StepSeconds};
use super::upkeep::Upkeep;
use crate::collective::Collective;
use crate::llink::projector::Projector;
use crate::llink::statistics::Statistics;
use crate::llink::teacher_queue::TeacherQueue;
use crate::models::Backend;
use crate::{Error, Result};

/// What training left.
#[derive(Debug, Clone)]
pub struct AlignOutcome {
    /// The trained projector for the encoder's own vectors: a standardization is folded into it. The same on all ranks.
    pub projector: Projector,
    /// The step that would come next; all steps are done when it is the options' `steps`.
    pub next_step: u64,
    /// The last step taken here, if any was.
    pub last: Option<StepRecord>,
}

/// What is trained, on what, from where.
#[derive(Debug)]
pub struct AlignRun<'a> {
    /// What it is trained with.
    pub options: &'a AlignOptions,
    /// Cached vectors.
    pub data: &'a AlignData,
    /// What was fitted on them; [`Statistics::default`] trains as the paper does.
    pub statistics: &'a Statistics,
    /// The state to go on from.
    pub resume: Option<AlignState>,
    /// Trains in tensors there; none: on slices on the CPU.
    pub backend: Option<&'a Backend>,
    /// On slices: pairs of this rank whose activations are held at once; 0: all. It changes what memory is needed, and nothing else
    /// but rounding.
    pub micro_batch: usize,
    /// Held-out pairs, and the steps after which rank 0 looks at them.
    pub validation: Option<(&'a AlignValidation, &'a Upkeep)>,
}

/// Trains the projector. Every rank calls this with the same options, data and state; `observer` is called after each step and
/// may end training, on all ranks at the same step.
///
/// Products of matrices use the rayon pool that this runs in: ranks that share a machine should share out its cores.
///
/// # Errors
/// [`Error::Input`] when options, data and state do not fit each other; [`Error::Diverged`]; those of the collective and of
/// the observer.
pub fn align(run: AlignRun<'_>, collective: &mut dyn Collective, observer: &mut dyn Observer) -> Result<AlignOutcome> {
    std::thread::scope(|scope| align_within(scope, run, collective, observer))
}

fn align_within<'scope, 'env: 'scope>(
    scope: &'scope Scope<'scope, 'env>,
    run: AlignRun<'env>,
    collective: &mut dyn Collective,
    observer: &mut dyn Observer,
) -> Result<AlignOutcome> {
    let AlignRun {
        options,
        data,
        statistics,
        ..
    } = run;
    options.check()?;
    let plan = BatchPlan::new(options.seed, data.len(), options.batch)?;
    let state = match &run.resume {
        Some(state) => continued(&run, state.clone())?,
        None => fresh(&run)?,
    };
    agree(data, &state, collective)?;
    let mut next_step = state.step;
    let mut trainer = Trainer::new(&run, state)?;
    let own = rank_slice(options.batch, collective.rank(), collective.world_size());
    let reading = match run.backend {
        Some(_) => Reading::Ahead,
        None => Reading::InTurn,
    };
    let rows_of = own.clone();
    let mut batches = Ahead::new(scope, reading, move |step| {
        let rows = plan.rows(step);
        let mut batch = AlignBatchRows::default();
        batch.read(data, &rows, &rows[rows_of.clone()]);
        if let Some(standardization) = &statistics.standardization {
            standardization.standardize(&mut batch.encoder);
        }
        batch
    });
    let mut last = None;
    while next_step < options.steps {
        let step = next_step;
        collective.begin_step(step);
        let started = Instant::now();
        let batch = batches.take(step, options.steps);
        let data_seconds = started.elapsed().as_secs_f64();

        let temperature = temperature(step, options.steps, options.temperature_start, options.temperature_end);
        let (base, floor) = (options.learning_rate, options.learning_rate_floor);
        let learning_rate = cosine_lr(step + 1, options.steps + 1, options.warmup_steps, base, floor);
        let dropout = (options.dropout > 0.0).then(|| Dropout::new(options.dropout, options.seed, step));
        let input = StepInput {
            step,
            ids: &batch.ids,
            own: own.clone(),
            encoder: &batch.encoder,
            teacher: &batch.teacher,
            temperature,
            learning_rate,
            dropout,
        };
        let outcome = match trainer.step(&input, collective) {
            Ok(outcome) => outcome,
            Err(error) => {
                observer.interrupted(&error, next_step, &|| {
                    snapshot(options, statistics, next_step, &trainer)
                });
                return Err(error);
            }
        };
        next_step = step + 1;

        let seconds = StepSeconds {
            data: data_seconds,
            total: started.elapsed().as_secs_f64(),
            ..outcome.seconds
        };
        let looks =
            |(_, upkeep): &(_, &Upkeep)| collective.rank() == 0 && upkeep.validation_due(next_step, options.steps);
        let validation = run
            .validation
            .filter(looks)
            .map(|(pairs, _)| pairs.measure(&statistics.folded(&trainer.parts()?.projector)));
        let record = StepRecord {
            step,
            numbers: vec![
                ("loss", outcome.losses.total(&options.weights())),
                ("info_nce", outcome.losses.info_nce),
                ("direction", outcome.losses.direction),
                ("log_norm", outcome.losses.log_norm),
                ("grad_norm", outcome.grad_norm),
                ("learning_rate", learning_rate),
                ("temperature", temperature),
            ],
            pairs: batch.ids.len() as u64,
            tokens: 0,
            seconds,
            validation: validation.transpose()?,
        };
        let state = || snapshot(options, statistics, next_step, &trainer);
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
    Ok(AlignOutcome {
        projector: statistics.folded(&trainer.parts()?.projector),
        next_step,
        last,
    })
}

/// The checkpoint after `steps` steps.
fn snapshot(options: &AlignOptions, statistics: &Statistics, steps: u64, trainer: &Trainer) -> Result<Vec<u8>> {
    let parts = trainer.parts()?;
    let (projector, optimizer, queue) = (&parts.projector, &parts.optimizer, &parts.queue);
    align_state::to_safetensors(options, steps, statistics, projector, optimizer, queue)
}

/// What takes the steps.
enum Trainer {
    Slices(Box<AlignTrainer>),
    Tensors(Box<DeviceAlignTrainer>),
}

/// What moves with the steps, on the host.
struct Parts<'a> {
    projector: Cow<'a, Projector>,
    optimizer: Cow<'a, AdamW>,
    queue: Cow<'a, TeacherQueue>,
}

impl Trainer {
    fn new(run: &AlignRun<'_>, state: AlignState) -> Result<Self> {
        let (weights, clip) = (run.options.weights(), run.options.gradient_clip);
        let AlignState {
            projector,
            optimizer,
            queue,
            ..
        } = state;
        let metric = run.statistics.metric.as_ref();
        Ok(match run.backend {
            Some(backend) => {
                let trainer = DeviceAlignTrainer::new(backend, &projector, &optimizer, &queue, weights, clip)?;
                Self::Tensors(Box::new(trainer.with_metric(metric)?.with_micro_batch(run.micro_batch)))
            }
            None => {
                let trainer = AlignTrainer::new(projector, optimizer, queue, weights, clip);
                let trainer = trainer.with_metric(metric.cloned());
                Self::Slices(Box::new(trainer.with_micro_batch(run.micro_batch)))
            }
        })
    }

    fn step(&mut self, input: &StepInput<'_>, collective: &mut dyn Collective) -> Result<StepOutcome> {
        match self {
            Self::Slices(trainer) => trainer.step(input, collective),
            Self::Tensors(trainer) => trainer.step(input, collective),
        }
    }

    fn parts(&self) -> Result<Parts<'_>> {
        Ok(match self {
            Self::Slices(trainer) => Parts {
                projector: Cow::Borrowed(&trainer.projector),
                optimizer: Cow::Borrowed(&trainer.optimizer),
                queue: Cow::Borrowed(&trainer.queue),
            },
            Self::Tensors(trainer) => {
                let (projector, optimizer, queue) = trainer.to_host()?;
                Parts {
                    projector: Cow::Owned(projector),
                    optimizer: Cow::Owned(optimizer),
                    queue: Cow::Owned(queue),
                }
            }
        })
    }
}

/// The state before the first step.
fn fresh(run: &AlignRun<'_>) -> Result<AlignState> {
    let (options, statistics) = (run.options, run.statistics);
    let shape = run.data.projector_shape(options.projector_hidden);
    statistics.check(shape.input, shape.output)?;
    let mut projector = Projector::new(shape, options.seed);
    statistics.start(&mut projector);
    Ok(AlignState {
        options: options.clone(),
        step: 0,
        statistics: statistics.clone(),
        projector,
        optimizer: AdamW::new(options.adamw(), shape.parameter_count()),
        queue: TeacherQueue::new(options.queue_capacity, shape.output),
    })
}

/// The state to go on from, unless it belongs to another training.
fn continued(run: &AlignRun<'_>, state: AlignState) -> Result<AlignState> {
    let AlignRun { options, data, .. } = run;
    same_options(*options, &state.options)?;
    if state.statistics != *run.statistics {
        return Err(Error::Input(
            "the checkpoint was trained with other statistics than this run is given".into(),
        ));
    }
    let (shape, found) = (data.projector_shape(options.projector_hidden), state.projector.shape());
    if shape != found {
        return Err(Error::Input(format!(
            "the checkpoint holds a projector {found:?}, the vectors ask for {shape:?}"
        )));
    }
    Ok(state)
}

/// Makes sure that all ranks start from the same step, weights and data.
fn agree(data: &AlignData, state: &AlignState, collective: &mut dyn Collective) -> Result<()> {
    let options = serde_json::to_vec(&state.options).map_err(|error| Error::Input(error.to_string()))?;
    let facts = [
        ("step", state.step),
        ("weights", hash(bytemuck::cast_slice(&state.projector.parameters))),
        ("pairs", hash(bytemuck::cast_slice(data.ids()))),
        ("options", hash(&options)),
        ("statistics", hash(&state.statistics.to_safetensors()?)),
    ];
    agree_on(&facts, collective)
}
