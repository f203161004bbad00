//! The intervals at which a training is observed and saved. They do not change what is learned.

use std::time::Duration;

/// The intervals at which a training is saved and measured, and the time limit of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upkeep {
    /// The number of steps between checkpoints. With 0 the time alone decides.
    pub checkpoint_steps: u64,
    /// The time between checkpoints. With zero the steps alone decide.
    pub checkpoint_interval: Duration,
    /// The number of newest checkpoints that are kept besides the best.
    pub checkpoints_kept: usize,
    /// The number of steps between validations; 0 never validates.
    pub validate_steps: u64,
    /// The time limit of a step. A longer step counts as hung.
    pub step_timeout: Duration,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            checkpoint_steps: 1_000,
            checkpoint_interval: Duration::from_secs(600),
            checkpoints_kept: 3,
            validate_steps: 1_000,
            step_timeout: Duration::from_secs(60),
        }
    }
}

impl From<&llink_proto::Upkeep> for Upkeep {
    fn from(upkeep: &llink_proto::Upkeep) -> Self {
        Self {
            checkpoint_steps: upkeep.checkpoint_steps,
            checkpoint_interval: Duration::from_secs_f64(upkeep.checkpoint_seconds.max(0.0)),
            checkpoints_kept: upkeep.checkpoints_kept.max(1) as usize,
            validate_steps: upkeep.validate_steps,
            step_timeout: Duration::from_secs_f64(upkeep.step_timeout_s.max(0.1)),
        }
    }
}

impl Upkeep {
    /// Returns whether a checkpoint is due after `done` steps. The last one was made after `saved` steps, `since` ago.
    #[must_use]
    pub fn checkpoint_due(&self, done: u64, saved: u64, since: Duration) -> bool {
        let by_steps = self.checkpoint_steps > 0 && done / self.checkpoint_steps > saved / self.checkpoint_steps;
        let by_time = !self.checkpoint_interval.is_zero() && since >= self.checkpoint_interval;
        done > saved && (by_steps || by_time)
    }

    /// Returns whether a validation is due after `done` of `steps` steps. The end always has one.
    #[must_use]
    pub const fn validation_due(&self, done: u64, steps: u64) -> bool {
        self.validate_steps > 0 && (done.is_multiple_of(self.validate_steps) || done == steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_due_by_steps_or_by_time_and_stays_due_until_it_is_made() {
        let upkeep = Upkeep {
            checkpoint_steps: 100,
            checkpoint_interval: Duration::from_secs(60),
            ..Upkeep::default()
        };
        let (soon, late) = (Duration::from_secs(1), Duration::from_secs(61));
        assert!(!upkeep.checkpoint_due(99, 0, soon));
        assert!(upkeep.checkpoint_due(100, 0, soon));
        assert!(upkeep.checkpoint_due(103, 0, soon), "it stays due");
        assert!(!upkeep.checkpoint_due(103, 103, late), "nothing has changed since");
        assert!(!upkeep.checkpoint_due(150, 103, soon));
        assert!(upkeep.checkpoint_due(150, 103, late));
        assert!(
            upkeep.checkpoint_due(200, 103, soon),
            "steps are counted from 0, not from the last one"
        );
        let never = Upkeep {
            checkpoint_steps: 0,
            checkpoint_interval: Duration::ZERO,
            ..upkeep
        };
        assert!(!never.checkpoint_due(1000, 0, late));
    }

    #[test]
    fn validation_is_due_now_and_then_and_at_the_end() {
        let upkeep = Upkeep {
            validate_steps: 10,
            ..Upkeep::default()
        };
        let due: Vec<u64> = (1..=25).filter(|done| upkeep.validation_due(*done, 25)).collect();
        assert_eq!(due, [10, 20, 25]);
    }
}
