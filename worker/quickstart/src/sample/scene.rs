//! The scenes of the sample corpus: a number for each scene of a shape, and its texts in both languages.

use super::lexicon::{NOUN_CLASSES, VERBS, Word};
use super::lexicon_more::NUMBERS;
use super::shapes::Shape;

/// A variable part of a sentence, with the names by which texts call it.
pub(super) enum Part {
    /// A word of a list.
    Word(&'static str, &'static [Word]),
    /// Two different words of a list.
    Two([&'static str; 2], &'static [Word]),
    /// A verb: `verb` (buy), `verbs` (buys), `past` (bought).
    Verb,
    /// Things of one kind: `noun` (mangoes), `kind` (big mangoes), `count` (12), `things` (12 big mangoes).
    Things,
    /// A number of a list.
    Number(&'static str, &'static [u64]),
    /// A number from the first to the second in steps of the third.
    Range(&'static str, u64, u64, u64),
}

impl Part {
    fn size(&self) -> u64 {
        match self {
            Self::Word(_, words) => words.len() as u64,
            Self::Two(_, words) => (words.len() * (words.len() - 1)) as u64,
            Self::Verb => VERBS.len() as u64,
            Self::Things => kinds() * NUMBERS.len() as u64,
            Self::Number(_, numbers) => numbers.len() as u64,
            Self::Range(_, first, last, step) => (last - first) / step + 1,
        }
    }
}

/// Returns the number of pairs of noun and adjective.
fn kinds() -> u64 {
    NOUN_CLASSES.iter().map(|class| (class.nouns.len() * class.adjectives.len()) as u64).sum()
}

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
}

impl Shape {
    pub(super) fn size(&self) -> u64 {
        self.parts.iter().map(Part::size).product()
    }

    /// Returns the `index`-th scene of this shape. Different indexes below [`Self::size`] give different scenes.
    pub(super) fn scene(&'static self, index: u64) -> Scene {
        let mut scene = Scene { shape: self, words: Vec::new() };
        let mut digits = Digits(index);
        self.parts.iter().for_each(|part| scene.add(part, &mut digits));
        scene
    }
}

/// The content of one sentence.
pub(super) struct Scene {
    shape: &'static Shape,
    /// The names in the shape's texts, with the English and the Khmer that they mean.
    words: Vec<(&'static str, [String; 2])>,
}

impl Scene {
    fn add(&mut self, part: &Part, digits: &mut Digits) {
        let mut say = |name, english: &str, khmer: &str| self.words.push((name, [english.into(), khmer.into()]));
        let mut say_number = |name, number: u64| say(name, &number.to_string(), &khmer_digits(number));
        match *part {
            Part::Number(name, numbers) => say_number(name, *digits.of(numbers)),
            Part::Range(name, first, _, step) => say_number(name, first + step * digits.below(part.size())),
            Part::Word(name, words) => {
                let (english, khmer) = digits.of(words);
                say(name, english, khmer);
            }
            Part::Two(names, words) => {
                let first = digits.below(words.len() as u64) as usize;
                let second = digits.below(words.len() as u64 - 1) as usize;
                for (name, at) in names.into_iter().zip([first, second + usize::from(second >= first)]) {
                    say(name, words[at].0, words[at].1);
                }
            }
            Part::Verb => {
                let verb = digits.of(VERBS);
                for (name, english) in [("verb", verb.base), ("verbs", verb.present), ("past", verb.past)] {
                    say(name, english, verb.khmer);
                }
            }
            Part::Things => {
                let kind = digits.below(kinds()) as usize;
                let mut pairs = NOUN_CLASSES.iter().flat_map(|class| {
                    class.nouns.iter().flat_map(|noun| class.adjectives.iter().map(move |adjective| (noun, adjective)))
                });
                let (noun, adjective) = pairs.nth(kind).expect("a digit is below the number of kinds");
                let number = *digits.of(NUMBERS);
                let khmer_kind = format!("{}{}", noun.khmer, adjective.1);
                let khmer_count = format!("{} {}", khmer_digits(number), noun.classifier);
                let khmer_count = khmer_count.trim_end();
                let kind = format!("{} {}", adjective.0, noun.english);
                say("noun", noun.english, noun.khmer);
                say("count", &number.to_string(), khmer_count);
                say("things", &format!("{number} {kind}"), &format!("{khmer_kind} {khmer_count}"));
                say("kind", &kind, &khmer_kind);
            }
        }
    }

    /// Returns a text of the shape with the words of a language, 0 or 1, in place of their names.
    fn said(&self, text: &str, language: usize) -> String {
        let mut pieces = text.split('{');
        let mut said = pieces.next().unwrap_or_default().to_owned();
        for (name, rest) in pieces.filter_map(|piece| piece.split_once('}')) {
            let (_, words) =
                self.words.iter().find(|(known, _)| *known == name).expect("texts name their shape's parts");
            said.push_str(&words[language]);
            said.push_str(rest);
        }
        said
    }

    pub(super) fn english(&self) -> String {
        capitalised(self.said(self.shape.english, 0))
    }

    pub(super) fn khmer(&self) -> String {
        self.said(self.shape.khmer, 1)
    }

    /// Returns a one-sentence summary.
    pub(super) fn gist(&self) -> String {
        capitalised(self.said(self.shape.gist, 0))
    }

    /// Returns the facts, such as `who: the farmer`.
    pub(super) fn facts(&self) -> impl Iterator<Item = String> {
        self.shape.facts.iter().map(|fact| self.said(fact, 0))
    }

    /// Returns questions with their exact answers.
    pub(super) fn questions(&self) -> impl Iterator<Item = (String, String)> {
        let questions = self.shape.questions.iter();
        questions.map(|(question, answer)| (capitalised(self.said(question, 0)), self.said(answer, 0)))
    }
}

fn capitalised(mut text: String) -> String {
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
