//! Making the database of its replica: the newest snapshot, and the log's entries after it.

use std::fs::File;
use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use llink_datasets::Error;

use super::objects::{AT_ONCE, Kind, Objects, Position};
use super::pages::Pages;
use crate::state::{StateError, private};

/// Another coordinator may remove entries while they are read, once it has put a snapshot in their place.
const TRIES: u32 = 5;

enum Read {
    Whole,
    Gap(Position),
}

/// Writes the database to `file` as it is at a seal; whether there was one at all.
pub(super) async fn restore(objects: &Objects, seal: Position, file: &Path) -> Result<bool, StateError> {
    let failed = |source| StateError::Directory { path: file.into(), source };
    let mut tries = TRIES;
    loop {
        tries -= 1;
        // A file of a restore that was interrupted.
        match std::fs::remove_file(file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        drop(private::file(file).map_err(failed)?);
        let database = File::options().write(true).open(file).map_err(failed)?;
        match read(objects, seal, &database, failed).await {
            Ok(Read::Whole) => {
                database.sync_all().map_err(failed)?;
                return Ok(database.metadata().map_err(failed)?.len() > 0);
            }
            Ok(Read::Gap(_)) | Err(StateError::Replica(Error::NotFound { .. })) if tries > 0 => {}
            Ok(Read::Gap(at)) => return Err(objects.gap(at).into()),
            Err(error) => return Err(error),
        }
    }
}

async fn read(
    objects: &Objects,
    seal: Position,
    database: &File,
    failed: impl Fn(std::io::Error) -> StateError,
) -> Result<Read, StateError> {
    let snapshot = objects.snapshots().await?.into_iter().rfind(|at| *at < seal);
    let log = objects.log().await?;
    let mut next = Position::FIRST;
    if let Some(at) = snapshot {
        let image = objects.snapshot(at).await?;
        std::os::unix::fs::FileExt::write_all_at(database, &image, 0).map_err(&failed)?;
        next = at.after(Kind::Pages);
    }
    let wanted: Vec<Position> = log.into_iter().filter(|at| (next..=seal).contains(at)).collect();
    let entry = |at: Position| async move { Ok::<_, Error>((at, objects.entry(at).await?)) };
    let mut entries = futures::stream::iter(wanted).map(entry).buffered(AT_ONCE);
    while let Some((at, (kind, pages))) = entries.try_next().await? {
        if at != next {
            return Ok(Read::Gap(next));
        }
        if kind == Kind::Pages {
            Pages::write(&pages, database).map_err(&failed)?;
        }
        next = at.after(kind);
    }
    match next == seal.after(Kind::Seal) {
        true => Ok(Read::Whole),
        false => Ok(Read::Gap(next)),
    }
}
