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
    Blocks {
        codec: Codec,
        /// True if a stream has begun and not ended. An xz file is one stream, even if it is empty.
        is_open: bool,
    },
}

/// A decoder that fills a block with as much as fits.
pub(super) enum Codec {
    Zstd(ZstdDecoder<'static>),
    Xz(XzStream),
    Bzip2(BzDecoder),
}

impl Decoder {
    pub(super) fn new(compression: Compression) -> Result<Self, String> {
        let blocks = |codec, is_open| Self::Blocks { codec, is_open };
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            Compression::Zstd => {
                let mut decoder = ZstdDecoder::new().map_err(|e| e.to_string())?;
                let window = zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG);
                decoder.set_parameter(window).map_err(|e| e.to_string())?;
                blocks(Codec::Zstd(decoder), false)
            }
            Compression::Xz => {
                let stream = XzStream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(|e| e.to_string())?;
                blocks(Codec::Xz(stream), true)
            }
            Compression::Bzip2 => blocks(Codec::Bzip2(BzDecoder::new(false)), false),
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
            Self::Blocks { .. } if input.is_empty() => Ok(0),
            Self::Blocks { codec, is_open } => {
                let (used, made, has_ended) = codec.decode(input, buffer)?;
                if used == 0 && made == 0 && !has_ended {
                    return Err("the decoder makes no progress".to_owned());
                }
                *is_open = !has_ended;
                Ok(used)
            }
        }
    }

    /// Appends the decoder's last bytes.
    ///
    /// # Errors
    /// When the file ends within a stream.
    pub(super) fn finish(&mut self, buffer: &mut Vec<u8>) -> Result<(), String> {
        match self {
            Self::None => {}
            Self::Gzip(decoder) => {
                decoder.try_finish().map_err(|e| e.to_string())?;
                buffer.append(decoder.get_mut());
            }
            Self::Blocks { codec, is_open } => {
                while *is_open {
                    let (_, made, has_ended) = codec.decode(&[], buffer)?;
                    if made == 0 && !has_ended {
                        return Err("the file ends in the middle".to_owned());
                    }
                    *is_open = !has_ended;
                }
            }
        }
        Ok(())
    }
}

impl Codec {
    /// Appends a block at most. Returns the bytes read, the bytes written, and whether a stream has ended. Without
    /// `input` the file has ended.
    fn decode(&mut self, input: &[u8], buffer: &mut Vec<u8>) -> Result<(usize, usize, bool), String> {
        let start = buffer.len();
        buffer.resize(start + BLOCK, 0);
        let decoded = self.decode_into(input, &mut buffer[start..]);
        buffer.truncate(start + decoded.as_ref().map_or(0, |(_, made, _)| *made));
        decoded
    }

    fn decode_into(&mut self, input: &[u8], room: &mut [u8]) -> Result<(usize, usize, bool), String> {
        match self {
            Self::Zstd(decoder) => {
                let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(room));
                let left = decoder.run(&mut from, &mut to).map_err(|e| e.to_string())?;
                Ok((from.pos(), to.pos(), left == 0))
            }
            Self::Xz(stream) => {
                let (taken, had) = (stream.total_in(), stream.total_out());
                let action = if input.is_empty() { Action::Finish } else { Action::Run };
                let status = stream.process(input, room, action).map_err(|error| match error {
                    liblzma::stream::Error::MemLimit => {
                        format!("it needs more than {} MiB to be decompressed", XZ_MEMORY >> 20)
                    }
                    error => error.to_string(),
                })?;
                let (used, made) = (stream.total_in() - taken, stream.total_out() - had);
                Ok((used as usize, made as usize, status == Status::StreamEnd))
            }
            Self::Bzip2(stream) => {
                let (taken, had) = (stream.total_in(), stream.total_out());
                let status = stream.decompress(input, room).map_err(|e| e.to_string())?;
                let (used, made) = (stream.total_in() - taken, stream.total_out() - had);
                let has_ended = status == BzStatus::StreamEnd;
                if has_ended {
                    *stream = BzDecoder::new(false);
                }
                Ok((used as usize, made as usize, has_ended))
            }
        }
    }
}
