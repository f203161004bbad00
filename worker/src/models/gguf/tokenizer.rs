//! The file's vocabulary as a tokenizer.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Replace};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer as Library};

use super::super::tokenizer::Tokenizer;
use super::{Field, Gguf};
use crate::Result;

// The values of `tokenizer.ggml.token_type` for tokens that are not ordinary.
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;
const UNUSED: usize = 5;

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The pre-tokenization of a byte-level vocabulary, which `tokenizer.ggml.pre` names.
enum Parting {
    /// The pattern of GPT-2.
    Words,
    /// The pattern of GPT-2, with each digit by itself.
    DigitsAndWords,
    /// A regular expression. A piece that is a token needs no merges.
    Pattern(&'static str),
    /// A regular expression after Unicode's NFC.
    Composed(&'static str),
}

impl Parting {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "default" | "gpt-2" | "gpt2" | "phi-2" | "jina-en" | "olmo" | "granite-docling" => Self::Words,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => Self::DigitsAndWords,
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" | "falcon3" | "dbrx" => Self::Pattern(LLAMA3),
            "tekken" => Self::Pattern(TEKKEN),
            "qwen2" | "deepseek-r1-qwen" | "megrez" => Self::Composed(QWEN2),
            _ => return None,
        })
    }
}

impl Gguf {
    /// Returns the tokenizer.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the kind of tokenizer that is not supported.
    pub(in crate::models) fn tokenizer(&self) -> Result<Tokenizer> {
        let kind = self.text("tokenizer.ggml.model")?;
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let mut tokenizer = match kind {
            "gpt2" => self.byte_level(&tokens)?,
            "llama" => self.sentence_piece(&tokens)?,
            other => {
                return Err(
                    self.refuse(format!("tokenizer.ggml.model {other:?} is not supported (supported: gpt2, llama)"))
                );
            }
        };
        let types = self.list("tokenizer.ggml.token_type")?;
        let kinds = types.iter().map(|kind| kind.to_i32().unwrap_or(0) as usize);
        let added = tokens.iter().zip(kinds).filter_map(|(token, kind)| match kind {
            CONTROL | UNUSED => Some(AddedToken::from(*token, true)),
            USER_DEFINED => Some(AddedToken::from(*token, false).normalized(false)),
            _ => None,
        });
        tokenizer.add_tokens(added.collect::<Vec<_>>()).map_err(|error| self.failed(&error))?;
        Tokenizer::of(self.path(), tokenizer)
    }

    /// Returns a byte-level BPE with the file's merges.
    fn byte_level(&self, tokens: &[&str]) -> Result<Library> {
        let name = match self.field("tokenizer.ggml.pre") {
            Some(_) => self.text("tokenizer.ggml.pre")?,
            None => "default",
        };
        let Some(parting) = Parting::of(name) else {
            return Err(self.refuse(format!(
                "tokenizer.ggml.pre {name:?} is not supported: use the model's folder in Hugging Face layout instead"
            )));
        };
        let pair = |merge: &&str| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned()));
        let merges = self.texts("tokenizer.ggml.merges")?;
        let merges = merges.iter().filter_map(pair).collect();
        let whole_pieces = matches!(parting, Parting::Pattern(_));
        let model = BPE::builder().vocab_and_merges(vocabulary(tokens), merges).ignore_merges(whole_pieces).build();
        let mut tokenizer = Library::new(model.map_err(|error| self.failed(&error))?);
        let words = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
        let split = |pattern: &str| {
            let split = Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false);
            split.map(PreTokenizerWrapper::from).map_err(|error| self.failed(&error))
        };
        let parts = match parting {
            Parting::Words => vec![words(true)],
            Parting::DigitsAndWords => vec![Digits::new(true).into(), words(true)],
            Parting::Pattern(pattern) => vec![split(pattern)?, words(false)],
            Parting::Composed(pattern) => {
                tokenizer.with_normalizer(Some(NFC)).map_err(|error| self.failed(&error))?;
                vec![split(pattern)?, words(false)]
            }
        };
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(parts)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        Ok(tokenizer)
    }

    /// Returns SentencePiece's BPE, as Transformers' `LlamaTokenizer` reads it. If the file has no merges, they are
    /// derived from the scores.
    fn sentence_piece(&self, tokens: &[&str]) -> Result<Library> {
        let scores = self.list("tokenizer.ggml.scores")?;
        let scores = scores.iter().map(|score| score.to_f32().unwrap_or(0.0));
        let merges = merges_by_score(tokens, &scores.collect::<Vec<_>>());
        let unknown = self.optional("tokenizer.ggml.unknown_token_id")?;
        let mut builder =
            BPE::builder().vocab_and_merges(vocabulary(tokens), merges).fuse_unk(true).byte_fallback(true);
        if let Some(token) = unknown.and_then(|id| tokens.get(id)) {
            builder = builder.unk_token((*token).to_owned());
        }
        let mut tokenizer = Library::new(builder.build().map_err(|error| self.failed(&error))?);
        let prefix = !matches!(self.field("tokenizer.ggml.add_space_prefix"), Some(Field::Bool(false)));
        let scheme = if prefix { PrependScheme::First } else { PrependScheme::Never };
        tokenizer.with_pre_tokenizer(Some(Metaspace::new('▁', scheme, false)));
        let spaces = Replace::new("▁", " ").map_err(|error| self.failed(&error))?;
        let mut decoders: Vec<DecoderWrapper> = vec![spaces.into(), ByteFallback::new().into(), Fuse::new().into()];
        if prefix {
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        tokenizer.with_decoder(Some(Decoders::new(decoders)));
        Ok(tokenizer)
    }

    fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let texts = self.list(key)?.iter().map(|field| match field {
            Field::String(text) => Ok(text.as_str()),
            _ => Err(self.refuse(format!("{key} is not a list of texts"))),
        });
        texts.collect()
    }

    fn failed(&self, error: &tokenizers::Error) -> crate::Error {
        self.refuse(format!("its vocabulary can't be used: {error}"))
    }
}

fn vocabulary(tokens: &[&str]) -> Vocab {
    tokens.iter().map(|token| (*token).to_owned()).zip(0..).collect()
}

/// Returns each way to merge two tokens into a third, the best result first, like Transformers' `generate_merges`.
fn merges_by_score(tokens: &[&str], scores: &[f32]) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> = tokens.iter().copied().zip(0..).collect();
    let mut merges: Vec<(f32, &str, &str)> = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut ways: Vec<(&str, &str)> =
            cuts.filter(|(left, right)| ids.contains_key(left) && ids.contains_key(right)).collect();
        ways.sort_by_key(|(left, right)| (ids[left], ids[right]));
        merges.extend(ways.into_iter().map(|(left, right)| (*score, left, right)));
    }
    let lengths = |(_, left, right): &(f32, &str, &str)| (left.chars().count(), right.chars().count());
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| lengths(b).cmp(&lengths(a))));
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}
