//! The bookkeeping of connections and their limits. It is pure. A new connection may close the oldest silent one.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::AbortHandle;

/// The source of connections: an IPv4 address, or the /64 network of an IPv6 address, because one machine can have all
/// of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Source(IpAddr);

impl Source {
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
            }
            address => address,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// The most connections that have not sent their first bytes.
    silent: usize,
    silent_of_source: usize,
    spoken: usize,
    spoken_of_source: usize,
}

impl Limits {
    /// The limits for a service with few clients, such as probes.
    pub(super) const FEW: Self = Self { silent: 64, silent_of_source: 16, spoken: 64, spoken_of_source: 48 };

    /// The limits for browsers, each of which opens several connections.
    pub(super) const BROWSERS: Self = Self { silent: 64, silent_of_source: 32, spoken: 256, spoken_of_source: 192 };

    /// Returns limits for the descriptors that this process can have, with its soft limit raised as far as allowed.
    pub(super) fn of_this_process() -> Self {
        let limit = rlimit::increase_nofile_limit(u64::MAX).ok();
        Self::of(limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(1024))
    }

    /// Returns limits for a process that may have this number of files open.
    fn of(descriptors: usize) -> Self {
        // The state store, logs, the object store and the health service need descriptors too.
        let reserved = (descriptors / 4).clamp(16, 512);
        let left = descriptors.saturating_sub(reserved).max(16);
        let silent = (left / 4).min(1024);
        let spoken = (left - silent).min(16_384);
        Self {
            silent,
            silent_of_source: (silent / 4).clamp(4, 64),
            spoken,
            // Behind a proxy all connections come from one address.
            spoken_of_source: spoken - spoken / 4,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    limits: Limits,
    /// The silent connections of each source, the oldest first.
    silent: HashMap<Source, VecDeque<(u64, AbortHandle)>>,
    silent_total: usize,
    spoken: HashMap<Source, usize>,
    spoken_total: usize,
    next: u64,
}

#[derive(Debug)]
pub(super) struct Silent {
    connections: Connections,
    source: Source,
    id: u64,
}

#[derive(Debug)]
pub(super) struct Place {
    connections: Connections,
    source: Source,
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Table {
            limits,
            silent: HashMap::new(),
            silent_total: 0,
            spoken: HashMap::new(),
            spoken_total: 0,
            next: 0,
        })))
    }

    fn with<R>(&self, f: impl FnOnce(&mut Table) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a connection, whose task `spawn` starts. Returns whether another one was closed for it.
    pub(super) fn begin(&self, source: Source, spawn: impl FnOnce(Silent) -> AbortHandle) -> bool {
        let pushed_out = self.with(|table| {
            let pushed_out = table.make_room(source);
            let id = table.next;
            table.next += 1;
            let silent = Silent { connections: self.clone(), source, id };
            // The lock is held, so that a task that ends at once finds itself in the table.
            let task = spawn(silent);
            table.silent.entry(source).or_default().push_back((id, task));
            table.silent_total += 1;
            pushed_out
        });
        pushed_out.inspect(AbortHandle::abort).is_some()
    }

    /// Closes the oldest silent connection of the source that has most of them.
    pub(super) fn push_out_oldest(&self) {
        let oldest = self.with(|table| {
            let crowded = table.most_crowded()?;
            table.pop(crowded)
        });
        if let Some(task) = oldest {
            task.abort();
        }
    }

    pub(super) fn open(&self) -> usize {
        self.with(|table| table.silent_total + table.spoken_total)
    }
}

impl Table {
    /// Returns the task that must end so that one more connection of `source` may wait.
    fn make_room(&mut self, source: Source) -> Option<AbortHandle> {
        let own = self.silent.get(&source).map_or(0, VecDeque::len);
        if own >= self.limits.silent_of_source {
            return self.pop(source);
        }
        if self.silent_total < self.limits.silent {
            return None;
        }
        let crowded = self.most_crowded()?;
        self.pop(crowded)
    }

    fn most_crowded(&self) -> Option<Source> {
        let most = self.silent.iter().max_by_key(|(source, waiting)| (waiting.len(), **source));
        most.map(|(source, _)| *source)
    }

    fn pop(&mut self, source: Source) -> Option<AbortHandle> {
        let waiting = self.silent.get_mut(&source)?;
        let (_, oldest) = waiting.pop_front()?;
        if waiting.is_empty() {
            self.silent.remove(&source);
        }
        self.silent_total -= 1;
        Some(oldest)
    }

    fn remove(&mut self, source: Source, id: u64) {
        let Some(waiting) = self.silent.get_mut(&source) else {
            return;
        };
        // A connection that was closed for a newer one is not in the table any more.
        let Some(at) = waiting.iter().position(|(waits, _)| *waits == id) else {
            return;
        };
        waiting.remove(at);
        if waiting.is_empty() {
            self.silent.remove(&source);
        }
        self.silent_total -= 1;
    }
}

impl Silent {
    /// Moves the connection to a place among those that speak HTTP.
    pub(super) fn speaks(self) -> Result<Place, String> {
        let source = self.source;
        self.connections.with(|table| {
            if table.spoken_total >= table.limits.spoken {
                return Err(format!("{} connections are open, which is the limit here", table.spoken_total));
            }
            let own = table.spoken.entry(source).or_default();
            if *own >= table.limits.spoken_of_source {
                return Err(format!("{own} connections are open from there, which is the limit"));
            }
            *own += 1;
            table.spoken_total += 1;
            Ok(())
        })?;
        Ok(Place { connections: self.connections.clone(), source })
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        self.connections.with(|table| table.remove(self.source, self.id));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.with(|table| {
            table.spoken_total -= 1;
            let own = table.spoken.entry(self.source).or_default();
            *own -= 1;
            if *own == 0 {
                table.spoken.remove(&self.source);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SMALL: Limits = Limits { silent: 6, silent_of_source: 3, spoken: 4, spoken_of_source: 3 };

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    /// Begins a connection that stays silent until its task is ended.
    fn begin(connections: &Connections, from: &str) -> (bool, tokio::task::JoinHandle<()>) {
        let (handle, task) = mpsc::channel();
        let pushed_out = connections.begin(source(from), |silent| {
            let spawned = tokio::spawn(async move {
                let _silent = silent;
                std::future::pending::<()>().await;
            });
            let abort = spawned.abort_handle();
            handle.send(spawned).unwrap();
            abort
        });
        (pushed_out, task.recv().unwrap())
    }

    #[tokio::test]
    async fn a_new_connection_pushes_out_the_oldest_silent_one_of_its_source_and_none_of_another() {
        let connections = Connections::new(SMALL);
        let (_, other) = begin(&connections, "10.0.0.2");
        let mut own: Vec<_> = (0..3).map(|_| begin(&connections, "10.0.0.1").1).collect();
        let (pushed_out, newest) = begin(&connections, "10.0.0.1");
        assert!(pushed_out);
        assert!(own.remove(0).await.unwrap_err().is_cancelled(), "the oldest");
        assert!(!newest.is_finished() && !other.is_finished() && own.iter().all(|task| !task.is_finished()));
        assert_eq!(connections.open(), 4);
    }

    #[tokio::test]
    async fn where_all_are_too_many_the_most_crowded_source_makes_room() {
        let connections = Connections::new(SMALL);
        let crowd: Vec<_> = (0..3).map(|_| begin(&connections, "10.0.0.1").1).collect();
        let others: Vec<_> = (2..5).map(|n| begin(&connections, &format!("10.0.0.{n}")).1).collect();
        let (pushed_out, _) = begin(&connections, "10.0.0.9");
        assert!(pushed_out);
        tokio::task::yield_now().await;
        assert!(crowd[0].is_finished() && others.iter().all(|task| !task.is_finished()));
        connections.push_out_oldest();
        tokio::task::yield_now().await;
        assert!(crowd[1].is_finished());
    }

    #[tokio::test]
    async fn places_are_bounded_and_given_back() {
        let connections = Connections::new(SMALL);
        let speak = |from: &str| {
            let silent = Silent { connections: connections.clone(), source: source(from), id: u64::MAX };
            silent.speaks()
        };
        let mut places: Vec<Place> = (0..3).map(|_| speak("10.0.0.1").unwrap()).collect();
        assert!(speak("10.0.0.1").unwrap_err().contains("from there"));
        places.push(speak("10.0.0.2").unwrap());
        assert!(speak("10.0.0.3").unwrap_err().contains("4 connections"));
        drop(places);
        assert_eq!(connections.open(), 0);
        assert!(speak("10.0.0.3").is_ok());
    }

    #[test]
    fn limits_fit_the_descriptors_there_are() {
        for descriptors in [0, 64, 256, 1024, 4096, 1 << 20, usize::MAX] {
            let limits = Limits::of(descriptors);
            assert!(limits.silent >= limits.silent_of_source && limits.spoken > limits.spoken_of_source, "{limits:?}");
            if descriptors >= 64 {
                assert!(limits.silent + limits.spoken < descriptors, "{descriptors}: {limits:?}");
            }
        }
        assert_eq!(source("fd00::1"), source("fd00::ffff:1"));
        assert_ne!(source("fd00::1"), source("fd00:0:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("::1"), source("::2"));
    }
}
