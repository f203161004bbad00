//! Reads numbers in any script: their values, what they count, and how they are written in ASCII.
//!
//! [`read`] is for English text, in which a point begins the decimals. [`Scanner`] writes the numbers of any text in ASCII.
//! [`agree`] compares a text with its translation.

mod agree;
mod decimal;
mod scan;
#[cfg(test)]
mod tests;
mod units;

use std::ops::Range;

pub use agree::agree;
pub use decimal::Decimal;
pub use scan::{Rules, Scanner, digit};

use scan::{BUILT_IN, Token, decimal as plain};

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// How much or how many.
    Cardinal,
    /// A place in an order, such as 3rd.
    Ordinal,
    /// Two numbers, from and to.
    Range,
    /// Two numbers with a slash or a colon between them, such as 1/2 and 16:9.
    Ratio,
    /// Year, month and day, without those that are not given. If it is not clear which is the day, they are as written.
    Date,
    /// Hours, minutes and seconds, without those that are not given.
    Time,
    /// A number of a version, an address or a telephone, without a value.
    Code,
}

/// A number in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Number {
    /// Its bytes in the text, with the unit.
    pub range: Range<usize>,
    /// What it is.
    pub kind: Kind,
    /// Its values with magnitude, in the unit: one, or as many as its kind says. Empty for a code.
    pub values: Vec<Decimal>,
    /// The ASCII name of the unit or currency; empty for none.
    pub unit: String,
    /// The number in ASCII.
    pub ascii: String,
}

/// Reads the numbers of an English text. Numbers inside names, such as H1N1, are left out.
#[must_use]
pub fn read(text: &str) -> Vec<Number> {
    let tokens = BUILT_IN.tokens(text);
    let mut numbers: Vec<Number> = Vec::new();
    for token in tokens.into_iter().filter(|token| !token.is_glued) {
        let mut number = Number::of(token);
        if let Some(before) = numbers.last()
            && let Some(date) = before.date_with(&number, text)
        {
            numbers.pop();
            number = date;
        } else if let Some(date) = number.date_after_month(text) {
            number = date;
        }
        numbers.push(number);
    }
    for number in &mut numbers {
        if let Some(date) = number.date_before_month(text) {
            *number = date;
        }
    }
    numbers
}

/// Returns whether two English texts have the same numbers, each with its magnitude and unit, in any order. 1,500 W and 1.5 kW
/// are the same.
#[must_use]
pub fn same(one: &[Number], other: &[Number]) -> bool {
    let [mut one, mut other] = [one, other].map(|numbers| numbers.iter().map(Number::meaning).collect::<Vec<_>>());
    one.sort_unstable();
    other.sort_unstable();
    one == other
}

impl Number {
    fn of(token: Token) -> Self {
        let ascii = token.ascii();
        let unit = if token.is_ordinal() { String::new() } else { token.unit.clone() };
        let power = units::power(&token.magnitude);
        let parts: Vec<&str> = token.numerals.iter().map(String::as_str).collect();
        let values: Option<Vec<Decimal>> = parts.iter().map(|part| Decimal::parse(&plain(part, Some('.')))).collect();
        let values = values.unwrap_or_default();
        let whole: Vec<Option<u32>> = values.iter().map(Decimal::whole).collect();
        let kind = match (parts.as_slice(), token.joints.as_slice(), whole.as_slice()) {
            ([_], ..) if !values.is_empty() => match token.unit.as_str() {
                _ if token.is_ordinal() => Kind::Ordinal,
                "am" | "pm" => Kind::Time,
                _ => Kind::Cardinal,
            },
            ([hours, minutes, ..], [':', ..], [Some(0..=24), Some(0..60), ..])
                if hours.len() <= 2 && minutes.len() == 2 && token.joints.iter().all(|joint| *joint == ':') =>
            {
                Kind::Time
            }
            ([_, _], ['-'], [_, _]) => Kind::Range,
            ([_, _], _, [_, _]) => Kind::Ratio,
            _ => Kind::Code,
        };
        let mut number = Self {
            range: token.range,
            kind,
            values: values.iter().map(|value| value.clone().scaled(power)).collect(),
            unit,
            ascii,
        };
        if token.negative
            && let Some(first) = number.values.first_mut()
        {
            *first = first.clone().negated();
        }
        if kind == Kind::Code {
            number.values.clear();
            if let Some(date) = date_of_parts(&parts) {
                (number.kind, number.values) = (Kind::Date, date);
            }
        }
        number
    }

    /// Returns what must be equal for two numbers to be the same.
    fn meaning(&self) -> (Kind, String, Vec<Decimal>, &str) {
        let (base, power) = units::base(&self.unit);
        let values = self.values.iter().map(|value| value.clone().scaled(power));
        let code = if self.kind == Kind::Code { self.ascii.as_str() } else { "" };
        (self.kind, base.to_owned(), values.collect(), code)
    }

    /// Returns the value if the number is written in as many digits and has no unit.
    fn bare(&self, digits: Range<usize>) -> Option<&Decimal> {
        let written = self.ascii.trim_end_matches(char::is_alphabetic);
        let counts = matches!(self.kind, Kind::Cardinal | Kind::Ordinal) && self.unit.is_empty();
        let value = self.values.first().filter(|value| value.whole().is_some());
        value.filter(|value| {
            counts && digits.contains(&written.len()) && Decimal::parse(written).as_ref() == Some(value)
        })
    }

    fn dated(&self, range: Range<usize>, values: Vec<Decimal>) -> Self {
        let written: Vec<String> = values.iter().map(|value| format!("{:0>2}", value.to_string())).collect();
        Self { range, kind: Kind::Date, values, unit: String::new(), ascii: written.join("-") }
    }

    /// Joins this number and the next one to a date, as in `12 May 2020` and `May 12, 2020`.
    fn date_with(&self, year: &Self, text: &str) -> Option<Self> {
        let between = text[self.range.end..year.range.start].trim();
        let (month, day) = match self.kind {
            Kind::Date
                if self.values.len() == 2 && self.values[0].whole() <= Some(12) && matches!(between, "," | "") =>
            {
                (self.values[0].clone(), self.values[1].clone())
            }
            _ => (month(between.trim_end_matches(',').trim_start_matches("of "))?, self.bare(1..3)?.clone()),
        };
        let year_value = year.bare(4..5)?.clone();
        Some(self.dated(self.range.start..year.range.end, vec![year_value, month, day]))
    }

    /// Makes a date of a number behind a month: `May 12` or `May 2020`.
    fn date_after_month(&self, text: &str) -> Option<Self> {
        let before = text[..self.range.start].strip_suffix(' ')?;
        let start = before.rfind(|c: char| !c.is_ascii_alphabetic() && c != '.').map_or(0, |at| at + 1);
        let month = month(before.get(start..)?)?;
        let range = start..self.range.end;
        match (self.bare(1..3), self.bare(4..5)) {
            (Some(day), _) => Some(self.dated(range, vec![month, day.clone()])),
            (_, Some(year)) => Some(self.dated(range, vec![year.clone(), month])),
            _ => None,
        }
    }

    /// Makes a date of a number before a month: `12 May`.
    fn date_before_month(&self, text: &str) -> Option<Self> {
        let day = self.bare(1..3)?;
        let rest = text[self.range.end..].strip_prefix(' ')?;
        let rest = rest.strip_prefix("of ").unwrap_or(rest);
        let word = rest.split(|c: char| !c.is_ascii_alphabetic()).next()?;
        let end = text.len() - rest.len() + word.len();
        Some(self.dated(self.range.start..end, vec![month(word)?, day.clone()]))
    }
}

/// Returns the number of a month by its English name, whole or as three letters with or without a point.
fn month(name: &str) -> Option<Decimal> {
    let mut months = "January February March April May June July August September October November December".split(' ');
    let name = name.strip_suffix('.').unwrap_or(name);
    let at = months.position(|month| month == name || (name.len() == 3 && month.starts_with(name)))?;
    Decimal::parse(&(at + 1).to_string())
}

/// Returns year, month and day of `2020-05-12`, `25/12/2020` or `25.12.2020`. If both may be the month, they are as written.
fn date_of_parts(parts: &[&str]) -> Option<Vec<Decimal>> {
    let parts: Vec<&str> = parts.iter().flat_map(|part| part.split('.')).collect();
    let [a, b, c] = parts.as_slice() else { return None };
    let number = |part: &str| part.parse::<u32>().ok();
    let (first, second, third) = (number(a)?, number(b)?, number(c)?);
    let is_day = |n: u32| (1..=31).contains(&n);
    let is_month = |n: u32| (1..=12).contains(&n);
    let ordered = match (a.len(), b.len(), c.len()) {
        (4, 1..=2, 1..=2) if is_month(second) && is_day(third) => [first, second, third],
        (1..=2, 1..=2, 4) if is_day(first) && is_month(second) && first > 12 => [third, second, first],
        (1..=2, 1..=2, 4) if is_month(first) && is_day(second) && second > 12 => [third, first, second],
        (1..=2, 1..=2, 4) if is_month(first) && is_month(second) => [first, second, third],
        _ => return None,
    };
    ordered.iter().map(|n| Decimal::parse(&n.to_string())).collect()
}
