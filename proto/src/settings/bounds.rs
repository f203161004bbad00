//! The bounds of numbers, and what is said of a number that is out of them.

use std::fmt;

/// Records a key whose value is not as expected: (holds, key, given, expected).
pub type Expect<'a> = &'a mut dyn FnMut(bool, &str, &dyn fmt::Display, &str);

/// Returns the error text of a value that is not as expected.
#[must_use]
pub fn fault(key: &str, given: &dyn fmt::Display, expected: &str) -> String {
    format!("`{key}` is {given}: expected {expected}")
}

/// A key of a section, for the job file's reference.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// The name in the job file.
    pub name: &'static str,
    /// The doc comment.
    pub meaning: &'static str,
    /// The bounds, where it has any.
    pub bounds: &'static [Bounds],
}

/// The finite numbers that a setting may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    least: f64,
    least_is_in: bool,
    most: f64,
    most_is_in: bool,
    because: &'static str,
}

/// The numbers above 0.
pub const ABOVE_0: Bounds = Bounds { least_is_in: false, ..at_least(0.0) };
/// The numbers from 0 up to, not including, 1.
pub const FRACTION: Bounds = Bounds { most: 1.0, ..at_least(0.0) };

/// The numbers from `least` on.
#[must_use]
pub const fn at_least(least: f64) -> Bounds {
    Bounds { least, least_is_in: true, most: f64::INFINITY, most_is_in: false, because: "" }
}

/// The numbers from `least` to `most`, both included.
#[must_use]
pub const fn between(least: f64, most: f64) -> Bounds {
    Bounds { most, most_is_in: true, ..at_least(least) }
}

impl Bounds {
    /// Adds a largest number, which is included.
    #[must_use]
    pub const fn at_most(self, most: f64) -> Self {
        Self { most, most_is_in: true, ..self }
    }

    /// Adds a reason to the error text.
    #[must_use]
    pub const fn because(self, because: &'static str) -> Self {
        Self { because, ..self }
    }

    /// Returns true if `number` is finite and within the bounds.
    #[must_use]
    pub fn contains(&self, number: f64) -> bool {
        let above = number > self.least || self.least_is_in && number == self.least;
        let below = number < self.most || self.most_is_in && number == self.most;
        above && below
    }

    /// Reports `value` if it is out of the bounds. An absent value is within them.
    pub fn check(&self, key: &str, value: impl Number, expect: Expect<'_>) {
        if let Some(number) = value.number() {
            expect(self.contains(number), key, &number, &self.to_string());
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most, .. } = self;
        match (self.least_is_in, most.is_finite(), self.most_is_in) {
            (true, false, _) if *least == 0.0 => f.write_str("0 or more"),
            (true, false, _) => write!(f, "at least {least}"),
            (false, false, _) => write!(f, "above {least}"),
            (true, true, true) => write!(f, "{least} to {most}"),
            (true, true, false) => write!(f, "{least} up to, not including, {most}"),
            (false, true, true) => write!(f, "above {least}, at most {most}"),
            (false, true, false) => write!(f, "above {least}, below {most}"),
        }?;
        match self.because {
            "" => Ok(()),
            because => write!(f, ": {because}"),
        }
    }
}

/// A type whose values have bounds.
pub trait Number {
    /// Returns the number, unless it is absent.
    fn number(self) -> Option<f64>;
}

impl Number for f64 {
    fn number(self) -> Option<f64> {
        Some(self)
    }
}

impl Number for u32 {
    fn number(self) -> Option<f64> {
        Some(self.into())
    }
}

impl Number for i32 {
    fn number(self) -> Option<f64> {
        Some(self.into())
    }
}

impl Number for u64 {
    fn number(self) -> Option<f64> {
        Some(self as f64)
    }
}

impl<T: Number> Number for Option<T> {
    fn number(self) -> Option<f64> {
        self.and_then(T::number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_say_what_they_let_through() {
        let nan = f64::NAN;
        for (bounds, text, inside, outside) in [
            (ABOVE_0, "above 0", [1e-9, 1e30], [0.0, nan]),
            (FRACTION, "0 up to, not including, 1", [0.0, 0.99], [1.0, -0.1]),
            (at_least(0.0), "0 or more", [0.0, 7.0], [-1.0, f64::INFINITY]),
            (at_least(2.0).because("why"), "at least 2: why", [2.0, 3.0], [1.0, nan]),
            (between(3.0, 512.0), "3 to 512", [3.0, 512.0], [2.0, 513.0]),
            (ABOVE_0.at_most(1.0), "above 0, at most 1", [0.1, 1.0], [0.0, 1.1]),
        ] {
            assert_eq!(bounds.to_string(), text);
            assert!(inside.iter().all(|number| bounds.contains(*number)), "{text}");
            assert!(!outside.iter().any(|number| bounds.contains(*number)), "{text}");
        }
    }
}
