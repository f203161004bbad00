//! Compares two answers with a large model, which sees them in both orders.

mod tally;

pub use tally::{JudgedPair, tally};

use serde::Serialize;

/// The system message, which restricts the judge to the question.
pub const SYSTEM: &str = "You compare two answers to the same task about a text. Prefer the one that does the task better and \
says what the text says, numbers and names included; length and style count little. Reply with one letter: A, B, or T for a tie.";

#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    pub instruction: &'a str,
    /// The meaning of the text, in English.
    pub english: &'a str,
    /// The job's own answer, which wins or loses.
    pub ours: &'a str,
    /// The answer that it is compared with.
    pub theirs: &'a str,
}

/// The order of the two answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The job's own answer is A.
    OursFirst,
    /// The other answer is A.
    TheirsFirst,
}

/// The judge's verdict in one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ours,
    Theirs,
    Tie,
}

/// The verdicts of both orders together, over all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// More verdicts are for the job's own answer than against it.
    Win,
    /// The verdicts balance each other.
    Tie,
    /// More verdicts are against the job's own answer than for it.
    Loss,
    /// The judge gave no verdict at least once.
    Unclear,
}

impl Comparison<'_> {
    /// Returns the prompt for the judge.
    pub fn prompt(&self, order: Order) -> String {
        let (a, b) = match order {
            Order::OursFirst => (self.ours, self.theirs),
            Order::TheirsFirst => (self.theirs, self.ours),
        };
        let (instruction, english) = (self.instruction, self.english);
        format!(
            "Task: {instruction}\n\nThe text, in English: {english}\n\nAnswer A: {a}\n\nAnswer B: {b}\n\nWhich is better: A, B or T?"
        )
    }
}

/// The letter that a reply names as better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Letter {
    A,
    B,
    Tie,
}

/// Words around a verdict that have no meaning of their own.
const FILLERS: [&str; 27] = [
    "answer",
    "verdict",
    "final",
    "winner",
    "better",
    "best",
    "choice",
    "option",
    "response",
    "preferred",
    "preference",
    "judgment",
    "judgement",
    "result",
    "the",
    "is",
    "my",
    "i",
    "choose",
    "prefer",
    "boxed",
    "text",
    "so",
    "therefore",
    "thus",
    "overall",
    "it",
];
/// Words after a letter at the beginning of a reply that make the letter the winner.
const WINS: [&str; 6] = ["better", "best", "wins", "preferred", "preferable", "stronger"];

impl Verdict {
    /// Reads the verdict of a reply, or returns `None` if there is none. A letter alone in the last sentence takes
    /// precedence over one in the first, because models reason before they decide. A letter elsewhere counts if no
    /// other letter is named.
    pub fn of(reply: &str, order: Order) -> Option<Self> {
        let sentences = reply.split(['\n', '.', '!', '?']).map(words);
        let sentences: Vec<Vec<&str>> = sentences.filter(|words| !words.is_empty()).collect();
        let letter = only_letter(sentences.last()?)
            .or_else(|| only_letter(sentences.first()?))
            .or_else(|| one_letter(&sentences.concat()))
            .or_else(|| winner(sentences.first()?))?;
        Some(match (letter, order) {
            (Letter::Tie, _) => Self::Tie,
            (Letter::A, Order::OursFirst) | (Letter::B, Order::TheirsFirst) => Self::Ours,
            (Letter::A, Order::TheirsFirst) | (Letter::B, Order::OursFirst) => Self::Theirs,
        })
    }
}

fn words(sentence: &str) -> Vec<&str> {
    let parts = sentence.split(|c: char| !c.is_alphanumeric());
    parts.filter(|word| !word.is_empty()).collect()
}

/// Returns the letter of a sentence with only a letter and fillers: `A`, `**Verdict:** B`, `The better answer is T.`,
/// `{"answer": "A"}`.
fn only_letter(sentence: &[&str]) -> Option<Letter> {
    let filler = |word: &&&str| FILLERS.contains(&word.to_lowercase().as_str());
    let mut rest = sentence.iter().filter(|word| !filler(word));
    let letter = match rest.next()?.to_uppercase().as_str() {
        "A" => Letter::A,
        "B" => Letter::B,
        "T" | "TIE" => Letter::Tie,
        _ => return None,
    };
    rest.next().is_none().then_some(letter)
}

/// Returns the letter that a text names, if it names no other. An `A` that is the article of a sentence does not count.
fn one_letter(words: &[&str]) -> Option<Letter> {
    let letters = words.iter().enumerate().filter_map(|(at, word)| match *word {
        "A" if is_article(words, at) => None,
        "A" => Some(Letter::A),
        "B" => Some(Letter::B),
        "T" => Some(Letter::Tie),
        word if word.eq_ignore_ascii_case("tie") => Some(Letter::Tie),
        _ => None,
    });
    let mut letters = letters.peekable();
    let first = *letters.peek()?;
    letters.all(|letter| letter == first).then_some(first)
}

/// Returns the letter at the beginning of a sentence that says that it wins, such as `A is better than B`.
fn winner(sentence: &[&str]) -> Option<Letter> {
    let at = sentence.iter().position(|word| !FILLERS.contains(&word.to_lowercase().as_str()))?;
    let letter = match sentence[at] {
        "A" if !is_article(sentence, at) => Letter::A,
        "B" => Letter::B,
        _ => return None,
    };
    let next = sentence[at + 1..].iter().take(4).map(|word| word.to_lowercase());
    let next: Vec<String> = next.collect();
    let wins = next.iter().any(|word| WINS.contains(&word.as_str())) && !next.iter().any(|word| word == "not");
    wins.then_some(letter)
}

/// Returns true if the `A` there is an article, because a noun or an adjective follows and no verb.
fn is_article(words: &[&str], at: usize) -> bool {
    let after = words.get(at + 1).copied().unwrap_or_default();
    let verbs =
        ["is", "was", "wins", "has", "does", "names", "says", "keeps", "gives", "over", "and", "or", "because", "by"];
    let begins_sentence = at == 0 || words[at - 1].chars().all(char::is_lowercase);
    let of_an_answer = at > 0 && ["answer", "option", "response"].contains(&words[at - 1].to_lowercase().as_str());
    !of_an_answer
        && begins_sentence
        && !after.is_empty()
        && !verbs.contains(&after)
        && after.chars().all(char::is_lowercase)
}

impl Preference {
    /// Combines the verdicts of both orders. An answer that profits from the first position in one order loses by it in the
    /// other.
    pub fn of(verdicts: impl IntoIterator<Item = Option<Verdict>>) -> Self {
        let score = |verdict| match verdict {
            Verdict::Ours => 1,
            Verdict::Tie => 0,
            Verdict::Theirs => -1,
        };
        let scores = verdicts.into_iter().map(|verdict| verdict.map(score));
        match scores.sum::<Option<i32>>() {
            None => Self::Unclear,
            Some(0) => Self::Tie,
            Some(1..) => Self::Win,
            Some(_) => Self::Loss,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_a_letter_however_it_is_dressed() {
        use Order::{OursFirst, TheirsFirst};
        for (reply, order, verdict) in [
            ("A", OursFirst, Some(Verdict::Ours)),
            ("B.", OursFirst, Some(Verdict::Theirs)),
            ("**a**", TheirsFirst, Some(Verdict::Theirs)),
            ("Answer B is better.", TheirsFirst, Some(Verdict::Ours)),
            ("Tie", OursFirst, Some(Verdict::Tie)),
            ("t", TheirsFirst, Some(Verdict::Tie)),
            ("**Verdict:** A", OursFirst, Some(Verdict::Ours)),
            ("The better answer is B.", OursFirst, Some(Verdict::Theirs)),
            ("A better answer is B.", OursFirst, Some(Verdict::Theirs)),
            ("A is better than B.", OursFirst, Some(Verdict::Ours)),
            ("A. It names the river, B does not.", OursFirst, Some(Verdict::Ours)),
            ("{\"verdict\": \"B\"}", OursFirst, Some(Verdict::Theirs)),
            ("\\boxed{A}", OursFirst, Some(Verdict::Ours)),
            ("Answer A is short. Answer B names the river.\n\nVerdict: B", OursFirst, Some(Verdict::Theirs)),
            ("Answer A lacks the number. Therefore, the better answer is B.", OursFirst, Some(Verdict::Theirs)),
            ("It's a tie.", OursFirst, Some(Verdict::Tie)),
            ("A tie", OursFirst, Some(Verdict::Tie)),
            ("B is worse than A", OursFirst, None),
            ("Answer A is fluent. Answer B is wrong.", OursFirst, None),
            ("A river is named in both.", OursFirst, None),
            ("Both are fine", OursFirst, None),
            ("", OursFirst, None),
        ] {
            assert_eq!(Verdict::of(reply, order), verdict, "{reply:?}");
        }
    }

    #[test]
    fn a_judge_who_always_takes_the_first_prefers_nobody() {
        let always_a = |order| Verdict::of("A", order);
        assert_eq!(Preference::of([always_a(Order::OursFirst), always_a(Order::TheirsFirst)]), Preference::Tie);
        assert_eq!(Preference::of([Some(Verdict::Ours), Some(Verdict::Tie)]), Preference::Win);
        assert_eq!(Preference::of([Some(Verdict::Tie), Some(Verdict::Theirs)]), Preference::Loss);
        assert_eq!(Preference::of([None, Some(Verdict::Ours)]), Preference::Unclear);
    }

    #[test]
    fn the_orders_swap_the_answers() {
        let comparison = Comparison { instruction: "Translate.", english: "A fish.", ours: "one", theirs: "two" };
        for (order, a, b) in [(Order::OursFirst, "one", "two"), (Order::TheirsFirst, "two", "one")] {
            let prompt = comparison.prompt(order);
            let answers = format!("Answer A: {a}\n\nAnswer B: {b}\n");
            assert!(prompt.contains(&answers) && prompt.contains("A fish."), "{prompt}");
        }
    }
}
