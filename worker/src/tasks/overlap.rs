//! A pipeline of three workers: prepare, compute and write. All three work at the same time.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::Result;

/// The most pieces that wait between two workers: enough for a steady flow, and few enough for memory.
const WAITING: usize = 2;

/// Sends every piece through `ready`, `compute` and `away`, in order. `compute` runs on the caller's thread. The first
/// error, in the order of the workers, ends all three.
///
/// # Errors
/// Those of the three functions.
pub(super) fn overlapped<P: Send, A: Send, B: Send>(
    pieces: impl Iterator<Item = P> + Send,
    mut ready: impl FnMut(P) -> Result<A> + Send,
    mut compute: impl FnMut(A) -> Result<B>,
    mut away: impl FnMut(B) -> Result<()> + Send,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (prepared, to_compute): (SyncSender<A>, Receiver<A>) = sync_channel(WAITING);
        let (computed, to_put_away): (SyncSender<B>, Receiver<B>) = sync_channel(WAITING);
        // What the other threads read and write belongs to the task's span too.
        let span = tracing::Span::current();
        let of_last = span.clone();
        // A worker stops when its neighbor has ended; the neighbor's error says why.
        let first = scope.spawn(move || -> Result<()> {
            let _entered = span.enter();
            for piece in pieces {
                if prepared.send(ready(piece)?).is_err() {
                    break;
                }
            }
            Ok(())
        });
        let last = scope.spawn(move || of_last.in_scope(|| to_put_away.into_iter().try_for_each(&mut away)));
        let middle = (|| -> Result<()> {
            for piece in to_compute {
                if computed.send(compute(piece)?).is_err() {
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
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::Error;

    fn broken() -> Error {
        Error::Input("broken".into())
    }

    #[test]
    fn pieces_stay_in_order_and_each_worker_goes_on_while_the_others_work() {
        let (ready, is_ready) = channel();
        let (computed, is_computed) = channel();
        let patience = Duration::from_secs(20);
        let mut found = Vec::new();
        let kept = &mut found;
        overlapped(
            0..20,
            |piece| {
                ready.send(piece).unwrap();
                Ok(piece * 2)
            },
            |piece| {
                // The first piece is computed only after the second was prepared, …
                if piece == 0 {
                    while is_ready.recv_timeout(patience).unwrap() < 1 {}
                }
                computed.send(piece).unwrap();
                Ok(piece + 1)
            },
            move |piece| {
                // … and written only after the second was computed.
                if piece == 1 {
                    while is_computed.recv_timeout(patience).unwrap() < 2 {}
                }
                kept.push(piece);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(found, (0..20).map(|piece| piece * 2 + 1).collect::<Vec<_>>());
    }

    #[test]
    fn an_error_anywhere_ends_it_without_a_hang() {
        for place in 0..3 {
            for at in [0, 1, 7, 19] {
                let fails = |here: usize, piece: usize| {
                    if place == here && piece == at { Err(broken()) } else { Ok(piece) }
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
        overlapped(0..0, Ok, Ok, |_| Ok(())).unwrap();
    }
}
