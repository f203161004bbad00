//! The sentence shapes of the sample corpus. Each has so many sentences that a corpus uses a small part of them.
//!
//! Khmer puts the time first, then who does what. A noun is followed by its adjective, the number and a classifier.

use super::lexicon::{self, PAST_TIMES, PEOPLE, PLACES, TIMES};
use super::lexicon_more::{ACTIONS, CITIES, COMPANIONS, NUMBERS, OF_PEOPLE, VEHICLES, WEATHER};
use super::scene::Part::{self, Number, Range, Things, Two, Verb, Word};

/// A sentence shape. A text names the parts in braces, and means their words in its own language.
pub(super) struct Shape {
    /// The number of sentences of this shape in a block.
    pub weight: u64,
    pub parts: &'static [Part],
    pub english: &'static str,
    pub khmer: &'static str,
    /// A one-sentence summary.
    pub gist: &'static str,
    /// The facts, point by point.
    pub facts: &'static [&'static str],
    /// Questions with their answers.
    pub questions: &'static [(&'static str, &'static str)],
}

const DEGREES: [lexicon::Word; 2] = [("more", "ច្រើនជាង"), ("fewer", "តិចជាង")];
const ORDERS: [lexicon::Word; 2] = [("before", "មុនពេល"), ("after", "ក្រោយពេល")];
const WHO: Part = Word("who", PEOPLE);
const PLACE: Part = Word("place", PLACES);
const TIME: Part = Word("time", TIMES);

pub(super) const SHAPES: &[Shape] = &[
    Shape {
        weight: 5,
        parts: &[WHO, Verb, Things, PLACE, TIME],
        english: "{who} {verbs} {things} {place} {time}.",
        khmer: "{time} {who}{verb}{things} {place}។",
        gist: "{who} {verbs} {noun}.",
        facts: &[
            "who: {who}",
            "action: {verbs}",
            "what: {kind}",
            "how many: {count}",
            "where: {place}",
            "when: {time}",
        ],
        questions: &[
            ("how many {kind} does {who} {verb}?", "{count}"),
            ("where does {who} {verb} {things}?", "{place}"),
            ("who {verbs} {things} {place}?", "{who}"),
        ],
    },
    Shape {
        weight: 3,
        parts: &[WHO, Verb, Things, PLACE, Word("time", PAST_TIMES)],
        english: "{time}, {who} {past} {things} {place}.",
        khmer: "{time} {who}បាន{verb}{things} {place}។",
        gist: "{who} {past} {noun}.",
        facts: &["who: {who}", "action: {past}", "what: {kind}", "how many: {count}", "where: {place}", "when: {time}"],
        questions: &[
            ("how many {kind} did {who} {verb}?", "{count}"),
            ("where did {who} {verb} {things}?", "{place}"),
            ("who {past} {things} {place}?", "{who}"),
        ],
    },
    Shape {
        weight: 2,
        parts: &[WHO, Verb, Things, PLACE, TIME],
        english: "does {who} {verb} {things} {place} {time}?",
        khmer: "{time} តើ{who}{verb}{things} {place}ដែរឬទេ?",
        gist: "someone asks whether {who} {verbs} {noun}.",
        facts: &[
            "question about: {who}",
            "action: {verbs}",
            "what: {kind}",
            "how many: {count}",
            "where: {place}",
            "when: {time}",
        ],
        questions: &[
            ("how many {kind} does the question ask about?", "{count}"),
            ("who might {verb} {things}?", "{who}"),
        ],
    },
    Shape {
        weight: 2,
        parts: &[Two(["giver", "taker"], PEOPLE), Things, PLACE, TIME],
        english: "{giver} gives {things} to {taker} {place} {time}.",
        khmer: "{time} {giver}ឲ្យ{things}ទៅ{taker} {place}។",
        gist: "{giver} gives {noun} to {taker}.",
        facts: &[
            "giver: {giver}",
            "receiver: {taker}",
            "what: {kind}",
            "how many: {count}",
            "where: {place}",
            "when: {time}",
        ],
        questions: &[
            ("how many {kind} does {giver} give to {taker}?", "{count}"),
            ("who gives {things} to {taker}?", "{giver}"),
            ("to whom does {giver} give {things}?", "{taker}"),
        ],
    },
    Shape {
        weight: 2,
        parts: &[Things, Range("riel", 500, 20_000, 500), PLACE, TIME],
        english: "{place}, {things} cost {riel} riel {time}.",
        khmer: "{time} {place} {things} មានតម្លៃ {riel} រៀល។",
        gist: "{noun} cost {riel} riel.",
        facts: &["what: {kind}", "how many: {count}", "price: {riel} riel", "where: {place}", "when: {time}"],
        questions: &[("how many riel do {things} cost?", "{riel}"), ("where do {things} cost {riel} riel?", "{place}")],
    },
    Shape {
        weight: 2,
        parts: &[Two(["first", "second"], PEOPLE), Things, Word("degree", &DEGREES), PLACE, TIME],
        english: "{first} has {count} {degree} {kind} than {second} {place} {time}.",
        khmer: "{time} {place} {first}មាន{kind}{degree}{second} {count}។",
        gist: "{first} has {degree} {noun} than {second}.",
        facts: &[
            "who: {first}",
            "compared with: {second}",
            "what: {kind}",
            "difference: {count} {degree}",
            "where: {place}",
            "when: {time}",
        ],
        questions: &[
            ("how many {degree} {kind} does {first} have than {second}?", "{count}"),
            ("who has {degree} {kind} than {second}?", "{first}"),
        ],
    },
    Shape {
        weight: 1,
        parts: &[Things, PLACE, TIME],
        english: "there are {things} {place} {time}.",
        khmer: "{time} {place} មាន{things}។",
        gist: "there are {noun} {place}.",
        facts: &["what: {kind}", "how many: {count}", "where: {place}", "when: {time}"],
        questions: &[("how many {kind} are there {place}?", "{count}"), ("where are there {things}?", "{place}")],
    },
    Shape {
        weight: 1,
        parts: &[Word("weather", WEATHER), Range("degrees", 18, 40, 1), WHO, Word("action", ACTIONS), PLACE, TIME],
        english: "it is {weather} {place} {time}, {degrees} degrees, and {who} {action}.",
        khmer: "{time} {place} {weather} {degrees} អង្សា ហើយ{who}{action}។",
        gist: "it is {weather} and {who} {action}.",
        facts: &[
            "weather: {weather}",
            "degrees: {degrees}",
            "where: {place}",
            "when: {time}",
            "who: {who}",
            "action: {action}",
        ],
        questions: &[
            ("how many degrees is it {place}?", "{degrees}"),
            ("who {action} while it is {weather}?", "{who}"),
        ],
    },
    Shape {
        weight: 1,
        parts: &[
            WHO,
            Two(["from", "to"], CITIES),
            Word("vehicle", VEHICLES),
            Word("companions", COMPANIONS),
            Word("adjective", OF_PEOPLE),
            Number("number", NUMBERS),
            TIME,
        ],
        english: "{who} travels from {from} to {to} by {vehicle} with {number} {adjective} {companions} {time}.",
        khmer: "{time} {who}ធ្វើដំណើរពី{from}ទៅ{to}តាម{vehicle} ជាមួយ{companions}{adjective} {number} នាក់។",
        gist: "{who} travels to {to} by {vehicle}.",
        facts: &[
            "who: {who}",
            "from: {from}",
            "to: {to}",
            "vehicle: {vehicle}",
            "with: {adjective} {companions}",
            "how many: {number}",
            "when: {time}",
        ],
        questions: &[
            ("how many {adjective} {companions} travel with {who}?", "{number}"),
            ("where does {who} travel from {from}?", "{to}"),
        ],
    },
    Shape {
        weight: 1,
        parts: &[
            Two(["first", "second"], PEOPLE),
            Word("action", ACTIONS),
            Word("other", ACTIONS),
            Range("minutes", 5, 60, 5),
            Word("order", &ORDERS),
            PLACE,
            TIME,
        ],
        english: "{first} {action} for {minutes} minutes {place} {time} {order} {second} {other}.",
        khmer: "{time} {place} {first}{action}រយៈពេល {minutes} នាទី {order}{second}{other}។",
        gist: "{first} {action} {order} {second} {other}.",
        facts: &[
            "who: {first}",
            "action: {action}",
            "minutes: {minutes}",
            "where: {place}",
            "when: {time}",
            "{order}: {second} {other}",
        ],
        questions: &[
            ("for how many minutes is it that {first} {action}?", "{minutes}"),
            ("who {action} for {minutes} minutes?", "{first}"),
        ],
    },
];
