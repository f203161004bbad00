//! The scenes of the sample corpus: ten sentence shapes, and a number for each scene of a shape.

use super::lexicon::{NOUN_CLASSES, Noun, PAST_TIMES, PEOPLE, PLACES, TIMES, VERBS, Verb, Word};
use super::lexicon_more::{ACTIONS, CITIES, COMPANIONS, NUMBERS, OF_PEOPLE, VEHICLES, WEATHER};

/// The shape of a sentence. Each has so many sentences that a corpus uses a small part of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Present,
    Past,
    Question,
    Gift,
    Price,
    Presence,
    Comparison,
    Weather,
    Travel,
    Sequence,
}

/// The shapes, and the number of sentences of each in a block.
pub(super) const WEIGHTS: [(Shape, u64); 10] = [
    (Shape::Present, 5),
    (Shape::Past, 3),
    (Shape::Question, 2),
    (Shape::Gift, 2),
    (Shape::Price, 2),
    (Shape::Comparison, 2),
    (Shape::Presence, 1),
    (Shape::Weather, 1),
    (Shape::Travel, 1),
    (Shape::Sequence, 1),
];

/// A number of things of one kind.
#[derive(Clone, Copy)]
pub(super) struct Things {
    pub noun: &'static Noun,
    pub adjective: &'static Word,
    pub number: u64,
}

/// An action of a person on some things.
#[derive(Clone, Copy)]
pub(super) struct Deed {
    pub who: &'static Word,
    pub verb: &'static Verb,
    pub things: Things,
    pub place: &'static Word,
    pub time: &'static Word,
}

/// Two different people.
pub(super) type Two = (&'static Word, &'static Word);

/// The content of one sentence.
#[derive(Clone, Copy)]
pub(super) enum Scene {
    Present(Deed),
    Past(Deed),
    Question(Deed),
    Gift {
        people: Two,
        things: Things,
        place: &'static Word,
        time: &'static Word,
    },
    Price {
        things: Things,
        riel: u64,
        place: &'static Word,
        time: &'static Word,
    },
    Presence {
        things: Things,
        place: &'static Word,
        time: &'static Word,
    },
    Comparison {
        people: Two,
        things: Things,
        degree: &'static Word,
        place: &'static Word,
        time: &'static Word,
    },
    Weather {
        weather: &'static Word,
        degrees: u64,
        person: &'static Word,
        action: &'static Word,
        place: &'static Word,
        time: &'static Word,
    },
    Travel {
        who: &'static Word,
        cities: Two,
        vehicle: &'static Word,
        companions: &'static Word,
        adjective: &'static Word,
        number: u64,
        time: &'static Word,
    },
    Sequence {
        people: Two,
        actions: [&'static Word; 2],
        minutes: u64,
        order: &'static Word,
        place: &'static Word,
        time: &'static Word,
    },
}

const DEGREES: [Word; 2] = [("more", "ច្រើនជាង"), ("fewer", "តិចជាង")];
const ORDERS: [Word; 2] = [("before", "មុនពេល"), ("after", "ក្រោយពេល")];
/// Prices are 500, 1000, … riel.
const PRICES: u64 = 40;
const COLDEST: u64 = 18;
const TEMPERATURES: u64 = 23;
/// Durations are 5, 10, … minutes.
const DURATIONS: u64 = 12;

/// The digits of a number in a mixed radix.
struct Digits(u64);

impl Digits {
    fn below(&mut self, base: u64) -> u64 {
        let digit = self.0 % base;
        self.0 /= base;
        digit
    }

    fn of<T>(&mut self, list: &'static [T]) -> &'static T {
        &list[self.below(list.len() as u64) as usize]
    }

    fn two(&mut self, list: &'static [Word]) -> Two {
        let first = self.below(list.len() as u64) as usize;
        let second = self.below(list.len() as u64 - 1) as usize;
        (&list[first], &list[second + usize::from(second >= first)])
    }

    fn things(&mut self) -> Things {
        let mut kind = self.below(kinds());
        let number = *self.of(NUMBERS);
        for class in NOUN_CLASSES {
            let adjectives = class.adjectives.len() as u64;
            let size = class.nouns.len() as u64 * adjectives;
            if kind < size {
                let noun = &class.nouns[(kind / adjectives) as usize];
                return Things { noun, adjective: &class.adjectives[(kind % adjectives) as usize], number };
            }
            kind -= size;
        }
        unreachable!("`kinds` is the sum of the classes' sizes")
    }

    fn deed(&mut self, times: &'static [Word]) -> Deed {
        Deed {
            who: self.of(PEOPLE),
            verb: self.of(VERBS),
            things: self.things(),
            place: self.of(PLACES),
            time: self.of(times),
        }
    }
}

/// Returns the number of pairs of noun and adjective.
fn kinds() -> u64 {
    NOUN_CLASSES.iter().map(|class| (class.nouns.len() * class.adjectives.len()) as u64).sum()
}

impl Shape {
    /// Returns the number of sentences of this shape.
    pub(super) fn size(self) -> u64 {
        let of = |words: &[Word]| words.len() as u64;
        let things = kinds() * NUMBERS.len() as u64;
        let two = |words: &[Word]| of(words) * (of(words) - 1);
        let deed = of(PEOPLE) * VERBS.len() as u64 * things * of(PLACES);
        let setting = of(PLACES) * of(TIMES);
        match self {
            Self::Present | Self::Question => deed * of(TIMES),
            Self::Past => deed * of(PAST_TIMES),
            Self::Gift => two(PEOPLE) * things * setting,
            Self::Price => things * PRICES * setting,
            Self::Presence => things * setting,
            Self::Comparison => two(PEOPLE) * things * of(&DEGREES) * setting,
            Self::Weather => of(WEATHER) * TEMPERATURES * of(PEOPLE) * of(ACTIONS) * setting,
            Self::Travel => {
                let company = of(COMPANIONS) * of(OF_PEOPLE) * NUMBERS.len() as u64;
                of(PEOPLE) * two(CITIES) * of(VEHICLES) * company * of(TIMES)
            }
            Self::Sequence => two(PEOPLE) * of(ACTIONS) * of(ACTIONS) * DURATIONS * of(&ORDERS) * setting,
        }
    }

    /// Returns the `index`-th scene of this shape. Different indexes below [`Self::size`] give different scenes.
    pub(super) fn scene(self, index: u64) -> Scene {
        let mut d = Digits(index);
        match self {
            Self::Present => Scene::Present(d.deed(TIMES)),
            Self::Past => Scene::Past(d.deed(PAST_TIMES)),
            Self::Question => Scene::Question(d.deed(TIMES)),
            Self::Gift => {
                Scene::Gift { people: d.two(PEOPLE), things: d.things(), place: d.of(PLACES), time: d.of(TIMES) }
            }
            Self::Price => Scene::Price {
                things: d.things(),
                riel: 500 * (d.below(PRICES) + 1),
                place: d.of(PLACES),
                time: d.of(TIMES),
            },
            Self::Presence => Scene::Presence { things: d.things(), place: d.of(PLACES), time: d.of(TIMES) },
            Self::Comparison => Scene::Comparison {
                people: d.two(PEOPLE),
                things: d.things(),
                degree: d.of(&DEGREES),
                place: d.of(PLACES),
                time: d.of(TIMES),
            },
            Self::Weather => Scene::Weather {
                weather: d.of(WEATHER),
                degrees: COLDEST + d.below(TEMPERATURES),
                person: d.of(PEOPLE),
                action: d.of(ACTIONS),
                place: d.of(PLACES),
                time: d.of(TIMES),
            },
            Self::Travel => Scene::Travel {
                who: d.of(PEOPLE),
                cities: d.two(CITIES),
                vehicle: d.of(VEHICLES),
                companions: d.of(COMPANIONS),
                adjective: d.of(OF_PEOPLE),
                number: *d.of(NUMBERS),
                time: d.of(TIMES),
            },
            Self::Sequence => Scene::Sequence {
                people: d.two(PEOPLE),
                actions: [d.of(ACTIONS), d.of(ACTIONS)],
                minutes: 5 * (d.below(DURATIONS) + 1),
                order: d.of(&ORDERS),
                place: d.of(PLACES),
                time: d.of(TIMES),
            },
        }
    }
}
