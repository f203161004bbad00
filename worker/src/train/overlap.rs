//! Gradients that cross the network while others are still computed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::collective::Collective;
use crate::{Error, Result};

/// Fewer values than this are not worth a trip of their own: 1 MiB.
const BUCKET: usize = 1 << 18;

/// Sums `bucket` over all ranks while `compute` runs on this thread. A rank alone just computes.
///
/// # Errors
/// Those of the collective; `compute` has run to its end all the same.
pub fn reduce_while(collective: &mut dyn Collective, bucket: &mut [f32], compute: impl FnOnce()) -> Result<()> {
    while_reducing(collective, |reducer| {
        let handed_over = reducer.sum_in_place(bucket);
        compute();
        handed_over
    })
}

/// Runs `work`, whose buffers are summed over all ranks on another thread as soon as it hands them over, one after
/// another. All of them are summed when this returns. A rank alone needs no other thread.
///
/// # Errors
/// Those of the collective, before those of `work`, which may only be their consequence.
pub fn while_reducing<'a, T>(
    collective: &'a mut dyn Collective,
    work: impl FnOnce(&mut Reducer<'a>) -> Result<T>,
) -> Result<T> {
    if collective.world_size() == 1 {
        return work(&mut Reducer(Way::Here(collective, VecDeque::new())));
    }
    let (buffers, to_sum) = channel();
    let (back, summed) = channel();
    std::thread::scope(|scope| {
        let reducing = scope.spawn(move || reduce(collective, &to_sum, &back));
        let worked = {
            let mut reducer = Reducer(Way::Elsewhere { buffers, summed });
            work(&mut reducer)
            // With the reducer goes its sender: the other thread ends when all is summed.
        };
        let reduced = reducing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        reduced.and(worked)
    })
}

/// Every rank hands over buffers of the same lengths in the same order, so that their sums do not depend on who is faster.
fn reduce(collective: &mut dyn Collective, to_sum: &Receiver<Buffer<'_>>, back: &Sender<Vec<f32>>) -> Result<()> {
    while let Ok(buffer) = to_sum.recv() {
        match buffer {
            Buffer::Borrowed(values) => collective.all_reduce_sum(values)?,
            Buffer::Own(mut values) => {
                collective.all_reduce_sum(&mut values)?;
                // Work that failed meanwhile waits for nothing any more.
                let _ = back.send(values);
            }
        }
    }
    Ok(())
}

/// Takes buffers to be summed over all ranks.
pub struct Reducer<'a>(Way<'a>);

enum Way<'a> {
    Here(&'a mut dyn Collective, VecDeque<Vec<f32>>),
    Elsewhere {
        buffers: Sender<Buffer<'a>>,
        summed: Receiver<Vec<f32>>,
    },
}

enum Buffer<'a> {
    Own(Vec<f32>),
    Borrowed(&'a mut [f32]),
}

impl<'a> Reducer<'a> {
    /// Sums values that [`Reducer::summed`] gives back, in the order in which they came here.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn sum(&mut self, mut values: Vec<f32>) -> Result<()> {
        match &mut self.0 {
            Way::Here(collective, summed) => {
                collective.all_reduce_sum(&mut values)?;
                summed.push_back(values);
                Ok(())
            }
            Way::Elsewhere { buffers, .. } => buffers.send(Buffer::Own(values)).map_err(|_| broken()),
        }
    }

    /// Sums values where they lie; they are summed when [`while_reducing`] returns.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn sum_in_place(&mut self, values: &'a mut [f32]) -> Result<()> {
        match &mut self.0 {
            Way::Here(collective, _) => collective.all_reduce_sum(values),
            Way::Elsewhere { buffers, .. } => buffers.send(Buffer::Borrowed(values)).map_err(|_| broken()),
        }
    }

    /// Waits for the sum of the oldest values of [`Reducer::sum`] that were not given back yet.
    ///
    /// # Errors
    /// When there are none, because the collective broke.
    pub fn summed(&mut self) -> Result<Vec<f32>> {
        match &mut self.0 {
            Way::Here(_, summed) => summed.pop_front().ok_or_else(broken),
            Way::Elsewhere { summed, .. } => summed.recv().map_err(|_| broken()),
        }
    }
}

/// Shown only if the other thread has nothing better to say.
fn broken() -> Error {
    Error::Aborted("the ranks no longer sum their gradients".into())
}

/// Parts of a gradient on their way over the network, a few of them together.
#[derive(Debug, Default)]
pub struct Buckets {
    values: Vec<f32>,
    /// Of the gradient, in the order of `values`.
    ranges: Vec<Range<usize>>,
    sent: Vec<Vec<Range<usize>>>,
}

impl Buckets {
    /// Takes a part of the gradient that is whole.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn push(&mut self, range: Range<usize>, values: &[f32], reducer: &mut Reducer<'_>) -> Result<()> {
        self.values.extend_from_slice(values);
        self.ranges.push(range);
        if self.values.len() < BUCKET {
            return Ok(());
        }
        self.send(reducer)
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn send(&mut self, reducer: &mut Reducer<'_>) -> Result<()> {
        if self.ranges.is_empty() {
            return Ok(());
        }
        self.sent.push(std::mem::take(&mut self.ranges));
        reducer.sum(std::mem::take(&mut self.values))
    }

    /// Waits for the sums and puts them where the parts came from, times `factor`.
    ///
    /// # Errors
    /// Those of the collective.
    pub fn collect(self, gradient: &mut [f32], factor: f32, reducer: &mut Reducer<'_>) -> Result<()> {
        for ranges in self.sent {
            let summed = reducer.summed()?;
            let mut rest = summed.as_slice();
            for range in ranges {
                let (part, others) = rest.split_at(range.len());
                for (value, sum) in gradient[range].iter_mut().zip(part) {
                    *value = factor * sum;
                }
                rest = others;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::RecvTimeoutError;
    use std::time::Duration;

    use super::*;
    use crate::collective::AbortHandle;

    /// A rank of two whose other one has the same values; it waits for a sign before it sums each buffer.
    struct Twin {
        go: Receiver<()>,
        lengths: Vec<usize>,
    }

    impl Collective for Twin {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            2
        }

        fn begin_step(&mut self, _: u64) {}

        fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
            match self.go.recv_timeout(Duration::from_secs(20)) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => return Err(Error::Input("nothing went on meanwhile".into())),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Input("the twin is gone".into())),
            }
            self.lengths.push(values.len());
            values.iter_mut().for_each(|x| *x *= 2.0);
            Ok(())
        }

        fn all_gather(&mut self, mine: &[f32], _: &[usize]) -> Result<Vec<f32>> {
            Ok(mine.to_vec())
        }

        fn broadcast(&mut self, _: usize, _: &mut [f32]) -> Result<()> {
            Ok(())
        }

        fn barrier(&mut self) -> Result<()> {
            Ok(())
        }

        fn abort_handle(&self) -> AbortHandle {
            AbortHandle::default()
        }
    }

    fn twin() -> (Sender<()>, Twin) {
        let (sign, go) = channel();
        (
            sign,
            Twin {
                go,
                lengths: Vec::new(),
            },
        )
    }

    #[test]
    fn work_goes_on_while_buffers_are_summed_in_their_order() {
        let (sign, mut twin) = twin();
        let (mut here, mut gradient) = (vec![1.0; 3], vec![1.0; 10]);
        let mut buckets = Buckets::default();
        while_reducing(&mut twin, |reducer| {
            reducer.sum(vec![5.0])?;
            // The last layer first, as a backward pass finds them.
            buckets.push(6..10, &[4.0; 4], reducer)?;
            buckets.push(0..6, &[3.0; 6], reducer)?;
            buckets.send(reducer)?;
            reducer.sum_in_place(&mut here)?;
            // Nothing is summed before this: who waited for a sum above would wait for ever.
            (0..3).for_each(|_| sign.send(()).unwrap());
            assert_eq!(reducer.summed()?, [10.0]);
            buckets.collect(&mut gradient, 0.5, reducer)
        })
        .unwrap();
        assert_eq!(here, [2.0; 3]);
        assert_eq!(gradient, [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 4.0, 4.0, 4.0, 4.0]);
        assert_eq!(twin.lengths, [1, 10, 3], "small layers go together");
    }

    #[test]
    fn large_parts_go_at_once() {
        let (sign, mut twin) = twin();
        (0..2).for_each(|_| sign.send(()).unwrap());
        let mut gradient = vec![0.0; BUCKET + 1];
        let mut buckets = Buckets::default();
        while_reducing(&mut twin, |reducer| {
            buckets.push(1..BUCKET + 1, &vec![1.0; BUCKET], reducer)?;
            buckets.push(0..1, &[7.0], reducer)?;
            buckets.send(reducer)?;
            buckets.collect(&mut gradient, 1.0, reducer)
        })
        .unwrap();
        assert_eq!(twin.lengths, [BUCKET, 1]);
        assert_eq!((gradient[0], gradient[BUCKET]), (14.0, 2.0));
    }

    #[test]
    fn the_ranks_fault_is_said_and_not_what_follows_from_it() {
        let (sign, mut twin) = twin();
        drop(sign);
        let error = while_reducing(&mut twin, |reducer| {
            reducer.sum(vec![1.0])?;
            reducer.summed().map(drop)
        });
        assert_eq!(error.unwrap_err().to_string(), "the twin is gone");
    }
}
