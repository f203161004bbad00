//! The machine that the coordinator runs on: its clocks, its processes, and the runtime of its futures. The simulation passes
//! in a simulated one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::plan;
use crate::schedule::Millis;

/// The machine that the coordinator runs on.
pub(crate) trait Machine: fmt::Debug + Send + Sync {
    /// Returns a time that never goes back while the process lives, in milliseconds since the epoch.
    fn now(&self) -> Millis;

    /// Returns the time of the machine's clock, which can be set, in milliseconds since the epoch.
    fn wall_clock(&self) -> Millis;

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;

    fn spawn(&self, future: BoxFuture<'static, ()>);

    /// Runs work that would hold up the futures.
    fn work(&self, work: Box<dyn FnOnce() + Send>);

    fn process(&self) -> Process;

    /// Returns true if this process could see the other one and does not.
    fn is_gone(&self, other: &Process) -> bool;

    /// Returns a name that no coordinator on any machine had for its attempts.
    fn attempt_name(&self) -> String;
}

impl dyn Machine {
    /// Runs work that would hold up the futures, and returns its result. `None` means that it panicked.
    pub(crate) async fn aside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, is_done) = oneshot::channel();
        self.work(Box::new(move || drop(done.send(work()))));
        is_done.await.ok()
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) host: String,
    pub(crate) id: u32,
    /// The boot of the machine and the space of process ids. Processes of the same space see each other. Empty if the
    /// space is not known.
    pub(crate) space: String,
}

#[derive(Debug)]
pub(crate) struct ThisMachine {
    began: Instant,
    epoch: Millis,
    runtime: tokio::runtime::Handle,
}

impl ThisMachine {
    /// Takes the current runtime for the futures.
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), epoch: unix_ms(), runtime: tokio::runtime::Handle::current() }
    }
}

impl Machine for ThisMachine {
    fn now(&self) -> Millis {
        self.epoch + self.began.elapsed().as_millis() as Millis
    }

    fn wall_clock(&self) -> Millis {
        unix_ms()
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(time))
    }

    fn spawn(&self, future: BoxFuture<'static, ()>) {
        // The runtime drops a future that comes after its end. Nobody waits for such a future.
        drop(self.runtime.spawn(future));
    }

    fn work(&self, work: Box<dyn FnOnce() + Send>) {
        drop(self.runtime.spawn_blocking(work));
    }

    fn process(&self) -> Process {
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        let space = || -> std::io::Result<String> {
            let ids = std::fs::read_link("/proc/self/ns/pid")?;
            Ok(format!("{} {}", read("/proc/sys/kernel/random/boot_id")?, ids.display()))
        };
        Process {
            host: read("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown host".into()),
            id: std::process::id(),
            space: space().unwrap_or_default(),
        }
    }

    fn is_gone(&self, other: &Process) -> bool {
        let this = self.process();
        let seen = !other.space.is_empty() && other.space == this.space;
        seen && other.id != this.id && !std::path::Path::new(&format!("/proc/{}", other.id)).exists()
    }

    fn attempt_name(&self) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let Process { host, id, space } = self.process();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut name = plan::short_hash(&format!("{host} {space} {id} {} {number}", since_epoch().as_nanos()));
        name.truncate(8);
        name
    }
}

pub(crate) fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

pub(crate) fn unix_ms() -> Millis {
    since_epoch().as_millis() as Millis
}

pub(crate) fn random() -> Result<u64, String> {
    getrandom::u64().map_err(|e| format!("the system gives no random bytes: {e}"))
}
