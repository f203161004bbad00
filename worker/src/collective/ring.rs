//! A deterministic ring over TCP, for laptops, tests and CI, and for any machine without NCCL.
//!
//! Sums of tensors run on a thread of their own, in the order in which they were begun, while the caller computes.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use candle_core::Tensor;

use super::wire::Wire;
use super::{AbortHandle, Collective, by_host};
use crate::control::lock;
use crate::{Error, Result};

/// The options of a rank in a ring.
#[derive(Debug, Clone)]
pub struct RingOptions {
    /// This rank, counted from 0.
    pub rank: usize,
    /// The address `host:port` of each rank, in rank order.
    pub addresses: Vec<String>,
    /// The generation of the gang; callers of another generation are refused.
    pub generation: u64,
    /// The gang's secret. Callers and listeners prove that they know it.
    pub secret: Vec<u8>,
    /// True if the ring's data is encrypted.
    pub sealed: bool,
    /// The time limit for connecting, and for each collective as a whole.
    pub timeout: Duration,
}

/// The end of one rank in the ring.
pub struct Ring {
    rank: usize,
    world_size: usize,
    abort: AbortHandle,
    wire: Arc<Mutex<Wire>>,
    /// The connections of the wire, so that they can be closed while it is in use.
    streams: Vec<TcpStream>,
    sums: Option<Sums>,
}

/// Sums that were begun. Every rank begins the same sums in the same order.
struct Sums {
    tensors: Sender<Tensor>,
    thread: JoinHandle<Result<()>>,
}

impl Sums {
    fn on(wire: Arc<Mutex<Wire>>) -> Self {
        let (tensors, to_sum) = channel::<Tensor>();
        let sum_one = move |tensor| by_host::sum(&tensor, |values| lock(&wire).all_reduce_sum(values));
        let sum = move || to_sum.into_iter().try_for_each(sum_one);
        Self { tensors, thread: std::thread::spawn(sum) }
    }
}

impl Ring {
    /// Joins the ring: dials the next rank, waits for the previous one on `listener`, which is closed afterwards.
    ///
    /// # Errors
    /// [`Error::Input`] when the rank is not among the addresses; [`Error::Peer`] when a neighbor does not come within
    /// the timeout or is of another generation; [`Error::Aborted`].
    pub fn connect(listener: TcpListener, options: &RingOptions, abort: AbortHandle) -> Result<Self> {
        let wire = Wire::connect(&listener, options, abort.clone())?;
        Ok(Self {
            rank: options.rank,
            world_size: options.addresses.len(),
            abort,
            streams: wire.streams()?,
            wire: Arc::new(Mutex::new(wire)),
            sums: None,
        })
    }

    /// The wire, after all sums that were begun have ended.
    fn wire(&mut self) -> Result<MutexGuard<'_, Wire>> {
        self.settle()?;
        Ok(lock(&self.wire))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.sums.is_some() {
            // Nobody waits for these sums any more. The other ranks must not wait for this one.
            for stream in &self.streams {
                drop(stream.shutdown(Shutdown::Both));
            }
        }
    }
}

impl Collective for Ring {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn begin_step(&mut self, step: u64) {
        lock(&self.wire).begin_step(step);
    }

    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        self.wire()?.all_reduce_sum(values)
    }

    fn all_gather(&mut self, mine: &[f32], counts: &[usize]) -> Result<Vec<f32>> {
        self.wire()?.all_gather(mine, counts)
    }

    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<()> {
        self.wire()?.broadcast(root, values)
    }

    fn barrier(&mut self) -> Result<()> {
        self.wire()?.barrier()
    }

    fn begin_all_reduce(&mut self, tensor: &Tensor) -> Result<()> {
        self.abort.check()?;
        let sums = self.sums.get_or_insert_with(|| Sums::on(self.wire.clone()));
        if sums.tensors.send(tensor.clone()).is_ok() {
            return Ok(());
        }
        // The thread has ended because a sum failed.
        self.settle()?;
        Err(Error::Aborted("the ring sums no more tensors".into()))
    }

    fn settle(&mut self) -> Result<()> {
        let Some(Sums { tensors, thread }) = self.sums.take() else {
            return Ok(());
        };
        drop(tensors);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}
