//! The intervals at which a training is observed and saved. They do not change what is learned.

use std::time::Duration;

use llink_proto::settings::{AlignSettings, InstructSettings};

/// The intervals at which a training is saved and measured, and the time limit of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upkeep {
    /// The number of steps between checkpoints. Without it the time alone decides.
    pub checkpoint_steps: Option<u64>,
    /// The time between checkpoints. Without it the steps alone decide.
    pub checkpoint_interval: Option<Duration>,
    /// The number of newest checkpoints that are kept besides the best.
    pub checkpoints_kept: usize,
    /// The number of steps between validations. Without it nothing is validated.
    pub validate_steps: Option<u64>,
    /// The time limit of a step. A longer step counts as hung.
    pub step_timeout: Duration,
}

/// Both stages have the same keys for their upkeep.
macro_rules! from_settings {
    ($($settings:ty),*) => {$(
        impl From<&$settings> for Upkeep {
            fn from(settings: &$settings) -> Self {
                Self {
                    checkpoint_steps: settings.checkpoint_every,
                    checkpoint_interval: settings.checkpoint_minutes.map(|minutes| Duration::from_secs_f64(minutes * 60.0)),
                    checkpoints_kept: settings.checkpoints_kept as usize,
                    validate_steps: settings.validate_every,
                    step_timeout: Duration::from_secs_f64(settings.step_timeout_s.max(0.1)),
                }
            }
        }
    )*};
}

from_settings!(AlignSettings, InstructSettings);

impl Upkeep {
    /// Returns whether a checkpoint is due after `done` steps. The last one was made after `saved` steps, `since` ago.
    pub fn checkpoint_due(&self, done: u64, saved: u64, since: Duration) -> bool {
        let by_steps = self.checkpoint_steps.is_some_and(|every| done / every > saved / every);
        let by_time = self.checkpoint_interval.is_some_and(|interval| since >= interval);
        done > saved && (by_steps || by_time)
    }

    /// Returns whether a validation is due after `done` of `steps` steps. The end always has one.
    pub fn validation_due(&self, done: u64, steps: u64) -> bool {
        let is_due = |every| done.is_multiple_of(every) || done == steps;
        self.validate_steps.is_some_and(is_due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_due_by_steps_or_by_time_and_stays_due_until_it_is_made() {
        let upkeep = Upkeep {
            checkpoint_steps: Some(100),
            checkpoint_interval: Some(Duration::from_secs(60)),
            ..Upkeep::from(&AlignSettings::default())
        };
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(61));
        assert!(!upkeep.checkpoint_due(99, 0, soon));
        assert!(upkeep.checkpoint_due(100, 0, soon));
        assert!(upkeep.checkpoint_due(103, 0, soon), "it stays due");
        assert!(!upkeep.checkpoint_due(103, 103, late), "nothing has changed since");
        assert!(!upkeep.checkpoint_due(150, 103, soon));
        assert!(upkeep.checkpoint_due(150, 103, late));
        assert!(upkeep.checkpoint_due(200, 103, soon), "steps are counted from 0, not from the last one");
        let never = Upkeep { checkpoint_steps: None, checkpoint_interval: None, ..upkeep };
        assert!(!never.checkpoint_due(1000, 0, late));
    }

    #[test]
    fn validation_is_due_now_and_then_and_at_the_end() {
        let upkeep = Upkeep { validate_steps: Some(10), ..Upkeep::from(&AlignSettings::default()) };
        let due: Vec<u64> = (1..=25).filter(|done| upkeep.validation_due(*done, 25)).collect();
        assert_eq!(due, [10, 20, 25]);
    }
}
