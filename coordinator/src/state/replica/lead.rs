//! The lead: which of several coordinators writes the log.
//!
//! The leader is whoever created the last seal. A coordinator that wants to lead creates a seal at the position where the
//! leader of before would write next, and only one of them can. So the log alone says whose entries count, and no clock
//! is compared with another one. A clock only says how long nothing was added.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use llink_datasets::store::Created;

use super::objects::{Kind, Objects, Position, Writer};
use crate::machine::Machine;
use crate::schedule::Millis;
use crate::state::StateError;

/// A leader that has nothing to write writes a sign of life so often.
pub(super) const BEAT: Duration = Duration::from_secs(2);
/// A leader that cannot write for so long ends: its workers may find another one.
const PATIENCE: Duration = Duration::from_secs(30);

/// How patient a coordinator is with the leader.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How often it looks for new entries.
    pub(super) look: Duration,
    /// After so long without any, it takes the lead.
    pub(super) silence: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { look: Duration::from_secs(1), silence: Duration::from_secs(8) }
    }
}

/// The right to write the log, until another coordinator takes it.
#[derive(Debug)]
pub(super) struct Lead {
    pub(super) objects: Objects,
    writer: Writer,
    /// The seal that ended the term before.
    pub(super) seal: Position,
    pub(super) next: Position,
    pub(super) machine: Arc<dyn Machine>,
    /// When the newest entry was sent. Another coordinator that has seen silence since then finds this one silent too.
    written: Millis,
}

impl Lead {
    /// Waits until no other coordinator leads, and takes the lead. It is taken at once from one that gave it up, and from a
    /// process that had this state directory: that is gone, since the directory's lock is held.
    pub(super) async fn take(
        objects: Objects,
        writer: Writer,
        pace: Pace,
        machine: Arc<dyn Machine>,
    ) -> Result<Self, StateError> {
        let mut newest = None;
        let mut since = machine.now();
        let mut told = false;
        loop {
            let found = objects.log().await?.last().copied();
            if found != newest {
                newest = found;
                since = machine.now();
            }
            let head = match newest {
                Some(at) => objects.head(at).await?.map(|head| (at, head)),
                None => None,
            };
            let next = match &head {
                Some((at, head)) => at.after(head.kind),
                None => Position::FIRST,
            };
            let other = head.map(|(_, head)| head).filter(|head| head.writer.directory != writer.directory);
            match other {
                Some(head) if head.kind != Kind::End && elapsed(&machine, since) < pace.silence => {
                    if !std::mem::replace(&mut told, true) {
                        let wait = pace.silence.as_secs();
                        let (url, by) = (objects.url(), head.writer.process);
                        tracing::info!(
                            "standby: {by} leads on {url}; this one takes over {wait} s after its last sign of life"
                        );
                    }
                    machine.sleep(pace.look).await;
                }
                other => {
                    if let Some(head) = other.filter(|head| head.kind == Kind::End) {
                        tracing::info!("{} has given up the lead on {}", head.writer.process, objects.url());
                    }
                    if let Some(lead) = Self::seal(&objects, &writer, next, &machine).await? {
                        return Ok(lead);
                    }
                }
            }
        }
    }

    /// Takes the lead by a seal, unless another one was quicker.
    pub(super) async fn seal(
        objects: &Objects,
        writer: &Writer,
        seal: Position,
        machine: &Arc<dyn Machine>,
    ) -> Result<Option<Self>, StateError> {
        let written = machine.now();
        if objects.create(seal, Kind::Seal, writer, &[]).await? == Created::AlreadyThere {
            return Ok(None);
        }
        if objects.create(seal, Kind::Seal, writer, &[]).await? == Created::Written {
            return Err(StateError::NotKept(objects.url().to_owned()));
        }
        // The leader may have gone on and removed the entry that was here, if this process was held up. Its newest entry
        // lies behind the seal then.
        let ends = objects.log().await?.last() == Some(&seal);
        Ok(ends.then(|| Self {
            objects: objects.clone(),
            writer: writer.clone(),
            seal,
            next: seal.after(Kind::Seal),
            machine: machine.clone(),
            written,
        }))
    }

    /// Writes an entry; where it lies.
    pub(super) async fn put(&mut self, kind: Kind, pages: &[u8]) -> Result<Position, StateError> {
        let (at, written) = (self.next, self.machine.now());
        let create = std::pin::pin!(self.objects.create(at, kind, &self.writer, pages));
        let created = match select(create, self.machine.sleep(PATIENCE)).await {
            Either::Left((created, _)) => created?,
            Either::Right(_) => return Err(StateError::Silent(self.objects.url().to_owned())),
        };
        if created == Created::AlreadyThere {
            // The answer to an own request may have been lost, and the request repeated.
            let by = self.objects.head(at).await?.map(|head| head.writer);
            if by.as_ref() != Some(&self.writer) {
                return Err(StateError::Succeeded {
                    url: self.objects.url().to_owned(),
                    by: by.map_or_else(|| "another one".into(), |by| by.process),
                });
            }
        }
        self.next = at.after(kind);
        self.written = written;
        Ok(at)
    }

    pub(super) async fn give_up(mut self) -> Result<(), StateError> {
        self.put(Kind::End, &[]).await.map(|_| ())
    }

    pub(super) fn is_silent(&self) -> bool {
        elapsed(&self.machine, self.written) >= BEAT
    }

    /// Gives signs of life until `work` is done.
    pub(super) async fn beat_during<T>(
        &mut self,
        work: impl Future<Output = Result<T, StateError>>,
    ) -> Result<T, StateError> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.machine.sleep(BEAT) => {
                    self.put(Kind::Beat, &[]).await?;
                }
            }
        }
    }
}

fn elapsed(machine: &Arc<dyn Machine>, since: Millis) -> Duration {
    Duration::from_millis((machine.now() - since).max(0) as u64)
}
