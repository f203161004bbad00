//! Whose turn it is on the device. A worker holds the next shard while it computes one: the next one's reading and tokenizing, and the
//! last one's writing, happen beside the computing, but two shards never compute at once.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;

/// A task that waits looks this often whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How the device spent a shard's time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Busy {
    /// From when nobody computed any more, though this shard was at hand, to its last batch.
    pub(super) total: Duration,
    /// Of that, computing.
    pub(super) computing: Duration,
}

impl Busy {
    /// The share of the time in which it had nothing to compute.
    pub(super) fn idle_share(&self) -> f64 {
        let total = self.total.as_secs_f64();
        if total == 0.0 {
            0.0
        } else {
            1.0 - self.computing.as_secs_f64() / total
        }
    }
}

/// One device's turns.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: bool,
    /// Who computed last, and until when.
    last: Option<(String, Instant)>,
}

/// The device, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    work: String,
    /// For how long nobody computed before, though this work was at hand.
    pub(super) idle: Duration,
}

impl Turns {
    /// Waits for the device. `work` is what shards of one pass have in common, `began` when this one was taken on.
    ///
    /// # Errors
    /// Whatever `check` says in the meantime.
    pub(super) fn take(&self, work: &str, began: Instant, check: impl Fn() -> Result<()>) -> Result<Turn<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.taken {
            check()?;
            let waited = self.freed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.taken = true;
        let since = match &state.last {
            Some((last, until)) if last == work => *until,
            // Another pass computed while this shard was read ahead.
            Some((_, until)) => began.max(*until),
            None => began,
        };
        Ok(Turn {
            turns: self,
            work: work.to_owned(),
            idle: since.elapsed(),
        })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.taken = false;
        state.last = Some((std::mem::take(&mut self.work), Instant::now()));
        self.turns.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn one_computes_at_a_time_and_what_lies_between_two_is_idle() {
        let turns = Turns::default();
        let nap = |ms: u64| std::thread::sleep(Duration::from_millis(ms));
        let began = Instant::now();
        nap(20);
        let first = turns.take("pass", began, || Ok(())).unwrap();
        assert!(first.idle >= Duration::from_millis(20), "its reading: {:?}", first.idle);
        std::thread::scope(|scope| {
            // This one is read while the first computes, and begins when that ends.
            let second = scope.spawn(|| turns.take("pass", Instant::now(), || Ok(())).unwrap().idle);
            nap(400);
            drop(first);
            let idle = second.join().unwrap();
            assert!(idle < Duration::from_millis(300), "{idle:?}");
        });
        // Nobody was there while the last one was put away.
        nap(30);
        let third = turns.take("pass", Instant::now(), || Ok(())).unwrap();
        assert!(third.idle >= Duration::from_millis(30), "{:?}", third.idle);
        drop(third);
        // Another stage's pause is not this one's.
        nap(300);
        let other = turns.take("another pass", Instant::now(), || Ok(())).unwrap();
        assert!(other.idle < Duration::from_millis(200), "{:?}", other.idle);
        // Nor is idle what another pass computed while a shard of this one was at hand.
        let began = Instant::now();
        nap(400);
        drop(other);
        let fourth = turns.take("pass", began, || Ok(())).unwrap();
        assert!(fourth.idle < Duration::from_millis(300), "{:?}", fourth.idle);
    }

    #[test]
    fn the_idle_share_is_what_was_not_computed() {
        let busy = |total, computing| Busy {
            total: Duration::from_secs(total),
            computing: Duration::from_secs(computing),
        };
        assert!((busy(10, 7).idle_share() - 0.3).abs() < 1e-9);
        assert_eq!(busy(0, 0).idle_share(), 0.0);
    }

    #[test]
    fn who_waits_can_be_stopped() {
        let turns = Turns::default();
        let _held = turns.take("pass", Instant::now(), || Ok(())).unwrap();
        let stopped = turns.take("pass", Instant::now(), || Err(Error::Aborted("stop".into())));
        assert!(matches!(stopped, Err(Error::Aborted(_))));
    }
}
