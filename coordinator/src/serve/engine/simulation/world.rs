//! The world is a runtime in one thread. It has one clock, and processes that halt and die. The seed decides the order in
//! which futures run.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::schedule::Millis;

/// A process, from its start to its end. The first one never dies.
pub(super) type Host = usize;
pub(super) const OUTSIDE: Host = 0;

#[derive(Default)]
pub(super) struct World {
    inner: Mutex<Inner>,
    ready: Arc<Mutex<Vec<u64>>>,
}

#[derive(Default)]
struct Inner {
    now: Millis,
    random: u64,
    timers: BTreeMap<(Millis, u64), Waker>,
    tasks: BTreeMap<u64, Task>,
    hosts: Vec<HostState>,
    numbers: u64,
    polls: u64,
}

struct Task {
    host: Host,
    waker: Waker,
    /// Absent while it is polled.
    future: Option<BoxFuture<'static, ()>>,
}

struct HostState {
    lives: bool,
    /// Is dropped at the end of the process.
    end: Option<oneshot::Sender<()>>,
    halted_until: Millis,
}

struct Wakes {
    task: u64,
    ready: Arc<Mutex<Vec<u64>>>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.contains(&self.task) {
            ready.push(self.task);
        }
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let world = Self::default();
        world.inner().random = seed;
        world.boot();
        Arc::new(world)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Millis {
        self.inner().now
    }

    pub(super) fn polls(&self) -> u64 {
        self.inner().polls
    }

    /// Returns the next number of splitmix64.
    pub(super) fn random(&self) -> u64 {
        self.inner().random()
    }

    pub(super) fn one_in(&self, n: u64) -> bool {
        self.random().is_multiple_of(n)
    }

    pub(super) fn between(&self, from: Millis, to: Millis) -> Millis {
        from + (self.random() % (to - from + 1) as u64) as Millis
    }

    pub(super) fn boot(&self) -> Host {
        let hosts = &mut self.inner().hosts;
        hosts.push(HostState { lives: true, end: None, halted_until: 0 });
        hosts.len() - 1
    }

    pub(super) fn lives(&self, host: Host) -> bool {
        self.inner().hosts[host].lives
    }

    pub(super) fn kill(&self, host: Host) {
        let mut inner = self.inner();
        inner.hosts[host].lives = false;
        let end = inner.hosts[host].end.take();
        let dead: Vec<Task> = inner.tasks.extract_if(.., |_, task| task.host == host).map(|(_, task)| task).collect();
        // A future that is dropped may call this world.
        drop(inner);
        drop((dead, end));
    }

    /// Returns a receiver that ends with the process.
    pub(super) fn gone(&self, host: Host) -> oneshot::Receiver<()> {
        let (end, gone) = oneshot::channel();
        self.inner().hosts[host].end = Some(end);
        gone
    }

    pub(super) fn halt(&self, host: Host, millis: Millis) {
        let mut inner = self.inner();
        inner.hosts[host].halted_until = inner.now + millis;
    }

    pub(super) fn is_halted(&self, host: Host) -> bool {
        let inner = self.inner();
        inner.hosts[host].halted_until > inner.now
    }

    pub(super) fn spawn(&self, host: Host, future: impl Future<Output = ()> + Send + 'static) {
        let mut inner = self.inner();
        if !inner.hosts[host].lives {
            drop(inner);
            return drop(future);
        }
        let task = inner.number();
        let waker = Waker::from(Arc::new(Wakes { task, ready: self.ready.clone() }));
        waker.wake_by_ref();
        let future: BoxFuture<'static, ()> = Box::pin(future);
        inner.tasks.insert(task, Task { host, waker, future: Some(future) });
    }

    pub(super) fn sleep(self: &Arc<Self>, millis: Millis) -> Sleep {
        Sleep { until: self.now() + millis, world: self.clone(), timer: None }
    }

    /// Runs futures until `ended`. Time passes when none can run.
    ///
    /// # Panics
    /// If it does not end in the time `most`.
    pub(super) fn run(&self, most: Millis, ended: impl Fn() -> bool) {
        while !ended() {
            assert!(self.now() < most, "no end after {most} ms");
            match self.next_ready() {
                Some(task) => self.poll(task),
                None => self.pass(),
            }
        }
    }

    /// Drops all futures, because they hold this world.
    pub(super) fn end(&self) {
        let tasks = std::mem::take(&mut self.inner().tasks);
        drop(tasks);
        self.inner().timers.clear();
    }

    fn next_ready(&self) -> Option<u64> {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.is_empty() {
            return None;
        }
        let at = self.random() as usize % ready.len();
        Some(ready.swap_remove(at))
    }

    fn pass(&self) {
        let mut inner = self.inner();
        let ((at, _), waker) = inner.timers.pop_first().expect("somebody waits for time to pass");
        inner.now = inner.now.max(at);
        waker.wake();
    }

    fn poll(&self, id: u64) {
        let mut inner = self.inner();
        inner.polls += 1;
        let (now, number) = (inner.now, inner.number());
        let Some(task) = inner.tasks.get_mut(&id) else { return };
        let (host, waker) = (task.host, task.waker.clone());
        let until = inner.hosts[host].halted_until;
        if until > now {
            inner.timers.insert((until, number), waker);
            return;
        }
        let future = inner.tasks.get_mut(&id).and_then(|task| task.future.take());
        drop(inner);
        let Some(mut future) = future else { return };
        let ended = future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut inner = self.inner();
        match inner.tasks.get_mut(&id) {
            Some(task) if !ended => task.future = Some(future),
            _ => {
                inner.tasks.remove(&id);
                drop(inner);
                drop(future);
            }
        }
    }
}

impl Inner {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

pub(super) struct Sleep {
    until: Millis,
    world: Arc<World>,
    timer: Option<(Millis, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let world = self.world.clone();
        let mut inner = world.inner();
        let old = self.timer.take().and_then(|timer| inner.timers.remove(&timer));
        drop(old);
        if inner.now >= self.until {
            return Poll::Ready(());
        }
        let timer = (self.until, inner.number());
        inner.timers.insert(timer, cx.waker().clone());
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            let old = self.world.inner().timers.remove(&timer);
            drop(old);
        }
    }
}
