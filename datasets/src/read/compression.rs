//! The compression of corpus files, and the streaming decoders.

use std::fmt;
use std::io::Write;
use std::str::FromStr;

use bzip2::{Decompress as BzDecoder, Status as BzStatus};
use flate2::write::MultiGzDecoder;
use liblzma::stream::{Action, CONCATENATED, Status, Stream as XzStream};
use zstd::stream::raw::{Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// Compressed bytes that are decoded at once. This limits the memory of a highly compressed file.
const PIECE: usize = 16 << 10;
const BLOCK: usize = 128 << 10;
/// The memory limit of the xz decoder, in bytes; `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 160 << 20;
/// The largest zstd window, as a power of two: 128 MiB, the most that `zstd --long` makes.
const ZSTD_WINDOW_LOG: u32 = 27;

/// The compression of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The file is not compressed.
    None,
    /// The file is gzip, with one member or several.
    Gzip,
    /// The file is zstd, with one frame or several.
    Zstd,
    /// The file is xz, with one stream or several.
    Xz,
    /// The file is bzip2, with one stream or several.
    Bzip2,
}

impl Compression {
    const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::None, "none", "not compressed"),
        (Self::Gzip, "gz", "gzip"),
        (Self::Zstd, "zst", "zstd"),
        (Self::Xz, "xz", "xz"),
        (Self::Bzip2, "bz2", "bzip2"),
    ];

    /// Returns the compression that a file's name tells, and the name without that ending.
    #[must_use]
    pub fn of(name: &str) -> (Self, &str) {
        if let Some((stem, ending)) = name.rsplit_once('.') {
            for (compression, known, _) in &Self::ALL[1..] {
                if ending.eq_ignore_ascii_case(known) {
                    return (*compression, stem);
                }
            }
        }
        (Self::None, name)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = Self::ALL.iter().find(|(compression, ..)| compression == self);
        f.write_str(known.map_or("", |(.., words)| words))
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.iter().find(|(_, known, _)| *known == name);
        known
            .map(|(compression, ..)| *compression)
            .ok_or_else(|| format!("compression `{name}` is not known; use none, gz, zst, xz or bz2"))
    }
}

/// Decodes the bytes that it is given.
pub(super) enum Decoder {
    None,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd {
        decoder: ZstdDecoder<'static>,
        frame_open: bool,
    },
    Xz {
        stream: XzStream,
        ended: bool,
    },
    Bzip2 {
        stream: BzDecoder,
        /// True if a stream has begun and not ended.
        stream_open: bool,
    },
}

impl Decoder {
    pub(super) fn new(compression: Compression) -> Result<Self, String> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::new().map_err(|e| e.to_string())?;
                let window = zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG);
                decoder.set_parameter(window).map_err(|e| e.to_string())?;
                Self::Zstd { decoder, frame_open: false }
            }
            Compression::Xz => Self::Xz {
                stream: XzStream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(|e| e.to_string())?,
                ended: false,
            },
            Compression::Bzip2 => Self::Bzip2 { stream: BzDecoder::new(false), stream_open: false },
        })
    }

    /// Reads some of `input`, appends the decoded bytes to `buffer`, and returns how many bytes of `input` it read.
    pub(super) fn feed(&mut self, input: &[u8], buffer: &mut Vec<u8>) -> Result<usize, String> {
        match self {
            Self::None => {
                buffer.extend_from_slice(input);
                Ok(input.len())
            }
            Self::Gzip(decoder) => {
                let piece = &input[..input.len().min(PIECE)];
                decoder.write_all(piece).map_err(|e| e.to_string())?;
                buffer.append(decoder.get_mut());
                Ok(piece.len())
            }
            Self::Zstd { decoder, frame_open } => {
                let start = buffer.len();
                buffer.resize(start + BLOCK, 0);
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(&mut buffer[start..]);
                let left = decoder.run(&mut from, &mut to).map_err(|e| e.to_string())?;
                *frame_open = left > 0;
                let (used, made) = (from.pos(), to.pos());
                buffer.truncate(start + made);
                Ok(used)
            }
            Self::Xz { stream, ended } => {
                let (used, _) = run_xz(stream, input, buffer, Action::Run, ended)?;
                Ok(used)
            }
            Self::Bzip2 { stream, stream_open } => {
                *stream_open = true;
                let (used, _, status) = run_bzip2(stream, input, buffer)?;
                if status == BzStatus::StreamEnd {
                    (*stream, *stream_open) = (BzDecoder::new(false), false);
                }
                Ok(used)
            }
        }
    }

    /// Appends the decoder's last bytes.
    ///
    /// # Errors
    /// When the file ends within a stream.
    pub(super) fn finish(&mut self, buffer: &mut Vec<u8>) -> Result<(), String> {
        let torn = || "the file ends in the middle".to_owned();
        match self {
            Self::None => Ok(()),
            Self::Gzip(decoder) => {
                decoder.try_finish().map_err(|e| e.to_string())?;
                buffer.append(decoder.get_mut());
                Ok(())
            }
            Self::Zstd { decoder, frame_open } => loop {
                if !*frame_open {
                    return Ok(());
                }
                let start = buffer.len();
                buffer.resize(start + BLOCK, 0);
                let mut to = OutBuffer::around(&mut buffer[start..]);
                let left = decoder.run(&mut InBuffer::around(&[]), &mut to);
                let made = to.pos();
                buffer.truncate(start + made);
                *frame_open = left.map_err(|e| e.to_string())? > 0;
                if *frame_open && made == 0 {
                    return Err(torn());
                }
            },
            Self::Xz { stream, ended } => loop {
                if *ended {
                    return Ok(());
                }
                let (_, made) = run_xz(stream, &[], buffer, Action::Finish, ended)?;
                if made == 0 && !*ended {
                    return Err(torn());
                }
            },
            Self::Bzip2 { stream, stream_open } => loop {
                if !*stream_open {
                    return Ok(());
                }
                let (_, made, status) = run_bzip2(stream, &[], buffer)?;
                *stream_open = status != BzStatus::StreamEnd;
                if *stream_open && made == 0 {
                    return Err(torn());
                }
            },
        }
    }
}

/// Returns the bytes read, the bytes written, and whether the stream has ended.
fn run_bzip2(stream: &mut BzDecoder, input: &[u8], buffer: &mut Vec<u8>) -> Result<(usize, usize, BzStatus), String> {
    let (start, taken, had) = (buffer.len(), stream.total_in(), stream.total_out());
    buffer.resize(start + BLOCK, 0);
    let status = stream.decompress(input, &mut buffer[start..]);
    let (used, made) = ((stream.total_in() - taken) as usize, (stream.total_out() - had) as usize);
    buffer.truncate(start + made);
    let status = status.map_err(|e| e.to_string())?;
    if used == 0 && made == 0 && status != BzStatus::StreamEnd && !input.is_empty() {
        return Err("the decoder makes no progress".to_owned());
    }
    Ok((used, made, status))
}

/// Returns the bytes read and the bytes written.
fn run_xz(
    stream: &mut XzStream,
    input: &[u8],
    buffer: &mut Vec<u8>,
    action: Action,
    ended: &mut bool,
) -> Result<(usize, usize), String> {
    let (start, taken) = (buffer.len(), stream.total_in());
    let had = stream.total_out();
    buffer.resize(start + BLOCK, 0);
    let status = stream.process(input, &mut buffer[start..], action);
    let (used, made) = ((stream.total_in() - taken) as usize, (stream.total_out() - had) as usize);
    buffer.truncate(start + made);
    match status {
        Ok(Status::StreamEnd) => *ended = true,
        Ok(_) => {}
        Err(liblzma::stream::Error::MemLimit) => {
            return Err(format!("it needs more than {} MiB to be decompressed", XZ_MEMORY >> 20));
        }
        Err(error) => return Err(error.to_string()),
    }
    if used == 0 && made == 0 && !*ended && matches!(action, Action::Run) {
        return Err("the decoder makes no progress".to_owned());
    }
    Ok((used, made))
}
