//! The objects of a replica: a log of entries, of which each is created once, and snapshots of the database.
//!
//! `log/TERM-NUMBER` holds an entry, and `snapshots/TERM-NUMBER` the database after that entry. An entry is a
//! line of JSON and compressed pages.

use std::fmt;

use bytes::Bytes;
use futures::StreamExt;
use llink_datasets::store::{Created, Store};
use llink_datasets::{Error, Result};
use serde::{Deserialize, Serialize};

const LOG: &str = "log";
const SNAPSHOTS: &str = "snapshots";
/// The version of what is written here.
const VERSION: u32 = 1;
/// The line at the start of an entry is shorter.
const HEAD_BYTES: u64 = 4 << 10;
/// Requests that are under way at the same time.
pub(super) const AT_ONCE: usize = 32;

/// Where an entry lies in the log: in which coordinator's term, and which of its entries it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) term: u64,
    pub(super) number: u64,
}

impl Position {
    pub(super) const FIRST: Self = Self { term: 0, number: 1 };

    pub(super) fn after(self, kind: Kind) -> Self {
        match kind {
            Kind::Seal => Self { term: self.term + 1, number: 1 },
            Kind::Pages | Kind::Beat | Kind::End => Self { number: self.number + 1, ..self },
        }
    }

    fn of(path: &str) -> Option<Self> {
        let (term, number) = path.rsplit('/').next()?.split_once('-')?;
        Some(Self { term: term.parse().ok()?, number: number.parse().ok()? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010}-{:010}", self.term, self.number)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Pages,
    /// Nothing changed, and the leader lives.
    Beat,
    /// The term has ended, and the writer leads the next one.
    Seal,
    /// The leader writes nothing any more. Coordinators of before read a sign of life.
    #[serde(rename(serialize = "beat"), skip_deserializing)]
    End,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Writer {
    pub(super) process: String,
    /// The state directory, of which one process at a time holds the lock.
    pub(super) directory: String,
    /// This process, from the moment at which it asked for the lead.
    pub(super) id: String,
}

/// The line at the start of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    version: u32,
    pub(super) kind: Kind,
    /// Says that the kind is [`Kind::End`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    ends: bool,
    #[serde(flatten)]
    pub(super) writer: Writer,
}

#[derive(Debug, Clone)]
pub(super) struct Objects {
    store: Store,
    #[cfg(test)]
    pub(super) faults: super::tests::Faults,
}

impl Objects {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            #[cfg(test)]
            faults: super::tests::Faults::default(),
        }
    }

    pub(super) fn url(&self) -> &str {
        self.store.url()
    }

    pub(super) async fn log(&self) -> Result<Vec<Position>> {
        self.positions(LOG).await
    }

    pub(super) async fn snapshots(&self) -> Result<Vec<Position>> {
        self.positions(SNAPSHOTS).await
    }

    async fn positions(&self, folder: &str) -> Result<Vec<Position>> {
        let objects = self.store.list(folder).await?;
        let mut found: Vec<_> = objects.iter().filter_map(|o| Position::of(&o.path)).collect();
        found.sort_unstable();
        Ok(found)
    }

    pub(super) async fn create(&self, at: Position, kind: Kind, writer: &Writer, pages: &[u8]) -> Result<Created> {
        let head = Head { version: VERSION, kind, ends: kind == Kind::End, writer: writer.clone() };
        let mut entry = serde_json::to_vec(&head).expect("a head is plain data");
        entry.push(b'\n');
        if kind == Kind::Pages {
            entry.extend(packed(pages));
        }
        self.write(self.store.create(&format!("{LOG}/{at}"), entry.into())).await
    }

    /// Who wrote an entry, and of which kind it is; `None` where there is none any more.
    pub(super) async fn head(&self, at: Position) -> Result<Option<Head>> {
        let path = format!("{LOG}/{at}");
        match self.store.get_range(&path, 0..HEAD_BYTES).await {
            Ok(start) => self.parse(&path, &start).map(|(head, _)| Some(head)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn entry(&self, at: Position) -> Result<(Kind, Vec<u8>)> {
        let path = format!("{LOG}/{at}");
        let content = self.store.get(&path).await?;
        let (head, pages) = self.parse(&path, &content)?;
        match head.kind {
            Kind::Pages => Ok((head.kind, self.unpacked(&path, pages)?)),
            kind => Ok((kind, Vec::new())),
        }
    }

    pub(super) async fn snapshot(&self, at: Position) -> Result<Vec<u8>> {
        let path = format!("{SNAPSHOTS}/{at}");
        let content = self.store.get(&path).await?;
        self.unpacked(&path, &content)
    }

    /// Writes the database as it is after an entry, and removes what is not needed any more.
    ///
    /// The last entry of every term stays for ever. A coordinator that was held up since then finds it where it
    /// would write next, and so learns that it leads no more.
    pub(super) async fn put_snapshot(&self, at: Position, packed: Bytes) -> Result<()> {
        self.write(self.store.put(&format!("{SNAPSHOTS}/{at}"), packed)).await?;
        let log = self.log().await?;
        let ends = |place: usize, of: &Position| log.get(place + 1).is_none_or(|next| next.term > of.term);
        let entries = log.iter().enumerate().filter(|(place, of)| **of < at && !ends(*place, of));
        let snapshots = self.snapshots().await?;
        let old = entries.map(|(_, of)| format!("{LOG}/{of}"));
        let old = old.chain(snapshots.iter().filter(|of| **of < at).map(|of| format!("{SNAPSHOTS}/{of}")));
        let deleted = old.map(|path| async move { self.write(self.store.delete(&path)).await });
        let mut deleted = futures::stream::iter(deleted.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        while let Some(deleted) = deleted.next().await {
            deleted?;
        }
        Ok(())
    }

    /// Every write goes through here, so that tests can end a coordinator before and after each.
    async fn write<T>(&self, write: impl Future<Output = Result<T>>) -> Result<T> {
        #[cfg(test)]
        self.faults.strike()?;
        let written = write.await?;
        #[cfg(test)]
        self.faults.strike()?;
        Ok(written)
    }

    fn parse<'a>(&self, path: &str, content: &'a [u8]) -> Result<(Head, &'a [u8])> {
        let end = content.iter().position(|byte| *byte == b'\n').unwrap_or(content.len());
        let mut head: Head = serde_json::from_slice(&content[..end])
            .map_err(|e| self.damaged(path, &format!("it is no entry of a state's log: {e}")))?;
        if head.ends {
            head.kind = Kind::End;
        }
        if head.version != VERSION {
            let reason = format!("version {}, this llink-coord writes {VERSION}", head.version);
            return Err(self.damaged(path, &reason));
        }
        Ok((head, content.get(end + 1..).unwrap_or_default()))
    }

    fn unpacked(&self, path: &str, packed: &[u8]) -> Result<Vec<u8>> {
        zstd::decode_all(packed).map_err(|e| self.damaged(path, &e.to_string()))
    }

    /// An entry that is missing between others.
    pub(super) fn gap(&self, at: Position) -> Error {
        self.damaged(&format!("{LOG}/{at}"), "it is missing, and entries after it are there")
    }

    fn damaged(&self, path: &str, reason: &str) -> Error {
        Error::Content {
            path: self.store.describe(path),
            reason: format!(
                "{reason}. Name an empty folder with --replica: the database in the state directory, which a backup may \
                 replace, is copied there"
            ),
        }
    }
}

pub(super) fn packed(bytes: &[u8]) -> Vec<u8> {
    let run = || -> std::io::Result<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1)?;
        encoder.include_checksum(true)?;
        std::io::Write::write_all(&mut encoder, bytes)?;
        encoder.finish()
    };
    run().expect("memory takes what is compressed")
}
