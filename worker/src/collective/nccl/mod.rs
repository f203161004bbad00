//! NCCL between GPUs, without any unbounded wait.
//!
//! The communicator is non-blocking: every call only starts an operation. This code polls four things: whether the work
//! is done, whether NCCL reports an asynchronous error, whether a rank is known to be lost (by [`Mesh`]), and the
//! clock. If the wait ends for any reason but the first, the communicator is aborted. The gang continues in its next
//! generation, with a new communicator.
//!
//! [`NcclApi`] is the used part of the library, so that this life cycle can be tested without a GPU.

#[cfg(feature = "nccl")]
mod cuda;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};

#[cfg(feature = "nccl")]
pub use cuda::CudaNccl;

use super::mesh::{Mesh, Place};
use super::{AbortHandle, Collective, RingOptions, UniqueId, check_counts, check_root};
use crate::{Error, Result};

/// The result of a step; the error says what was observed, before it is known which call it ends.
pub type Attempt<T> = std::result::Result<T, String>;

/// The number of polls in a row before the thread sleeps between them.
const SPINS: u32 = 2_000;
const NAP: Duration = Duration::from_micros(100);
/// The wait for the name of the lost rank, after NCCL has reported an error.
const NAME_PATIENCE: Duration = Duration::from_millis(500);
/// The time limit for an orderly end of a communicator.
const FINALIZE_PATIENCE: Duration = Duration::from_secs(5);

/// The state of a communicator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommunicatorState {
    /// An operation is still being set up.
    Busy,
    /// The next call may be made.
    Ready,
    /// It is broken, with the library's text.
    Failed(String),
}

/// The calls of NCCL that a gang needs. None of them waits for another rank. Tensors are contiguous, f32 or bf16, on
/// [`NcclApi::device`].
///
/// # Errors
/// The text of the library or the device.
pub trait NcclApi: Send {
    /// The handle of a communicator.
    type Communicator: Send;
    /// An operation that was started.
    type Ticket: Send;

    /// Returns the library's version, such as `2.30.1`.
    fn version(&self) -> Attempt<String>;

    /// Returns the device of the buffers.
    fn device(&self) -> &Device;

    /// Starts making a communicator of `world_size` ranks, of which this is `rank`.
    fn begin_init(&self, id: &UniqueId, rank: usize, world_size: usize) -> Attempt<Self::Communicator>;

    /// Returns the communicator's state, including asynchronous errors.
    fn state(&self, communicator: &Self::Communicator) -> CommunicatorState;

    /// Starts replacing `values` by their sum over all ranks.
    fn all_reduce(&self, communicator: &Self::Communicator, values: &Tensor) -> Attempt<Self::Ticket>;

    /// Starts writing the `mine` of all ranks, which have the same length, to `all`.
    fn all_gather(&self, communicator: &Self::Communicator, mine: &Tensor, all: &Tensor) -> Attempt<Self::Ticket>;

    /// Starts replacing `values` by those of `root`.
    fn broadcast(&self, communicator: &Self::Communicator, root: usize, values: &Tensor) -> Attempt<Self::Ticket>;

    /// Returns true if the operation is done, so that its values may be read on the device. It is called only while the
    /// communicator is ready.
    fn is_done(&self, ticket: &Self::Ticket) -> Attempt<bool>;

    /// Starts the orderly end of the communicator.
    fn begin_finalize(&self, communicator: &Self::Communicator) -> Attempt<()>;

    /// Frees a communicator that has ended.
    fn destroy(&self, communicator: Self::Communicator);

    /// Ends a communicator at once, even if it waits.
    fn abort(&self, communicator: Self::Communicator);
}

/// The NCCL collective of one rank.
pub struct Nccl<A: NcclApi> {
    api: A,
    /// The communicator; none after an error.
    communicator: Option<A::Communicator>,
    mesh: Mesh,
    rank: usize,
    world_size: usize,
    timeout: Duration,
    abort: AbortHandle,
    place: Place,
    /// Operations that are not yet known to be done. Their tensors are kept alive.
    begun: Vec<(A::Ticket, Tensor)>,
    /// The reason why every further call fails.
    broken: Option<String>,
}

impl<A: NcclApi> Nccl<A> {
    /// Joins a gang: meets the other ranks on `listener`, then makes the communicator `id` with them, both within the
    /// timeout.
    ///
    /// # Errors
    /// [`Error::Input`] when the rank is not among the addresses; [`Error::Peer`] when a rank does not come within the timeout, is
    /// of another generation, or dies meanwhile; [`Error::Aborted`].
    pub fn connect(
        api: A,
        listener: &TcpListener,
        options: &RingOptions,
        id: &UniqueId,
        abort: AbortHandle,
    ) -> Result<Self> {
        let (rank, world_size) = (options.rank, options.addresses.len());
        if rank >= world_size {
            return Err(Error::Input(format!("rank {rank} of {world_size} can't join a gang")));
        }
        let mesh = Mesh::connect(listener, options, &abort)?;
        let mut gang = Self {
            api,
            communicator: None,
            mesh,
            rank,
            world_size,
            timeout: options.timeout,
            abort,
            place: Place::default(),
            begun: Vec::new(),
            broken: None,
        };
        const DURING: &str = "making the NCCL communicator";
        gang.abort.check().map_err(|error| gang.give_up(error))?;
        let begun = gang.api.begin_init(id, rank, world_size);
        gang.communicator = Some(begun.map_err(|reason| gang.failed(DURING, reason))?);
        gang.wait(DURING, |_| Ok(true))?;
        let version = gang.api.version().unwrap_or_else(|reason| format!("unknown ({reason})"));
        tracing::info!(version, rank, world_size, generation = options.generation, "NCCL communicator ready");
        Ok(gang)
    }

    /// Polls until the communicator is ready and `done` returns true.
    fn wait(&mut self, during: &str, done: impl Fn(&A) -> Attempt<bool>) -> Result<()> {
        let deadline = Instant::now() + self.timeout;
        let mut polls = 0;
        loop {
            self.abort.check().map_err(|error| self.give_up(error))?;
            let state = match &self.communicator {
                Some(communicator) => self.api.state(communicator),
                None => CommunicatorState::Failed("there is no communicator".into()),
            };
            match state {
                CommunicatorState::Failed(reason) => return Err(self.failed(during, reason)),
                CommunicatorState::Ready => match done(&self.api) {
                    Ok(true) => return Ok(()),
                    Ok(false) => {}
                    Err(reason) => return Err(self.failed(during, reason)),
                },
                CommunicatorState::Busy => {}
            }
            self.check_ranks(during)?;
            if Instant::now() >= deadline {
                return Err(self.timed_out(during));
            }
            polls += 1;
            if polls < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    /// Makes one call: starts it, and waits until it is done.
    fn call(
        &mut self,
        what: &str,
        values: usize,
        begin: impl FnOnce(&A, &A::Communicator) -> Attempt<A::Ticket>,
    ) -> Result<()> {
        self.settle()?;
        let during = self.enter(what, values)?;
        let ticket = self.begin(&during, begin)?;
        self.wait(&during, |api| api.is_done(&ticket))
    }

    /// Counts a call and describes it.
    fn enter(&mut self, what: &str, values: usize) -> Result<String> {
        if let Some(reason) = &self.broken {
            return Err(self.peer_error(what, reason.clone()));
        }
        self.place.calls += 1;
        let step = self.place.step.map(|step| format!(" at step {step}")).unwrap_or_default();
        Ok(format!("{what} of {values} values (call {}){step}", self.place.calls))
    }

    fn begin(
        &mut self,
        during: &str,
        begin: impl FnOnce(&A, &A::Communicator) -> Attempt<A::Ticket>,
    ) -> Result<A::Ticket> {
        self.abort.check().map_err(|error| self.give_up(error))?;
        self.check_ranks(during)?;
        let begun = match &self.communicator {
            Some(communicator) => begin(&self.api, communicator),
            None => Err("there is no communicator".into()),
        };
        let ticket = begun.map_err(|reason| self.failed(during, reason))?;
        // From now on, this rank reports that it has contributed.
        self.mesh.is_at(self.place);
        Ok(ticket)
    }

    /// Ends the gang if a rank is known to be lost.
    fn check_ranks(&mut self, during: &str) -> Result<()> {
        let Some(lost) = self.mesh.lost() else {
            return Ok(());
        };
        Err(self.broke(during, format!("rank {} is lost: {}", lost.rank, lost.how), lost.rank))
    }

    /// Ends the gang after an error of NCCL. If a rank is at fault, its name arrives a moment later.
    fn failed(&mut self, during: &str, reason: String) -> Error {
        match self.mesh.lost_within(NAME_PATIENCE) {
            Some(lost) => {
                let reason = format!("rank {} is lost: {} (NCCL says: {reason})", lost.rank, lost.how);
                self.broke(during, reason, lost.rank)
            }
            None => self.broke(during, format!("NCCL says: {reason}"), self.rank),
        }
    }

    fn timed_out(&mut self, during: &str) -> Error {
        let seconds = self.timeout.as_secs_f64();
        let (first, words) = self.mesh.laggards(self.place);
        self.broke(during, format!("not done within {seconds} s: {words}"), first.unwrap_or(self.rank))
    }

    /// Ends the gang because this rank was told to stop.
    fn give_up(&mut self, error: Error) -> Error {
        self.end(error.to_string(), self.rank);
        error
    }

    fn broke(&mut self, during: &str, reason: String, culprit: usize) -> Error {
        self.end(reason.clone(), culprit);
        self.peer_error(during, reason)
    }

    fn end(&mut self, reason: String, culprit: usize) {
        self.mesh.give_up(culprit);
        if let Some(communicator) = self.communicator.take() {
            self.api.abort(communicator);
        }
        self.begun.clear();
        self.broken.get_or_insert(reason);
    }

    fn peer_error(&self, during: &str, reason: String) -> Error {
        Error::Peer { rank: self.rank, world_size: self.world_size, during: during.into(), reason }
    }

    fn upload(&self, values: &[f32]) -> Result<Tensor> {
        // A GPU has no buffer of length zero.
        let device = if values.is_empty() { &Device::Cpu } else { self.api.device() };
        Ok(Tensor::from_slice(values, values.len(), device)?)
    }

    /// Gathers the rows of all ranks. Each sends as many rows as the longest, and the excess is left out.
    fn gather(&mut self, mine: &Tensor, counts: &[usize]) -> Result<Tensor> {
        check_counts(mine.elem_count(), counts, self.rank, self.world_size)?;
        let longest = counts.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(mine.clone());
        }
        let zeros = |count: usize| Tensor::zeros(count, mine.dtype(), self.api.device());
        let padded = match longest - counts[self.rank] {
            0 => mine.copy()?,
            missing if missing == longest => zeros(longest)?,
            missing => Tensor::cat(&[mine, &zeros(missing)?], 0)?,
        };
        let all = zeros(longest * self.world_size)?;
        self.call("all_gather", all.elem_count(), |api, communicator| api.all_gather(communicator, &padded, &all))?;
        if counts.iter().all(|count| *count == longest) {
            return Ok(all);
        }
        let brought = (0..self.world_size).filter(|rank| counts[*rank] > 0);
        let parts: Vec<Tensor> =
            brought.map(|rank| all.narrow(0, rank * longest, counts[rank])).collect::<candle_core::Result<_>>()?;
        Ok(Tensor::cat(&parts, 0)?)
    }
}

impl<A: NcclApi> Collective for Nccl<A> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn begin_step(&mut self, step: u64) {
        self.place.step = Some(step);
        self.mesh.is_at(self.place);
    }

    fn all_reduce_sum(&mut self, values: &mut [f32]) -> Result<()> {
        if values.is_empty() {
            return self.barrier();
        }
        let tensor = self.upload(values)?;
        self.call("all_reduce_sum", values.len(), |api, communicator| api.all_reduce(communicator, &tensor))?;
        values.copy_from_slice(&tensor.to_vec1::<f32>()?);
        Ok(())
    }

    fn all_gather(&mut self, mine: &[f32], counts: &[usize]) -> Result<Vec<f32>> {
        let mine = self.upload(mine)?;
        Ok(self.gather(&mine, counts)?.to_vec1()?)
    }

    fn broadcast(&mut self, root: usize, values: &mut [f32]) -> Result<()> {
        check_root(root, self.world_size)?;
        if values.is_empty() {
            return self.barrier();
        }
        let tensor = self.upload(values)?;
        self.call("broadcast", values.len(), |api, communicator| api.broadcast(communicator, root, &tensor))?;
        values.copy_from_slice(&tensor.to_vec1::<f32>()?);
        Ok(())
    }

    fn barrier(&mut self) -> Result<()> {
        let token = Tensor::zeros(1, DType::F32, self.api.device())?;
        self.call("barrier", 0, |api, communicator| api.all_reduce(communicator, &token))
    }

    fn begin_all_reduce(&mut self, tensor: &Tensor) -> Result<()> {
        let during = self.enter("all_reduce_sum", tensor.elem_count())?;
        let ticket = self.begin(&during, |api, communicator| api.all_reduce(communicator, tensor))?;
        // A non-blocking communicator accepts the next call once this one is set up, before its sum is complete.
        self.wait(&during, |api| api.is_done(&ticket).map(|_| true))?;
        self.begun.push((ticket, tensor.clone()));
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        for (ticket, tensor) in std::mem::take(&mut self.begun) {
            let call = self.place.calls;
            let during = format!("all_reduce_sum of {} values (up to call {call})", tensor.elem_count());
            self.wait(&during, |api| api.is_done(&ticket))?;
        }
        Ok(())
    }

    fn all_gather_tensor(&mut self, mine: &Tensor, counts: &[usize]) -> Result<Tensor> {
        self.gather(&mine.flatten_all()?, counts)
    }

    fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }
}

impl<A: NcclApi> Drop for Nccl<A> {
    /// A working communicator gets a few seconds for an orderly end; any other is aborted.
    fn drop(&mut self) {
        let Some(communicator) = self.communicator.take() else {
            return;
        };
        if std::thread::panicking() {
            return self.api.abort(communicator);
        }
        if !self.begun.is_empty() {
            self.mesh.give_up(self.rank);
            return self.api.abort(communicator);
        }
        self.mesh.finish();
        let deadline = Instant::now() + FINALIZE_PATIENCE.min(self.timeout);
        let begun = self.api.begin_finalize(&communicator).is_ok();
        while begun && Instant::now() < deadline {
            match self.api.state(&communicator) {
                CommunicatorState::Ready => return self.api.destroy(communicator),
                CommunicatorState::Failed(_) => break,
                CommunicatorState::Busy => std::thread::sleep(NAP),
            }
        }
        self.api.abort(communicator);
    }
}
