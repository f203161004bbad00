//! A collective that reports its place in the training, with a deadline for each step.

use std::fmt;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::{AbortHandle, Collective};
use crate::Result;
use crate::control::lock;

/// A step that waits for other ranks may take this many times as long as one that computes. The transport has its own
/// deadline, and names the silent rank.
const PATIENCE: u32 = 2;

/// The place of a rank, shared by its training, its heartbeats and its watchdog.
#[derive(Debug, Clone, Default)]
pub struct Position(Arc<Mutex<Place>>);

#[derive(Debug, Default)]
struct Place {
    step: Option<u64>,
    step_since: Option<Instant>,
    /// The current collective, and its number of values.
    call: Option<(&'static str, usize)>,
    calls: u64,
    since: Option<Instant>,
}

impl Position {
    fn begin_step(&self, step: u64) {
        let now = Some(Instant::now());
        let mut place = lock(&self.0);
        (place.step, place.step_since, place.since, place.call) = (Some(step), now, now, None);
    }

    fn enter(&self, call: &'static str, values: usize) {
        let mut place = lock(&self.0);
        place.calls += 1;
        (place.call, place.since) = (Some((call, values)), Some(Instant::now()));
    }

    fn leave(&self) {
        let mut place = lock(&self.0);
        (place.call, place.since) = (None, Some(Instant::now()));
    }

    /// Returns why the step counts as hung, if it does.
    fn overdue(&self, deadline: Duration) -> Option<String> {
        let place = lock(&self.0);
        let (whole, last) = (place.step_since?.elapsed(), place.since?.elapsed());
        let hung = match place.call {
            None => last > deadline,
            Some(_) => whole > deadline * PATIENCE,
        };
        let seconds = deadline.as_secs_f64();
        hung.then(|| {
            format!("no step ended within {seconds} s: this rank is at {place} (step_timeout_s sets the limit)")
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {step}")?,
            None => write!(f, "the beginning")?,
        }
        match self.call {
            Some((call, values)) => write!(f, ", in {call} of {values} values (call {})", self.calls)?,
            None => write!(f, ", computing after call {}", self.calls)?,
        }
        let since = self.since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        write!(f, " for {since:.1} s")
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        lock(&self.0).fmt(f)
    }
}

/// Records the place of its rank, and aborts a step that takes too long.
pub struct Watched {
    inner: Box<dyn Collective>,
    position: Position,
    // The watchdog ends when this is dropped.
    _alive: Arc<()>,
}

impl Watched {
    /// Watches `inner` and reports its place in `position`. A step that takes longer than `deadline` is aborted.
    pub fn new(inner: Box<dyn Collective>, position: Position, deadline: Duration) -> Self {
        let alive = Arc::new(());
        let (watched, abort) = (Arc::downgrade(&alive), inner.abort_handle());
        let place = position.clone();
        std::thread::spawn(move || watch(&watched, &place, &abort, deadline));
        Self { inner, position, _alive: alive }
    }

    fn during<T>(
        &mut self,
        call: &'static str,
        values: usize,
        run: impl FnOnce(&mut dyn Collective) -> Result<T>,
    ) -> Result<T> {
        self.position.enter(call, values);
        let result = run(self.inner.as_mut());
        // After a failure the place stays, because people ask for it.
        if result.is_ok() {
            self.position.leave();
        }
        result
    }
}

fn watch(watched: &Weak<()>, position: &Position, abort: &AbortHandle, deadline: Duration) {
    let interval = (deadline / 20).clamp(Duration::from_millis(10), Duration::from_secs(1));
    while watched.strong_count() > 0 {
        if let Some(why) = position.overdue(deadline) {
            tracing::error!("{why}");
            return abort.abort(why);
        }
        std::thread::sleep(interval);
    }
}

impl Collective for Watched {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn world_size(&self) -> usize {
        self.inner.world_size()
    }

    fn begin_step(&mut self, step: u64) {
        self.position.begin_step(step);
        self.inner.begin_step(step);
    }

    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        self.during("all_reduce_sum", values.len(), |inner| inner.all_reduce_sum(values))
    }

    fn all_gather(&mut self, mine: &[f32], counts: &[usize]) -> Result<Vec<f32>> {
        let values = counts.iter().sum();
        self.during("all_gather", values, |inner| inner.all_gather(mine, counts))
    }

    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<()> {
        self.during("broadcast", values.len(), |inner| inner.broadcast(root, values))
    }

    fn barrier(&mut self) -> Result<()> {
        self.during("barrier", 0, |inner| inner.barrier())
    }

    fn begin_all_reduce(&mut self, tensor: &Tensor) -> Result<()> {
        self.during("all_reduce_sum", tensor.elem_count(), |inner| inner.begin_all_reduce(tensor))
    }

    fn settle(&mut self) -> Result<()> {
        self.during("all_reduce_sum", 0, |inner| inner.settle())
    }

    fn all_gather_tensor(&mut self, mine: &Tensor, counts: &[usize]) -> Result<Tensor> {
        let values = counts.iter().sum();
        self.during("all_gather", values, |inner| inner.all_gather_tensor(mine, counts))
    }

    fn abort_handle(&self) -> AbortHandle {
        self.inner.abort_handle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use crate::collective::Solo;

    fn solo(deadline: Duration) -> (Watched, Position) {
        let position = Position::default();
        (Watched::new(Box::<Solo>::default(), position.clone(), deadline), position)
    }

    #[test]
    fn says_where_its_rank_is() {
        let (mut watched, position) = solo(Duration::from_secs(60));
        assert!(position.to_string().starts_with("the beginning, computing after call 0"), "{position}");
        watched.begin_step(41);
        watched.all_reduce_sum(&mut [1.0; 3]).unwrap();
        assert!(position.to_string().starts_with("step 41, computing after call 1"), "{position}");
        watched.abort_handle().abort("enough");
        watched.barrier().unwrap_err();
        assert!(position.to_string().starts_with("step 41, in barrier of 0 values (call 2)"), "{position}");
    }

    #[test]
    fn a_step_that_hangs_is_aborted_and_one_that_goes_on_is_not() {
        let (mut watched, _) = solo(Duration::from_secs(3));
        for step in 0..6 {
            watched.begin_step(step);
            std::thread::sleep(Duration::from_millis(600));
            watched.barrier().unwrap();
        }
        let (handle, began) = (watched.abort_handle(), Instant::now());
        while handle.check().is_ok() && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let error = watched.barrier().unwrap_err();
        assert!(matches!(&error, Error::Aborted(why) if why.contains("no step ended within 3 s")), "{error}");
        assert!(error.to_string().contains("at step 5, computing after call 6"), "{error}");
    }
}
