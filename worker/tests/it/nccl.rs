//! A gang over NCCL, driven against a fake of its calls. The sums are right, and the death of a rank gives an error
//! that names the first fault instead of a hang.

use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::gang::{listeners, on_ranks, options};
use crate::fake_nccl::{Fabric, FakeNccl, Fate};
use candle_core::{DType, Device, Tensor};
use llink_worker::collective::{AbortHandle, Collective, Nccl, RingOptions, UniqueId};
use llink_worker::{Error, Result};

/// A timeout so long that a test which waits for it fails by its own clock.
const LONG: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(30);

type Gang = Nccl<FakeNccl>;

/// The end of a rank: none when it died.
type End<T> = Option<Result<T>>;

struct Run<'a> {
    fabric: &'a Arc<Fabric>,
    fates: &'a [Fate],
    generation: u64,
    timeout: Duration,
    id: UniqueId,
}

impl<'a> Run<'a> {
    fn new(fabric: &'a Arc<Fabric>, fates: &'a [Fate], timeout: Duration) -> Self {
        Self { fabric, fates, generation: 7, timeout, id: fabric.unique_id() }
    }

    /// Runs `work` on every rank, each on its own thread.
    fn on_all<T: Send>(&self, work: impl Fn(&mut Gang) -> Result<T> + Sync) -> Vec<End<T>> {
        let (listeners, addresses) = listeners(self.fates.len());
        let run = |rank: usize, listener: &TcpListener| {
            let options = options(rank, &addresses, self.timeout);
            let options = RingOptions { generation: self.generation, sealed: true, ..options };
            let api = FakeNccl::new(self.fabric, rank, self.fates[rank]);
            let mut gang = Nccl::connect(api, listener, &options, &self.id, AbortHandle::new())?;
            work(&mut gang)
        };
        on_ranks(listeners, |rank, listener| catch_unwind(AssertUnwindSafe(|| run(rank, &listener))).ok())
    }
}

/// Returns why a rank that lives does not join a gang.
fn refused(fabric: &Arc<Fabric>, listener: &TcpListener, options: &RingOptions, id: &UniqueId) -> String {
    let api = FakeNccl::new(fabric, options.rank, Fate::Lives);
    Nccl::connect(api, listener, options, id, AbortHandle::new()).err().unwrap().to_string()
}

/// Checks that a stranger who calls rank 0 is told `words`, and that rank 0 goes on waiting for its rank 1.
fn turns_away(fabric: &Arc<Fabric>, change: impl FnOnce(&mut RingOptions), words: &str) {
    let (doors, addresses) = listeners(2);
    let host = options(0, &addresses, Duration::from_secs(5));
    let mut stranger = options(1, &addresses, LONG);
    change(&mut stranger);
    let id = fabric.unique_id();
    thread::scope(|scope| {
        let waited = scope.spawn(|| refused(fabric, &doors[0], &host, &id));
        let said = refused(fabric, &doors[1], &stranger, &id);
        assert!(said.contains(words), "{said}");
        let waited = waited.join().unwrap();
        assert!(waited.contains("rank 1 did not connect"), "{waited}");
    });
}

/// The number of calls in [`lesson`] at which a fault can occur. Making the communicator counts, ending it does not.
const CALLS: usize = 7;

/// Runs one of each collective and returns the results.
fn lesson(gang: &mut Gang) -> Result<Vec<f32>> {
    let (rank, ranks) = (gang.rank(), gang.world_size());
    gang.begin_step(5);
    let mut sum = vec![rank as f32 + 1.0, 0.5, -2.0];
    gang.all_reduce_sum(&mut sum)?;
    let counts: Vec<usize> = (0..ranks).collect();
    let gathered = gang.all_gather(&vec![rank as f32; rank], &counts)?;
    let mut sent = vec![rank as f32; 2];
    gang.broadcast(ranks - 1, &mut sent)?;
    gang.barrier()?;
    let halves = Tensor::full(0.5f32, 4, &Device::Cpu)?.to_dtype(DType::BF16)?;
    let whole = Tensor::full(rank as f32, (2, 2), &Device::Cpu)?;
    gang.begin_all_reduce(&halves)?;
    gang.begin_all_reduce(&whole)?;
    gang.settle()?;
    let tensors = [halves.to_dtype(DType::F32)?, whole.flatten_all()?];
    let tensors: Vec<f32> = Tensor::cat(&tensors, 0)?.to_vec1()?;
    Ok([sum, gathered, sent, tensors].concat())
}

fn expected(ranks: usize) -> Vec<f32> {
    let n = ranks as f32;
    let triangle = n * (n - 1.0) / 2.0;
    let mut values = vec![triangle + n, 0.5 * n, -2.0 * n];
    values.extend((0..ranks).flat_map(|rank| vec![rank as f32; rank]));
    values.extend([n - 1.0; 2]);
    values.extend([0.5 * n; 4]);
    values.extend([triangle; 4]);
    values
}

#[test]
fn every_collective_gives_every_rank_the_same() {
    for ranks in [1, 2, 3, 4] {
        let fabric = Arc::new(Fabric::default());
        let fates = vec![Fate::Lives; ranks];
        for end in Run::new(&fabric, &fates, LONG).on_all(lesson) {
            assert_eq!(end.unwrap().unwrap(), expected(ranks));
        }
        assert_eq!(fabric.left_over(), 0);
        assert_eq!(fabric.aborted.load(std::sync::atomic::Ordering::SeqCst), 0, "they end without a fault");
    }
}

/// Kills `victim` at one of its calls and checks the errors of the others.
fn after_a_death(ranks: usize, victim: usize, fate: Fate, noisy: bool) {
    let context = format!("{ranks} ranks, rank {victim} {fate:?}, noisy {noisy}");
    let mut fabric = Fabric::default();
    fabric.noisy = noisy;
    let fabric = Arc::new(fabric);
    let mut fates = vec![Fate::Lives; ranks];
    fates[victim] = fate;
    let began = Instant::now();
    let ends = Run::new(&fabric, &fates, LONG).on_all(lesson);
    assert!(began.elapsed() < SOON, "{context}: {:?}", began.elapsed());
    assert!(ends[victim].is_none(), "{context}: the victim died");
    for (rank, end) in ends.iter().enumerate().filter(|(rank, _)| *rank != victim) {
        match end.as_ref().unwrap() {
            Err(Error::Peer { rank: found, reason, .. }) => {
                assert_eq!(*found, rank);
                assert!(reason.contains(&format!("rank {victim} is lost")), "{context}: rank {rank} says {reason}");
            }
            // The victim had contributed to all calls.
            Ok(values) => {
                assert!(matches!(fate, Fate::DiesAfter(call) if call + 1 == CALLS), "{context}");
                assert_eq!(*values, expected(ranks));
            }
            Err(other) => panic!("{context}: rank {rank} says {other}"),
        }
    }
    // The dead rank's own handle died with it.
    assert!(fabric.left_over() <= 1, "{context}: {} communicators left", fabric.left_over());
}

#[test]
fn wherever_a_rank_dies_the_others_end_at_once_and_name_it() {
    // The panics of the victims are part of the test.
    std::panic::set_hook(Box::new(|_| {}));
    for ranks in [2, 3, 4] {
        for victim in 0..ranks {
            for call in 0..CALLS {
                for fate in [Fate::DiesBefore(call), Fate::DiesAfter(call)] {
                    after_a_death(ranks, victim, fate, false);
                }
                after_a_death(ranks, victim, Fate::DiesBefore(call), true);
            }
        }
    }
    drop(std::panic::take_hook());
}

#[test]
fn a_rank_that_hangs_is_named_after_the_timeout() {
    for (call, place) in [(1, "after call 0"), (3, "at step 5 after call 2"), (6, "at step 5 after call 5")] {
        let fabric = Arc::new(Fabric::default());
        let (ended, ends) = std::sync::mpsc::channel();
        let fates = [Fate::Lives, Fate::HangsAt(call), Fate::Lives];
        let shared = fabric.clone();
        // The hung thread is left behind with this one.
        thread::spawn(move || {
            Run::new(&shared, &fates, Duration::from_secs(3)).on_all(|gang| {
                let end = lesson(gang);
                ended.send((gang.rank(), end)).unwrap();
                Ok(())
            });
        });
        let mut named = 0;
        for _ in 0..2 {
            let (rank, end) = ends.recv_timeout(SOON).unwrap();
            assert_ne!(rank, 1);
            let error = end.unwrap_err().to_string();
            assert!(error.contains("rank 1"), "{error}");
            named += usize::from(error.contains("not done within 3 s") && error.contains("rank 1 is behind"));
            if call > 1 && error.contains("behind") {
                assert!(error.contains(place), "{error}");
            }
        }
        assert!(named >= 1, "the first to give up names the place of the hung rank");
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let fabric = Arc::new(Fabric::default());
    let (mut listeners, addresses) = listeners(3);
    let id = fabric.unique_id();
    listeners.truncate(2);
    let began = Instant::now();
    let errors: Vec<String> = on_ranks(listeners, |rank, listener| {
        refused(&fabric, &listener, &options(rank, &addresses, Duration::from_secs(1)), &id)
    });
    assert!(began.elapsed() < SOON);
    for error in errors {
        assert!(error.contains("rank 2 did not connect within 1 s"), "{error}");
    }
}

#[test]
fn an_abort_from_another_thread_ends_what_waits() {
    let fabric = Arc::new(Fabric::default());
    let fates = [Fate::Lives, Fate::Lives];
    let (over, is_over) = std::sync::mpsc::channel();
    let is_over = std::sync::Mutex::new(is_over);
    let ends = Run::new(&fabric, &fates, LONG).on_all(|gang| {
        if gang.rank() == 1 {
            // This rank joins no collective before rank 0 gave up, and hears of that.
            let _ = is_over.lock().unwrap().recv_timeout(LONG);
            return gang.barrier();
        }
        let handle = gang.abort_handle();
        thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            handle.abort("the lease is lost");
        });
        let began = Instant::now();
        let end = gang.all_reduce_sum(&mut [1.0]);
        assert!(began.elapsed() < SOON);
        assert!(gang.barrier().is_err(), "a broken gang stays broken");
        over.send(()).unwrap();
        end
    });
    let texts: Vec<String> = ends.into_iter().map(|end| end.unwrap().unwrap_err().to_string()).collect();
    assert!(texts[0].contains("the lease is lost"), "{}", texts[0]);
    assert!(texts[1].contains("rank 0 is lost: it gave up"), "{}", texts[1]);
    assert_eq!(fabric.left_over(), 0);
}

#[test]
fn survivors_go_on_in_the_next_generation_and_a_straggler_is_turned_away() {
    std::panic::set_hook(Box::new(|_| {}));
    let fabric = Arc::new(Fabric::default());
    let fates = [Fate::Lives, Fate::Lives, Fate::DiesBefore(4)];
    let first = Run::new(&fabric, &fates, LONG);
    let ends = first.on_all(lesson);
    assert!(ends[0].as_ref().unwrap().is_err() && ends[1].as_ref().unwrap().is_err() && ends[2].is_none());
    drop(std::panic::take_hook());

    let fates = [Fate::Lives, Fate::Lives];
    let next = Run { generation: 8, ..Run::new(&fabric, &fates, LONG) };
    assert_ne!(next.id, first.id);
    for end in next.on_all(lesson) {
        assert_eq!(end.unwrap().unwrap(), expected(2));
    }

    // A rank of another generation that woke up late calls the listener.
    turns_away(&fabric, |stranger| stranger.generation = 6, "another generation");
}

#[test]
fn who_does_not_know_the_secret_does_not_join() {
    let fabric = Arc::new(Fabric::default());
    turns_away(&fabric, |stranger| stranger.secret = b"of another gang".to_vec(), "another secret");
    assert_eq!(fabric.begun.load(std::sync::atomic::Ordering::SeqCst), 0, "NCCL was not called");
}
