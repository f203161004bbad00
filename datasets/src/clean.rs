//! Cleaning decides which rows are kept and counts the reason for each dropped row.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::near::{Signature, Signer};
use crate::numbers::agree;
use crate::rows::InstructionExample;
use crate::script::WritingSystem;
use crate::text::{ZeroWidth, clean_line, clean_lines, comparison_form, cut, form_key, tidy};

/// The text in an instruction that marks the place of the foreign text.
pub const FOREIGN_PLACEHOLDER: &str = "<foreign_emb>";

/// The most characters of a foreign text on disk, where the count has 16 bits.
pub const MOST_CHARS: u32 = u16::MAX as u32;

/// The rules that a row must satisfy. Lengths are those of the cleaned foreign text, in Unicode scalar values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Shortest allowed length, in characters.
    pub min_chars: u32,
    /// Longest allowed length, in characters. 0 and anything above [`MOST_CHARS`] stand for [`MOST_CHARS`].
    pub max_chars: u32,
    /// Whether a longer text is cut or dropped.
    pub too_long: TooLong,
    /// The scripts in which the two sides must be written.
    pub scripts: Option<Scripts>,
    /// The greatest ratio of the sides' lengths; `None` allows any. It is measured before the cut.
    pub max_length_ratio: Option<f64>,
    /// Whether the sides must have the same numbers. They are compared before the cut.
    pub numbers: Numbers,
}

/// The treatment of pairs whose numbers differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Numbers {
    /// They are kept.
    #[default]
    Any,
    /// They are dropped.
    MustAgree,
}

/// The scripts in which the two sides must be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scripts {
    /// The script of the foreign side.
    pub foreign: WritingSystem,
    /// The script of the English side.
    pub english: WritingSystem,
    /// The least share of a side's letters that must be in its script.
    pub min_share: f64,
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
    /// Returns the paper's rules: any length, cut at 256 characters.
    fn default() -> Self {
        Self {
            min_chars: 1,
            max_chars: 256,
            too_long: TooLong::Cut,
            scripts: None,
            max_length_ratio: None,
            numbers: Numbers::Any,
        }
    }
}

/// The treatment of a foreign text that is longer than the rules allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// The beginning of the text is kept.
    Cut,
    /// The row is dropped.
    Drop,
}

/// The reason why a row is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DropReason {
    /// The line has fewer columns, or the object lacks a key.
    MissingColumn,
    /// The line is not a JSON object.
    BrokenJson,
    /// A value is not text.
    NotText,
    /// A TMX unit is not valid XML.
    BrokenXml,
    /// A TMX unit lacks one of the languages, or has several candidates for one.
    MissingLanguage,
    /// A chat has more than one question and one answer, or parts other than text.
    ManyTurns,
    /// The example's task is not one of the allowed tasks.
    OtherTask,
    /// The line is broken in the file's encoding, which is UTF-8 unless the file says otherwise.
    BrokenUtf8,
    /// The line holds a NUL byte.
    NulByte,
    /// The line is longer than a reader accepts.
    LineTooLong,
    /// The English side holds no visible character.
    EmptyEnglish,
    /// The foreign side holds no visible character.
    EmptyForeign,
    /// The instruction has no words.
    EmptyInstruction,
    /// The instruction has no answer.
    EmptyAnswer,
    /// An instruction's input does not say where the foreign text goes.
    NoPlaceholder,
    /// The foreign text has too few characters.
    TooShort,
    /// The foreign text has too many characters, and the rules drop such rows.
    TooLong,
    /// Too few letters of the foreign text are in its script.
    WrongScript,
    /// Too few letters of the English text are in its script.
    WrongEnglishScript,
    /// One side is too long in relation to the other.
    LengthRatio,
    /// Both sides are the same text, so it is not translated.
    IdenticalSides,
    /// The two sides have other numbers.
    NumbersDiffer,
    /// Another row has the same text on one of the sides.
    Duplicate,
    /// The English text of this training row is also in the holdout part.
    EnglishInHoldout,
    /// Another row is a near-duplicate of this one.
    NearDuplicate,
    /// This training row is a near-duplicate of a held-out row.
    NearDuplicateInHoldout,
    /// The row is beyond the number of rows that were asked for.
    Surplus,
}

/// A side of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Language {
    English,
    Foreign,
}

impl DropReason {
    /// Returns the side at fault, if only one side is.
    pub(crate) fn language(self) -> Option<Language> {
        match self {
            Self::EmptyEnglish | Self::WrongEnglishScript => Some(Language::English),
            Self::EmptyForeign | Self::TooShort | Self::TooLong | Self::WrongScript => Some(Language::Foreign),
            _ => None,
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Counts of rows: `read = kept + dropped` for every source, split and stage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Number of kept rows whose text was cut.
    pub cut: u64,
    /// Number of kept rows with a side that was not in NFC.
    pub composed: u64,
    /// Number of kept rows with a side that lost control or zero-width characters.
    pub stripped: u64,
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

    /// Returns the number of kept rows.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Returns the number of dropped rows, for any reason.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Returns the counts by name: `rows`, `kept`, `cut`, `composed`, `stripped`, and `dropped_<reason>` for each
    /// reason that occurred.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts: BTreeMap<_, _> =
            self.dropped.iter().map(|(reason, rows)| (format!("dropped_{reason}"), *rows)).collect();
        counts.insert("rows".into(), self.kept + self.dropped());
        counts.insert("kept".into(), self.kept);
        counts.insert("cut".into(), self.cut);
        counts.insert("composed".into(), self.composed);
        counts.insert("stripped".into(), self.stripped);
        counts
    }
}

/// A kept row with its comparison keys and what cleaning changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept<T> {
    /// The cleaned row.
    pub row: T,
    /// The comparison keys, and what cleaning changed.
    pub checked: Checked,
}

/// The comparison keys of a kept row, and what cleaning changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// [`crate::text::comparison_key`] of the foreign text, which is the split key.
    pub foreign_key: u64,
    /// [`crate::text::comparison_key`] of the English text.
    pub english_key: u64,
    /// True if the text was cut.
    pub was_cut: bool,
    /// True if a side was not in NFC.
    pub was_composed: bool,
    /// True if a side lost control or zero-width characters.
    pub was_stripped: bool,
    /// The signatures of the English and the foreign side, if near-duplicates are searched.
    pub(crate) signatures: Option<[Signature; 2]>,
}

/// Applies the rules to rows.
pub struct Cleaner {
    rules: Rules,
    signer: Option<Signer>,
}

impl Cleaner {
    /// Makes a cleaner. `with_signatures` adds the signatures that find near-duplicates to the kept rows.
    #[must_use]
    pub fn new(rules: Rules, with_signatures: bool) -> Self {
        Self { rules, signer: with_signatures.then(Signer::new) }
    }

    /// Cleans a pair, English first, or returns the reason why it is dropped.
    ///
    /// # Errors
    /// The first reason that applies, in the order of the [`DropReason`]s.
    pub fn pair(&self, english: &str, foreign: &str) -> Result<Kept<[String; 2]>, DropReason> {
        let (english, foreign, checked) = self.sides(english, foreign)?;
        Ok(Kept { row: [english, foreign], checked })
    }

    /// Cleans an instruction example, or returns the reason why it is dropped. `raw.instruction` holds
    /// [`FOREIGN_PLACEHOLDER`] in the place of the foreign text; the kept example does not.
    ///
    /// # Errors
    /// The first reason that applies, in the order of the [`DropReason`]s.
    pub fn instruction(&self, raw: &InstructionExample) -> Result<Kept<InstructionExample>, DropReason> {
        if !raw.instruction.contains(FOREIGN_PLACEHOLDER) {
            return Err(DropReason::NoPlaceholder);
        }
        let instruction = clean_lines(&raw.instruction.replace(FOREIGN_PLACEHOLDER, " "));
        let answer = clean_lines(&raw.answer);
        if instruction.is_empty() {
            return Err(DropReason::EmptyInstruction);
        }
        if comparison_form(&answer).is_empty() {
            return Err(DropReason::EmptyAnswer);
        }
        let (english_ref, foreign, checked) = self.sides(&raw.english_ref, &raw.foreign)?;
        Ok(Kept {
            row: InstructionExample {
                task: clean_line(&raw.task, ZeroWidth::Drop),
                instruction,
                foreign,
                english_ref,
                answer,
                source: raw.source.clone(),
            },
            checked,
        })
    }

    /// Returns the cleaned English and foreign text, or the reason why one of them is not usable.
    fn sides(&self, english: &str, foreign: &str) -> Result<(String, String, Checked), DropReason> {
        let rules = &self.rules;
        let english = tidy(english, ZeroWidth::Drop);
        let mut foreign = tidy(foreign, ZeroWidth::Keep);
        let english_form = comparison_form(&english.text);
        if english_form.is_empty() {
            return Err(DropReason::EmptyEnglish);
        }
        let mut foreign_form = comparison_form(&foreign.text);
        if foreign_form.is_empty() {
            return Err(DropReason::EmptyForeign);
        }
        let chars = foreign.text.chars().count();
        if chars < rules.min_chars as usize {
            return Err(DropReason::TooShort);
        }
        let was_cut = chars > rules.most();
        if was_cut && rules.too_long == TooLong::Drop {
            return Err(DropReason::TooLong);
        }
        if let Some(scripts) = &rules.scripts {
            if scripts.foreign.share(&foreign.text) < scripts.min_share {
                return Err(DropReason::WrongScript);
            }
            if scripts.english.share(&english.text) < scripts.min_share {
                return Err(DropReason::WrongEnglishScript);
            }
        }
        if let Some(most) = rules.max_length_ratio {
            let other = english.text.chars().count();
            if chars.max(other) as f64 > most * chars.min(other) as f64 {
                return Err(DropReason::LengthRatio);
            }
        }
        if english_form == foreign_form {
            return Err(DropReason::IdenticalSides);
        }
        if rules.numbers == Numbers::MustAgree && !agree(&english.text, &foreign.text) {
            return Err(DropReason::NumbersDiffer);
        }
        if was_cut {
            foreign.text.truncate(cut(&foreign.text, rules.most()).len());
            foreign_form = comparison_form(&foreign.text);
        }
        let sign = |signer: &Signer| [signer.sign(&english_form), signer.sign(&foreign_form)];
        let checked = Checked {
            foreign_key: form_key(&foreign_form),
            english_key: form_key(&english_form),
            was_cut,
            was_composed: english.was_composed || foreign.was_composed,
            was_stripped: english.was_stripped || foreign.was_stripped,
            signatures: self.signer.as_ref().map(sign),
        };
        Ok((english.text, foreign.text, checked))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(english: &str, foreign: &str, rules: Rules) -> Result<String, DropReason> {
        Cleaner::new(rules, false).pair(english, foreign).map(|Kept { row: [_, foreign], .. }| foreign)
    }

    #[test]
    fn every_fault_has_its_reason() {
        let drop = Rules { min_chars: 2, max_chars: 4, too_long: TooLong::Drop, ..Rules::default() };
        assert_eq!(outcome(" \u{200B}", "ក្មេង", drop), Err(DropReason::EmptyEnglish));
        assert_eq!(outcome("a child", "\u{FEFF}\u{200B} ", drop), Err(DropReason::EmptyForeign));
        assert_eq!(outcome("a child", "ក", drop), Err(DropReason::TooShort));
        assert_eq!(outcome("a child", "ក្មេង", drop), Err(DropReason::TooLong));
        assert_eq!(outcome("OK !", "ok!", drop), Err(DropReason::IdenticalSides));
        assert_eq!(outcome("a fish", "ត្រី", drop), Ok("ត្រី".into()));
    }

    #[test]
    fn long_texts_are_cut_at_the_limit() {
        let rules = Rules { min_chars: 1, max_chars: 3, too_long: TooLong::Cut, ..Rules::default() };
        assert_eq!(outcome("a child", "ក្មេង", rules), Ok("ក្ម".into()));
        let unlimited = Rules { max_chars: 0, ..rules };
        assert_eq!(outcome("a child", "ក្មេង", unlimited), Ok("ក្មេង".into()));
    }

    fn clean(raw: &InstructionExample) -> Result<Kept<InstructionExample>, DropReason> {
        Cleaner::new(Rules::default(), false).instruction(raw)
    }

    #[test]
    fn scripts_and_length_ratios_are_kept_to_where_asked() {
        let scripts = Scripts { foreign: "Khmr".parse().unwrap(), english: WritingSystem::LATIN, min_share: 0.5 };
        let rules = Rules { scripts: Some(scripts), max_length_ratio: Some(2.0), ..Rules::default() };
        assert_eq!(outcome("a fish", "ein Fisch", rules), Err(DropReason::WrongScript));
        assert_eq!(outcome("ត្រី", "ត្រីមួយ", rules), Err(DropReason::WrongEnglishScript));
        assert_eq!(outcome("a fish swims in the river", "ត្រី", rules), Err(DropReason::LengthRatio));
        assert!(outcome("a fish", "ត្រី OK", rules).is_ok());
    }

    #[test]
    fn pairs_with_other_numbers_are_dropped_where_asked() {
        let rules = Rules { numbers: Numbers::MustAgree, ..Rules::default() };
        assert_eq!(outcome("3 fish", "ត្រី ៤", rules), Err(DropReason::NumbersDiffer));
        assert!(outcome("3 fish", "ត្រី ៣", rules).is_ok());
        assert!(outcome("3 fish", "ត្រី ៤", Rules::default()).is_ok());
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
        let kept = clean(&raw).unwrap();
        assert_eq!(kept.row.instruction, "Translate to English:");
        let without = InstructionExample { instruction: "Translate".into(), ..raw.clone() };
        assert_eq!(clean(&without).unwrap_err(), DropReason::NoPlaceholder);
        let silent = InstructionExample { answer: "\n \n".into(), ..raw };
        assert_eq!(clean(&silent).unwrap_err(), DropReason::EmptyAnswer);
    }

    #[test]
    fn reasons_are_written_in_snake_case() {
        assert_eq!(DropReason::BrokenUtf8.to_string(), "broken_utf8");
        assert_eq!(DropReason::EnglishInHoldout.to_string(), "english_in_holdout");
    }
}
