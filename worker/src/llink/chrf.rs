//! chrF and chrF++, the share of character and word n-grams that an answer has in common with its reference (Popović 2015,
//! 2017). They are computed over a corpus as sacrebleu does, to the last digit.
//!
//! N-grams have 1 to 6 characters without white space, and in chrF++ also 1 to 2 words. Precision and recall come from counts
//! over all answers, and are averaged over the orders that both sides have. The F score weights recall by β = 2.

use std::hash::Hash;

use super::bleu::{fields, in_common};

const ORDER: usize = 6;
/// The weight of recall against precision, β.
const BETA: f64 = 2.0;

/// The length of the longest n-grams of words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Words {
    /// There are none: chrF.
    None = 0,
    /// Two words: chrF++.
    Two = 2,
}

/// The counts of one order over a corpus.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    answer: usize,
    reference: usize,
    matches: usize,
}

/// Returns the chrF2 or chrF2++ of (answer, reference) pairs, from 0 to 100.
pub fn chrf<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>, words: Words) -> f64 {
    let mut orders = vec![Counts::default(); ORDER + words as usize];
    for (answer, reference) in pairs {
        let (of_characters, of_words) = orders.split_at_mut(ORDER);
        add(of_characters, &characters(answer), &characters(reference));
        add(of_words, &self::words(answer), &self::words(reference));
    }
    f_score(&orders)
}

fn characters(text: &str) -> Vec<char> {
    fields(text).flat_map(str::chars).collect()
}

/// Returns the words, with one mark of punctuation at the end, else at the beginning, as a word of its own.
fn words(text: &str) -> Vec<&str> {
    let is_mark = |c: char| c.is_ascii_punctuation();
    fields(text)
        .flat_map(|word| {
            let single = word.chars().nth(1).is_none();
            let at = match (single, word.ends_with(is_mark), word.starts_with(is_mark)) {
                (true, ..) => 0,
                (false, true, _) => word.len() - 1,
                (false, false, true) => 1,
                (false, false, false) => 0,
            };
            let (first, rest) = word.split_at(at);
            [first, rest].into_iter().filter(|part| !part.is_empty())
        })
        .collect()
}

fn add<T: Hash + Eq>(orders: &mut [Counts], answer: &[T], reference: &[T]) {
    for (n, counts) in (1..).zip(orders) {
        let references = reference.windows(n).count();
        counts.reference += references;
        // An order that the reference is too short for does not count.
        if references > 0 {
            counts.answer += answer.windows(n).count();
            counts.matches += in_common(answer.windows(n), reference.windows(n));
        }
    }
}

fn f_score(orders: &[Counts]) -> f64 {
    let (mut precision, mut recall, mut effective) = (0.0, 0.0, 0.0);
    for counts in orders.iter().filter(|c| c.answer > 0 && c.reference > 0) {
        precision += counts.matches as f64 / counts.answer as f64;
        recall += counts.matches as f64 / counts.reference as f64;
        effective += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / effective, recall / effective);
    let factor = BETA * BETA;
    // The order of the operations decides the last digit.
    100.0 * ((1.0 + factor) * precision * recall / (factor * precision + recall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_words_of_their_own_at_the_end_of_a_word() {
        assert_eq!(words("(hi) ,b a, ! don't"), ["(hi", ")", ",", "b", "a", ",", "!", "don't"]);
    }
}
