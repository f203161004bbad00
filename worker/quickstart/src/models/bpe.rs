//! The tiny decoder's tokenizer: byte-level BPE with Llama 3's regular expression and special tokens.

use std::collections::{BTreeMap, HashMap};

use llink_datasets::Result;
use tokenizers::models::bpe::{BPE, Vocab as LibraryVocabulary};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior, Tokenizer};

use super::unigram::count_words;
use super::untrainable;

pub(super) const BEGIN_OF_TEXT: &str = "<|begin_of_text|>";
pub(super) const END_OF_TURN: &str = "<|eot_id|>";
const SPECIAL: [&str; 5] = [BEGIN_OF_TEXT, "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", END_OF_TURN];
const RESERVED: usize = 12;
const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer of at most `vocab_size` tokens and the special ones, made from `texts`.
pub(super) fn tokenizer(texts: &[String], vocab_size: usize) -> Result<Tokenizer> {
    let split =
        Split::new(SplitPattern::Regex(WORDS.into()), SplitDelimiterBehavior::Isolated, false).map_err(untrainable)?;
    let bytes = ByteLevel::new(false, true, false);
    let pre_tokenizer = PreTokenizers::new(vec![split.into(), bytes.into()]);
    let words = count_words(texts, |text| {
        let mut words = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut words)?;
        Ok(words)
    })?;
    let (vocab, merges) = learn_merges(&words, vocab_size);
    let model = BPE::builder()
        .vocab_and_merges(vocab.into_iter().collect::<LibraryVocabulary>(), merges)
        .ignore_merges(true)
        .build()
        .map_err(untrainable)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let reserved = (0..RESERVED).map(|index| format!("<|reserved_special_token_{index}|>"));
    let special = SPECIAL.iter().map(ToString::to_string).chain(reserved);
    tokenizer.add_special_tokens(special.map(|token| AddedToken::from(token, true))).map_err(untrainable)?;
    let begin = tokenizer.token_to_id(BEGIN_OF_TEXT).unwrap_or_default();
    let template = TemplateProcessing::builder()
        .try_single(format!("{BEGIN_OF_TEXT} $A"))
        .map_err(untrainable)?
        .special_tokens(vec![(BEGIN_OF_TEXT, begin)])
        .build()
        .map_err(untrainable)?;
    tokenizer.with_post_processor(Some(template));
    Ok(tokenizer)
}

type Vocabulary = HashMap<String, u32>;
type Merges = Vec<(String, String)>;

/// Byte-pair encoding, the most frequent pair first, of equal ones the one with the lowest ids. The library's trainer
/// keeps its pairs in a randomly keyed heap; this one gives the same merges each time, and a tiny vocabulary needs no
/// heap.
fn learn_merges(words: &BTreeMap<String, u32>, vocab_size: usize) -> (Vocabulary, Merges) {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let mut ids: Vocabulary = tokens.iter().cloned().zip(0..).collect();
    let mut words: Vec<(Vec<u32>, u64)> = words
        .iter()
        .map(|(word, count)| (word.chars().map(|c| ids[&c.to_string()]).collect(), u64::from(*count)))
        .collect();
    let mut merges = Vec::new();
    while tokens.len() < vocab_size {
        let mut counts: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for (word, count) in &words {
            for pair in word.windows(2) {
                *counts.entry((pair[0], pair[1])).or_insert(0) += count;
            }
        }
        let best = counts.into_iter().max_by_key(|&(pair, count)| (count, std::cmp::Reverse(pair)));
        let Some((pair, _)) = best else { break };
        let (left, right) = (tokens[pair.0 as usize].clone(), tokens[pair.1 as usize].clone());
        let merged = format!("{left}{right}");
        let id = *ids.entry(merged.clone()).or_insert_with(|| {
            tokens.push(merged);
            tokens.len() as u32 - 1
        });
        merges.push((left, right));
        words.iter_mut().for_each(|(word, _)| merge(word, pair, id));
    }
    (ids, merges)
}

/// Replaces each `pair` in `word` by `id`, from left to right.
fn merge(word: &mut Vec<u32>, pair: (u32, u32), id: u32) {
    let mut read = 0;
    let mut write = 0;
    while read < word.len() {
        let here = word.get(read + 1).is_some_and(|&next| (word[read], next) == pair);
        word[write] = if here { id } else { word[read] };
        read += if here { 2 } else { 1 };
        write += 1;
    }
    word.truncate(write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_pair_merges_first() {
        let words = BTreeMap::from([("hug".to_string(), 10), ("pug".to_string(), 5), ("hugs".to_string(), 5)]);
        let (ids, merges) = learn_merges(&words, 256 + 3);
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        assert_eq!(merges, [pair("u", "g"), pair("h", "ug"), pair("p", "ug")]);
        assert_eq!(ids["pug"], 258);
    }
}
