//! NCCL's calls without a GPU. Ranks are threads, and a rank can be made to die or to hang at any of its calls.
//!
//! Like the library, it does not name a missing rank. A collective that lacks a rank never completes.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use llink_worker::collective::{Attempt, CommunicatorState, NcclApi, UniqueId};

/// The fate of a rank at its n-th call. The creation of the communicator is call 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Lives,
    /// The rank ends before the call.
    DiesBefore(usize),
    /// The rank ends after the call and before the wait for it.
    DiesAfter(usize),
    /// The rank never returns from the call.
    HangsAt(usize),
}

/// All communicators of a test.
#[derive(Default)]
pub struct Fabric {
    communicators: Mutex<HashMap<[u8; 128], Shared>>,
    ids: AtomicUsize,
    pub begun: AtomicUsize,
    pub destroyed: AtomicUsize,
    pub aborted: AtomicUsize,
    /// Whether communicators report a remote error once a rank has died, as NCCL does over sockets.
    pub noisy: bool,
}

#[derive(Default)]
struct Shared {
    world_size: usize,
    joined: usize,
    /// The contributions of the ranks to each call.
    calls: HashMap<u64, BTreeMap<usize, Vec<f32>>>,
    a_rank_died: bool,
}

pub struct FakeNccl {
    pub fabric: Arc<Fabric>,
    pub rank: usize,
    pub fate: Fate,
    calls: Cell<usize>,
}

pub struct Communicator {
    id: [u8; 128],
    calls: Cell<u64>,
}

pub struct Ticket {
    id: [u8; 128],
    call: u64,
    result: Tensor,
    what: What,
}

enum What {
    Sum,
    Gather,
    From(usize),
}

impl Fabric {
    pub fn unique_id(&self) -> UniqueId {
        let number = self.ids.fetch_add(1, Ordering::SeqCst) as u64 + 1;
        let mut id = [0; 128];
        id[..8].copy_from_slice(&number.to_le_bytes());
        UniqueId(id)
    }

    /// Returns the number of communicators that were neither destroyed nor aborted.
    pub fn left_over(&self) -> isize {
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst) as isize;
        count(&self.begun) - count(&self.destroyed) - count(&self.aborted)
    }
}

impl FakeNccl {
    pub fn new(fabric: &Arc<Fabric>, rank: usize, fate: Fate) -> Self {
        Self { fabric: fabric.clone(), rank, fate, calls: Cell::new(0) }
    }

    fn die(&self, id: &[u8; 128]) -> ! {
        if let Some(shared) = self.fabric.communicators.lock().unwrap().get_mut(id) {
            shared.a_rank_died = true;
        }
        panic!("killed: rank {}", self.rank)
    }

    /// Makes one of the calls at which a fate can occur.
    fn call<T>(&self, id: &[u8; 128], make: impl FnOnce() -> T) -> T {
        let call = self.calls.replace(self.calls.get() + 1);
        match self.fate {
            Fate::DiesBefore(at) if at == call => self.die(id),
            Fate::HangsAt(at) if at == call => loop {
                std::thread::park();
            },
            _ => {}
        }
        let made = make();
        if self.fate == Fate::DiesAfter(call) {
            self.die(id);
        }
        made
    }

    fn bring(&self, communicator: &Communicator, values: &Tensor, result: &Tensor, what: What) -> Ticket {
        assert!(values.is_contiguous() && matches!(values.dtype(), DType::F32 | DType::BF16));
        self.call(&communicator.id, || {
            let call = communicator.calls.replace(communicator.calls.get() + 1);
            let values = values.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap();
            let mut all = self.fabric.communicators.lock().unwrap();
            let shared = all.get_mut(&communicator.id).unwrap();
            shared.calls.entry(call).or_default().insert(self.rank, values);
            Ticket { id: communicator.id, call, result: result.clone(), what }
        })
    }
}

impl NcclApi for FakeNccl {
    type Communicator = Communicator;
    type Ticket = Ticket;

    fn version(&self) -> Attempt<String> {
        Ok("2.0.0-fake".into())
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn begin_init(&self, id: &UniqueId, _rank: usize, world_size: usize) -> Attempt<Communicator> {
        self.call(&id.0, || {
            self.fabric.begun.fetch_add(1, Ordering::SeqCst);
            let mut all = self.fabric.communicators.lock().unwrap();
            let shared = all.entry(id.0).or_default();
            shared.world_size = world_size;
            shared.joined += 1;
            Ok(Communicator { id: id.0, calls: Cell::new(0) })
        })
    }

    fn state(&self, communicator: &Communicator) -> CommunicatorState {
        let all = self.fabric.communicators.lock().unwrap();
        let shared = &all[&communicator.id];
        if shared.a_rank_died && self.fabric.noisy {
            return CommunicatorState::Failed("remote process exited or there was a network error".into());
        }
        match shared.joined == shared.world_size {
            true => CommunicatorState::Ready,
            false => CommunicatorState::Busy,
        }
    }

    fn all_reduce(&self, communicator: &Communicator, values: &Tensor) -> Attempt<Ticket> {
        Ok(self.bring(communicator, values, values, What::Sum))
    }

    fn all_gather(&self, communicator: &Communicator, mine: &Tensor, all: &Tensor) -> Attempt<Ticket> {
        Ok(self.bring(communicator, mine, all, What::Gather))
    }

    fn broadcast(&self, communicator: &Communicator, root: usize, values: &Tensor) -> Attempt<Ticket> {
        Ok(self.bring(communicator, values, values, What::From(root)))
    }

    fn is_done(&self, ticket: &Ticket) -> Attempt<bool> {
        let all = self.fabric.communicators.lock().unwrap();
        let shared = &all[&ticket.id];
        let parts = &shared.calls[&ticket.call];
        if parts.len() < shared.world_size {
            return Ok(false);
        }
        let values: Vec<f32> = match ticket.what {
            What::Gather => parts.values().flatten().copied().collect(),
            What::From(root) => parts[&root].clone(),
            What::Sum => {
                let length = parts[&0].len();
                (0..length).map(|i| parts.values().map(|part| part[i]).sum()).collect()
            }
        };
        let values = Tensor::from_vec(values, ticket.result.elem_count(), &Device::Cpu).unwrap();
        let values = values.to_dtype(ticket.result.dtype()).unwrap();
        ticket.result.flatten_all().unwrap().slice_set(&values, 0, 0).unwrap();
        Ok(true)
    }

    fn begin_finalize(&self, communicator: &Communicator) -> Attempt<()> {
        self.call(&communicator.id, || Ok(()))
    }

    fn destroy(&self, _communicator: Communicator) {
        self.fabric.destroyed.fetch_add(1, Ordering::SeqCst);
    }

    /// What this rank brought to calls that are not complete is lost, so those calls never complete.
    fn abort(&self, communicator: Communicator) {
        if let Some(shared) = self.fabric.communicators.lock().unwrap().get_mut(&communicator.id) {
            for parts in shared.calls.values_mut().filter(|parts| parts.len() < shared.world_size) {
                parts.remove(&self.rank);
            }
        }
        self.fabric.aborted.fetch_add(1, Ordering::SeqCst);
    }
}
