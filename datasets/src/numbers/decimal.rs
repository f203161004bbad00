//! Exact decimal numbers of any length.

use std::fmt;

/// A decimal number as its significant digits and a power of ten. Equal numbers have equal fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal {
    negative: bool,
    /// The digits without zeros at either end; empty for 0.
    digits: String,
    /// The power of ten of the last digit.
    exponent: i32,
}

impl Decimal {
    /// Parses ASCII digits with an optional sign and an optional `.`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
        let are_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !are_digits(whole) || !are_digits(fraction) || unsigned.ends_with('.') {
            return None;
        }
        let all = format!("{whole}{fraction}");
        let kept = all.trim_end_matches('0');
        let digits = kept.trim_start_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self::default());
        }
        Some(Self {
            negative: text.starts_with('-'),
            digits,
            exponent: (all.len() - kept.len()) as i32 - fraction.len() as i32,
        })
    }

    /// Returns the number times a power of ten.
    #[must_use]
    pub fn scaled(mut self, power: i32) -> Self {
        if !self.digits.is_empty() {
            self.exponent += power;
        }
        self
    }

    /// Returns the number below zero.
    #[must_use]
    pub fn negated(mut self) -> Self {
        self.negative = !self.digits.is_empty();
        self
    }

    /// Returns the number if it is a whole one that fits.
    #[must_use]
    pub fn whole(&self) -> Option<u32> {
        self.to_string().parse().ok()
    }

    /// Returns whether the numbers differ by a power of ten at most.
    #[must_use]
    pub fn same_digits(&self, other: &Self) -> bool {
        (self.negative, &self.digits) == (other.negative, &other.digits)
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { digits, exponent, .. } = self;
        let sign = if self.negative { "-" } else { "" };
        if digits.is_empty() {
            return f.write_str("0");
        }
        if *exponent >= 0 {
            return write!(f, "{sign}{digits}{}", "0".repeat(*exponent as usize));
        }
        let places = exponent.unsigned_abs() as usize;
        let padded = format!("{digits:0>width$}", width = places + 1);
        let (whole, fraction) = padded.split_at(padded.len() - places);
        write!(f, "{sign}{whole}.{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for (text, form) in
            [("007", "7"), ("-1.50", "-1.5"), ("0.00", "0"), ("1200", "1200"), ("0.05", "0.05"), ("+3", "3")]
        {
            assert_eq!(Decimal::parse(text).unwrap().to_string(), form);
        }
        for text in ["", ".", "1.", "1,5", "-", "1.2.3", "١"] {
            assert_eq!(Decimal::parse(text), None, "{text}");
        }
        let half = Decimal::parse("1.5").unwrap();
        assert_eq!(half.clone().scaled(6).whole(), Some(1_500_000));
        assert!(half.same_digits(&Decimal::parse("150").unwrap()));
    }

    proptest! {
        #[test]
        fn a_number_is_read_back_as_it_was(text in "-?[0-9]{1,40}(\\.[0-9]{1,40})?", power in -50..50) {
            let number = Decimal::parse(&text).unwrap();
            prop_assert_eq!(Decimal::parse(&number.to_string()), Some(number.clone()));
            prop_assert_eq!(number.clone().scaled(power).scaled(-power), number);
        }
    }
}
