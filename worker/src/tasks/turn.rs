//! Schedules the shards of a worker on the device. While one shard is computed, the next one is read and tokenized and
//! the last one is written. Two shards never compute at once.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Result;
use crate::control::lock;

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
        if total == 0.0 { 0.0 } else { 1.0 - self.computing.as_secs_f64() / total }
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
        let mut state = lock(&self.state);
        while state.taken {
            check()?;
            let waited = self.freed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.taken = true;
        Ok(Turn { turns: self, work: work.to_owned(), idle: idle_since(state.last.as_ref(), work, began).elapsed() })
    }
}

/// Returns since when the device is idle for a shard of `work` that began at `began`, after the last turn.
fn idle_since(last: Option<&(String, Instant)>, work: &str, began: Instant) -> Instant {
    match last {
        Some((last, until)) if last == work => *until,
        // Another pass computed while this shard was read ahead.
        Some((_, until)) => began.max(*until),
        None => began,
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.turns.state);
        state.taken = false;
        state.last = Some((std::mem::take(&mut self.work), Instant::now()));
        self.turns.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::Error;

    #[test]
    fn one_computes_at_a_time() {
        let turns = Turns::default();
        let first = turns.take("pass", Instant::now(), || Ok(())).unwrap();
        let (asks, asked) = mpsc::channel();
        let check = || {
            asks.send(()).expect("the receiver lives as long as this test");
            Ok(())
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| turns.take("pass", Instant::now(), check).map(drop));
            asked.recv().unwrap();
            asked.recv().unwrap();
            assert!(!second.is_finished(), "it waits for the first");
            drop(first);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_lies_between_two_shards_of_a_pass_is_idle() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let last = ("pass".to_owned(), at(5));
        assert_eq!(idle_since(None, "pass", at(1)), at(1), "the first shard is read");
        assert_eq!(idle_since(Some(&last), "pass", at(3)), at(5), "a shard is read ahead");
        assert_eq!(idle_since(Some(&last), "pass", at(9)), at(5), "the last one is written");
        assert_eq!(idle_since(Some(&last), "another pass", at(9)), at(9), "no pass waits");
        assert_eq!(idle_since(Some(&last), "another pass", at(3)), at(5), "another pass computes");
    }

    #[test]
    fn the_idle_share_is_what_was_not_computed() {
        let busy =
            |total, computing| Busy { total: Duration::from_secs(total), computing: Duration::from_secs(computing) };
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
