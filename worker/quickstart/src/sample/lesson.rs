//! The questions that can be asked about a scene, and their exact answers.

use super::scene::{Deed, Scene};
use super::wording::capitalised;

/// The teaching material of one scene.
pub(super) struct Lesson {
    /// A one-sentence summary.
    pub gist: String,
    /// The facts, point by point.
    pub facts: Vec<(&'static str, String)>,
    /// Questions with their answers.
    pub questions: Vec<(String, String)>,
}

impl Scene {
    pub(super) fn lesson(&self) -> Lesson {
        let (gist, facts, questions) = match *self {
            Self::Present(deed) => deed_lesson(&deed, deed.verb.present, "does", deed.verb.present),
            Self::Past(deed) => deed_lesson(&deed, deed.verb.past, "did", deed.verb.past),
            Self::Question(Deed { who, verb, things, place, time }) => (
                format!("someone asks whether {} {} {}.", who.0, verb.present, things.noun.english),
                vec![
                    ("question about", who.0.to_owned()),
                    ("action", verb.present.to_owned()),
                    ("what", things.kind()),
                    ("how many", things.number.to_string()),
                    ("where", place.0.to_owned()),
                    ("when", time.0.to_owned()),
                ],
                vec![
                    (format!("how many {} does the question ask about?", things.kind()), things.number.to_string()),
                    (format!("who might {} {}?", verb.base, things.english()), who.0.to_owned()),
                ],
            ),
            Self::Gift { people: (giver, taker), things, place, time } => (
                format!("{} gives {} to {}.", giver.0, things.noun.english, taker.0),
                vec![
                    ("giver", giver.0.to_owned()),
                    ("receiver", taker.0.to_owned()),
                    ("what", things.kind()),
                    ("how many", things.number.to_string()),
                    ("where", place.0.to_owned()),
                    ("when", time.0.to_owned()),
                ],
                vec![
                    (
                        format!("how many {} does {} give to {}?", things.kind(), giver.0, taker.0),
                        things.number.to_string(),
                    ),
                    (format!("who gives {} to {}?", things.english(), taker.0), giver.0.to_owned()),
                    (format!("to whom does {} give {}?", giver.0, things.english()), taker.0.to_owned()),
                ],
            ),
            Self::Price { things, riel, place, time } => (
                format!("{} cost {riel} riel.", things.noun.english),
                vec![
                    ("what", things.kind()),
                    ("how many", things.number.to_string()),
                    ("price", format!("{riel} riel")),
                    ("where", place.0.to_owned()),
                    ("when", time.0.to_owned()),
                ],
                vec![
                    (format!("how many riel do {} cost?", things.english()), riel.to_string()),
                    (format!("where do {} cost {riel} riel?", things.english()), place.0.to_owned()),
                ],
            ),
            Self::Presence { things, place, time } => (
                format!("there are {} {}.", things.noun.english, place.0),
                vec![
                    ("what", things.kind()),
                    ("how many", things.number.to_string()),
                    ("where", place.0.to_owned()),
                    ("when", time.0.to_owned()),
                ],
                vec![
                    (format!("how many {} are there {}?", things.kind(), place.0), things.number.to_string()),
                    (format!("where are there {}?", things.english()), place.0.to_owned()),
                ],
            ),
            Self::Comparison { people: (first, second), things, degree, place, time } => (
                format!("{} has {} {} than {}.", first.0, degree.0, things.noun.english, second.0),
                vec![
                    ("who", first.0.to_owned()),
                    ("compared with", second.0.to_owned()),
                    ("what", things.kind()),
                    ("difference", format!("{} {}", things.number, degree.0)),
                    ("where", place.0.to_owned()),
                    ("when", time.0.to_owned()),
                ],
                vec![
                    (
                        format!("how many {} {} does {} have than {}?", degree.0, things.kind(), first.0, second.0),
                        things.number.to_string(),
                    ),
                    (format!("who has {} {} than {}?", degree.0, things.kind(), second.0), first.0.to_owned()),
                ],
            ),
            Self::Weather { weather, degrees, person, action, place, time } => (
                format!("it is {} and {} {}.", weather.0, person.0, action.0),
                vec![
                    ("weather", weather.0.to_owned()),
                    ("degrees", degrees.to_string()),
                    ("where", place.0.to_owned()),
                    ("when", time.0.to_owned()),
                    ("who", person.0.to_owned()),
                    ("action", action.0.to_owned()),
                ],
                vec![
                    (format!("how many degrees is it {}?", place.0), degrees.to_string()),
                    (format!("who {} while it is {}?", action.0, weather.0), person.0.to_owned()),
                ],
            ),
            Self::Travel { who, cities: (from, to), vehicle, companions, adjective, number, time } => (
                format!("{} travels to {} by {}.", who.0, to.0, vehicle.0),
                vec![
                    ("who", who.0.to_owned()),
                    ("from", from.0.to_owned()),
                    ("to", to.0.to_owned()),
                    ("vehicle", vehicle.0.to_owned()),
                    ("with", format!("{} {}", adjective.0, companions.0)),
                    ("how many", number.to_string()),
                    ("when", time.0.to_owned()),
                ],
                vec![
                    (format!("how many {} {} travel with {}?", adjective.0, companions.0, who.0), number.to_string()),
                    (format!("where does {} travel from {}?", who.0, from.0), to.0.to_owned()),
                ],
            ),
            Self::Sequence { people: (first, second), actions, minutes, order, place, time } => (
                format!("{} {} {} {} {}.", first.0, actions[0].0, order.0, second.0, actions[1].0),
                vec![
                    ("who", first.0.to_owned()),
                    ("action", actions[0].0.to_owned()),
                    ("minutes", minutes.to_string()),
                    ("where", place.0.to_owned()),
                    ("when", time.0.to_owned()),
                    (order.0, format!("{} {}", second.0, actions[1].0)),
                ],
                vec![
                    (format!("for how many minutes is it that {} {}?", first.0, actions[0].0), minutes.to_string()),
                    (format!("who {} for {minutes} minutes?", actions[0].0), first.0.to_owned()),
                ],
            ),
        };
        let questions = questions.into_iter().map(|(question, answer)| (capitalised(question), answer)).collect();
        Lesson { gist: capitalised(gist), facts, questions }
    }
}

type Parts = (String, Vec<(&'static str, String)>, Vec<(String, String)>);

fn deed_lesson(deed: &Deed, said: &'static str, auxiliary: &str, asked: &str) -> Parts {
    let Deed { who, verb, things, place, time } = *deed;
    (
        format!("{} {said} {}.", who.0, things.noun.english),
        vec![
            ("who", who.0.to_owned()),
            ("action", said.to_owned()),
            ("what", things.kind()),
            ("how many", things.number.to_string()),
            ("where", place.0.to_owned()),
            ("when", time.0.to_owned()),
        ],
        vec![
            (format!("how many {} {auxiliary} {} {}?", things.kind(), who.0, verb.base), things.number.to_string()),
            (format!("where {auxiliary} {} {} {}?", who.0, verb.base, things.english()), place.0.to_owned()),
            (format!("who {asked} {} {}?", things.english(), place.0), who.0.to_owned()),
        ],
    )
}
