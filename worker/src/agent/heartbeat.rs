//! Heartbeats renew leases and carry progress. They run on a task of their own, so that nothing delays them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use llink_proto::{HeartbeatRequest, RegisterResponse, TaskProgress};
use tokio::sync::oneshot;

use super::{Client, LeaseId, TaskControl};

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
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).insert(lease, control);
    }

    /// Removes a lease that is over.
    pub(super) fn forget(&self, lease: LeaseId) {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).remove(&lease);
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
        let held: Vec<(LeaseId, Arc<TaskControl>)> = {
            let leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
            leases.iter().map(|(id, control)| (*id, control.clone())).collect()
        };
        let request = HeartbeatRequest {
            worker_id: registered.worker_id.clone(),
            running: held.iter().map(|(id, control)| progress(*id, control)).collect(),
        };
        match tokio::time::timeout(lease, client.heartbeat(request)).await {
            Ok(Ok(answer)) => {
                heard = Instant::now();
                let answer = answer.into_inner();
                work_left.store(answer.work_left, Ordering::Relaxed);
                for abort in &answer.aborts {
                    let aborted = held.iter().find(|(id, _)| *id == (abort.task_id, abort.token));
                    if let Some((_, control)) = aborted {
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

fn progress((task_id, token): LeaseId, control: &TaskControl) -> TaskProgress {
    let progress = control.progress();
    TaskProgress {
        task_id,
        token,
        done: progress.done,
        total: progress.total,
        figures: progress.figures,
        place: progress.place,
    }
}
