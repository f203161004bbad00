//! Recognizes answers that are refusals.

/// The beginnings of refusals, in lower case and with plain apostrophes.
const REFUSALS: [&str; 14] = [
    "i'm sorry",
    "i am sorry",
    "sorry,",
    "i cannot",
    "i can't",
    "i'm unable",
    "i am unable",
    "i'm not able to",
    "i am not able to",
    "i won't be able to",
    "i apologize, but",
    "i apologise, but",
    "as an ai",
    "as a language model",
];

/// Returns true if an answer begins like a refusal. `more` holds the job's own beginnings.
pub fn is_refusal(answer: &str, more: &[String]) -> bool {
    let answer = plain(answer);
    let answer = answer.trim_start();
    // `**I'm sorry**` and `"I'm sorry"` are refusals too.
    let undressed = answer.trim_start_matches(|c: char| c.is_whitespace() || "\"“”„«*_>#".contains(c));
    let begins = |beginning: &str| answer.starts_with(beginning) || undressed.starts_with(beginning);
    REFUSALS.iter().any(|r| begins(r)) || more.iter().any(|r| begins(plain(r).trim_start()))
}

/// Returns lower case, with each typographic apostrophe as `'`, because models write either.
fn plain(text: &str) -> String {
    let lower = text.to_lowercase();
    lower.replace(['\u{2018}', '\u{2019}', '\u{201b}', '\u{2bc}', '\u{2032}', '\u{ff07}', '\u{b4}', '`'], "'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_known_by_how_they_begin() {
        for refusal in [
            " I'm sorry, but I can't.",
            "I’m sorry, but I can’t help with that.",
            "I can\u{2bc}t help.",
            "I won\u{2018}t be able to do that.",
            "**I’m unable to help.**",
            "“I cannot say.”",
        ] {
            assert!(is_refusal(refusal, &[]), "{refusal}");
        }
        assert!(!is_refusal("The farmer says that he is sorry, I cannot tell why.", &[]));
        assert!(is_refusal("N/A", &["n/a".into()]));
        assert!(is_refusal("[No answer]", &["[no answer".into()]));
        assert!(
            is_refusal("I’d rather not.", &["i'd rather".into()])
                && is_refusal("I'd rather not.", &["I’d rather".into()])
        );
    }
}
