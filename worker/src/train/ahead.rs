//! Prepares the next step's input while the current step runs.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

/// Whether inputs are prepared during a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// The host prepares inputs while a device computes.
    Ahead,
    /// The host does both, one after the other.
    InTurn,
}

pub(super) struct Ahead<'scope, 'env, T> {
    scope: &'scope Scope<'scope, 'env>,
    reading: Reading,
    prepare: Arc<dyn Fn(u64) -> T + Send + Sync + 'scope>,
    next: Option<(u64, ScopedJoinHandle<'scope, T>)>,
}

impl<'scope, 'env, T: Send + 'scope> Ahead<'scope, 'env, T> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        reading: Reading,
        prepare: impl Fn(u64) -> T + Send + Sync + 'scope,
    ) -> Self {
        Self { scope, reading, prepare: Arc::new(prepare), next: None }
    }

    /// Returns the input of `step`, and begins to prepare that of the next step if it is below `steps`.
    pub(super) fn take(&mut self, step: u64, steps: u64) -> T {
        let ready = match self.next.take() {
            Some((next, thread)) if next == step => {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }
            _ => (self.prepare)(step),
        };
        if self.reading == Reading::Ahead && step + 1 < steps {
            let prepare = self.prepare.clone();
            self.next = Some((step + 1, self.scope.spawn(move || prepare(step + 1))));
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_gets_its_own_input_either_way() {
        for reading in [Reading::Ahead, Reading::InTurn] {
            std::thread::scope(|scope| {
                let mut ahead = Ahead::new(scope, reading, |step| step * step);
                let found: Vec<u64> = (3..9).map(|step| ahead.take(step, 9)).collect();
                assert_eq!(found, [9, 16, 25, 36, 49, 64]);
                assert_eq!(ahead.take(4, 9), 16, "a step out of order");
            });
        }
    }
}
