//! The loop over a stage's steps: read the input, take the step, look at held-out data, tell the observer.

use std::ops::ControlFlow;
use std::time::Instant;

use super::ahead::Ahead;
use super::observer::Observer;
use super::step_record::{StepRecord, Validation};
use super::upkeep::Upkeep;
use crate::Result;
use crate::collective::Collective;

/// What a stage does where the loop is the same for all.
pub(super) trait Stage {
    /// What a step is fed with.
    type Input;

    /// How many steps the stage has.
    fn steps(&self) -> u64;

    /// Takes a step. The record lacks validation, and of the seconds `data` and `total`.
    fn take_step(&mut self, step: u64, input: &Self::Input, collective: &mut dyn Collective) -> Result<StepRecord>;

    /// Looks at the held-out data.
    fn validate(&mut self) -> Result<Validation>;

    /// The checkpoint after `steps` steps.
    fn snapshot(&self, steps: u64) -> Result<Vec<u8>>;
}

/// Where a stage's steps ended.
pub(super) struct Ended {
    /// The step that would come next.
    pub(super) next_step: u64,
    /// The last step taken here, if any was.
    pub(super) last: Option<StepRecord>,
}

/// Takes the steps from `first_step` on, until all are taken or the observer ends them. Rank 0 looks at held-out data when `validation`
/// says so.
pub(super) fn take_steps<'scope, S: Stage>(
    stage: &mut S,
    first_step: u64,
    inputs: &mut Ahead<'scope, '_, Result<S::Input>>,
    validation: Option<&Upkeep>,
    collective: &mut dyn Collective,
    observer: &mut dyn Observer,
) -> Result<Ended>
where
    S::Input: Send + 'scope,
{
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
}
