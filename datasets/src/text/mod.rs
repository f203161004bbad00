//! Normalizes text: the form in which text is stored, and the stricter form by which two texts are compared.

mod quick;
mod sentences;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};
use xxhash_rust::xxh3::xxh3_64;

pub use sentences::{SentenceRules, Splitter};

/// The treatment of U+200B..U+200D (zero-width space, non-joiner, joiner) inside a text.
///
/// Khmer is written without spaces between words. U+200B marks where a word ends or a line may break, and the other two
/// join or separate signs. There they carry meaning and stay. In Latin text they are remains of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroWidth {
    /// The characters are kept between others, and dropped at both ends.
    Keep,
    /// The characters are dropped everywhere.
    Drop,
}

fn is_zero_width(c: char) -> bool {
    matches!(c, '\u{200B}'..='\u{200D}')
}

/// Returns true for controls other than white space, and for invisible characters that join nothing: the byte order
/// mark, the soft hyphen, U+2060..U+2064 and the interlinear marks. Marks of direction stay, because right-to-left text
/// needs them.
fn is_debris(c: char) -> bool {
    (c.is_control() && !c.is_whitespace())
        || matches!(c, '\u{FEFF}' | '\u{AD}' | '\u{2060}'..='\u{2064}' | '\u{FFF9}'..='\u{FFFB}')
}

/// A cleaned line, with what was changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tidied {
    /// The cleaned line.
    pub text: String,
    /// True if the input was not in NFC.
    pub was_composed: bool,
    /// True if controls or zero-width characters were removed.
    pub was_stripped: bool,
}

/// Returns one line in NFC: trimmed, with each run of white space (line breaks too) as one space, and without controls
/// and U+FEFF. Cleaning a clean line changes nothing.
#[must_use]
pub fn clean_line(text: &str, zero_width: ZeroWidth) -> String {
    tidy(text, zero_width).text
}

/// Does the same as [`clean_line`] and returns what it changed.
#[must_use]
pub fn tidy(text: &str, zero_width: ZeroWidth) -> Tidied {
    if quick::is_tidy(text) && quick::is_composed(text) {
        return Tidied { text: text.to_owned(), was_composed: false, was_stripped: false };
    }
    tidy_slowly(text, zero_width)
}

/// Checks by a look at each character whether a text is in NFC.
fn quick_nfc(text: &str) -> IsNormalized {
    if quick::is_composed(text) {
        return IsNormalized::Yes;
    }
    is_nfc_quick(text.chars())
}

fn tidy_slowly(text: &str, zero_width: ZeroWidth) -> Tidied {
    // Most text is already composed, and the check is cheaper than composing.
    let (mut line, mut was_composed) = match quick_nfc(text) {
        IsNormalized::Yes => (tidied(text.chars(), zero_width, text.len()), false),
        _ => (tidied(text.nfc(), zero_width, text.len()), !text.nfc().eq(text.chars())),
    };
    let seen = line.0.trim_end_matches(|c: char| is_zero_width(c) || c == ' ').len();
    line.1 |= line.0[seen..].chars().any(is_zero_width);
    line.0.truncate(seen);
    let (mut text, was_stripped) = line;
    // The dropped character may have stood between two that now compose.
    if quick_nfc(&text) != IsNormalized::Yes {
        let composed: String = text.nfc().collect();
        was_composed |= composed != text;
        text = composed;
    }
    Tidied { text, was_composed, was_stripped }
}

/// Returns the line, and whether more than white space was dropped.
fn tidied(composed: impl Iterator<Item = char>, zero_width: ZeroWidth, bytes: usize) -> (String, bool) {
    let mut line = String::with_capacity(bytes);
    let (mut gap, mut stripped) = (false, false);
    for c in composed {
        if is_debris(c) || (zero_width == ZeroWidth::Drop && is_zero_width(c)) {
            stripped = true;
            continue;
        }
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        // At the start there is no gap, and a zero-width character separates or joins nothing.
        if line.is_empty() && is_zero_width(c) {
            stripped = true;
            continue;
        }
        if gap && !line.is_empty() {
            line.push(' ');
        }
        gap = false;
        line.push(c);
    }
    (line, stripped)
}

/// Cleans text whose line breaks matter, such as answers with bullet points. Each line is cleaned by [`clean_line`].
/// Empty lines are removed at both ends, and at most one remains between others.
#[must_use]
pub fn clean_lines(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = clean_line(line, ZeroWidth::Keep);
        if !line.is_empty() || lines.last().is_some_and(|last| !last.is_empty()) {
            lines.push(line);
        }
    }
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines.join("\n")
}

/// Returns the form by which texts are compared: NFKC, lower case, without white space, zero-width and control
/// characters. It is empty for a text without visible characters.
#[must_use]
pub fn comparison_form(text: &str) -> String {
    quick::form(text).unwrap_or_else(|| comparison_form_slowly(text))
}

fn comparison_form_slowly(text: &str) -> String {
    let unseen = |c: &char| c.is_whitespace() || is_zero_width(*c) || is_debris(*c);
    let mut form = String::with_capacity(text.len());
    let mut push_lower = |c: char| {
        if c.is_ascii() {
            form.push(c.to_ascii_lowercase());
        } else {
            form.extend(c.to_lowercase());
        }
    };
    let seen = || text.chars().filter(|c| !unseen(c));
    if is_nfkc_quick(seen()) == IsNormalized::Yes {
        seen().for_each(&mut push_lower);
    } else {
        // Compatibility forms may contain spaces.
        seen().nfkc().filter(|c| !unseen(c)).for_each(&mut push_lower);
    }
    form
}

/// Returns XXH3 (64 bits, no seed) of a text's [`comparison_form`] in UTF-8. For the foreign text it is the split key.
#[must_use]
pub fn comparison_key(text: &str) -> u64 {
    form_key(&comparison_form(text))
}

/// Returns the [`comparison_key`] of a text from its [`comparison_form`].
#[must_use]
pub fn form_key(form: &str) -> u64 {
    xxh3_64(form.as_bytes())
}

/// Returns the first `max_chars` Unicode scalar values of a text, trimmed at the end. A shorter text is returned whole.
#[must_use]
pub fn cut(text: &str, max_chars: usize) -> &str {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => text[..end].trim_end_matches(|c: char| c == ' ' || is_zero_width(c)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_are_trimmed_collapsed_and_freed_of_controls() {
        let raw = "\u{FEFF} \t ទឹក\u{00A0}\u{3000}ភ្លៀង\u{7}\u{85}\r\n ";
        assert_eq!(clean_line(raw, ZeroWidth::Keep), "ទឹក ភ្លៀង");
    }

    #[test]
    fn zero_width_marks_stay_inside_khmer_and_leave_the_ends() {
        let raw = "\u{200B}ភាសា\u{200B}ខ្មែរ \u{200B}";
        assert_eq!(clean_line(raw, ZeroWidth::Keep), "ភាសា\u{200B}ខ្មែរ");
        assert_eq!(clean_line(raw, ZeroWidth::Drop), "ភាសាខ្មែរ");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        // Some of these characters compose once the characters between them are dropped, and some decompose.
        #[test]
        fn cleaning_twice_changes_nothing(
            raw in "[e\u{301}\u{0}\u{200B}\u{200D} \n\u{FEFF}ក\u{17D2}\u{17C4}\u{1100}\u{1161}\u{11A8}\u{2000}ﬁÅ\u{85}\u{9F}\u{17DD}Qb\u{1680}’]{0,8}"
        ) {
            for zero_width in [ZeroWidth::Keep, ZeroWidth::Drop] {
                let once = clean_line(&raw, zero_width);
                prop_assert_eq!(&clean_line(&once, zero_width), &once);
                prop_assert_eq!(comparison_form(&once), comparison_form(&raw));
                prop_assert_eq!(tidy(&raw, zero_width), tidy_slowly(&raw, zero_width));
                prop_assert_eq!(comparison_form(&raw), comparison_form_slowly(&raw));
            }
        }
    }

    #[test]
    fn short_cuts_answer_as_the_long_way_does_for_every_character() {
        for c in ('\0'..='\u{FFFF}').chain(('\u{10000}'..=char::MAX).step_by(61)) {
            for raw in [format!("a{c}b"), format!("{c}"), format!("ក{c}\u{17D2}ក")] {
                let zero_width = ZeroWidth::Keep;
                assert_eq!(tidy(&raw, zero_width), tidy_slowly(&raw, zero_width), "{raw:?}");
                assert_eq!(comparison_form(&raw), comparison_form_slowly(&raw), "{raw:?}");
            }
            assert!(!quick::is_composed(&format!("e{c}")) || unicode_normalization::is_nfc(&format!("e{c}")), "{c:?}");
        }
    }

    #[test]
    fn answers_keep_their_lines() {
        assert_eq!(clean_lines("\n- a  b \r\n\n\n- c\n\n"), "- a b\n\n- c");
    }

    #[test]
    fn texts_that_differ_in_case_spacing_or_width_compare_as_one() {
        assert_eq!(comparison_key("The Ｃat  sat"), comparison_key("the cat\u{200B}sat"));
        assert_eq!(comparison_key("ភាសា\u{200B}ខ្មែរ"), comparison_key("ភាសា ខ្មែរ"));
        assert_ne!(comparison_key("the cat"), comparison_key("the cats"));
        assert_eq!(comparison_form(" \u{200B}\u{FEFF}\n"), "");
    }

    #[test]
    fn cutting_counts_scalar_values() {
        assert_eq!(cut("ខ្មែរ", 5), "ខ្មែរ");
        assert_eq!(cut("ខ្មែរ", 3), "ខ្ម");
        assert_eq!(cut("ab cd", 3), "ab");
    }
}
