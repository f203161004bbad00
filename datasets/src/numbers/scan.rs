//! Finds the numbers of a text by one pattern, and writes them in ASCII.
//!
//! Another program finds the same with the [`Rules`] of a bundle and about thirty lines of Python, which the bundle's card has.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};

use super::units;

/// The code points of the zeros of all decimal digits in Unicode 16. The other nine digits follow each.
const ZEROS: [u32; 76] = [
    0x30, 0x660, 0x6F0, 0x7C0, 0x966, 0x9E6, 0xA66, 0xAE6, 0xB66, 0xBE6, 0xC66, 0xCE6, 0xD66, 0xDE6, 0xE50, 0xED0,
    0xF20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50, 0xA620,
    0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10, 0x104A0, 0x10D30, 0x10D40, 0x11066, 0x110F0, 0x11136,
    0x111D0, 0x112F0, 0x11450, 0x114D0, 0x11650, 0x116C0, 0x116D0, 0x116DA, 0x11730, 0x118E0, 0x11950, 0x11BF0,
    0x11C50, 0x11D50, 0x11DA0, 0x11F50, 0x16130, 0x16A60, 0x16AC0, 0x16B50, 0x16D70, 0x1CCF0, 0x1D7CE, 0x1D7D8,
    0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E4F0, 0x1E5F1, 0x1E950, 0x1FBF0,
];

/// Digit groups that are separated by single spaces. A group before which a sign stands is none.
static SPACED: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("[.,:/'-]?[0-9]+(?: [0-9]+)+").expect("the pattern is valid"));

/// The endings of English ordinal numbers.
const ORDINALS: [&str; 4] = ["st", "nd", "rd", "th"];

/// The rules by which numbers are found. A bundle holds those of its training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// A regular expression for a text whose digits are ASCII, in the syntax that Rust and Python share.
    pub pattern: String,
    /// The ASCII names of units, currencies and magnitudes.
    pub names: BTreeMap<String, String>,
}

impl Default for Rules {
    fn default() -> Self {
        let of = |(ascii, spellings): &(&str, &[&str])| {
            let ascii = (*ascii).to_owned();
            spellings.iter().map(|name| ((*name).to_owned(), ascii.clone())).collect::<Vec<_>>()
        };
        Self { pattern: units::pattern(), names: units::NAMES.iter().flat_map(of).collect() }
    }
}

/// Finds numbers by [`Rules`].
#[derive(Debug, Clone)]
pub struct Scanner {
    pattern: Regex,
    names: BTreeMap<String, String>,
}

/// A number as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    /// The bytes of the text.
    pub range: Range<usize>,
    /// True for a minus sign, which is no hyphen.
    pub negative: bool,
    /// The numerals, in ASCII digits with their separators; `_` is a separating space.
    pub numerals: Vec<String>,
    /// The characters between the numerals.
    pub joints: Vec<char>,
    /// The ASCII name of the magnitude, or an empty text.
    pub magnitude: String,
    /// The ASCII name of the unit or currency, or the ending of an ordinal number, or an empty text.
    pub unit: String,
    /// True if the unit is a currency before the number.
    pub money_first: bool,
    /// True if a letter of an alphabet with capital letters precedes: the number is a part of a name, such as `H1N1`.
    pub is_glued: bool,
    /// True if such a letter follows without a space and is no unit, as in `3D`.
    pub is_followed: bool,
}

/// The scanner of llink's own rules. A copy has buffers of its own, which it fills anew.
pub(super) static BUILT_IN: LazyLock<Scanner> =
    LazyLock::new(|| Scanner::new(&Rules::default()).expect("the built-in pattern is valid"));

impl Default for Scanner {
    fn default() -> Self {
        BUILT_IN.clone()
    }
}

impl Scanner {
    /// Compiles rules.
    ///
    /// # Errors
    /// A message when the pattern is not valid.
    pub fn new(rules: &Rules) -> Result<Self, String> {
        let pattern =
            Regex::new(&rules.pattern).map_err(|error| format!("the pattern of numbers is not valid: {error}"))?;
        let groups = ["sign", "money", "body", "scale", "symbol", "unit", "alone", "nth"];
        match groups.iter().find(|name| !pattern.capture_names().flatten().any(|has| has == **name)) {
            Some(name) => Err(format!("the pattern of numbers has no group `{name}`")),
            None => Ok(Self { pattern, names: rules.names.clone() }),
        }
    }

    /// Returns the numbers of a text in ASCII, in their order, as in `30 MW, 1.5 kW, 2020-05-12`. Numbers inside names are
    /// left out.
    #[must_use]
    pub fn ascii(&self, text: &str) -> String {
        let tokens = self.tokens(text);
        let written: Vec<String> = tokens.iter().filter(|token| !token.is_glued).map(Token::ascii).collect();
        written.join(", ")
    }

    pub(super) fn tokens(&self, text: &str) -> Vec<Token> {
        if !text.chars().any(|c| digit(c).is_some()) {
            return Vec::new();
        }
        let plain: String = text.chars().map(plain).collect();
        let plain = SPACED.replace_all(&plain, |found: &Captures<'_>| joined(&found[0]));
        let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
        let mut at = (0, 0);
        let mut place = |byte: usize| {
            at = (byte, at.1 + plain[at.0..byte].chars().count());
            places[at.1]
        };
        let token = |found: Captures<'_>| {
            let group = |name: &str| found.name(name).map_or("", |group| group.as_str());
            let body = found.name("body").map_or(0..0, |group| group.range());
            let last = ["symbol", "unit", "alone", "nth", "body"];
            let end = last.iter().find_map(|name| found.name(name)).map_or(body.end, |group| group.end());
            let whole = found.get(0).map_or(0, |group| group.start());
            let before = plain[..whole].chars().next_back();
            let signed = !group("sign").is_empty() && before.is_none_or(|c| c == ' ' || c == '(' || c == '[');
            let money = found.name("money");
            let start = match (signed, money) {
                (true, _) => whole,
                (false, Some(money)) => money.start(),
                (false, None) => body.start,
            };
            let mut unit = ["symbol", "unit", "nth"].map(group).concat();
            let mut magnitude = [group("scale"), group("alone")].concat();
            if money.is_some() && unit == "m" {
                // $5m are millions, not meters.
                (magnitude, unit) = ("mn".into(), String::new());
            }
            Token {
                range: place(start)..place(end),
                negative: signed && group("sign") == "-",
                numerals: group("body").split(['-', '/', ':']).map(str::to_owned).collect(),
                joints: group("body").chars().filter(|c| matches!(c, '-' | '/' | ':')).collect(),
                magnitude: self.name(&magnitude),
                unit: self.name(if unit.is_empty() { group("money").trim() } else { &unit }),
                money_first: unit.is_empty() && money.is_some(),
                is_followed: plain[end..].chars().next().is_some_and(is_cased),
                is_glued: group("sign").is_empty() && money.is_none() && before.is_some_and(is_cased),
            }
        };
        self.pattern.captures_iter(&plain).map(token).collect()
    }

    /// Returns the ASCII name of a spelling.
    fn name(&self, spelling: &str) -> String {
        let lower = spelling.to_lowercase();
        let singular = lower.strip_suffix('s').unwrap_or(&lower);
        let known = [spelling, lower.as_str(), singular].into_iter().find_map(|name| self.names.get(name));
        match known {
            Some(name) => name.clone(),
            None => {
                let ascii = |c: char| self.names.get(c.encode_utf8(&mut [0; 4]) as &str).filter(|_| !c.is_ascii());
                spelling.chars().map(|c| ascii(c).cloned().unwrap_or_else(|| c.to_string())).collect()
            }
        }
    }
}

impl Token {
    pub fn is_ordinal(&self) -> bool {
        ORDINALS.contains(&self.unit.as_str())
    }

    /// Returns the number in ASCII.
    pub fn ascii(&self) -> String {
        let mut body = if self.negative { "-" } else { "" }.to_owned();
        for (at, numeral) in self.numerals.iter().enumerate() {
            body.extend(at.checked_sub(1).map(|joint| self.joints[joint]));
            body.push_str(&decimal(numeral, None));
        }
        let (first, last) = if self.money_first { (self.unit.as_str(), "") } else { ("", self.unit.as_str()) };
        let space = if last.is_empty() || last == "%" || self.is_ordinal() { "" } else { " " };
        let parts = [first, &body, &self.magnitude].into_iter().filter(|part| !part.is_empty());
        format!("{}{space}{last}", parts.collect::<Vec<_>>().join(" "))
    }
}

/// Returns a numeral without separators of groups, with `.` before its decimals. A numeral such as `1,234` has two readings:
/// the mark `decimal` decides between them, and without a mark the numeral is left as it is. So is what is no number, as `1.2.3`.
pub(super) fn decimal(numeral: &str, mark: Option<char>) -> String {
    let marks: Vec<char> = numeral.chars().filter(|c| !c.is_ascii_digit()).collect();
    let (Some(first), Some(last)) = (marks.first().copied(), marks.last().copied()) else {
        return numeral.to_owned();
    };
    let parts: Vec<&str> = numeral.split(|c: char| !c.is_ascii_digit()).collect();
    let (fraction, whole) = parts.split_last().expect("a split has parts");
    let with_decimals = || format!("{}.{fraction}", whole.concat());
    let is_point = matches!(last, '.' | ',');
    if marks.iter().all(|c| *c == last) {
        return match (marks.len(), is_grouped(&parts)) {
            (1, false) if is_point => with_decimals(),
            (1, true) if is_point => match mark {
                Some(mark) if mark == last => with_decimals(),
                Some(_) => parts.concat(),
                None => numeral.to_owned(),
            },
            (_, true) => parts.concat(),
            _ => numeral.to_owned(),
        };
    }
    let one_kind = marks[..marks.len() - 1].iter().all(|c| *c == first);
    if one_kind && first != last && is_point && is_grouped(whole) { with_decimals() } else { numeral.to_owned() }
}

/// Returns whether digits are grouped by thousands, or in the Indian way by hundreds above the first thousand.
fn is_grouped(parts: &[&str]) -> bool {
    let [first, middle @ .., last] = parts else {
        return false;
    };
    let all = |width: usize| (1..=width).contains(&first.len()) && middle.iter().all(|part| part.len() == width);
    last.len() == 3 && !first.starts_with('0') && (all(3) || all(2))
}

/// Replaces the spaces of a number such as `12 345` by `_`. Other numbers in a row are left as they are.
fn joined(found: &str) -> String {
    let groups: Vec<&str> = found.split(' ').collect();
    let thousands = (1..=3).contains(&groups[0].len()) && groups[1..].iter().all(|group| group.len() == 3);
    match thousands && found.starts_with(|c: char| ('1'..='9').contains(&c)) {
        true => found.replace(' ', "_"),
        false => found.to_owned(),
    }
}

/// Returns the value of a decimal digit of any script.
#[must_use]
pub fn digit(c: char) -> Option<u32> {
    let c = c as u32;
    let zero = ZEROS[..ZEROS.partition_point(|zero| *zero <= c)].last()?;
    Some(c - zero).filter(|value| *value < 10)
}

/// Returns the ASCII character that means the same in a number, or the character itself.
fn plain(c: char) -> char {
    match c {
        '0'..='9' | 'A'..='Z' | 'a'..='z' | ' ' => c,
        '٫' | '．' => '.',
        '٬' | '，' => ',',
        '：' => ':',
        '／' => '/',
        '＋' => '+',
        '٪' | '％' => '%',
        '＄' => '$',
        '’' => '\'',
        '\u{A0}' | '\u{2007}' | '\u{2009}' | '\u{202F}' | '\u{3000}' => ' ',
        '\u{2010}'..='\u{2013}' | '−' | '－' => '-',
        'µ' | 'μ' => 'u',
        c => digit(c).and_then(|value| char::from_digit(value, 10)).unwrap_or(c),
    }
}

/// Returns whether a letter's alphabet has capital letters. Such alphabets are written with spaces between words.
fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase()
}
