//! Whether a text and its translation have the same numbers.
//!
//! The comparison is lenient where a translation is free. Words, months and parts of names need no partner, units are not
//! compared, and a magnitude may be written as a word on one side and as zeros on the other.

use super::decimal::Decimal;
use super::scan::{BUILT_IN, Token, decimal};
use super::units;

/// The values of a numeral.
struct Atom {
    /// Its readings, without and with its magnitude.
    values: Vec<Decimal>,
    /// True if a magnitude or a prefixed unit may stand for zeros.
    is_scaled: bool,
    /// False if the other side need not have it.
    is_required: bool,
}

/// English words for numbers; a word for a tenth of 100 and a digit make a number together.
const WORDS: [(u32, &[&str]); 30] = [
    (0, &["zero", "zeros", "zeroes"]),
    (1, &["one", "first", "once"]),
    (2, &["secondary", "two", "second", "twice", "double"]),
    (3, &["three", "third"]),
    (4, &["four", "fourth"]),
    (5, &["five", "fifth"]),
    (6, &["six"]),
    (7, &["seven"]),
    (8, &["eight"]),
    (9, &["nine"]),
    (10, &["ten"]),
    (11, &["eleven"]),
    (12, &["twelve"]),
    (13, &["thirteen"]),
    (14, &["fourteen"]),
    (15, &["fifteen"]),
    (16, &["sixteen"]),
    (17, &["seventeen"]),
    (18, &["eighteen"]),
    (19, &["nineteen"]),
    (20, &["twenty"]),
    (30, &["thirty"]),
    (40, &["forty"]),
    (50, &["fifty"]),
    (60, &["sixty"]),
    (70, &["seventy"]),
    (80, &["eighty"]),
    (90, &["ninety"]),
    (100, &["hundred"]),
    (1000, &["thousand"]),
];
/// Khmer words for numbers, which are found anywhere, because Khmer has no spaces between words.
const KHMER: [(u32, &[&str]); 18] = [
    (0, &["គ្មាន", "សូន្យ"]),
    (1, &["មួយ"]),
    (2, &["ពីរ", "ទ្វេ"]),
    (3, &["បី", "ត្រី"]),
    (4, &["បួន"]),
    (5, &["ប្រាំ"]),
    (6, &["ប្រាំមួយ"]),
    (7, &["ប្រាំពីរ"]),
    (8, &["ប្រាំបី"]),
    (9, &["ប្រាំបួន"]),
    (10, &["ដប់"]),
    (20, &["ម្ភៃ"]),
    (30, &["សាមសិប"]),
    (40, &["សែសិប"]),
    (50, &["ហាសិប"]),
    (60, &["ហុកសិប"]),
    (70, &["ចិតសិប"]),
    (100, &["មួយរយ"]),
];
/// The first three letters of the English months, in their order.
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// Returns whether an English text and its translation have the same numbers.
#[must_use]
pub fn agree(english: &str, foreign: &str) -> bool {
    let mut ours: Vec<Atom> = BUILT_IN.tokens(english).iter().flat_map(atoms).collect();
    let mut theirs: Vec<Atom> = BUILT_IN.tokens(foreign).iter().flat_map(atoms).collect();
    if ours.is_empty() && theirs.is_empty() {
        return true;
    }
    ours.extend(words(english));
    let spoken = KHMER.iter().filter(|(_, words)| words.iter().any(|word| foreign.contains(word)));
    theirs.extend(spoken.map(|(value, _)| Atom::word(*value)));
    let found = |one: &Atom, others: &[Atom]| !one.is_required || others.iter().any(|other| one.matches(other));
    ours.iter().all(|atom| found(atom, &theirs)) && theirs.iter().all(|atom| found(atom, &ours))
}

impl Atom {
    /// Returns what a word stands for, which the other side need not have.
    fn word(value: u32) -> Self {
        Self { values: Decimal::parse(&value.to_string()).into_iter().collect(), is_scaled: false, is_required: false }
    }

    fn matches(&self, other: &Self) -> bool {
        let scaled = self.is_scaled || other.is_scaled;
        let same = |a: &Decimal, b: &Decimal| a == b || (scaled && a.same_digits(b));
        self.values.iter().any(|a| other.values.iter().any(|b| same(a, b)))
    }
}

/// Returns the atoms of a number: those of a date, a range or a version are its parts.
fn atoms(token: &Token) -> Vec<Atom> {
    let power = units::power(&token.magnitude);
    let pieces = token.numerals.iter().flat_map(|numeral| {
        let readings = ['.', ','].map(|mark| Decimal::parse(&decimal(numeral, Some(mark))));
        match readings {
            [None, _] | [_, None] => {
                numeral.split(|c: char| !c.is_ascii_digit()).map(|part| vec![Decimal::parse(part)]).collect()
            }
            readings => vec![readings.to_vec()],
        }
    });
    let is_scaled = power != 0 || units::base(&token.unit).1 != 0;
    let atom = |readings: Vec<Option<Decimal>>| {
        let mut values: Vec<Decimal> = readings.into_iter().flatten().collect();
        if token.unit == "pm" {
            // A clock of 24 hours.
            let later = values.first().and_then(Decimal::whole).map(|hour| Decimal::parse(&(hour + 12).to_string()));
            values.extend(later.flatten());
        }
        Atom { values, is_scaled, is_required: !token.is_glued && !token.is_followed }
    };
    pieces.map(atom).collect()
}

/// Returns the numbers that English words may stand for.
fn words(text: &str) -> Vec<Atom> {
    let lower = text.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).collect();
    let value = |word: &str| WORDS.iter().find(|(_, names)| names.contains(&word)).map(|(value, _)| *value);
    let mut found = Vec::new();
    for (at, word) in words.iter().enumerate() {
        found.extend(MONTHS.iter().position(|month| word.starts_with(month)).map(|month| month as u32 + 1));
        let Some(first) = value(word) else { continue };
        found.push(first);
        match words.get(at + 1).and_then(|next| value(next)) {
            Some(next @ 1..10) if (20..100).contains(&first) => found.push(first + next),
            Some(next @ (100 | 1000)) => found.push(first * next),
            _ => {}
        }
    }
    found.into_iter().map(Atom::word).collect()
}
