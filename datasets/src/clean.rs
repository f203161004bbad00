//! Cleaning: which rows are kept, and why the others are not.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::rows::{InstructionExample, Pair};
use crate::text::{
    ZeroWidth, clean_line, clean_lines, comparison_form, comparison_key, cut, form_key,
};

/// What stands in an instruction where the foreign text goes.
pub const FOREIGN_PLACEHOLDER: &str = "<foreign_emb>";

/// The most characters that a foreign text may have on disk, where they are counted in 16 bits.
pub const MOST_CHARS: u32 = u16::MAX as u32;

/// What a row must satisfy. Lengths are those of the cleaned foreign text, in Unicode scalar values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The fewest characters.
    pub min_chars: u32,
    /// The most characters; 0 and anything above [`MOST_CHARS`] stand for that.
    pub max_chars: u32,
    /// What becomes of a longer text.
    pub too_long: TooLong,
}

impl Rules {
    fn most(&self) -> usize {
        match self.max_chars {
            0 => MOST_CHARS as usize,
            most => most.min(MOST_CHARS) as usize,
        }
    }
}

impl Default for Rules {
    /// The paper's: any length, cut at 256 characters.
    fn default() -> Self {
        Self {
            min_chars: 1,
            max_chars: 256,
            too_long: TooLong::Cut,
        }
    }
}

/// What becomes of a foreign text that is longer than the rules allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// Its beginning is kept.
    Cut,
    /// The row is dropped.
    Drop,
}

/// Why a row is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DropReason {
    /// The line has fewer columns, or the object lacks a key.
    MissingColumn,
    /// The line is no JSON object.
    BrokenJson,
    /// The line is not UTF-8.
    BrokenUtf8,
    /// The line holds a NUL byte.
    NulByte,
    /// The line is longer than a reader takes in.
    LineTooLong,
    /// Nothing to be seen on the English side.
    EmptyEnglish,
    /// Nothing to be seen on the foreign side.
    EmptyForeign,
    /// An instruction without words.
    EmptyInstruction,
    /// An instruction without an answer.
    EmptyAnswer,
    /// An instruction's input does not say where the foreign text goes.
    NoPlaceholder,
    /// The foreign text has too few characters.
    TooShort,
    /// The foreign text has too many characters, and the rules say to drop such rows.
    TooLong,
    /// Both sides are the same text: untranslated.
    IdenticalSides,
    /// Another row has the same text on one of the sides.
    Duplicate,
    /// The English of this training row stands in the holdout part too.
    EnglishInHoldout,
    /// More rows than were asked for.
    Surplus,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Rows counted: `read = kept + dropped` for every source, split and stage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows whose text was cut; they are among the kept.
    pub cut: u64,
    kept: u64,
    dropped: BTreeMap<DropReason, u64>,
}

impl Tally {
    /// Counts a kept row.
    pub fn keep(&mut self) {
        self.kept += 1;
    }

    /// Counts a dropped row.
    pub fn drop(&mut self, reason: DropReason) {
        *self.dropped.entry(reason).or_default() += 1;
    }

    /// Rows kept.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Rows dropped, whatever the reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// The counts by name: `rows`, `kept`, `cut`, and `dropped_<reason>` for each reason that occurred.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<_, _> = self
            .dropped
            .iter()
            .map(|(reason, rows)| (format!("dropped_{reason}"), *rows))
            .collect();
        counts.insert("rows".into(), self.kept + self.dropped());
        counts.insert("kept".into(), self.kept);
        counts.insert("cut".into(), self.cut);
        counts
    }
}

/// A kept row, what it compares by, and whether its foreign text was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept<T> {
    /// The cleaned row.
    pub row: T,
    /// [`crate::text::comparison_key`] of the foreign text: the split key.
    pub foreign_key: u64,
    /// [`crate::text::comparison_key`] of the English text.
    pub english_key: u64,
    /// Whether the rules shortened it.
    pub was_cut: bool,
}

/// Cleans a pair, or says why it is not kept.
///
/// # Errors
/// The first reason that applies, in the order of the [`DropReason`]s.
pub fn clean_pair(
    english: &str,
    foreign: &str,
    source: &str,
    rules: &Rules,
) -> Result<Kept<Pair>, DropReason> {
    let english = clean_line(english, ZeroWidth::Drop);
    let checked = check_sides(&english, foreign, rules)?;
    Ok(checked.keep(|foreign| Pair {
        english,
        foreign,
        source: source.to_owned(),
    }))
}

/// Cleans an instruction example, or says why it is not kept. `raw.instruction` holds [`FOREIGN_PLACEHOLDER`] where
/// the foreign text goes; the kept one is without it.
///
/// # Errors
/// The first reason that applies, in the order of the [`DropReason`]s.
pub fn clean_instruction(
    raw: &InstructionExample,
    rules: &Rules,
) -> Result<Kept<InstructionExample>, DropReason> {
    if !raw.instruction.contains(FOREIGN_PLACEHOLDER) {
        return Err(DropReason::NoPlaceholder);
    }
    let instruction = clean_lines(&raw.instruction.replace(FOREIGN_PLACEHOLDER, " "));
    let answer = clean_lines(&raw.answer);
    let english_ref = clean_line(&raw.english_ref, ZeroWidth::Drop);
    if instruction.is_empty() {
        return Err(DropReason::EmptyInstruction);
    }
    if comparison_form(&answer).is_empty() {
        return Err(DropReason::EmptyAnswer);
    }
    let task = clean_line(&raw.task, ZeroWidth::Drop);
    let source = raw.source.clone();
    let checked = check_sides(&english_ref, &raw.foreign, rules)?;
    Ok(checked.keep(|foreign| InstructionExample {
        task,
        instruction,
        foreign,
        english_ref,
        answer,
        source,
    }))
}

/// The foreign side of a row that is fit to be kept.
struct Checked {
    foreign: String,
    foreign_key: u64,
    english_key: u64,
    was_cut: bool,
}

impl Checked {
    fn keep<T>(self, row: impl FnOnce(String) -> T) -> Kept<T> {
        let Self {
            foreign,
            foreign_key,
            english_key,
            was_cut,
        } = self;
        Kept {
            row: row(foreign),
            foreign_key,
            english_key,
            was_cut,
        }
    }
}

fn check_sides(
    clean_english: &str,
    raw_foreign: &str,
    rules: &Rules,
) -> Result<Checked, DropReason> {
    let mut foreign = clean_line(raw_foreign, ZeroWidth::Keep);
    let english_form = comparison_form(clean_english);
    if english_form.is_empty() {
        return Err(DropReason::EmptyEnglish);
    }
    let foreign_form = comparison_form(&foreign);
    if foreign_form.is_empty() {
        return Err(DropReason::EmptyForeign);
    }
    let chars = foreign.chars().count();
    if chars < rules.min_chars as usize {
        return Err(DropReason::TooShort);
    }
    let was_cut = chars > rules.most();
    if was_cut && rules.too_long == TooLong::Drop {
        return Err(DropReason::TooLong);
    }
    if english_form == foreign_form {
        return Err(DropReason::IdenticalSides);
    }
    let mut foreign_key = form_key(&foreign_form);
    if was_cut {
        foreign.truncate(cut(&foreign, rules.most()).len());
        foreign_key = comparison_key(&foreign);
    }
    Ok(Checked {
        foreign,
        foreign_key,
        english_key: form_key(&english_form),
        was_cut,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(english: &str, foreign: &str, rules: Rules) -> Result<String, DropReason> {
        clean_pair(english, foreign, "test", &rules).map(|kept| kept.row.foreign)
    }

    #[test]
    fn every_fault_has_its_reason() {
        let drop = Rules {
            min_chars: 2,
            max_chars: 4,
            too_long: TooLong::Drop,
        };
        assert_eq!(
            outcome(" \u{200B}", "ក្មេង", drop),
            Err(DropReason::EmptyEnglish)
        );
        assert_eq!(
            outcome("a child", "\u{FEFF}\u{200B} ", drop),
            Err(DropReason::EmptyForeign)
        );
        assert_eq!(outcome("a child", "ក", drop), Err(DropReason::TooShort));
        assert_eq!(outcome("a child", "ក្មេង", drop), Err(DropReason::TooLong));
        assert_eq!(
            outcome("OK !", "ok!", drop),
            Err(DropReason::IdenticalSides)
        );
        assert_eq!(outcome("a fish", "ត្រី", drop), Ok("ត្រី".into()));
    }

    #[test]
    fn long_texts_are_cut_at_the_limit() {
        let rules = Rules {
            min_chars: 1,
            max_chars: 3,
            too_long: TooLong::Cut,
        };
        assert_eq!(outcome("a child", "ក្មេង", rules), Ok("ក្ម".into()));
        let unlimited = Rules {
            max_chars: 0,
            ..rules
        };
        assert_eq!(outcome("a child", "ក្មេង", unlimited), Ok("ក្មេង".into()));
    }

    #[test]
    fn the_placeholder_leaves_the_instruction() {
        let raw = InstructionExample {
            task: "translate".into(),
            instruction: "Translate to English:\n<foreign_emb>\n".into(),
            foreign: "ត្រី".into(),
            english_ref: "a fish".into(),
            answer: "A fish.".into(),
            source: "test".into(),
        };
        let kept = clean_instruction(&raw, &Rules::default()).unwrap();
        assert_eq!(kept.row.instruction, "Translate to English:");
        let without = InstructionExample {
            instruction: "Translate".into(),
            ..raw.clone()
        };
        assert_eq!(
            clean_instruction(&without, &Rules::default()).unwrap_err(),
            DropReason::NoPlaceholder
        );
        let silent = InstructionExample {
            answer: "\n \n".into(),
            ..raw
        };
        assert_eq!(
            clean_instruction(&silent, &Rules::default()).unwrap_err(),
            DropReason::EmptyAnswer
        );
    }

    #[test]
    fn reasons_are_written_in_snake_case() {
        assert_eq!(DropReason::BrokenUtf8.to_string(), "broken_utf8");
        assert_eq!(
            DropReason::EnglishInHoldout.to_string(),
            "english_in_holdout"
        );
    }
}
