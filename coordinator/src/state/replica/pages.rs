//! Pages of an SQLite database: those that were committed to its write-ahead log, and how they come into a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const LOG_HEADER: u64 = 32;
const FRAME_HEADER: usize = 24;

/// Pages that changed, each as it is now, and how many the database has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pages {
    bytes: u32,
    count: u32,
    /// By their numbers, which start with 1.
    changed: BTreeMap<u32, Vec<u8>>,
}

impl Pages {
    /// All pages of a database, as SQLite serializes it.
    pub(super) fn all(image: &[u8]) -> Self {
        let bytes = match u16::from_be_bytes([image[16], image[17]]) {
            1 => 1 << 16,
            bytes => u32::from(bytes),
        };
        let pages = image.chunks_exact(bytes as usize).map(<[u8]>::to_vec);
        let changed: BTreeMap<_, _> = (1..).zip(pages).collect();
        Self { bytes, count: changed.len() as u32, changed }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut encoded = [self.bytes, self.count].map(u32::to_le_bytes).concat();
        for (number, page) in &self.changed {
            encoded.extend(number.to_le_bytes());
            encoded.extend(page);
        }
        encoded
    }

    /// Writes encoded pages to their places in a database file that nobody has open.
    pub(super) fn write(encoded: &[u8], file: &File) -> io::Result<()> {
        let broken = || io::Error::new(ErrorKind::InvalidData, "pages are cut off");
        let number = |at: usize| -> io::Result<u32> {
            let bytes = encoded.get(at..at + 4).ok_or_else(broken)?;
            Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        let (bytes, count) = (number(0)? as usize, number(4)?);
        let mut at = 8;
        while at < encoded.len() {
            let place = u64::from(number(at)?.checked_sub(1).ok_or_else(broken)?);
            let page = encoded.get(at + 4..at + 4 + bytes).ok_or_else(broken)?;
            file.write_all_at(page, place * bytes as u64)?;
            at += 4 + bytes;
        }
        file.set_len(u64::from(count) * bytes as u64)
    }
}

/// How far a write-ahead log was read.
///
/// SQLite starts the log from its beginning, with another header, at the first commit after a checkpoint of all of it. So
/// nothing is missed if only the reader makes checkpoints, each after it has read everything.
#[derive(Debug)]
pub(super) struct WriteAheadLog {
    path: PathBuf,
    header: [u8; LOG_HEADER as usize],
    read: u64,
}

impl WriteAheadLog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, header: [0; _], read: 0 }
    }

    /// The bytes that were read since the log's beginning.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    pub(super) fn committed(&mut self) -> io::Result<Option<Pages>> {
        let mut header = self.header;
        let file = match File::open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if !filled(&file, &mut header, 0)? {
            return Ok(None);
        }
        if header != self.header {
            self.header = header;
            self.read = LOG_HEADER;
        }
        let bytes = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
        let mut frame = vec![0; FRAME_HEADER + bytes as usize];
        let (mut committed, mut pending) = (None, BTreeMap::new());
        let mut at = self.read;
        // Frames of before have another salt.
        while filled(&file, &mut frame, at)? && frame[8..16] == header[16..24] {
            at += frame.len() as u64;
            let field = |at: usize| u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            pending.insert(field(0), frame[FRAME_HEADER..].to_vec());
            // Of a commit, the last frame tells how large the database is.
            if field(4) > 0 {
                self.read = at;
                let pages = committed.get_or_insert_with(|| Pages { bytes, count: 0, changed: BTreeMap::new() });
                pages.count = field(4);
                pages.changed.append(&mut pending);
            }
        }
        Ok(committed)
    }
}

/// Reads `buffer` at an offset; false where the file ends before.
fn filled(file: &File, buffer: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}
