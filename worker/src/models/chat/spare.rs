//! Token ids that no text uses.

use std::collections::HashSet;

use super::super::tokenizer::Tokenizer;

/// Parts of the names of reserved tokens in published vocabularies.
const SET_ASIDE: [&str; 4] = ["reserved", "unused", "control", "extra"];

/// The names of tokens at the ends of texts, even if the model's files do not name them. A name with a number is none
/// of these: llama.cpp calls rows without a token `[PAD151665]`.
const OF_TEXTS: [&str; 9] = ["of_text", "oftext", "of_sentence", "<s>", "</s>", "pad", "unk", "eos", "bos"];

/// Returns the ids below `rows` that neither a text nor the chat template uses. Reserved tokens come first in the order
/// of their numbers, then other special tokens, and then rows without a token.
pub(super) fn ids(tokenizer: &Tokenizer, template: &str, used: &HashSet<u32>, rows: usize) -> Vec<u32> {
    let mut tokens: Vec<(bool, Option<u64>, u32)> = tokenizer
        .controls()
        .iter()
        .filter(|(token, id)| {
            let named = token.to_lowercase();
            let of_texts = number(token).is_none() && OF_TEXTS.iter().any(|name| named.contains(name));
            let is_used = of_texts || used.contains(id) || template.contains(token.as_str());
            (*id as usize) < rows && tokenizer.is_special(*id) && !is_used
        })
        .map(|(token, id)| {
            let set_aside = SET_ASIDE.iter().any(|name| token.contains(name));
            (!set_aside, number(token).filter(|_| set_aside), *id)
        })
        .collect();
    tokens.sort_unstable();
    let without_token = tokenizer.vocab_size() as u32..rows as u32;
    tokens.into_iter().map(|(.., id)| id).chain(without_token).collect()
}

/// Returns the number in a token such as `<|reserved_special_token_7|>`.
fn number(token: &str) -> Option<u64> {
    let digits = token.trim_end_matches(|c: char| !c.is_ascii_digit());
    let start = digits.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    digits[start..].parse().ok()
}
