//! Writes scenes as sentences in both languages.
//!
//! Khmer puts the time first, then who does what. A noun is followed by its adjective, the number and a classifier.

use super::scene::{Deed, Scene, Things};

impl Things {
    /// Returns adjective and noun, such as `big mangoes`.
    pub(super) fn kind(&self) -> String {
        format!("{} {}", self.adjective.0, self.noun.english)
    }

    /// Returns number, adjective and noun, such as `12 big mangoes`.
    pub(super) fn english(&self) -> String {
        format!("{} {} {}", self.number, self.adjective.0, self.noun.english)
    }

    /// Returns noun and adjective, such as `ស្វាយធំ`.
    fn khmer_kind(&self) -> String {
        format!("{}{}", self.noun.khmer, self.adjective.1)
    }

    /// Returns number and classifier, such as `១២ ផ្លែ`.
    fn khmer_count(&self) -> String {
        let number = khmer_digits(self.number);
        match self.noun.classifier {
            "" => number,
            classifier => format!("{number} {classifier}"),
        }
    }

    /// Returns noun, adjective, number and classifier, such as `ស្វាយធំ ១២ ផ្លែ`.
    fn khmer(&self) -> String {
        format!("{} {}", self.khmer_kind(), self.khmer_count())
    }
}

impl Scene {
    /// Returns the English sentence.
    pub(super) fn english(&self) -> String {
        capitalised(match *self {
            Self::Present(Deed { who, verb, things, place, time }) => {
                format!("{} {} {} {} {}.", who.0, verb.present, things.english(), place.0, time.0)
            }
            Self::Past(Deed { who, verb, things, place, time }) => {
                format!("{}, {} {} {} {}.", time.0, who.0, verb.past, things.english(), place.0)
            }
            Self::Question(Deed { who, verb, things, place, time }) => {
                format!("does {} {} {} {} {}?", who.0, verb.base, things.english(), place.0, time.0)
            }
            Self::Gift { people, things, place, time } => {
                format!("{} gives {} to {} {} {}.", people.0.0, things.english(), people.1.0, place.0, time.0)
            }
            Self::Price { things, riel, place, time } => {
                format!("{}, {} cost {riel} riel {}.", place.0, things.english(), time.0)
            }
            Self::Presence { things, place, time } => {
                format!("there are {} {} {}.", things.english(), place.0, time.0)
            }
            Self::Comparison { people, things, degree, place, time } => format!(
                "{} has {} {} {} than {} {} {}.",
                people.0.0,
                things.number,
                degree.0,
                things.kind(),
                people.1.0,
                place.0,
                time.0
            ),
            Self::Weather { weather, degrees, person, action, place, time } => {
                format!("it is {} {} {}, {degrees} degrees, and {} {}.", weather.0, place.0, time.0, person.0, action.0)
            }
            Self::Travel { who, cities, vehicle, companions, adjective, number, time } => format!(
                "{} travels from {} to {} by {} with {number} {} {} {}.",
                who.0, cities.0.0, cities.1.0, vehicle.0, adjective.0, companions.0, time.0
            ),
            Self::Sequence { people, actions, minutes, order, place, time } => format!(
                "{} {} for {minutes} minutes {} {} {} {} {}.",
                people.0.0, actions[0].0, place.0, time.0, order.0, people.1.0, actions[1].0
            ),
        })
    }

    /// Returns the Khmer sentence.
    pub(super) fn khmer(&self) -> String {
        match *self {
            Self::Present(Deed { who, verb, things, place, time }) => {
                format!("{} {}{}{} {}។", time.1, who.1, verb.khmer, things.khmer(), place.1)
            }
            Self::Past(Deed { who, verb, things, place, time }) => {
                format!("{} {}បាន{}{} {}។", time.1, who.1, verb.khmer, things.khmer(), place.1)
            }
            Self::Question(Deed { who, verb, things, place, time }) => {
                format!("{} តើ{}{}{} {}ដែរឬទេ?", time.1, who.1, verb.khmer, things.khmer(), place.1)
            }
            Self::Gift { people, things, place, time } => {
                format!("{} {}ឲ្យ{}ទៅ{} {}។", time.1, people.0.1, things.khmer(), people.1.1, place.1)
            }
            Self::Price { things, riel, place, time } => {
                format!("{} {} {} មានតម្លៃ {} រៀល។", time.1, place.1, things.khmer(), khmer_digits(riel))
            }
            Self::Presence { things, place, time } => format!("{} {} មាន{}។", time.1, place.1, things.khmer()),
            Self::Comparison { people, things, degree, place, time } => format!(
                "{} {} {}មាន{}{}{} {}។",
                time.1,
                place.1,
                people.0.1,
                things.khmer_kind(),
                degree.1,
                people.1.1,
                things.khmer_count()
            ),
            Self::Weather { weather, degrees, person, action, place, time } => format!(
                "{} {} {} {} អង្សា ហើយ{}{}។",
                time.1,
                place.1,
                weather.1,
                khmer_digits(degrees),
                person.1,
                action.1
            ),
            Self::Travel { who, cities, vehicle, companions, adjective, number, time } => format!(
                "{} {}ធ្វើដំណើរពី{}ទៅ{}តាម{} ជាមួយ{}{} {} នាក់។",
                time.1,
                who.1,
                cities.0.1,
                cities.1.1,
                vehicle.1,
                companions.1,
                adjective.1,
                khmer_digits(number)
            ),
            Self::Sequence { people, actions, minutes, order, place, time } => format!(
                "{} {} {}{}រយៈពេល {} នាទី {}{}{}។",
                time.1,
                place.1,
                people.0.1,
                actions[0].1,
                khmer_digits(minutes),
                order.1,
                people.1.1,
                actions[1].1
            ),
        }
    }
}

/// Returns the text with its first letter in upper case.
pub(super) fn capitalised(mut text: String) -> String {
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

/// Writes a number in Khmer digits, U+17E0..U+17E9.
fn khmer_digits(number: u64) -> String {
    let digits = number.to_string();
    digits.bytes().filter_map(|b| char::from_u32(0x17E0 + u32::from(b - b'0'))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_khmer_digits() {
        assert_eq!(khmer_digits(120), "១២០");
    }
}
