//! Which of two answers is better, by a large model that sees them in either order.

use serde::Serialize;

/// Keeps the judge to the question.
pub const SYSTEM: &str = "You compare two answers to the same task about a text. Prefer the one that does the task better and \
says what the text says, numbers and names included; length and style count little. Reply with one letter: A, B, or T for a tie.";

/// Whose answers are compared.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// What was asked about the text.
    pub instruction: &'a str,
    /// What the text says, in English.
    pub english: &'a str,
    /// The answer that wins or loses.
    pub ours: &'a str,
    /// The one it is compared with.
    pub theirs: &'a str,
}

/// Which of the two stands first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Ours is A.
    OursFirst,
    /// Theirs is A.
    TheirsFirst,
}

/// What the judge made of one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Ours is better.
    Ours,
    /// Theirs is better.
    Theirs,
    /// Neither is.
    Tie,
}

/// Both orders together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// Ours, in both orders or in one against a tie.
    Win,
    /// The orders balance each other.
    Tie,
    /// Theirs, in both orders or in one against a tie.
    Loss,
    /// The judge did not say in one of the orders.
    Unclear,
}

impl Comparison<'_> {
    /// What the judge is asked.
    #[must_use]
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

impl Verdict {
    /// What a reply says; none where it says nothing of the kind.
    #[must_use]
    pub fn of(reply: &str, order: Order) -> Option<Self> {
        let mut words = reply
            .split(|c: char| !c.is_alphanumeric())
            .filter(|word| !word.is_empty())
            .map(str::to_uppercase)
            .filter(|word| word != "ANSWER");
        let first = words.next()?;
        match (first.as_str(), order) {
            ("T" | "TIE", _) => Some(Self::Tie),
            ("A", Order::OursFirst) | ("B", Order::TheirsFirst) => Some(Self::Ours),
            ("A", Order::TheirsFirst) | ("B", Order::OursFirst) => Some(Self::Theirs),
            _ => None,
        }
    }
}

impl Preference {
    /// The mean of both orders: who profits from standing first in one loses by it in the other.
    #[must_use]
    pub fn of(one: Option<Verdict>, other: Option<Verdict>) -> Self {
        let score = |verdict| match verdict {
            Verdict::Ours => 1,
            Verdict::Tie => 0,
            Verdict::Theirs => -1,
        };
        match (one, other) {
            (Some(one), Some(other)) => match score(one) + score(other) {
                0 => Self::Tie,
                sum if sum > 0 => Self::Win,
                _ => Self::Loss,
            },
            _ => Self::Unclear,
        }
    }

    /// Its name in figures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Win => "win",
            Self::Tie => "tie",
            Self::Loss => "loss",
            Self::Unclear => "unclear",
        }
    }

    /// All of them, in the order in which they are reported.
    pub const ALL: [Self; 4] = [Self::Win, Self::Tie, Self::Loss, Self::Unclear];
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
            ("Both are fine", OursFirst, None),
            ("", OursFirst, None),
        ] {
            assert_eq!(Verdict::of(reply, order), verdict, "{reply:?}");
        }
    }

    #[test]
    fn a_judge_who_always_takes_the_first_prefers_nobody() {
        let always_a = |order| Verdict::of("A", order);
        assert_eq!(
            Preference::of(always_a(Order::OursFirst), always_a(Order::TheirsFirst)),
            Preference::Tie
        );
        assert_eq!(Preference::of(Some(Verdict::Ours), Some(Verdict::Tie)), Preference::Win);
        assert_eq!(
            Preference::of(Some(Verdict::Tie), Some(Verdict::Theirs)),
            Preference::Loss
        );
        assert_eq!(Preference::of(None, Some(Verdict::Ours)), Preference::Unclear);
    }

    #[test]
    fn the_orders_swap_the_answers() {
        let comparison = Comparison {
            instruction: "Translate.",
            english: "A fish.",
            ours: "one",
            theirs: "two",
        };
        for (order, a, b) in [(Order::OursFirst, "one", "two"), (Order::TheirsFirst, "two", "one")] {
            let prompt = comparison.prompt(order);
            let answers = format!("Answer A: {a}\n\nAnswer B: {b}\n");
            assert!(prompt.contains(&answers) && prompt.contains("A fish."), "{prompt}");
        }
    }
}
