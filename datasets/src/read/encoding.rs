//! Converts the bytes of a corpus file to UTF-8, whatever its encoding is.
//!
//! A byte order mark means UTF-8 or UTF-16. Without one, zeros at every other byte mean UTF-16, and an XML declaration
//! may name any encoding of the [Encoding Standard](https://encoding.spec.whatwg.org/#names-and-labels). Everything
//! else is UTF-8.

use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::bytes::ByteSource;
use super::compression::Compression;
use super::content;
use crate::{Error, Result};

/// The number of first bytes that are checked before a declaration is trusted.
const LOOKED_AT: usize = 64 << 10;
/// The number of bytes that are decoded at once.
const BLOCK: usize = 64 << 10;
/// Replaces a sequence that is broken in the file's own encoding; this byte never occurs in UTF-8.
const BROKEN: u8 = 0xFF;
/// This many non-ASCII characters in valid UTF-8 overrule a declaration.
const TELLING_CHARACTERS: usize = 4;
/// The first byte of a non-ASCII sequence in seven-bit encodings.
const ESCAPE: u8 = 0x1B;

/// Common names of code pages that the standard leaves out.
const ALIASES: [(&str, &str); 6] = [
    ("cp874", "windows-874"),
    ("cp932", "shift_jis"),
    ("cp936", "gbk"),
    ("cp949", "euc-kr"),
    ("cp950", "big5"),
    ("macroman", "macintosh"),
];

/// A corpus file that is read as UTF-8.
pub(super) struct TextSource {
    bytes: ByteSource,
    /// The undecoded bytes: first the head of the file, later the rest of a block.
    raw: Vec<u8>,
    decoder: Option<Decoder>,
    opened: bool,
    ended: bool,
    note: Option<String>,
}

impl TextSource {
    pub(super) async fn open(url: &str, compression: Option<Compression>) -> Result<Self> {
        Ok(Self {
            bytes: ByteSource::open(url, compression).await?,
            raw: Vec::new(),
            decoder: None,
            opened: false,
            ended: false,
            note: None,
        })
    }

    pub(super) fn bytes(&self) -> &ByteSource {
        &self.bytes
    }

    /// Returns notes for the user on how the file is read.
    pub(super) fn notes(&self) -> impl Iterator<Item = &str> {
        self.bytes.note().into_iter().chain(self.note.as_deref())
    }

    /// Appends the next piece to `buffer`. Returns false at the end of the file. A sequence that is broken in the
    /// file's encoding becomes bytes that are invalid UTF-8.
    pub(super) async fn read_into(&mut self, buffer: &mut Vec<u8>) -> Result<bool> {
        if !self.opened {
            self.tell_encoding().await?;
            if self.decoder.is_none() {
                buffer.append(&mut self.raw);
                return Ok(!self.ended);
            }
        }
        let Some(decoder) = &mut self.decoder else {
            return self.bytes.read_into(buffer).await;
        };
        if self.raw.is_empty() && !self.ended {
            self.ended = !self.bytes.read_into(&mut self.raw).await?;
        }
        let taken = self.raw.len().min(BLOCK);
        let is_last = self.ended && taken == self.raw.len();
        decode(decoder, &self.raw[..taken], buffer, is_last);
        self.raw.drain(..taken);
        Ok(!is_last)
    }

    /// Checks the first bytes: refuses a file that is not text, and finds the encoding.
    async fn tell_encoding(&mut self) -> Result<()> {
        self.opened = true;
        while self.raw.len() < LOOKED_AT && !self.ended {
            self.ended = !self.bytes.read_into(&mut self.raw).await?;
        }
        let refuse = |reason| Error::Content { path: self.bytes.url().to_owned(), reason };
        if let Some(reason) = content::refusal(&self.raw) {
            return Err(refuse(reason));
        }
        let found = tell(&self.raw[..self.raw.len().min(LOOKED_AT)]).map_err(refuse)?;
        self.raw.drain(..found.mark);
        self.note = found.note;
        if found.encoding != UTF_8 {
            self.decoder = Some(found.encoding.new_decoder_without_bom_handling());
        }
        Ok(())
    }
}

/// Appends `bytes`, converted to UTF-8.
fn decode(decoder: &mut Decoder, mut bytes: &[u8], buffer: &mut Vec<u8>, is_last: bool) {
    loop {
        let start = buffer.len();
        // The decoded block has at most three times the size.
        let room = decoder.max_utf8_buffer_length_without_replacement(bytes.len()).unwrap_or(4 * BLOCK);
        buffer.resize(start + room, 0);
        let (result, read, written) = decoder.decode_to_utf8_without_replacement(bytes, &mut buffer[start..], is_last);
        buffer.truncate(start + written);
        bytes = &bytes[read..];
        match result {
            DecoderResult::InputEmpty => return,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(..) => buffer.push(BROKEN),
        }
    }
}

/// The encoding of a file, and how it was found.
#[derive(Debug, PartialEq)]
struct Told {
    encoding: &'static Encoding,
    /// Size of the byte order mark, in bytes.
    mark: usize,
    note: Option<String>,
}

/// Finds the encoding by a file's first bytes.
fn tell(head: &[u8]) -> std::result::Result<Told, String> {
    let told = |encoding, mark| Ok(Told { encoding, mark, note: None });
    match head {
        [0xEF, 0xBB, 0xBF, ..] => told(UTF_8, 3),
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] | [1..=0x7F, 0, 0, 0, ..] | [0, 0, 0, 1..=0x7F, ..] => {
            Err("is UTF-32; convert it to UTF-8, for instance with `iconv -f UTF-32 -t UTF-8`".to_owned())
        }
        [0xFF, 0xFE, ..] => told(UTF_16LE, 2),
        [0xFE, 0xFF, ..] => told(UTF_16BE, 2),
        [1..=0x7F, 0, 1..=0x7F, 0, ..] => told(UTF_16LE, 0),
        [0, 1..=0x7F, 0, 1..=0x7F, ..] => told(UTF_16BE, 0),
        _ => match declared(head) {
            None => told(UTF_8, 0),
            Some(name) => believe(&name, head),
        },
    }
}

/// Returns the encoding that an XML declaration names, for bytes that are not UTF-16.
fn believe(name: &str, head: &[u8]) -> std::result::Result<Told, String> {
    let label = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name)).map_or(name, |(_, label)| *label);
    let encoding = Encoding::for_label_no_replacement(label.as_bytes());
    let is_ascii = ["ascii", "us-ascii"].iter().any(|ascii| ascii.eq_ignore_ascii_case(name));
    let plain = |note| Ok(Told { encoding: UTF_8, mark: 0, note });
    let note = || Some(format!("says that it is in {name}, but is UTF-8; it is read as UTF-8"));
    match (encoding, wide_characters(head)) {
        _ if is_ascii => plain(None),
        (Some(encoding), _) if encoding == UTF_8 => plain(None),
        // The declaration was read as single bytes, so the file can't be UTF-16.
        (Some(encoding), _) if encoding == UTF_16LE || encoding == UTF_16BE => plain(None),
        // Programs that convert a file often leave its declaration unchanged.
        (Some(_), Some(TELLING_CHARACTERS..)) => plain(note()),
        (Some(encoding), _) => Ok(Told { encoding, mark: 0, note: None }),
        (None, Some(_)) if !head.contains(&ESCAPE) => plain(note()),
        (None, _) => Err(format!(
            "is in {name}, which is not known here; convert it to UTF-8, for instance with `iconv -f {name} -t UTF-8`"
        )),
    }
}

/// Returns the value of `encoding=` in `<?xml … ?>` at the very beginning.
fn declared(head: &[u8]) -> Option<String> {
    let text = head.trim_ascii_start().strip_prefix(b"<?xml")?;
    let end = text.windows(2).position(|two| two == b"?>")?;
    let declaration = std::str::from_utf8(&text[..end]).ok()?;
    let (_, value) = declaration.split_once("encoding")?;
    let value = value.trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (name, _) = value[1..].split_once(quote)?;
    Some(name.trim().to_owned())
}

/// Counts the non-ASCII characters, if the bytes are valid UTF-8.
fn wide_characters(head: &[u8]) -> Option<usize> {
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The head may end inside a character.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    Some(valid.chars().filter(|c| !c.is_ascii()).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(head: &[u8]) -> &'static str {
        tell(head).unwrap().encoding.name()
    }

    #[test]
    fn only_the_xml_declaration_names_an_encoding() {
        for (text, encoding) in [
            ("<?xml version=\"1.0\"?><tmx><header o-encoding=\"iso-8859-1\"/>", "UTF-8"),
            ("<tmx encoding=\"koi8-r\">", "UTF-8"),
            ("<?xml version='1.0' encoding = 'Latin1' ?>", "windows-1252"),
            ("<?xml encoding=\"CP1252\"?>", "windows-1252"),
            ("<?xml encoding=\"ISO_8859-15\"?>", "ISO-8859-15"),
            ("<?xml encoding=\"GB2312\"?>", "GBK"),
            ("<?xml encoding=\"gb18030\"?>", "gb18030"),
            ("<?xml encoding=\"cp932\"?>", "Shift_JIS"),
            ("<?xml encoding=\"x-sjis\"?>", "Shift_JIS"),
            ("<?xml encoding=\"utf-16\"?><tmx>", "UTF-8"),
            ("<?xml encoding=\"US-ASCII\"?><tmx>", "UTF-8"),
            ("<?xml encoding=\"utf8\"?><tmx>", "UTF-8"),
            // An unknown encoding is no fault of a file that is UTF-8.
            ("<?xml encoding=\"IBM850\"?>plain", "UTF-8"),
        ] {
            assert_eq!(told(text.as_bytes()), encoding, "{text}");
        }
    }

    #[test]
    fn wide_text_is_told_with_and_without_a_mark() {
        for (head, encoding) in [
            (&b"\xFF\xFEa\0"[..], "UTF-16LE"),
            (b"\xFE\xFF\0a", "UTF-16BE"),
            (b"<\0?\0", "UTF-16LE"),
            (b"\0<\0?", "UTF-16BE"),
            (b"a\0b", "UTF-8"),
            (b"", "UTF-8"),
        ] {
            assert_eq!(told(head), encoding, "{head:?}");
        }
        assert!(tell(b"\xFF\xFE\0\0a\0\0\0").unwrap_err().contains("UTF-32"));
        assert!(tell(b"a\0\0\0b\0\0\0").unwrap_err().contains("UTF-32"));
    }
}
