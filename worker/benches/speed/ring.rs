//! How long the ring takes to sum a buffer over its ranks.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use llink_worker::collective::{AbortHandle, Collective, Ring, RingOptions};
use llink_worker::{Error, Result};
use serde_json::{Value, json};

use super::{Options, gang};

/// Times sums on this rank after one to warm up. Each rank is a process, and all of them name the same addresses.
pub(super) fn measure(options: &Options) -> Result<Value> {
    let own = options.addresses.get(options.rank);
    let own = own.ok_or_else(|| Error::Input(format!("no address of rank {}", options.rank)))?;
    let listener = TcpListener::bind(own).map_err(|source| Error::Io { path: own.clone(), source })?;
    let ring = gang::options(options.rank, &options.addresses, Duration::from_secs(100));
    let ring = RingOptions { sealed: options.sealed, ..ring };
    let mut ring = Ring::connect(listener, &ring, AbortHandle::default())?;
    let mut values = vec![1.0; options.n];
    let mut timed = Vec::with_capacity(options.steps);
    for _ in 0..=options.steps {
        values.fill(1.0);
        ring.barrier()?;
        let start = Instant::now();
        ring.all_reduce_sum(&mut values)?;
        timed.push(start.elapsed().as_secs_f64() * 1e3);
    }
    timed.remove(0);
    timed.sort_by(f64::total_cmp);
    let ranks = options.addresses.len();
    Ok(
        json!({"ranks": ranks, "rank": options.rank, "values": options.n, "sum_ms": timed[timed.len() / 2], "shortest_ms": timed[0]}),
    )
}
