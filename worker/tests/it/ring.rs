//! The TCP ring gives the right sums and the same bits on every rank. If a member fails, it gives an error and does not
//! hang.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::gang::{SECRET, listeners, on_ranks, on_ring, on_ring_of, options};
use candle_core::{Device, Tensor};
use llink_worker::Error;
use llink_worker::collective::{AbortHandle, Collective, Ring, RingOptions};

const TIMEOUT: Duration = Duration::from_secs(20);

/// Makes the opening of a connection by hand: the caller's hello, a nonce, and the proof that the secret is known.
fn hello(generation: u64, rank: u64, listener: u64, world_size: u64, secret: &[u8]) -> Vec<u8> {
    let mut hello = Vec::new();
    for word in [u64::from_le_bytes(*b"llinkgng"), generation, rank, world_size] {
        hello.extend(word.to_le_bytes());
    }
    hello.extend([9; 16]);
    let shown = proof(secret, b"caller", listener, &hello);
    hello.extend(shown);
    hello
}

fn proof(secret: &[u8], who: &[u8], listener: u64, said_and_nonce: &[u8]) -> Vec<u8> {
    use hmac::Mac;
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(secret).unwrap();
    mac.update(who);
    mac.update(&listener.to_le_bytes());
    mac.update(said_and_nonce);
    mac.finalize().into_bytes().to_vec()
}

/// Returns the values of rank `rank` in call `call`.
fn values(call: usize, rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|i| ((i * 31 + rank * 17 + call * 7) as f32 * 0.37).sin()).collect()
}

#[test]
fn sums_are_right_and_the_same_bits_on_every_rank() {
    for (world_size, sealed) in [(2, false), (3, false), (4, false), (5, false), (2, true), (4, true)] {
        // Every way in which a length divides among the ranks, and several pieces of the wire.
        let lengths: Vec<usize> = (0..=2 * world_size + 1).chain([9_973, 65_536 * world_size, 300_001]).collect();
        let results = on_ring_of(world_size, sealed, TIMEOUT, |ring| {
            let sum = |(call, length): (usize, &usize)| {
                let mut own = values(call, ring.rank(), *length);
                ring.all_reduce_sum(&mut own).unwrap();
                own
            };
            lengths.iter().enumerate().map(sum).collect::<Vec<_>>()
        });
        for (call, length) in lengths.iter().enumerate() {
            let inputs: Vec<Vec<f32>> = (0..world_size).map(|rank| values(call, rank, *length)).collect();
            for i in 0..*length {
                let expected: f64 = inputs.iter().map(|input| f64::from(input[i])).sum();
                assert!((f64::from(results[0][call][i]) - expected).abs() < 1e-5, "value {i} of {length}");
            }
            for result in &results[1..] {
                let same = result[call].iter().zip(&results[0][call]).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "ranks differ on {length} values");
            }
        }
    }
}

#[test]
fn a_sum_repeats_bit_for_bit() {
    let run = || {
        on_ring(3, TIMEOUT, |ring| {
            let mut own = values(1, ring.rank(), 10_007);
            ring.all_reduce_sum(&mut own).unwrap();
            own.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        })
    };
    assert_eq!(run(), run());
}

#[test]
fn sums_of_tensors_run_beside_what_is_computed_meanwhile() {
    let (gone_on, waits) = mpsc::channel();
    let (gone_on, waits) = (Mutex::new(Some(gone_on)), Mutex::new(waits));
    let sums = on_ring(2, TIMEOUT, |ring| {
        let rank = ring.rank();
        if rank == 1 {
            // Its part comes only after the other rank has continued without it.
            waits.lock().unwrap().recv_timeout(TIMEOUT).unwrap();
        }
        let own: Vec<Tensor> = (1..4).map(|n| tensor(rank, 50_000 * n)).collect();
        own.iter().for_each(|tensor| ring.begin_all_reduce(tensor).unwrap());
        if rank == 0 {
            gone_on.lock().unwrap().take().unwrap().send(()).unwrap();
        }
        ring.settle().unwrap();
        // A later call stays in order with these sums.
        ring.begin_all_reduce(&own[0]).unwrap();
        ring.barrier().unwrap();
        own.iter().map(|tensor| tensor.to_vec1::<f32>().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(sums[0], sums[1]);
    for (n, sum) in (1..4).zip(&sums[0]) {
        let [a, b] = [0, 1].map(|rank| values(n, rank, 50_000 * n));
        let times = if n == 1 { 2.0 } else { 1.0 };
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| times * (a + b)).collect();
        assert_eq!(sum, &expected);
    }
}

/// Returns the n-th tensor of one rank.
fn tensor(rank: usize, length: usize) -> Tensor {
    Tensor::from_vec(values(length / 50_000, rank, length), length, &Device::Cpu).unwrap()
}

#[test]
fn a_rank_that_gives_up_amid_begun_sums_keeps_nobody_waiting() {
    let started = Instant::now();
    let errors = on_ring(2, TIMEOUT, |ring| {
        ring.begin_all_reduce(&tensor(ring.rank(), 50_000)).unwrap();
        if ring.rank() == 1 {
            return None;
        }
        // The other rank has begun one sum and never begins the second.
        let sums = ring.begin_all_reduce(&tensor(0, 50_000)).and_then(|()| ring.settle());
        sums.err().map(|error| error.to_string())
    });
    let error = errors[0].as_ref().unwrap();
    assert!(error.contains("rank 1 is gone"), "{error}");
    assert!(started.elapsed() < TIMEOUT / 2, "{:?}", started.elapsed());
}

#[test]
fn gathers_and_broadcasts_bring_everyone_the_same() {
    for counts in [vec![0, 70_001], vec![99_999, 0, 1], vec![5, 40_000, 81_920, 0]] {
        let world_size = counts.len();
        let expected: Vec<f32> = counts.iter().enumerate().flat_map(|(rank, count)| values(0, rank, *count)).collect();
        on_ring(world_size, TIMEOUT, |ring| {
            let rank = ring.rank();
            assert_eq!(ring.all_gather(&values(0, rank, counts[rank]), &counts).unwrap(), expected);
            assert_eq!(ring.all_gather(&[], &vec![0; world_size]).unwrap(), Vec::<f32>::new());
            for root in 0..world_size {
                for length in [0, 1, 200_000] {
                    let mut own = values(length, rank, length);
                    ring.broadcast(root, &mut own).unwrap();
                    assert_eq!(own, values(length, root, length));
                }
            }
            ring.barrier().unwrap();
            let wrong = ring.all_gather(&[1.0], &vec![0; world_size]);
            assert!(matches!(wrong, Err(Error::Input(_))));
            assert!(matches!(ring.broadcast(world_size, &mut []), Err(Error::Input(_))));
            ring.barrier().unwrap();
        });
    }
}

#[test]
fn a_barrier_waits_for_the_last() {
    let started = Instant::now();
    let waited = on_ring(3, TIMEOUT, |ring| {
        ring.barrier().unwrap();
        let from = Instant::now();
        if ring.rank() == 1 {
            thread::sleep(Duration::from_millis(300));
        }
        ring.barrier().unwrap();
        from.elapsed()
    });
    assert!(waited.iter().all(|waited| *waited >= Duration::from_millis(290)), "{waited:?}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_rank_that_dies_gives_the_others_an_error_at_once() {
    for (world_size, length, sealed) in [(2, 10, false), (3, 10, true), (4, 2_000_000, false), (4, 2_000_000, true)] {
        let results = on_ring_of(world_size, sealed, TIMEOUT, |ring| {
            ring.begin_step(41);
            ring.all_reduce_sum(&mut vec![1.0; 100]).unwrap();
            if ring.rank() == 1 {
                return None;
            }
            ring.begin_step(42);
            let started = Instant::now();
            let error = ring.all_reduce_sum(&mut vec![1.0; length]).unwrap_err();
            let again = ring.barrier().unwrap_err();
            Some((started.elapsed(), error, again))
        });
        for (elapsed, error, again) in results.into_iter().flatten() {
            assert!(elapsed < TIMEOUT / 2, "{elapsed:?} for {error}");
            let text = error.to_string();
            assert!(matches!(error, Error::Peer { .. }), "{text}");
            assert!(text.contains("all_reduce_sum at step 42") && text.contains("rank"), "{text}");
            assert!(matches!(again, Error::Peer { .. }), "a broken ring must stay broken: {again}");
        }
    }
}

#[test]
fn a_rank_that_falls_silent_gives_the_others_an_error_within_the_timeout() {
    // The ranks must meet within the timeout too.
    let timeout = Duration::from_secs(3);
    for (length, sealed) in [(10, false), (4_000_000, false), (4_000_000, true)] {
        let (done, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let left = std::sync::atomic::AtomicUsize::new(2);
        let done = Mutex::new(Some(done));
        on_ring_of(3, sealed, timeout, |ring| {
            if ring.rank() == 2 {
                // The rank is alive and connected, but sends nothing until the others have given up.
                let _ = wait.lock().unwrap().recv();
                return;
            }
            let started = Instant::now();
            let error = ring.all_reduce_sum(&mut vec![1.0; length]).unwrap_err();
            let elapsed = started.elapsed();
            if left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) == 1 {
                drop(done.lock().unwrap().take());
            }
            assert!(matches!(error, Error::Peer { .. }), "{error}");
            assert!(error.to_string().contains("rank"), "{error}");
            assert!(elapsed < timeout + Duration::from_secs(15), "{elapsed:?}");
        });
    }
}

#[test]
fn a_trickle_does_not_extend_the_timeout() {
    // The peer takes part in the ring by hand: it says hello, then sends one byte every 50 ms.
    let (mut listeners, addresses) = listeners(2);
    let (mine, theirs) = (listeners.remove(0), listeners.remove(0));
    let target = addresses[0].clone();
    let peer = thread::spawn(move || {
        let mut out = TcpStream::connect(target).unwrap();
        out.write_all(&hello(7, 1, 0, 2, SECRET)).unwrap();
        let (mut inbound, _) = theirs.accept().unwrap();
        let mut heard = [0; 80];
        inbound.read_exact(&mut heard).unwrap();
        inbound.write_all(&[1]).unwrap();
        inbound.write_all(&proof(SECRET, b"listener", 1, &heard[..48])).unwrap();
        let mut verdict = [0; 33];
        out.read_exact(&mut verdict).unwrap();
        assert_eq!(verdict[0], 1);
        while out.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(50));
        }
    });
    // The peer must say hello within the timeout too. At its pace the sum would take minutes.
    let timeout = Duration::from_secs(3);
    let options = options(0, &addresses, timeout);
    let mut ring = Ring::connect(mine, &options, AbortHandle::new()).unwrap();
    let started = Instant::now();
    let error = ring.all_reduce_sum(&mut vec![1.0; 1000]).unwrap_err();
    assert!(started.elapsed() < timeout + Duration::from_secs(15), "{:?} for {error}", started.elapsed());
    drop(ring);
    peer.join().unwrap();
}

#[test]
fn an_abort_from_another_thread_wakes_who_waits() {
    let (woken, is_woken) = mpsc::channel();
    let is_woken = Mutex::new(is_woken);
    let started = Instant::now();
    on_ring(2, Duration::from_secs(60), |ring| {
        let handle = ring.abort_handle();
        if ring.rank() == 1 {
            // Its own ring stays open, so only its own abort wakes rank 0.
            let _ = is_woken.lock().unwrap().recv_timeout(TIMEOUT);
            return;
        }
        let abort = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            handle.abort("the lease expired");
        });
        let error = ring.all_gather(&[1.0], &[1, 1]).unwrap_err();
        assert!(matches!(&error, Error::Aborted(reason) if reason == "the lease expired"), "{error}");
        assert!(started.elapsed() < TIMEOUT / 2, "{:?}", started.elapsed());
        assert!(matches!(ring.barrier(), Err(Error::Aborted(_))));
        woken.send(()).unwrap();
        abort.join().unwrap();
    });
}

#[test]
fn an_abort_ends_connecting() {
    let (mut listeners, addresses) = listeners(2);
    let options = options(0, &addresses, Duration::from_secs(60));
    let handle = AbortHandle::new();
    let aborting = handle.clone();
    let abort = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        aborting.abort("stop");
    });
    let started = Instant::now();
    let error = Ring::connect(listeners.remove(0), &options, handle).err().unwrap();
    assert!(matches!(error, Error::Aborted(_)), "{error}");
    assert!(started.elapsed() < TIMEOUT);
    abort.join().unwrap();
}

#[test]
fn ranks_in_different_calls_find_out() {
    let results = on_ring(2, TIMEOUT, |ring| {
        let values = 8 + ring.rank();
        ring.all_reduce_sum(&mut vec![1.0; values]).unwrap_err().to_string()
    });
    // One rank names the fault. The other may name the same, or that the first one left.
    assert!(results.iter().any(|text| text.contains("8 values") && text.contains("9 values")), "{results:?}");
}

#[test]
fn late_comers_of_another_generation_are_turned_away() {
    let (listeners, addresses) = listeners(2);
    // The late caller dials rank 0 before the true rank 1 does.
    let mut late = TcpStream::connect(&addresses[0]).unwrap();
    late.write_all(&hello(6, 1, 0, 2, SECRET)).unwrap();
    let sums = on_ranks(listeners, |rank, listener| {
        let options = options(rank, &addresses, TIMEOUT);
        let mut sum = [1.0];
        Ring::connect(listener, &options, AbortHandle::new()).unwrap().all_reduce_sum(&mut sum).unwrap();
        sum
    });
    assert_eq!(sums, [[2.0]; 2]);
    let mut verdict = [0];
    late.read_exact(&mut verdict).unwrap();
    assert_eq!(verdict, [2], "the late caller must be told that it belongs to another generation");
}

#[test]
fn who_does_not_know_the_secret_neither_calls_nor_answers() {
    let (mut listeners, addresses) = listeners(2);
    let (mine, theirs) = (listeners.remove(0), listeners.remove(0));
    let options = options(0, &addresses, TIMEOUT);
    let ring = thread::spawn(move || Ring::connect(mine, &options, AbortHandle::new()).map(drop));
    // Everything in its message is right but the secret.
    let mut caller = TcpStream::connect(&addresses[0]).unwrap();
    caller.write_all(&hello(7, 1, 0, 2, b"of another gang")).unwrap();
    let mut verdict = [0];
    caller.read_exact(&mut verdict).unwrap();
    assert_eq!(verdict, [4], "the caller is turned away");
    // A listener in rank 1's place without the secret is detected too.
    let (mut inbound, _) = theirs.accept().unwrap();
    let mut heard = [0; 80];
    inbound.read_exact(&mut heard).unwrap();
    assert!(!heard.windows(SECRET.len()).any(|w| w == SECRET), "the secret is not sent");
    inbound.write_all(&[1]).unwrap();
    inbound.write_all(&proof(b"of another gang", b"listener", 1, &heard[..48])).unwrap();
    let error = ring.join().unwrap().unwrap_err().to_string();
    assert!(error.contains("does not know the gang's secret"), "{error}");
}

/// Relays between rank 0 and rank 1: forwards everything, records rank 0's bytes, and alters the chosen byte.
fn listen_in(listener: TcpListener, to: String, alter: Option<usize>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut caller, _) = listener.accept().unwrap();
        let mut called = TcpStream::connect(to).unwrap();
        let (mut answers, mut back) = (called.try_clone().unwrap(), caller.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut answers, &mut back));
        let (mut heard, mut part) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = caller.read(&mut part) {
            let part = &mut part[..count];
            let from = heard.len();
            heard.extend_from_slice(part);
            if let Some(at) = alter.filter(|at| (from..from + count).contains(at)) {
                part[at - from] ^= 0x55;
            }
            if called.write_all(part).is_err() {
                break;
            }
        }
        let _ = called.shutdown(std::net::Shutdown::Both);
        heard
    })
}

/// Sums ones over two ranks through the relay, and returns each rank's result and the recorded bytes.
fn overheard(sealed: bool, alter: Option<usize>) -> (Vec<llink_worker::Result<Vec<f32>>>, Vec<u8>) {
    let (listeners, addresses) = listeners(2);
    let between = TcpListener::bind("127.0.0.1:0").unwrap();
    let seen_by_0 = vec![addresses[0].clone(), between.local_addr().unwrap().to_string()];
    let ear = listen_in(between, addresses[1].clone(), alter);
    let sums = on_ranks(listeners, |rank, listener| {
        let seen = [&seen_by_0, &addresses][rank];
        let options = RingOptions { sealed, ..options(rank, seen, TIMEOUT) };
        let mut ring = Ring::connect(listener, &options, AbortHandle::new()).unwrap();
        let mut values = vec![1.0; 20_000];
        ring.all_reduce_sum(&mut values).map(|()| values)
    });
    (sums, ear.join().unwrap())
}

#[test]
fn a_sealed_ring_shows_no_number_and_notices_what_was_altered() {
    let ones: Vec<u8> = [1.0_f32; 4].iter().flat_map(|one| one.to_le_bytes()).collect();
    let shows = |heard: &[u8]| heard.windows(ones.len()).any(|part| part == ones);
    let (sums, heard) = overheard(false, None);
    assert!(sums.iter().all(|sum| sum.as_ref().unwrap() == &vec![2.0; 20_000]));
    assert!(shows(&heard), "in plain text everyone can read the values");
    let (sums, heard) = overheard(true, None);
    assert!(sums.iter().all(|sum| sum.as_ref().unwrap() == &vec![2.0; 20_000]));
    assert!(heard.len() > 80_000 && !shows(&heard));
    // The byte is in the middle of the numbers. In plain text the change is unnoticed; in a sealed ring it ends the
    // ring.
    let (sums, _) = overheard(false, Some(5_000));
    assert!(sums.iter().all(|sum| sum.as_ref().is_ok_and(|sum| sum != &vec![2.0; 20_000])));
    let (sums, _) = overheard(true, Some(5_000));
    let error = sums[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("altered"), "{error}");
}

#[test]
fn a_rank_of_another_generation_learns_why() {
    let (listeners, addresses) = listeners(2);
    let timeout = Duration::from_secs(3);
    let started = Instant::now();
    let errors: Vec<String> = on_ranks(listeners, |rank, listener| {
        let generation = 7 + rank as u64;
        let options = RingOptions { generation, sealed: true, ..options(rank, &addresses, timeout) };
        Ring::connect(listener, &options, AbortHandle::new()).err().unwrap().to_string()
    });
    assert!(errors.iter().any(|text| text.contains("another generation")), "{errors:?}");
    assert!(started.elapsed() < timeout + Duration::from_secs(15));
}

/// Checks the machine rather than the library. The bound is generous, and only a stray sleep or delayed packet exceeds
/// it.
#[test]
fn small_sums_take_no_longer_than_a_network_needs() {
    let times = on_ring(2, TIMEOUT, |ring| {
        let mut times: Vec<Duration> = (0..300)
            .map(|_| {
                let started = Instant::now();
                ring.all_reduce_sum(&mut [1.0; 96]).unwrap();
                started.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    });
    println!("a sum of 96 values takes {:?} at the median", times[0]);
    assert!(times[0] < Duration::from_millis(15), "{times:?}");
}
