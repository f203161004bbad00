//! The loop over a stage's steps: read the input, take the step, validate, call the observer.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Device;

use super::ahead::{Ahead, Reading};
use super::observer::Observer;
use super::step_record::{StepRecord, Validation};
use super::upkeep::Upkeep;
use crate::Result;
use crate::collective::Collective;

/// The parts of a stage that the common loop calls.
pub(super) trait Stage {
    type Input: Send + 'static;

    fn steps(&self) -> u64;

    /// Takes a step. The loop adds the validation and the seconds `data` and `total` to the record.
    fn take_step(&mut self, step: u64, input: &Self::Input, collective: &mut dyn Collective) -> Result<StepRecord>;

    /// Measures on the held-out data.
    fn validate(&mut self) -> Result<Validation>;

    /// Returns the checkpoint after `steps` steps.
    fn snapshot(&self, steps: u64) -> Result<Vec<u8>>;
}

pub(super) struct Ended {
    pub(super) next_step: u64,
    /// The last step that this call took, if any.
    pub(super) last: Option<StepRecord>,
}

/// Takes the steps from `first_step` on, until all are taken or the observer ends training. `prepare` makes the input of
/// a step. Rank 0 validates when `validation` says so.
pub(super) fn take_steps<S: Stage>(
    stage: &mut S,
    first_step: u64,
    prepare: impl Fn(u64) -> Result<S::Input> + Send + Sync,
    device: &Device,
    validation: Option<&Upkeep>,
    collective: &mut dyn Collective,
    observer: &mut dyn Observer,
) -> Result<Ended> {
    let reading = match device.is_cpu() {
        true => Reading::InTurn,
        false => Reading::Ahead,
    };
    std::thread::scope(|scope| {
        let mut inputs = Ahead::new(scope, reading, &prepare);
        let (steps, mut next_step, mut last) = (stage.steps(), first_step, None);
        while next_step < steps {
            let step = next_step;
            collective.begin_step(step);
            let started = Instant::now();
            let taken = inputs.take(step, steps).and_then(|input| {
                let read = started.elapsed().as_secs_f64();
                let mut record = stage.take_step(step, &input, collective)?;
                record.seconds.data = read;
                Ok(record)
            });
            let mut record = match taken {
                Ok(record) => record,
                Err(error) => {
                    observer.interrupted(&error, next_step, &|| stage.snapshot(next_step));
                    return Err(error);
                }
            };
            record.seconds.total = started.elapsed().as_secs_f64();
            next_step = step + 1;
            if collective.rank() == 0 && validation.is_some_and(|upkeep| upkeep.validation_due(next_step, steps)) {
                record.validation = Some(stage.validate()?);
            }
            let snapshot = || stage.snapshot(next_step);
            let told = observer.stepped(&record, &snapshot);
            last = Some(record);
            match told {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(error) => {
                    observer.interrupted(&error, next_step, &snapshot);
                    return Err(error);
                }
            }
        }
        Ok(Ended { next_step, last })
    })
}
