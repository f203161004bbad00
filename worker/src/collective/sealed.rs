//! Encrypts the connections of a sealed gang with Noise's NNpsk0 over the gang's secret. Only members can read the
//! data, and nobody can change, drop or repeat a part unnoticed.
//!
//! A sealed connection is a sequence of frames: two bytes of length, then as many of ciphertext. The bytes and their
//! order are the same as without encryption, so the ring code needs no difference.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use snow::{Builder, HandshakeState, StatelessTransportState, TransportState};

const PATTERN: &str = "Noise_NNpsk0_25519_AESGCM_SHA256";
/// Size of each of the handshake's two messages: a public key, and a tag.
pub(super) const MESSAGE_BYTES: usize = 32 + 16;
const TAG_BYTES: usize = 16;
const LENGTH_BYTES: usize = 2;
const FRAME_BYTES: usize = u16::MAX as usize;
/// The most plain bytes in a frame.
const PART_BYTES: usize = FRAME_BYTES - TAG_BYTES;

/// The state of a caller that has sent its message and waits for the answer.
pub(super) struct Greeting(HandshakeState);

impl Greeting {
    /// Makes the caller's message. `said` is the data that both sides have seen and must agree on.
    pub(super) fn new(secret: &[u8], said: &[u8]) -> io::Result<(Self, [u8; MESSAGE_BYTES])> {
        let key: [u8; 32] = Sha256::digest(secret).into();
        let mut state = builder(&key, said)?.build_initiator().map_err(other)?;
        let mut message = [0; MESSAGE_BYTES];
        state.write_message(&[], &mut message).map_err(other)?;
        Ok((Self(state), message))
    }

    /// Returns the keys after the listener's answer.
    pub(super) fn answered(mut self, message: &[u8]) -> io::Result<Keys> {
        self.0.read_message(message, &mut []).map_err(other)?;
        Ok(Keys(Box::new(self.0)))
    }
}

/// The keys that two ranks agreed on.
pub(super) struct Keys(Box<HandshakeState>);

fn transport(keys: Option<Keys>) -> io::Result<Option<Box<TransportState>>> {
    keys.map(|keys| keys.0.into_transport_mode().map(Box::new).map_err(other)).transpose()
}

/// Returns the listener's answer to a caller's message, and the keys.
pub(super) fn answer(secret: &[u8], said: &[u8], message: &[u8]) -> io::Result<([u8; MESSAGE_BYTES], Keys)> {
    let key: [u8; 32] = Sha256::digest(secret).into();
    let mut state = builder(&key, said)?.build_responder().map_err(other)?;
    state.read_message(message, &mut []).map_err(other)?;
    let mut answer = [0; MESSAGE_BYTES];
    state.write_message(&[], &mut answer).map_err(other)?;
    Ok((answer, Keys(Box::new(state))))
}

fn builder<'a>(key: &'a [u8; 32], said: &'a [u8]) -> io::Result<Builder<'a>> {
    let pattern = PATTERN.parse().map_err(other)?;
    Builder::new(pattern).psk(0, key).and_then(|builder| builder.prologue(said)).map_err(other)
}

fn other(error: snow::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error.to_string())
}

/// A connection to a verified rank, with its keys if it is sealed.
pub(super) struct Line {
    pub(super) stream: TcpStream,
    pub(super) keys: Option<Keys>,
}

pub(super) struct Outgoing {
    pub(super) stream: TcpStream,
    seal: Option<Box<TransportState>>,
    plain: Vec<u8>,
    frame: Vec<u8>,
    /// Number of bytes of the frame that were sent.
    sent: usize,
}

impl Outgoing {
    pub(super) fn new(line: Line) -> io::Result<Self> {
        Ok(Self { stream: line.stream, seal: transport(line.keys)?, plain: Vec::new(), frame: Vec::new(), sent: 0 })
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.sent == self.frame.len()
    }

    /// Sends as much of `parts` as the socket accepts now, and removes it from them. Returns true if any bytes were
    /// sent.
    pub(super) fn send_some(&mut self, parts: &mut [&[u8]; 2]) -> io::Result<bool> {
        let Some(seal) = &mut self.seal else {
            if parts.iter().all(|part| part.is_empty()) {
                return Ok(false);
            }
            let written = paused(self.stream.write_vectored(&[IoSlice::new(parts[0]), IoSlice::new(parts[1])]))?;
            let first = written.min(parts[0].len());
            parts[0] = &parts[0][first..];
            parts[1] = &parts[1][written - first..];
            return Ok(written > 0);
        };
        if self.sent == self.frame.len() {
            self.plain.clear();
            for part in parts.iter_mut() {
                let (taken, left) = part.split_at(part.len().min(PART_BYTES - self.plain.len()));
                self.plain.extend_from_slice(taken);
                *part = left;
            }
            if self.plain.is_empty() {
                return Ok(false);
            }
            self.frame.resize(LENGTH_BYTES + self.plain.len() + TAG_BYTES, 0);
            let length = (self.plain.len() + TAG_BYTES) as u16;
            self.frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
            seal.write_message(&self.plain, &mut self.frame[LENGTH_BYTES..]).map_err(other)?;
            self.sent = 0;
        }
        let written = paused(self.stream.write(&self.frame[self.sent..]))?;
        self.sent += written;
        Ok(written > 0)
    }
}

pub(super) struct Incoming {
    pub(super) stream: TcpStream,
    seal: Option<Box<TransportState>>,
    frame: Vec<u8>,
    /// Number of bytes of the frame that have arrived.
    come: usize,
    plain: Vec<u8>,
    /// Number of plain bytes that were used.
    taken: usize,
}

impl Incoming {
    pub(super) fn new(line: Line) -> io::Result<Self> {
        Ok(Self {
            stream: line.stream,
            seal: transport(line.keys)?,
            frame: vec![0; LENGTH_BYTES + FRAME_BYTES],
            come: 0,
            plain: Vec::new(),
            taken: 0,
        })
    }

    /// Receives what has arrived into `parts`, and removes the filled part from them. Returns true if any bytes came.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other side closed the connection, `InvalidData` when a frame was not sealed by it.
    pub(super) fn receive_some(&mut self, parts: &mut [&mut [u8]; 2]) -> io::Result<bool> {
        if parts.iter().all(|part| part.is_empty()) {
            return Ok(false);
        }
        if self.seal.is_none() {
            let [first, second] = std::mem::take(parts);
            let read = self.stream.read_vectored(&mut [IoSliceMut::new(first), IoSliceMut::new(second)]);
            let read = paused(open(read))?;
            let of_first = read.min(first.len());
            *parts = [&mut first[of_first..], &mut second[read - of_first..]];
            return Ok(read > 0);
        }
        let mut moved = false;
        if self.taken == self.plain.len() {
            moved = self.next_frame()?;
        }
        Ok(self.give(parts) | moved)
    }

    /// Reads more of the frame, and opens it when it is complete. Returns true if any bytes came.
    fn next_frame(&mut self) -> io::Result<bool> {
        let length = usize::from(u16::from_le_bytes([self.frame[0], self.frame[1]]));
        let whole = match self.come {
            0..LENGTH_BYTES => LENGTH_BYTES,
            _ => LENGTH_BYTES + length,
        };
        let read = paused(open(self.stream.read(&mut self.frame[self.come..whole])))?;
        self.come += read;
        if self.come == whole
            && whole > LENGTH_BYTES
            && let Some(seal) = &mut self.seal
        {
            self.plain.resize(length.saturating_sub(TAG_BYTES), 0);
            seal.read_message(&self.frame[LENGTH_BYTES..whole], &mut self.plain).map_err(|_| {
                io::Error::new(ErrorKind::InvalidData, "the received data was altered, or is not from the gang")
            })?;
            (self.come, self.taken) = (0, 0);
        }
        Ok(read > 0)
    }

    fn give(&mut self, parts: &mut [&mut [u8]; 2]) -> bool {
        let before = self.taken;
        for part in parts {
            let there = &self.plain[self.taken..];
            let count = there.len().min(part.len());
            let (filled, left) = std::mem::take(part).split_at_mut(count);
            filled.copy_from_slice(&there[..count]);
            *part = left;
            self.taken += count;
        }
        self.taken > before
    }
}

/// Turns `WouldBlock` and `Interrupted` into zero bytes.
fn paused(moved: io::Result<usize>) -> io::Result<usize> {
    match moved {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}

fn open(read: io::Result<usize>) -> io::Result<usize> {
    match read {
        Ok(0) => Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection")),
        other => other,
    }
}

/// A connection for short messages of equal length.
pub(super) struct Messages {
    stream: TcpStream,
    seal: Option<Arc<StatelessTransportState>>,
    /// Number of messages so far; each is sealed under its own number.
    count: u64,
}

impl Messages {
    /// Returns two handles of the connection, one for reading and one for writing.
    pub(super) fn both_ends(line: Line) -> io::Result<(Self, Self)> {
        let seal = line.keys.map(|keys| keys.0.into_stateless_transport_mode().map(Arc::new));
        let seal = seal.transpose().map_err(other)?;
        let end = |stream, seal| Self { stream, seal, count: 0 };
        Ok((end(line.stream.try_clone()?, seal.clone()), end(line.stream, seal)))
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) fn say(&mut self, message: &[u8]) -> io::Result<()> {
        let Some(seal) = &self.seal else {
            return self.stream.write_all(message);
        };
        let mut sealed = vec![0; message.len() + TAG_BYTES];
        seal.write_message(self.count, message, &mut sealed).map_err(other)?;
        self.count += 1;
        self.stream.write_all(&sealed)
    }

    pub(super) fn hear(&mut self, message: &mut [u8]) -> io::Result<()> {
        let Some(seal) = &self.seal else {
            return self.stream.read_exact(message);
        };
        let mut sealed = vec![0; message.len() + TAG_BYTES];
        self.stream.read_exact(&mut sealed)?;
        seal.read_message(self.count, &sealed, message).map_err(other)?;
        self.count += 1;
        Ok(())
    }
}
