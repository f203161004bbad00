//! chrF, the share of character n-grams that an answer has in common with its reference (Popović 2015). It is computed
//! over a corpus as sacrebleu does.
//!
//! The signature is `nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no`. N-grams have 1 to 6 characters without white
//! space. Precision and recall come from counts over all answers, and are averaged over the orders that both sides
//! have. The F score weights recall by β = 2.

use std::collections::HashMap;

/// The length of the longest n-grams.
const ORDER: usize = 6;
/// The weight of recall against precision, β.
const BETA: f64 = 2.0;

/// The counts of one order over a corpus.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    answer: usize,
    reference: usize,
    matches: usize,
}

/// Returns the chrF2 of (answer, reference) pairs, from 0 to 100.
#[must_use]
pub fn chrf<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> f64 {
    let mut orders = [Counts::default(); ORDER];
    for (answer, reference) in pairs {
        let (answer, reference) = (characters(answer), characters(reference));
        for (n, counts) in (1..).zip(&mut orders) {
            add(counts, &answer, &reference, n);
        }
    }
    f_score(&orders)
}

/// Returns the characters that are not white space. Like Python's `str.split`, it takes the four information separators
/// for white space.
fn characters(text: &str) -> Vec<char> {
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    text.chars().filter(|c| !is_space(*c)).collect()
}

fn add(counts: &mut Counts, answer: &[char], reference: &[char], n: usize) {
    let mut left: HashMap<&[char], usize> = HashMap::new();
    for ngram in reference.windows(n) {
        *left.entry(ngram).or_default() += 1;
        counts.reference += 1;
    }
    // An order that the reference is too short for does not count.
    if left.is_empty() {
        return;
    }
    for ngram in answer.windows(n) {
        counts.answer += 1;
        if let Some(count @ 1..) = left.get_mut(ngram) {
            *count -= 1;
            counts.matches += 1;
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
    100.0 * (1.0 + factor) * precision * recall / (factor * precision + recall)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs with the scores that `CHRF().corpus_score(answers, [references]).score` of sacrebleu 2.6.0 gives them.
    const SACREBLEU: &str = include_str!("../../tests/fixtures/chrf.json");

    #[test]
    fn scores_are_those_of_sacrebleu() {
        let cases: Vec<serde_json::Value> = serde_json::from_str(SACREBLEU).unwrap();
        assert!(cases.len() >= 11);
        for case in cases {
            let pairs: Vec<(String, String)> = serde_json::from_value(case["pairs"].clone()).unwrap();
            let score = chrf(pairs.iter().map(|(a, r)| (a.as_str(), r.as_str())));
            let expected = case["chrf"].as_f64().unwrap();
            assert!(
                (score - expected).abs() < 1e-6,
                "{}: {score} is not {expected}",
                case["name"]
            );
        }
    }
}
