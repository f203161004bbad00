//! Stage A, which trains the projector on cached vectors.

pub mod data;
pub mod options;
pub mod state;
pub mod step;
pub mod validation;

use std::ops::Range;

use self::data::{AlignBatchRows, AlignData};
use self::options::AlignOptions;
use self::state::AlignState;
use self::step::{AlignTrainer, StepInput};
use self::validation::AlignValidation;
use crate::collective::Collective;
use crate::llink::projector::Projector;
use crate::llink::statistics::Statistics;
use crate::llink::teacher_queue::StoredQueue;
use crate::numerics::dropout::Dropout;
use crate::ops::Backend;
use crate::train::agreement::{agree_on, checked, hash, same_options};
use crate::train::batch::{BatchPlan, rank_slice};
use crate::train::observer::Observer;
use crate::train::optimizer::AdamWState;
use crate::train::schedule::{cosine_lr, temperature};
use crate::train::stage::{Stage, take_steps};
use crate::train::step_record::{StepRecord, Validation};
use crate::train::upkeep::Upkeep;
use crate::{Error, Result};

/// The result of the training.
#[derive(Debug, Clone)]
pub struct AlignOutcome {
    /// The trained projector for the encoder's own vectors, with the standardization folded in. The same on all ranks.
    pub projector: Projector,
    /// The next step. It equals the options' `steps` when training is complete.
    pub next_step: u64,
    /// The last step that this call took, if any.
    pub last: Option<StepRecord>,
}

/// The input of the training.
#[derive(Debug)]
pub struct AlignRun<'a> {
    /// The hyperparameters.
    pub options: &'a AlignOptions,
    /// The cached vectors.
    pub data: &'a AlignData,
    /// The statistics of these vectors. [`Statistics::default`] trains as in the paper.
    pub statistics: &'a Statistics,
    /// The state to continue from.
    pub resume: Option<AlignState>,
    /// The device and the number format of the steps.
    pub backend: &'a Backend,
    /// The held-out pairs on which rank 0 measures.
    pub validation: Option<&'a AlignValidation>,
}

/// Trains the projector. Every rank calls this with the same options, data and state. `observer` is called after each
/// step and may end training, on all ranks at the same step.
///
/// Matrix products use the current rayon pool. Ranks on one machine should divide its cores.
///
/// # Errors
/// [`Error::Input`] when options, data and state do not match; [`Error::Diverged`]; those of the collective and of the
/// observer.
pub fn align(run: AlignRun<'_>, collective: &mut dyn Collective, observer: &mut dyn Observer) -> Result<AlignOutcome> {
    let AlignRun { options, data, statistics, .. } = run;
    let settings = &options.settings;
    checked(|expect| settings.check(expect))?;
    let batch = settings.batch as usize;
    let plan = BatchPlan::new(options.seed, data.len(), batch)?;
    let state = match &run.resume {
        Some(state) => {
            check(&run, state)?;
            state.clone()
        }
        None => fresh(&run)?,
    };
    agree(data, &state, collective)?;
    let first_step = state.step;
    let AlignState { projector, optimizer, queue, .. } = &state;
    let trainer = AlignTrainer::new(run.backend, projector, optimizer, queue, settings.into(), settings.gradient_clip)?;
    let trainer = trainer.with_metric(statistics.metric.as_ref())?;
    let trainer = trainer.with_micro_batch(settings.micro_batch.map(|rows| rows as usize));
    drop(state);
    let own = rank_slice(batch, collective.rank(), collective.world_size());
    let rows_of = own.clone();
    let prepare = move |step| -> Result<AlignBatchRows> {
        let rows = plan.rows(step);
        let mut batch = AlignBatchRows::read(data, &rows, &rows[rows_of.clone()]);
        if let Some(standardization) = &statistics.standardization {
            standardization.standardize(&mut batch.encoder);
        }
        Ok(batch)
    };
    let upkeep = Upkeep::from(settings);
    let validation = run.validation.map(|_| &upkeep);
    let device = run.backend.device();
    let mut stage = AlignStage { run, trainer, own };
    let ended = take_steps(&mut stage, first_step, prepare, device, validation, collective, observer)?;
    Ok(AlignOutcome { projector: stage.projector()?, next_step: ended.next_step, last: ended.last })
}

struct AlignStage<'a> {
    run: AlignRun<'a>,
    trainer: AlignTrainer,
    /// The rows of the global batch that belong to this rank.
    own: Range<usize>,
}

impl AlignStage<'_> {
    /// Returns the projector for the encoder's own vectors.
    fn projector(&self) -> Result<Projector> {
        Ok(self.run.statistics.folded(&self.trainer.projector()?))
    }
}

impl Stage for AlignStage<'_> {
    type Input = AlignBatchRows;

    fn steps(&self) -> u64 {
        self.run.options.settings.steps
    }

    fn take_step(&mut self, step: u64, batch: &AlignBatchRows, collective: &mut dyn Collective) -> Result<StepRecord> {
        let AlignOptions { seed, settings } = self.run.options;
        let (start, end) = (settings.temperature_start, settings.temperature_end);
        let temperature = temperature(step, settings.steps, start, end);
        let (base, floor) = (settings.learning_rate, settings.learning_rate_floor);
        let learning_rate = cosine_lr(step + 1, settings.steps + 1, settings.warmup_steps, base, floor);
        let input = StepInput {
            step,
            ids: &batch.ids,
            own: self.own.clone(),
            encoder: &batch.encoder,
            teacher: &batch.teacher,
            temperature,
            learning_rate,
            dropout: (settings.dropout > 0.0).then(|| Dropout::new(settings.dropout, *seed, step)),
        };
        let outcome = self.trainer.step(&input, collective)?;
        Ok(StepRecord {
            step,
            numbers: vec![
                ("loss", outcome.losses.total(&settings.into())),
                ("info_nce", outcome.losses.info_nce),
                ("direction", outcome.losses.direction),
                ("log_norm", outcome.losses.log_norm),
                ("grad_norm", outcome.grad_norm),
                ("learning_rate", learning_rate),
                ("temperature", temperature),
            ],
            pairs: batch.ids.len() as u64,
            seconds: outcome.seconds,
            ..StepRecord::default()
        })
    }

    fn validate(&mut self) -> Result<Validation> {
        match self.run.validation {
            Some(pairs) => pairs.measure(&self.projector()?),
            None => Ok(Validation::default()),
        }
    }

    fn snapshot(&self, step: u64) -> Result<Vec<u8>> {
        let (projector, optimizer, queue) = self.trainer.store()?;
        let (options, statistics) = (self.run.options.clone(), self.run.statistics.clone());
        AlignState { options, step, statistics, projector, optimizer, queue }.to_safetensors()
    }
}

fn fresh(run: &AlignRun<'_>) -> Result<AlignState> {
    let (options, statistics) = (run.options, run.statistics);
    let shape = run.data.projector_shape(options.settings.projector_hidden);
    statistics.check(shape.input, shape.output)?;
    let mut projector = Projector::new(shape, options.seed);
    statistics.start(&mut projector);
    Ok(AlignState {
        options: options.clone(),
        step: 0,
        statistics: statistics.clone(),
        projector,
        optimizer: AdamWState::new(options.adamw(), shape.parameter_count()),
        queue: StoredQueue::new(options.settings.queue as usize, shape.output),
    })
}

/// Checks that the state belongs to this training.
fn check(run: &AlignRun<'_>, state: &AlignState) -> Result<()> {
    let AlignRun { options, data, .. } = run;
    same_options(&options.deciding(), &state.options.deciding())?;
    if state.statistics != *run.statistics {
        return Err(Error::Input("the checkpoint was trained with other statistics than those of this run".into()));
    }
    let (shape, found) = (data.projector_shape(options.settings.projector_hidden), state.projector.shape());
    if shape != found {
        return Err(Error::Input(format!(
            "the checkpoint holds a projector {found:?}, but the vectors need {shape:?}"
        )));
    }
    Ok(())
}

/// Checks that all ranks start with the same step, weights and data.
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
