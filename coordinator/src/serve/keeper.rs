//! The keeper renews a claim of this coordinator until the claim is released or lost.

use std::sync::Arc;
use std::time::Duration;

use llink_datasets::Result;
use llink_datasets::store::Store;
use tokio::sync::oneshot;

use super::claims::Claims;
use crate::machine::Machine;
use crate::plan::Claim;
use crate::schedule::Work;

/// The renewal interval, a quarter of the time for which a claim lasts.
const RENEWED_EVERY: Duration = Duration::from_secs(15);

/// A task that renews a claim until [`Keeper::release`] gives it up, or until it is lost.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) attempt: String,
    end: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Keeper {
    /// Starts to renew a claim that was taken. `lost` runs when another attempt has it, or the stage is committed.
    pub(super) fn start(
        machine: &Arc<dyn Machine>,
        work: Work,
        claim: Claim,
        lost: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let (end, wanted) = oneshot::channel();
        let (over, ended) = oneshot::channel();
        let (attempt, of) = (claim.attempt.clone(), machine.clone());
        machine.spawn(Box::pin(async move {
            match keep(&of, &work, &claim, wanted).await {
                Ok(Kept::Released) => {}
                Ok(Kept::Lost) => lost.await,
                Err(e) => tracing::warn!("the claim to stage {} is left to run out: {e}", work.stage),
            }
            drop(over);
        }));
        Self { attempt, end, ended }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.end.is_closed()
    }

    /// Releases the claim. The returned receiver ends when that is done.
    pub(super) fn release(self) -> oneshot::Receiver<()> {
        // A keeper that has ended has nothing to give up.
        let _ = self.end.send(());
        self.ended
    }
}

enum Kept {
    Released,
    Lost,
}

/// Renewing and giving up come one after the other, so that what was given up is not renewed.
async fn keep(machine: &Arc<dyn Machine>, work: &Work, claim: &Claim, mut end: oneshot::Receiver<()>) -> Result<Kept> {
    let claims = Claims::new(machine, &Store::open(&work.output)?, work);
    loop {
        tokio::select! {
            biased;
            ended = &mut end => {
                if ended.is_ok() {
                    claims.release(claim).await?;
                }
                return Ok(Kept::Released);
            }
            () = machine.sleep(RENEWED_EVERY) => match claims.renew(claim, machine.wall_clock()).await {
                Ok(true) => {}
                Ok(false) => return Ok(Kept::Lost),
                // The renewal is tried again. Others wait until the claim has ended.
                Err(e) => tracing::warn!("the claim to stage {} could not be renewed: {e}", work.stage),
            },
        }
    }
}
