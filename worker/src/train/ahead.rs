//! The next step's input, made ready while this step is at work.

use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

/// Whether there is somebody to work beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// A device works while the host reads.
    Ahead,
    /// The host does both, one after the other.
    InTurn,
}

/// Makes inputs ready, one step ahead.
pub(super) struct Ahead<'scope, 'env, T> {
    scope: &'scope Scope<'scope, 'env>,
    reading: Reading,
    prepare: Arc<dyn Fn(u64) -> T + Send + Sync + 'scope>,
    next: Option<(u64, ScopedJoinHandle<'scope, T>)>,
}

impl<'scope, 'env, T: Send + 'scope> Ahead<'scope, 'env, T> {
    /// `prepare` makes the input of a step.
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        reading: Reading,
        prepare: impl Fn(u64) -> T + Send + Sync + 'scope,
    ) -> Self {
        Self {
            scope,
            reading,
            prepare: Arc::new(prepare),
            next: None,
        }
    }

    /// The input of `step`; that of the step after it is begun, if there is one before `steps`.
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
                assert_eq!(ahead.take(4, 9), 16, "a step that nobody reckoned with");
            });
        }
    }
}
