//! Reads translation units from a TMX file of any size, one at a time.
//!
//! The file is cut at `</tu>`, and each unit is parsed on its own. A broken unit is one counted row and does not end
//! the file, and memory holds one unit. A file that ends before `</tmx>` has one more broken unit at its end.
//!
//! Of a segment's inline elements, `<bpt>`, `<ept>`, `<it>`, `<ph>` and `<ut>` hold code of the tool that wrote the
//! file (TMX 1.4b, 3.3). They are left out with their content, including the sub-flows `<sub>`. All other elements wrap
//! text: only their tags are left out, also those that TMX does not define.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::compression::Compression;
use super::format::Languages;
use super::pieces::Pieces;
use super::{Fault, RawRow, ReadRow};
use crate::clean::DropReason;
use crate::{Error, Result};

const UNIT_END: &[u8] = b"</tu>";

/// Inline elements whose content is code.
const CODE: [&[u8]; 5] = [b"bpt", b"ept", b"it", b"ph", b"ut"];

pub(crate) struct TmxRows {
    pieces: Pieces,
    languages: Languages,
    began: bool,
    /// True if the text after the last unit was checked.
    ended: bool,
}

impl TmxRows {
    pub(super) async fn open(url: &str, compression: Option<Compression>, languages: Languages) -> Result<Self> {
        let mut pieces = Pieces::open(url, compression, UNIT_END).await?;
        pieces.head().await?;
        Ok(Self { pieces, languages, began: false, ended: false })
    }

    pub(super) fn pieces(&self) -> &Pieces {
        &self.pieces
    }

    pub(super) async fn next(&mut self) -> Result<Option<ReadRow>> {
        let url = self.pieces.url().to_owned();
        let began = std::mem::replace(&mut self.began, true);
        let Some(piece) = self.pieces.next().await? else {
            // The file ends right after a unit.
            let is_torn = began && !std::mem::replace(&mut self.ended, true);
            return Ok(is_torn.then_some(Err(DropReason::BrokenXml.into())));
        };
        let piece = piece.map(str::to_owned);
        let is_rest = self.pieces.is_rest();
        self.ended |= is_rest;
        let text = match piece {
            Err(reason) => return Ok(Some(Err(reason.into()))),
            Ok(text) => text,
        };
        if !began {
            check_header(&url, &text)?;
        }
        match unit_start(&text) {
            // The end of the document follows the last unit. If it is missing, so may be other parts.
            None if is_rest && text.contains("</tmx>") => Ok(None),
            Some(start) if !is_rest => Ok(Some(unit(&text[start..], &self.languages))),
            _ => Ok(Some(Err(DropReason::BrokenXml.into()))),
        }
    }
}

/// Refuses a file that is not TMX.
fn check_header(url: &str, text: &str) -> Result<()> {
    let head = &text[..unit_start(text).unwrap_or(text.len())];
    if head.contains("<tmx") {
        return Ok(());
    }
    Err(Error::Content {
        path: url.to_owned(),
        reason: "is not TMX: no `<tmx` precedes the first unit; set `format` if it is something else".to_owned(),
    })
}

/// Returns the start of the last `<tu>` or `<tu …>` in the text.
fn unit_start(text: &str) -> Option<usize> {
    let mut starts = text.rmatch_indices("<tu").map(|(at, _)| at);
    starts.find(|at| text.as_bytes().get(at + 3).is_none_or(|b| *b == b'>' || b.is_ascii_whitespace()))
}

/// Returns the two sides of a unit, whose end tag is cut off.
fn unit(text: &str, languages: &Languages) -> ReadRow {
    let mut variants = variants(text)?;
    let is_english = |(language, _): &(String, String)| is(language, &languages.english);
    let english = variants.iter().position(is_english);
    let foreign = match &languages.foreign {
        Some(wanted) => {
            let is_foreign = |index: &usize| Some(*index) != english && is(&variants[*index].0, wanted);
            (0..variants.len()).find(is_foreign)
        }
        None => {
            let mut others = (0..variants.len()).filter(|index| !is_english(&variants[*index]));
            others.next().filter(|_| others.next().is_none())
        }
    };
    let (Some(english), Some(foreign)) = (english, foreign) else {
        let found: Vec<&str> = variants.iter().map(|(language, _)| language.as_str()).collect();
        let hint = Some(format!("the unit has {}", found.join(", ")));
        return Err(Fault { hint, ..DropReason::MissingLanguage.into() });
    };
    let mut take = |index: usize| std::mem::take(&mut variants[index].1);
    let (english, foreign) = (take(english), take(foreign));
    if english.contains('\0') || foreign.contains('\0') {
        return Err(DropReason::NulByte.into());
    }
    Ok(RawRow::Pair { english, foreign })
}

/// Returns true if a language code equals the wanted one or begins with it: `en` matches `en-US`.
fn is(language: &str, wanted: &str) -> bool {
    let head = language.get(..wanted.len()).unwrap_or("");
    head.eq_ignore_ascii_case(wanted) && language[wanted.len()..].chars().next().is_none_or(|c| c == '-' || c == '_')
}

/// Returns (language, segment) for each `<tuv>`.
fn variants(text: &str) -> std::result::Result<Vec<(String, String)>, DropReason> {
    let mut reader = Reader::from_str(text);
    let mut variants: Vec<(String, String)> = Vec::new();
    let (mut segment, mut hidden) = (None::<String>, 0_u32);
    loop {
        match reader.read_event().map_err(|_| DropReason::BrokenXml)? {
            Event::Start(tag) => match tag.name().as_ref() {
                b"tuv" => variants.push((language(&tag)?, String::new())),
                b"seg" => segment = Some(String::new()),
                name if segment.is_some() && CODE.contains(&name) => hidden += 1,
                _ => {}
            },
            Event::End(tag) => match tag.name().as_ref() {
                b"seg" => {
                    let text = segment.take().unwrap_or_default();
                    variants.last_mut().ok_or(DropReason::BrokenXml)?.1 = text;
                    hidden = 0;
                }
                name if CODE.contains(&name) => hidden = hidden.saturating_sub(1),
                _ => {}
            },
            Event::Text(text) => append(&mut segment, hidden, &text.decode().map_err(|_| DropReason::BrokenXml)?),
            Event::CData(text) => append(&mut segment, hidden, &text.decode().map_err(|_| DropReason::BrokenXml)?),
            Event::GeneralRef(name) => {
                let character = match name.resolve_char_ref().map_err(|_| DropReason::BrokenXml)? {
                    Some(character) => character.to_string(),
                    None => {
                        let name = name.decode().map_err(|_| DropReason::BrokenXml)?;
                        quick_xml::escape::resolve_predefined_entity(&name).ok_or(DropReason::BrokenXml)?.to_owned()
                    }
                };
                append(&mut segment, hidden, &character);
            }
            Event::Eof => {
                return if segment.is_none() { Ok(variants) } else { Err(DropReason::BrokenXml) };
            }
            _ => {}
        }
    }
}

fn append(segment: &mut Option<String>, hidden: u32, text: &str) {
    if let Some(segment) = segment
        && hidden == 0
    {
        segment.push_str(text);
    }
}

/// Returns `xml:lang`, or `lang` in TMX 1.1.
fn language(tag: &BytesStart<'_>) -> std::result::Result<String, DropReason> {
    for name in ["xml:lang", "lang"] {
        if let Some(attribute) = tag.try_get_attribute(name).map_err(|_| DropReason::BrokenXml)? {
            return String::from_utf8(attribute.value.into_owned()).map_err(|_| DropReason::BrokenXml);
        }
    }
    Ok(String::new())
}
