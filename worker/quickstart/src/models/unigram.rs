//! The tiny encoder's tokenizer: Unigram, NFKC, whitespace and metaspace, `<s> … </s>`, as XLM-R's.

use std::collections::BTreeMap;

use llink_datasets::Result;
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::normalizers::{NFKC, Sequence as Normalizers};
use tokenizers::pre_tokenizers::metaspace::Metaspace;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Tokenizer,
};

use super::untrainable;

const SPECIAL: [&str; 4] = ["<s>", "<pad>", "</s>", "<unk>"];
const UNKNOWN: usize = 3;

/// A tokenizer of about `vocab_size` tokens made from `texts`.
pub(super) fn tokenizer(texts: &[String], vocab_size: usize) -> Result<Tokenizer> {
    let normalizer = Normalizers::new(vec![NFKC.into()]);
    let metaspace = Metaspace::default();
    let pre_tokenizer = PreTokenizers::new(vec![WhitespaceSplit.into(), metaspace.clone().into()]);
    let words = count_words(texts, |text| {
        let mut text = NormalizedString::from(text);
        normalizer.normalize(&mut text)?;
        let mut words = PreTokenizedString::from(text);
        pre_tokenizer.pre_tokenize(&mut words)?;
        Ok(words)
    })?;
    let model = train(words, vocab_size)?;
    let template = TemplateProcessing::builder()
        .try_single("<s> $A </s>")
        .map_err(untrainable)?
        .special_tokens(vec![("<s>", 0), ("</s>", 2)])
        .build()
        .map_err(untrainable)?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(normalizer)).map_err(untrainable)?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    tokenizer.with_post_processor(Some(template));
    tokenizer.with_decoder(Some(metaspace));
    let special = SPECIAL.map(|token| AddedToken::from(token, true));
    tokenizer.add_special_tokens(special).map_err(untrainable)?;
    Ok(tokenizer)
}

/// How often each word occurs, in the words' order.
pub(super) fn count_words(
    texts: &[String],
    split: impl Fn(&str) -> tokenizers::Result<PreTokenizedString>,
) -> Result<BTreeMap<String, u32>> {
    let mut words = BTreeMap::new();
    for text in texts {
        let pieces = split(text).map_err(untrainable)?;
        for (word, _, _) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            *words.entry(word.to_string()).or_insert(0) += 1;
        }
    }
    if words.is_empty() {
        return Err(untrainable("they hold no word"));
    }
    Ok(words)
}

/// Unigram's EM. The library's trainer sums in the order of its threads and of a randomly keyed hash set: one thread
/// settles the first, [`canonical`] the second.
fn train(words: BTreeMap<String, u32>, vocab_size: usize) -> Result<Unigram> {
    let chars: std::collections::BTreeSet<char> = words.keys().flat_map(|word| word.chars()).collect();
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size.max(chars.len() + SPECIAL.len() + 1) as u32)
        .special_tokens(SPECIAL.map(|token| AddedToken::from(token, true)).to_vec())
        .unk_token(Some(SPECIAL[UNKNOWN].to_string()))
        .build()
        .map_err(untrainable)?;
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(untrainable)?;
    let mut model = Unigram::default();
    one_thread.install(|| trainer.do_train(words.into_iter().collect(), &mut model)).map_err(untrainable)?;
    let pieces = model.iter().cloned().collect();
    Unigram::from(canonical(pieces), Some(UNKNOWN), false).map_err(untrainable)
}

/// The same pieces whatever order the trainer's hash set had.
///
/// Characters that EM dropped come back with the lowest score plus 0, 1, 2, … ten-thousandths in the set's order: here
/// in the characters' own. Then all are sorted by score and text.
fn canonical(mut pieces: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let learned = &mut pieces[SPECIAL.len()..];
    let lowest = learned.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let single = |text: &str| text.chars().count() == 1;
    let mut returned = Vec::new();
    let mut penalty = 0.0;
    // As the trainer sums it, so that the scores are the same bits.
    while let Some(index) = learned.iter().position(|(text, score)| single(text) && *score == lowest + penalty) {
        let twins = learned.iter().enumerate().filter(|(_, (text, score))| single(text) && *score == lowest + penalty);
        returned.extend(twins.map(|(index, _)| index));
        debug_assert!(returned.contains(&index));
        penalty += 0.0001;
    }
    let mut texts: Vec<String> = returned.iter().map(|&index| learned[index].0.clone()).collect();
    texts.sort_unstable();
    for (&index, text) in returned.iter().zip(texts) {
        learned[index].0 = text;
    }
    learned.sort_by(|(a, a_score), (b, b_score)| b_score.total_cmp(a_score).then_with(|| a.cmp(b)));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_returned_characters_does_not_show() {
        let special = SPECIAL.map(|token| (token.to_string(), 0.0));
        let rest = |order: [&str; 3]| {
            let scores = [-9.0, -9.0 + 0.0001, -9.0 + (0.0001 + 0.0001)];
            let mut pieces = special.to_vec();
            pieces.extend([("▁the".to_string(), -2.0), ("x".to_string(), -3.0), ("ab".to_string(), -9.0)]);
            pieces.extend(order.iter().zip(scores).map(|(text, score)| (text.to_string(), score)));
            canonical(pieces)
        };
        assert_eq!(rest(["a", "b", "c"]), rest(["c", "a", "b"]));
        assert_eq!(rest(["a", "b", "c"])[4].0, "▁the");
    }
}
