//! Writing systems, named by their ISO 15924 codes.

use std::fmt;
use std::str::FromStr;

use unicode_script::{Script, UnicodeScript};

/// A writing system as a set of Unicode scripts; `Jpan` stands for three of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WritingSystem {
    scripts: [Script; 3],
}

impl WritingSystem {
    /// The Latin script, `Latn`.
    pub const LATIN: Self = Self::of(Script::Latin);

    const fn of(script: Script) -> Self {
        Self { scripts: [script, script, script] }
    }

    /// Returns the share of a text's letters (and marks) that are in this system, from 0 to 1. Digits, punctuation and
    /// spaces do not count. A text without letters has 0.
    #[must_use]
    pub fn share(self, text: &str) -> f64 {
        let (mut own, mut all) = (0_u32, 0_u32);
        for c in text.chars() {
            // A fast path for common characters that are not letters, without a lookup in the table.
            let script = match c {
                'a'..='z' | 'A'..='Z' => Script::Latin,
                '\0'..='\u{A9}' => continue,
                // The block of Khmer, in which every character but the currency sign belongs to the script.
                '\u{1780}'..='\u{17DA}' | '\u{17DC}'..='\u{17E9}' => Script::Khmer,
                c => c.script(),
            };
            if matches!(script, Script::Common | Script::Inherited | Script::Unknown) {
                continue;
            }
            all += 1;
            own += u32::from(self.scripts.contains(&script));
        }
        if all == 0 { 0.0 } else { f64::from(own) / f64::from(all) }
    }
}

impl FromStr for WritingSystem {
    type Err = String;

    fn from_str(code: &str) -> Result<Self, String> {
        let scripts = match code {
            "Jpan" => [Script::Han, Script::Hiragana, Script::Katakana],
            "Hrkt" => [Script::Hiragana, Script::Hiragana, Script::Katakana],
            "Kore" => [Script::Hangul, Script::Hangul, Script::Han],
            "Hans" | "Hant" => [Script::Han; 3],
            code => {
                let script = Script::from_short_name(code)
                    .filter(|script| !matches!(script, Script::Common | Script::Inherited | Script::Unknown));
                let unknown =
                    || format!("`{code}` is not the ISO 15924 code of a Unicode script, such as Khmr or Latn");
                [script.ok_or_else(unknown)?; 3]
            }
        };
        Ok(Self { scripts })
    }
}

impl fmt::Display for WritingSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scripts[0].short_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_counted_by_script_and_nothing_else_is() {
        let khmer: WritingSystem = "Khmr".parse().unwrap();
        assert_eq!(khmer.share("ភាសា\u{200B}ខ្មែរ ១២៣ (2026)!"), 1.0);
        assert_eq!(khmer.share("2026 - !"), 0.0, "no letters");
        assert!((khmer.share("ខ្មែរ Khmer") - 0.5).abs() < 1e-9);
        assert_eq!(WritingSystem::LATIN.share("Crème brûlée"), 1.0);
        assert_eq!("Jpan".parse::<WritingSystem>().unwrap().share("日本語のテスト"), 1.0);
        assert!("Khmer".parse::<WritingSystem>().unwrap_err().contains("ISO 15924"));
        assert!("Zyyy".parse::<WritingSystem>().is_err());
    }
}
