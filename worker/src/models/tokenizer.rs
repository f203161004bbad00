//! The tokenizer of `tokenizer.json`, which maps texts to token ids and back.
//!
//! Text that merely looks like a control token must not become one, because data could end a turn. A guarded tokenizer
//! therefore recognizes no control token in text. It recognizes marks instead, pairs of characters that no text
//! contains. [`Tokenizer::marked`] puts them where a chat template writes control tokens. The library does everything
//! else, including merges across the template and the user's text.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::AddedToken;

use super::json;
use super::placeholder::placeholder;
use crate::ops::NO_TOKEN;
use crate::{Error, Result};

/// The first character of a mark. It is a noncharacter, which no text for exchange contains.
pub(super) const MARK: char = '\u{10ffff}';
/// The first of the characters that follow it. These are for private use: one for a slot, then one for each control
/// token.
const FIRST_INDEX: u32 = 0xf_0000;

/// A loaded tokenizer. It ignores the file's truncation and padding, because llink cuts token lists itself.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: String,
    vocab_size: usize,
    /// The number of rows of the model's embedding. The model cannot read larger ids.
    rows: usize,
    /// The tokens that decoded text leaves out.
    special: HashSet<u32>,
    controls: Controls,
}

/// The control tokens, which text never becomes.
#[derive(Default)]
struct Controls {
    /// The tokens with their ids, the longest text first.
    tokens: Vec<(String, u32)>,
    /// The id of the slot's mark. The ids of the marks of `tokens` follow in their order.
    first_mark: u32,
}

/// Whether the tokens that the file's template adds (`<s>`, `<|begin_of_text|>`, …) are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// The template's tokens are added.
    Add,
    /// The text's own tokens only.
    Omit,
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Model`] when it is not a supported tokenizer.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join("tokenizer.json");
        let bytes = std::fs::read(&file).map_err(Error::io(&file))?;
        Self::from_bytes(&file.display().to_string(), &bytes)
    }

    /// Reads the content of a `tokenizer.json`. Errors call it `path`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is not a supported tokenizer.
    pub fn from_bytes(path: &str, bytes: &[u8]) -> Result<Self> {
        if let Some(reason) = placeholder(bytes) {
            return Err(Error::model(path, reason));
        }
        let inner = tokenizers::Tokenizer::from_bytes(json::without_mark(bytes));
        Self::of(path, inner.map_err(|error| refuse(path, &error))?)
    }

    /// Wraps a tokenizer of the library. Errors call it `path`.
    ///
    /// # Errors
    /// [`Error::Model`] when the library refuses to turn truncation off.
    pub fn of(path: &str, mut inner: tokenizers::Tokenizer) -> Result<Self> {
        inner.with_truncation(None).map_err(|error| refuse(path, &error))?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id);
        Ok(Self {
            special: special.collect(),
            vocab_size: inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1),
            rows: usize::MAX,
            controls: Controls::default(),
            path: path.to_owned(),
            inner,
        })
    }

    /// Returns the tokenizer in its guarded form. It recognizes special tokens and added tokens that look like markup
    /// (`<think>`, `[INST]`) only at the marks of [`Tokenizer::marked`].
    ///
    /// # Errors
    /// [`Error::Model`] when the library refuses the marks.
    pub fn guarded(mut self) -> Result<Self> {
        let mut controls: Vec<(u32, AddedToken)> = self
            .inner
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| is_control(token))
            .map(|(id, token)| (*id, token.clone()))
            .collect();
        controls.sort_by(|(a, one), (b, other)| (other.content.len(), a).cmp(&(one.content.len(), b)));
        // The library numbers added tokens from the count of tokens on. A vocabulary with gaps already has ids there.
        let highest = self.inner.get_added_tokens_decoder().into_keys().max();
        let next = self.inner.get_vocab_size(false).max(highest.map_or(0, |id| id as usize + 1));
        let fillers = (next..self.vocab_size).map(|id| AddedToken::from(format!("{MARK}{MARK}{id}"), false));
        // The library hides special tokens only.
        let hidden = controls.iter().map(|(_, token)| token.clone().special(true));
        let slot = AddedToken::from(mark(0), false).normalized(false);
        let marks = controls.iter().zip(1..).map(|((_, token), index)| AddedToken {
            content: mark(index),
            special: false,
            ..token.clone()
        });
        let added: Vec<AddedToken> = hidden.chain(fillers).chain([slot]).chain(marks).collect();
        self.inner.add_tokens(added).map_err(|error| self.refuse(error))?;
        self.inner.set_encode_special_tokens(true);
        self.controls = Controls {
            first_mark: self.require(&mark(0))?,
            tokens: controls.into_iter().map(|(id, token)| (token.content, id)).collect(),
        };
        Ok(self)
    }

    /// Returns the token ids of each text, in order, computed in parallel.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokenizer cannot encode a text, for example without an unknown token.
    pub fn encode_batch(&self, texts: &[&str], special: SpecialTokens) -> Result<Vec<Vec<u32>>> {
        let texts: Vec<String> = texts.iter().map(|text| self.unmarked(text)).collect();
        let encodings =
            self.inner.encode_batch_fast(texts, special == SpecialTokens::Add).map_err(|error| self.refuse(error))?;
        encodings.iter().map(|encoding| self.readable(encoding.get_ids().to_vec())).collect()
    }

    /// Returns the token ids of one text.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(self.unmarked(text), special == SpecialTokens::Add)
            .map_err(|error| self.refuse(error))?;
        self.readable(encoding.get_ids().to_vec())
    }

    /// Returns the token ids of a text with marks, and [`NO_TOKEN`] for each slot's mark. The template's tokens are not
    /// added.
    pub(super) fn encode_marked(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| self.refuse(error))?;
        let Controls { tokens, first_mark } = &self.controls;
        let meant = |id: &u32| match id.checked_sub(*first_mark) {
            Some(0) => NO_TOKEN,
            Some(index) => tokens.get(index as usize - 1).map_or(*id, |(_, id)| *id),
            None => *id,
        };
        self.readable(encoding.get_ids().iter().map(meant).collect())
    }

    /// Returns a template's text with marks in place of control tokens. At each place the longest token counts.
    pub(super) fn marked(&self, template: &str) -> String {
        let mut marked = String::new();
        let mut rest = template;
        while let Some(next) = rest.chars().next() {
            let mut controls = (1..).zip(&self.controls.tokens);
            match controls.find_map(|(index, (token, _))| Some((index, rest.strip_prefix(token.as_str())?))) {
                Some((index, after)) => {
                    marked.push_str(&mark(index));
                    rest = after;
                }
                None => {
                    marked.push(next);
                    rest = &rest[next.len_utf8()..];
                }
            }
        }
        marked
    }

    /// Returns the id of the first control token in a template's text.
    pub(super) fn first_control(&self, template: &str) -> Option<u32> {
        let found = self.controls.tokens.iter().filter_map(|(token, id)| Some((template.find(token)?, *id)));
        // Among tokens at one place, the first is the longest.
        found.min_by_key(|(place, _)| *place).map(|(_, id)| id)
    }

    pub(super) fn controls(&self) -> &[(String, u32)] {
        &self.controls.tokens
    }

    /// Returns whether decoded text leaves the token out.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// Returns a text without marks. Without control tokens there are no marks.
    pub(super) fn unmarked(&self, text: &str) -> String {
        match self.controls.first_mark {
            0 => text.to_owned(),
            _ => text.replace(MARK, "\u{fffd}"),
        }
    }

    /// Returns the longest beginning of `text` that has at most `max_tokens` tokens and ends between two characters.
    pub(super) fn cut<'a>(&self, text: &'a str, max_tokens: usize) -> Result<&'a str> {
        // A token has at least one byte, except for one that a normalizer may add at the front.
        if text.len() < max_tokens {
            return Ok(text);
        }
        let encoding = self.inner.encode(text, false).map_err(|error| self.refuse(error))?;
        let offsets = encoding.get_offsets();
        if offsets.len() <= max_tokens {
            return Ok(text);
        }
        // A character of several bytes may be several tokens.
        let whole = |count: &usize| *count == 0 || offsets[*count].0 >= offsets[count - 1].1;
        let count = (0..=max_tokens).rev().find(whole).unwrap_or(0);
        Ok(&text[..count.checked_sub(1).map_or(0, |last| offsets[last].1)])
    }

    /// Returns the text of `ids` without special tokens.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let said: Vec<u32> = ids.iter().copied().filter(|id| !self.is_special(*id)).collect();
        self.inner.decode(&said, false).map_err(|error| self.refuse(error))
    }

    /// Returns the id of a token by its text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the text of a token by its id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id).filter(|_| (id as usize) < self.vocab_size)
    }

    /// Returns the id of a token that must exist.
    ///
    /// # Errors
    /// [`Error::Model`] with the token's name when the vocabulary lacks it.
    pub fn require(&self, token: &str) -> Result<u32> {
        let id = self.token_to_id(token);
        id.ok_or_else(|| Error::model(&self.path, format!("the vocabulary lacks the token {token}")))
    }

    /// Returns the tokenizer of a model whose embedding has `rows` rows. It may have more tokens, such as one for
    /// padding that was added later, if none of them occurs.
    ///
    /// # Errors
    /// [`Error::Model`] when the tokens of every text have no row.
    pub(crate) fn for_rows(self, rows: usize) -> Result<Self> {
        let bounded = Self { rows, ..self };
        bounded.encode("", SpecialTokens::Add)?;
        Ok(bounded)
    }

    /// Returns one more than the highest id, including added tokens.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Refuses a token without an embedding.
    fn readable(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.rows && **id != NO_TOKEN) else {
            return Ok(ids);
        };
        let (token, rows) = (self.inner.id_to_token(*id).unwrap_or_default(), self.rows);
        let reason = format!(
            "a text has the token {token:?} with id {id}, but the model has embeddings for ids below {rows} only \
             (config.json's vocab_size): enlarge its embedding, or take the tokenizer that belongs to it"
        );
        Err(Error::model(&self.path, reason))
    }

    fn refuse(&self, error: tokenizers::Error) -> Error {
        refuse(&self.path, &error)
    }
}

fn refuse(path: &str, error: &tokenizers::Error) -> Error {
    Error::model(path, error.to_string())
}

/// Returns the mark of a slot, 0, or of a control token.
pub(super) fn mark(index: u32) -> String {
    let index = char::from_u32(FIRST_INDEX + index).unwrap_or(char::REPLACEMENT_CHARACTER);
    format!("{MARK}{index}")
}

/// Returns the index of a mark by its second character.
pub(super) fn mark_index(second: char) -> Option<usize> {
    u32::from(second).checked_sub(FIRST_INDEX).map(|index| index as usize)
}

/// Returns whether a token marks structure. Added tokens of text, such as runs of spaces, are recognized everywhere.
fn is_control(token: &AddedToken) -> bool {
    let encloses = |open, close| token.content.starts_with(open) && token.content.ends_with(close);
    token.special || encloses('<', '>') || encloses('[', ']')
}
