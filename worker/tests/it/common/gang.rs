//! Gangs whose ranks are threads of this process.

use std::net::TcpListener;
use std::time::Duration;

use llink_worker::collective::{AbortHandle, Collective, Ring, RingOptions};

pub const SECRET: &[u8] = b"of this gang";

pub fn listeners(world_size: usize) -> (Vec<TcpListener>, Vec<String>) {
    let listeners: Vec<TcpListener> = (0..world_size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    (listeners, addresses)
}

/// Returns the options of a rank of generation 7, without encryption.
pub fn options(rank: usize, addresses: &[String], timeout: Duration) -> RingOptions {
    let (addresses, secret) = (addresses.to_vec(), SECRET.to_vec());
    RingOptions { rank, addresses, generation: 7, secret, sealed: false, timeout }
}

/// Runs `work` for every rank on a thread of its own.
pub fn on_ranks<T: Send>(listeners: Vec<TcpListener>, work: impl Fn(usize, TcpListener) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let start = |(rank, listener)| scope.spawn(move || work(rank, listener));
        let ranks: Vec<_> = listeners.into_iter().enumerate().map(start).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

pub fn on_ring<T: Send>(
    world_size: usize,
    timeout: Duration,
    work: impl Fn(&mut dyn Collective) -> T + Sync,
) -> Vec<T> {
    on_ring_of(world_size, false, timeout, work)
}

/// Runs `work` on every rank of a ring that is encrypted if `sealed`.
pub fn on_ring_of<T: Send>(
    world_size: usize,
    sealed: bool,
    timeout: Duration,
    work: impl Fn(&mut dyn Collective) -> T + Sync,
) -> Vec<T> {
    let (listeners, addresses) = listeners(world_size);
    on_ranks(listeners, |rank, listener| {
        let options = RingOptions { sealed, ..options(rank, &addresses, timeout) };
        work(&mut Ring::connect(listener, &options, AbortHandle::new()).unwrap())
    })
}
