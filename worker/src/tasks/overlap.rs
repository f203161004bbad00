//! Three workers in a row: one makes ready, one computes, one puts away. Each works while the others do.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::Result;

/// Pieces that may wait between two workers: enough to smooth out, few enough to hold in memory.
const WAITING: usize = 2;

/// How the one in the middle spent its time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Busy {
    /// From the first piece's making to the last one's putting away.
    pub(super) total: Duration,
    /// What it computed for.
    pub(super) computing: Duration,
}

impl Busy {
    /// The share of the time in which it had nothing to compute.
    pub(super) fn idle_share(&self) -> f64 {
        let total = self.total.as_secs_f64();
        if total == 0.0 {
            0.0
        } else {
            1.0 - self.computing.as_secs_f64() / total
        }
    }
}

/// Sends every piece through `ready`, `compute` and `away`, in order; `compute` runs on the caller's thread. The first error, by the
/// order of the workers, ends it all.
///
/// # Errors
/// Those of the three.
pub(super) fn overlapped<P: Send, A: Send, B: Send>(
    pieces: impl Iterator<Item = P> + Send,
    mut ready: impl FnMut(P) -> Result<A> + Send,
    mut compute: impl FnMut(A) -> Result<B>,
    mut away: impl FnMut(B) -> Result<()> + Send,
) -> Result<Busy> {
    let began = Instant::now();
    let mut computing = Duration::ZERO;
    std::thread::scope(|scope| {
        let (prepared, to_compute): (SyncSender<A>, Receiver<A>) = sync_channel(WAITING);
        let (computed, to_put_away): (SyncSender<B>, Receiver<B>) = sync_channel(WAITING);
        // A worker whose neighbour has gone stops too; the neighbour's error says why.
        let first = scope.spawn(move || -> Result<()> {
            for piece in pieces {
                if prepared.send(ready(piece)?).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let last = scope.spawn(move || to_put_away.into_iter().try_for_each(&mut away));
        let middle = (|| -> Result<()> {
            for piece in to_compute {
                let started = Instant::now();
                let piece = compute(piece)?;
                computing += started.elapsed();
                if computed.send(piece).is_err() {
                    break;
                }
            }
            Ok(())
        })();
        drop(computed);
        let join =
            |ended: std::thread::Result<Result<()>>| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (first, last): (Result<()>, Result<()>) = (join(first.join()), join(last.join()));
        first.and(middle).and(last)
    })?;
    Ok(Busy {
        total: began.elapsed(),
        computing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn broken() -> Error {
        Error::Input("broken".into())
    }

    #[test]
    fn pieces_stay_in_order_and_the_idle_share_is_what_was_waited() {
        let mut found = Vec::new();
        let nap = |ms: u64| std::thread::sleep(Duration::from_millis(ms));
        let busy = overlapped(
            0..20,
            |piece| {
                nap(10);
                Ok(piece * 2)
            },
            |piece| {
                nap(5);
                Ok(piece + 1)
            },
            |piece| {
                found.push(piece);
                nap(1);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(found, (0..20).map(|piece| piece * 2 + 1).collect::<Vec<_>>());
        // 20 · 10 ms of making ready hide 20 · 5 ms of computing: half of the time is idle.
        assert!(busy.total >= Duration::from_millis(200), "{busy:?}");
        assert!((0.25..0.75).contains(&busy.idle_share()), "{busy:?}");
    }

    #[test]
    fn an_error_anywhere_ends_it_without_a_hang() {
        for place in 0..3 {
            for at in [0, 1, 7, 19] {
                let fails = |here: usize, piece: usize| {
                    if place == here && piece == at {
                        Err(broken())
                    } else {
                        Ok(piece)
                    }
                };
                let ended = overlapped(
                    0..20,
                    |piece| fails(0, piece),
                    |piece| fails(1, piece),
                    |piece| fails(2, piece).map(drop),
                );
                assert!(matches!(ended, Err(Error::Input(_))), "worker {place}, piece {at}");
            }
        }
        assert_eq!(
            overlapped(0..0, Ok, Ok, |_| Ok(())).map(|busy| busy.computing).unwrap(),
            Duration::ZERO
        );
    }
}
