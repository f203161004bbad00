//! BLEU over a corpus (Papineni et al. 2002), computed as sacrebleu does, to the last digit.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;

use regex::Regex;

const ORDER: usize = 4;

/// The way a text is cut into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tokens {
    /// mteval-v13a's, for languages with spaces.
    V13a,
    /// Each Chinese character is a token, and the rest is cut as by [`Tokens::V13a`].
    Chinese,
}

/// Returns the BLEU of (answer, reference) pairs, from 0 to 100.
pub fn bleu<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>, tokens: Tokens) -> f64 {
    let (mut correct, mut total) = ([0_usize; ORDER], [0_usize; ORDER]);
    let (mut said, mut wanted) = (0, 0);
    for (answer, reference) in pairs {
        let (answer, reference) = (tokens.cut(answer), tokens.cut(reference));
        let (answer, reference): (Vec<&str>, Vec<&str>) = (fields(&answer).collect(), fields(&reference).collect());
        said += answer.len();
        wanted += reference.len();
        for n in 1..=ORDER {
            total[n - 1] += answer.windows(n).count();
            correct[n - 1] += in_common(answer.windows(n), reference.windows(n));
        }
    }
    score(correct, total, said, wanted)
}

/// Returns the geometric mean of the precisions times the brevity penalty. The first order without a match has half of the
/// precision of one match, the next a quarter, and so on.
fn score(correct: [usize; ORDER], total: [usize; ORDER], said: usize, wanted: usize) -> f64 {
    if correct.iter().all(|count| *count == 0) {
        return 0.0;
    }
    let penalty = if said < wanted { (1.0 - wanted as f64 / said as f64).exp() } else { 1.0 };
    let mut smoothing = 1.0;
    let mut logarithms = 0.0;
    for (correct, total) in correct.into_iter().zip(total) {
        // sacrebleu takes this number for the logarithm of 0.
        let mut logarithm = -9_999_999_999.0;
        if correct > 0 {
            logarithm = (100.0 * correct as f64 / total as f64).ln();
        } else if total > 0 {
            smoothing *= 2.0;
            logarithm = (100.0 / (smoothing * total as f64)).ln();
        }
        logarithms += logarithm;
    }
    penalty * (logarithms / ORDER as f64).exp()
}

/// Returns how many items of `said` are in `wanted` too, where each item of `wanted` counts once.
pub(super) fn in_common<T: Hash + Eq>(said: impl Iterator<Item = T>, wanted: impl Iterator<Item = T>) -> usize {
    let mut left: HashMap<T, usize> = HashMap::new();
    wanted.for_each(|item| *left.entry(item).or_default() += 1);
    let found = said.filter(|item| match left.get_mut(item) {
        Some(count @ 1..) => {
            *count -= 1;
            true
        }
        _ => false,
    });
    found.count()
}

/// Returns the parts between white space. Like Python's `str.split`, it takes the four information separators for white space.
pub(super) fn fields(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|part| !part.is_empty())
}

fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

impl Tokens {
    /// Returns the text with white space around its tokens.
    fn cut(self, text: &str) -> String {
        let text = text.trim_end_matches(is_space);
        match self {
            Self::V13a => {
                let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
                for (entity, c) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
                    text = text.replace(entity, c);
                }
                apart(&format!(" {text} "))
            }
            Self::Chinese => {
                let mut spaced = String::new();
                for c in text.trim_matches(is_space).chars() {
                    if is_chinese(c) { spaced.extend([' ', c, ' ']) } else { spaced.push(c) }
                }
                apart(&spaced)
            }
        }
    }
}

/// Sets marks apart, except points and commas inside numbers and hyphens behind letters.
fn apart(text: &str) -> String {
    static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
        [
            (r"([\{-~\[-` -&\(-\+:-@/])", " $1 "),
            (r"([^0-9])([\.,])", "$1 $2 "),
            (r"([\.,])([^0-9])", " $1 $2"),
            (r"([0-9])(-)", "$1 $2 "),
        ]
        .map(|(pattern, with)| (Regex::new(pattern).expect("the pattern is valid"), with))
    });
    let mut text = text.to_owned();
    for (pattern, with) in RULES.iter() {
        text = pattern.replace_all(&text, *with).into_owned();
    }
    text
}

/// Returns whether sacrebleu's tokenizer takes a character for Chinese. It has two ranges with five digits in escapes of four,
/// which makes them U+2001 to U+2A6D and U+2F81 to U+2FA1, and it has none above U+FFFF.
fn is_chinese(c: char) -> bool {
    matches!(c,
        '\u{3400}'..='\u{4DB5}' | '\u{4E00}'..='\u{9FA5}' | '\u{9FA6}'..='\u{9FBB}' | '\u{F900}'..='\u{FA2D}'
        | '\u{FA30}'..='\u{FA6A}' | '\u{FA70}'..='\u{FAD9}' | '\u{2001}'..='\u{2A6D}' | '\u{2F81}'..='\u{2FA1}'
        | '\u{FF00}'..='\u{FFEF}' | '\u{2E80}'..='\u{2EFF}' | '\u{3000}'..='\u{303F}' | '\u{31C0}'..='\u{31EF}'
        | '\u{2F00}'..='\u{2FDF}' | '\u{2FF0}'..='\u{2FFF}' | '\u{3100}'..='\u{312F}' | '\u{31A0}'..='\u{31BF}'
        | '\u{FE10}'..='\u{FE1F}' | '\u{FE30}'..='\u{FE4F}' | '\u{3200}'..='\u{32FF}' | '\u{3300}'..='\u{33FF}')
}

#[cfg(test)]
#[path = "sacrebleu_tests.rs"]
mod tests;
