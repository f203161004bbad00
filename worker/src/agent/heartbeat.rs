//! Heartbeats renew leases and carry progress. They run on a task of their own, so that nothing delays them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use llink_proto::{HeartbeatRequest, RegisterResponse, TaskProgress};
use tokio::sync::oneshot;

use super::{Client, LeaseId, TaskControl};
use crate::control::lock;

type Leases = Arc<Mutex<HashMap<LeaseId, Arc<TaskControl>>>>;

/// The heartbeats of one registration, which end when this value is dropped.
pub(super) struct Heartbeats {
    leases: Leases,
    work_left: Arc<AtomicBool>,
    lost: oneshot::Receiver<String>,
    beating: tokio::task::JoinHandle<()>,
}

/// Starts the heartbeats. They keep `work_left` at what the coordinator says.
pub(super) fn start(client: Client, registered: &RegisterResponse, work_left: Arc<AtomicBool>) -> Heartbeats {
    let leases = Leases::default();
    let (lose, lost) = oneshot::channel();
    // Before the first answer, work is assumed.
    work_left.store(true, Ordering::Relaxed);
    let beating = tokio::spawn(beat(client, registered.clone(), leases.clone(), work_left.clone(), lose));
    Heartbeats { leases, work_left, lost, beating }
}

impl Heartbeats {
    /// Adds a lease to the heartbeats, which renew it.
    pub(super) fn renew(&self, lease: LeaseId, control: Arc<TaskControl>) {
        self.work_left.store(true, Ordering::Relaxed);
        lock(&self.leases).insert(lease, control);
    }

    pub(super) fn forget(&self, lease: LeaseId) {
        lock(&self.leases).remove(&lease);
    }

    /// Returns true if a job was running at the coordinator's last answer.
    pub(super) fn work_left(&self) -> bool {
        self.work_left.load(Ordering::Relaxed)
    }

    /// Resolves with the reason when the coordinator no longer knows this worker, or cannot be reached for as long as a
    /// lease lasts.
    pub(super) async fn lost(&mut self) -> String {
        match (&mut self.lost).await {
            Ok(why) => why,
            Err(_) => "the heartbeat ended".into(),
        }
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

async fn beat(
    mut client: Client,
    registered: RegisterResponse,
    leases: Leases,
    work_left: Arc<AtomicBool>,
    lose: oneshot::Sender<String>,
) {
    let interval = Duration::from_millis(u64::from(registered.heartbeat_interval_ms.max(1)));
    let lease = Duration::from_millis(u64::from(registered.lease_ms));
    let mut heard = Instant::now();
    let why = loop {
        tokio::time::sleep(interval).await;
        let held = lock(&leases).clone();
        let progress = |(&(task_id, token), control): (&LeaseId, &Arc<TaskControl>)| TaskProgress {
            task_id,
            token,
            ..control.progress()
        };
        let request =
            HeartbeatRequest { worker_id: registered.worker_id.clone(), running: held.iter().map(progress).collect() };
        match tokio::time::timeout(lease, client.heartbeat(request)).await {
            Ok(Ok(answer)) => {
                heard = Instant::now();
                let answer = answer.into_inner();
                work_left.store(answer.work_left, Ordering::Relaxed);
                for abort in &answer.aborts {
                    if let Some(control) = held.get(&(abort.task_id, abort.token)) {
                        control.stop(&abort.reason);
                    }
                }
                if !answer.registered {
                    break "the coordinator does not know this worker any more".to_owned();
                }
            }
            Ok(Err(e)) if heard.elapsed() > lease => break format!("no heartbeat came through: {e}"),
            Err(_) => break "no heartbeat came through for as long as a lease lasts".to_owned(),
            Ok(Err(e)) => tracing::warn!("heartbeat: {e}"),
        }
    };
    // The session may have ended already.
    let _ = lose.send(why);
}
