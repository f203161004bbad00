//! Schedules the shards of a worker on the device. While one shard is computed, the next one is read and tokenized and
//! the last one is written. Two shards never compute at once.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;

/// The interval at which a waiting task checks the order to stop.
const LOOK: Duration = Duration::from_millis(50);

/// The use of the device during a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Busy {
    /// The time to this shard's last batch, counted from when the shard was ready and the device was idle.
    pub(super) total: Duration,
    /// The part of it spent on computing.
    pub(super) computing: Duration,
}

impl Busy {
    /// Returns the share of the time in which the device had nothing to compute.
    pub(super) fn idle_share(&self) -> f64 {
        let total = self.total.as_secs_f64();
        if total == 0.0 {
            0.0
        } else {
            1.0 - self.computing.as_secs_f64() / total
        }
    }
}

/// The turns on one device.
#[derive(Debug, Default)]
pub struct Turns {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    taken: bool,
    /// The last pass that computed, and when it ended.
    last: Option<(String, Instant)>,
}

/// The exclusive use of the device, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    work: String,
    /// The time before this turn in which nobody computed although this work was waiting.
    pub(super) idle: Duration,
}

impl Turns {
    /// Waits for the device. `work` names the pass, which its shards share, and `began` is the time when this shard was
    /// started.
    ///
    /// # Errors
    /// The error of `check`, which is called meanwhile.
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
            // This shard is read while the first computes, and begins when that ends.
            let second = scope.spawn(|| turns.take("pass", Instant::now(), || Ok(())).unwrap().idle);
            nap(400);
            drop(first);
            let idle = second.join().unwrap();
            assert!(idle < Duration::from_millis(300), "{idle:?}");
        });
        // No shard was waiting while the last one was written.
        nap(30);
        let third = turns.take("pass", Instant::now(), || Ok(())).unwrap();
        assert!(third.idle >= Duration::from_millis(30), "{:?}", third.idle);
        drop(third);
        // Another stage's pause does not count.
        nap(300);
        let other = turns.take("another pass", Instant::now(), || Ok(())).unwrap();
        assert!(other.idle < Duration::from_millis(200), "{:?}", other.idle);
        // The time in which another pass computed is not idle either.
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
