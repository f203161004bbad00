//! Scores that compare answers with their references.

use llink_datasets::measured::AnswerScores;
use llink_datasets::numbers;
use llink_datasets::script::WritingSystem;

use super::bleu::{Tokens, bleu, in_common};
use super::chrf::{Words, chrf};

/// Scores (answer, reference) pairs.
pub fn answer_scores<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> AnswerScores {
    let pairs: Vec<(&str, &str)> = pairs.into_iter().collect();
    let chinese = pairs.iter().filter(|(_, reference)| is_chinese(reference)).count();
    let mut scores = AnswerScores {
        chrf: chrf(pairs.iter().copied(), Words::None),
        chrf_pp: chrf(pairs.iter().copied(), Words::Two),
        chinese,
        count: pairs.len(),
        ..AnswerScores::default()
    };
    let tokens = if scores.is_chinese() { Tokens::Chinese } else { Tokens::V13a };
    scores.bleu = bleu(pairs.iter().copied(), tokens);
    for (answer, reference) in pairs {
        let (said, wanted) = (words(answer), words(reference));
        scores.exact += f64::from(u8::from(said == wanted));
        scores.word_recall += recall(&said, &wanted);
        let (said, wanted) = (numbers::read(answer), numbers::read(reference));
        if !wanted.is_empty() {
            scores.with_numbers += 1;
            scores.numbers += f64::from(u8::from(numbers::same(&said, &wanted)));
        }
    }
    scores.exact /= scores.count.max(1) as f64;
    scores.word_recall /= scores.count.max(1) as f64;
    scores.numbers /= scores.with_numbers.max(1) as f64;
    scores
}

/// Returns the words in lower case, without their punctuation.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '\''))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn recall(said: &[String], wanted: &[String]) -> f64 {
    let all = || wanted.iter().filter(|word| !is_number(word));
    match all().count() {
        0 => f64::from(u8::from(said == wanted)),
        count => in_common(said.iter(), all()) as f64 / count as f64,
    }
}

fn is_number(word: &str) -> bool {
    word.chars().all(char::is_numeric)
}

fn is_chinese(text: &str) -> bool {
    "Hans".parse::<WritingSystem>().is_ok_and(|han| han.share(text) > 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_count_words_and_numbers() {
        let scores = answer_scores([
            ("The dog eats 12 mangoes.", "the dog eats 12 mangoes"),
            ("A dog eats 21 mangoes.", "The dog eats 12 mangoes."),
            ("", "yes"),
            ("It makes 1.5 kW.", "It makes 30 MW."),
            ("It makes 1,500 W.", "It makes 1.5 kW."),
        ]);
        assert_eq!((scores.count, scores.with_numbers), (5, 4));
        assert!((scores.exact - 1.0 / 5.0).abs() < 1e-12);
        assert!((scores.word_recall - (1.75 + 4.0 / 3.0) / 5.0).abs() < 1e-12);
        assert!((scores.numbers - 0.5).abs() < 1e-12);
        assert_eq!(answer_scores([]), AnswerScores::default());
    }

    #[test]
    fn a_word_counts_as_often_as_it_stands_there() {
        let scores = answer_scores([("the the the", "the cat and the dog")]);
        assert!((scores.word_recall - 0.4).abs() < 1e-12);
    }
}
