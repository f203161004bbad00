//! The words of the sample corpus. Within a list, and between lists that share a place in a sentence, an English word
//! has one Khmer word and the reverse. So every sentence has one translation.

/// An English word or phrase with its Khmer translation.
pub(super) type Word = (&'static str, &'static str);

/// Things that can be counted.
pub(super) struct Noun {
    /// The English plural.
    pub english: &'static str,
    pub khmer: &'static str,
    /// The Khmer classifier; empty if the noun is counted without one.
    pub classifier: &'static str,
}

/// Nouns, and the adjectives that fit each of them.
pub(super) struct NounClass {
    pub nouns: &'static [Noun],
    pub adjectives: &'static [Word],
}

/// A verb that takes an object.
pub(super) struct Verb {
    /// The base form, such as `buy`.
    pub base: &'static str,
    /// The third person singular, such as `buys`.
    pub present: &'static str,
    /// The past tense, such as `bought`.
    pub past: &'static str,
    pub khmer: &'static str,
}

const fn noun(english: &'static str, khmer: &'static str, classifier: &'static str) -> Noun {
    Noun { english, khmer, classifier }
}

const fn verb(base: &'static str, present: &'static str, past: &'static str, khmer: &'static str) -> Verb {
    Verb { base, present, past, khmer }
}

pub(super) const PEOPLE: &[Word] = &[
    ("the farmer", "កសិករ"),
    ("the teacher", "គ្រូបង្រៀន"),
    ("the student", "សិស្ស"),
    ("the doctor", "វេជ្ជបណ្ឌិត"),
    ("the nurse", "គិលានុបដ្ឋាក"),
    ("the driver", "អ្នកបើកបរ"),
    ("the fisherman", "អ្នកនេសាទ"),
    ("the cook", "ចុងភៅ"),
    ("the carpenter", "ជាងឈើ"),
    ("the tailor", "ជាងកាត់ដេរ"),
    ("the barber", "ជាងកាត់សក់"),
    ("the blacksmith", "ជាងដែក"),
    ("the soldier", "ទាហាន"),
    ("the police officer", "មន្ត្រីនគរបាល"),
    ("the merchant", "ឈ្មួញ"),
    ("the singer", "អ្នកចម្រៀង"),
    ("the dancer", "អ្នករាំ"),
    ("the writer", "អ្នកនិពន្ធ"),
    ("the journalist", "អ្នកកាសែត"),
    ("the engineer", "វិស្វករ"),
    ("the lawyer", "មេធាវី"),
    ("the judge", "ចៅក្រម"),
    ("the worker", "កម្មករ"),
    ("the guide", "មគ្គុទ្ទេសក៍"),
    ("the tourist", "ភ្ញៀវទេសចរ"),
    ("the village chief", "មេភូមិ"),
    ("the child", "ក្មេង"),
    ("the painter", "វិចិត្រករ"),
    ("the hunter", "អ្នកប្រមាញ់"),
    ("the librarian", "បណ្ណារក្ស"),
    ("the musician", "តន្ត្រីករ"),
    ("the gardener", "អ្នកថែសួន"),
    ("the sailor", "នាវិក"),
    ("the dentist", "ទន្តពេទ្យ"),
    ("my mother", "ម្ដាយខ្ញុំ"),
    ("my father", "ឪពុកខ្ញុំ"),
    ("my older brother", "បងប្រុសខ្ញុំ"),
    ("my younger sister", "ប្អូនស្រីខ្ញុំ"),
    ("my grandmother", "ជីដូនខ្ញុំ"),
    ("my grandfather", "ជីតាខ្ញុំ"),
    ("my uncle", "ពូខ្ញុំ"),
    ("my aunt", "មីងខ្ញុំ"),
    ("my friend", "មិត្តភក្តិខ្ញុំ"),
    ("our neighbour", "អ្នកជិតខាងយើង"),
];

pub(super) const VERBS: &[Verb] = &[
    verb("buy", "buys", "bought", "ទិញ"),
    verb("sell", "sells", "sold", "លក់"),
    verb("see", "sees", "saw", "ឃើញ"),
    verb("like", "likes", "liked", "ចូលចិត្ត"),
    verb("need", "needs", "needed", "ត្រូវការ"),
    verb("want", "wants", "wanted", "ចង់បាន"),
    verb("find", "finds", "found", "រកឃើញ"),
    verb("count", "counts", "counted", "រាប់"),
    verb("look for", "looks for", "looked for", "ស្វែងរក"),
    verb("keep", "keeps", "kept", "រក្សាទុក"),
    verb("choose", "chooses", "chose", "ជ្រើសរើស"),
    verb("photograph", "photographs", "photographed", "ថតរូប"),
    verb("weigh", "weighs", "weighed", "ថ្លឹង"),
    verb("draw", "draws", "drew", "គូររូប"),
    verb("receive", "receives", "received", "ទទួល"),
    verb("bring", "brings", "brought", "នាំយក"),
    verb("order", "orders", "ordered", "កម្ម៉ង់"),
    verb("protect", "protects", "protected", "ការពារ"),
    verb("hide", "hides", "hid", "លាក់"),
    verb("lose", "loses", "lost", "ធ្វើបាត់"),
    verb("describe", "describes", "described", "ពិពណ៌នាអំពី"),
    verb("examine", "examines", "examined", "ពិនិត្យ"),
    verb("talk about", "talks about", "talked about", "និយាយអំពី"),
    verb("think about", "thinks about", "thought about", "គិតអំពី"),
    verb("dream about", "dreams about", "dreamed about", "យល់សប្តិឃើញ"),
    verb("borrow", "borrows", "borrowed", "ខ្ចី"),
    verb("wash", "washes", "washed", "លាង"),
    verb("transport", "transports", "transported", "ដឹក"),
];

pub(super) const NOUN_CLASSES: &[NounClass] = &[
    NounClass { nouns: ANIMALS, adjectives: OF_ANIMALS },
    NounClass { nouns: THINGS, adjectives: OF_THINGS },
    NounClass { nouns: FRUITS, adjectives: OF_FRUITS },
];

const ANIMALS: &[Noun] = &[
    noun("cows", "គោ", "ក្បាល"),
    noun("buffaloes", "ក្របី", "ក្បាល"),
    noun("pigs", "ជ្រូក", "ក្បាល"),
    noun("chickens", "មាន់", "ក្បាល"),
    noun("ducks", "ទា", "ក្បាល"),
    noun("horses", "សេះ", "ក្បាល"),
    noun("elephants", "ដំរី", "ក្បាល"),
    noun("dogs", "ឆ្កែ", "ក្បាល"),
    noun("cats", "ឆ្មា", "ក្បាល"),
    noun("goats", "ពពែ", "ក្បាល"),
    noun("sheep", "ចៀម", "ក្បាល"),
    noun("monkeys", "ស្វា", "ក្បាល"),
    noun("rabbits", "ទន្សាយ", "ក្បាល"),
    noun("fish", "ត្រី", "ក្បាល"),
    noun("crabs", "ក្ដាម", "ក្បាល"),
    noun("frogs", "កង្កែប", "ក្បាល"),
    noun("turtles", "អណ្ដើក", "ក្បាល"),
    noun("parrots", "សេក", "ក្បាល"),
    noun("geese", "ក្ងាន", "ក្បាល"),
    noun("deer", "ប្រើស", "ក្បាល"),
];

const OF_ANIMALS: &[Word] = &[
    ("big", "ធំ"),
    ("small", "តូច"),
    ("old", "ចាស់"),
    ("black", "ពណ៌ខ្មៅ"),
    ("white", "ពណ៌ស"),
    ("brown", "ពណ៌ត្នោត"),
    ("grey", "ពណ៌ប្រផេះ"),
    ("fat", "ធាត់"),
    ("thin", "ស្គម"),
    ("healthy", "មានសុខភាពល្អ"),
    ("hungry", "ឃ្លាន"),
    ("beautiful", "ស្អាត"),
];

const THINGS: &[Noun] = &[
    noun("books", "សៀវភៅ", "ក្បាល"),
    noun("newspapers", "កាសែត", "ច្បាប់"),
    noun("letters", "សំបុត្រ", "ច្បាប់"),
    noun("maps", "ផែនទី", "ផ្ទាំង"),
    noun("paintings", "គំនូរ", "ផ្ទាំង"),
    noun("mirrors", "កញ្ចក់", "ផ្ទាំង"),
    noun("pens", "ប៊ិច", "ដើម"),
    noun("pencils", "ខ្មៅដៃ", "ដើម"),
    noun("knives", "កាំបិត", "ដើម"),
    noun("houses", "ផ្ទះ", "ខ្នង"),
    noun("boats", "ទូក", "គ្រឿង"),
    noun("bicycles", "កង់", "គ្រឿង"),
    noun("motorbikes", "ម៉ូតូ", "គ្រឿង"),
    noun("cars", "ឡាន", "គ្រឿង"),
    noun("carts", "រទេះ", "គ្រឿង"),
    noun("telephones", "ទូរស័ព្ទ", "គ្រឿង"),
    noun("computers", "កុំព្យូទ័រ", "គ្រឿង"),
    noun("radios", "វិទ្យុ", "គ្រឿង"),
    noun("fans", "កង្ហារ", "គ្រឿង"),
    noun("clocks", "នាឡិកា", "គ្រឿង"),
    noun("tables", "តុ", ""),
    noun("chairs", "កៅអី", ""),
    noun("beds", "គ្រែ", ""),
    noun("umbrellas", "ឆ័ត្រ", ""),
    noun("plates", "ចាន", ""),
    noun("spoons", "ស្លាបព្រា", ""),
    noun("pots", "ឆ្នាំង", ""),
    noun("baskets", "កន្ត្រក", ""),
    noun("boxes", "ប្រអប់", ""),
    noun("shirts", "អាវ", ""),
    noun("hats", "មួក", ""),
    noun("mats", "កន្ទេល", ""),
    noun("lamps", "ចង្កៀង", ""),
];

const OF_THINGS: &[Word] = &[
    ("big", "ធំ"),
    ("small", "តូច"),
    ("new", "ថ្មី"),
    ("old", "ចាស់"),
    ("red", "ពណ៌ក្រហម"),
    ("green", "ពណ៌បៃតង"),
    ("blue", "ពណ៌ខៀវ"),
    ("yellow", "ពណ៌លឿង"),
    ("white", "ពណ៌ស"),
    ("black", "ពណ៌ខ្មៅ"),
    ("cheap", "ថោក"),
    ("expensive", "ថ្លៃ"),
    ("beautiful", "ស្អាត"),
    ("heavy", "ធ្ងន់"),
    ("strong", "រឹងមាំ"),
    ("dirty", "កខ្វក់"),
];

const FRUITS: &[Noun] = &[
    noun("mangoes", "ស្វាយ", "ផ្លែ"),
    noun("bananas", "ចេក", "ផ្លែ"),
    noun("coconuts", "ដូង", "ផ្លែ"),
    noun("oranges", "ក្រូច", "ផ្លែ"),
    noun("pineapples", "ម្នាស់", "ផ្លែ"),
    noun("durians", "ទុរេន", "ផ្លែ"),
    noun("papayas", "ល្ហុង", "ផ្លែ"),
    noun("watermelons", "ឪឡឹក", "ផ្លែ"),
    noun("guavas", "ត្របែក", "ផ្លែ"),
    noun("jackfruits", "ខ្នុរ", "ផ្លែ"),
    noun("apples", "ប៉ោម", "ផ្លែ"),
    noun("limes", "ក្រូចឆ្មារ", "ផ្លែ"),
    noun("tomatoes", "ប៉េងប៉ោះ", "ផ្លែ"),
    noun("cucumbers", "ត្រសក់", "ផ្លែ"),
    noun("pumpkins", "ល្ពៅ", "ផ្លែ"),
];

const OF_FRUITS: &[Word] = &[
    ("big", "ធំ"),
    ("small", "តូច"),
    ("ripe", "ទុំ"),
    ("sweet", "ផ្អែម"),
    ("sour", "ជូរ"),
    ("fresh", "ស្រស់"),
    ("rotten", "រលួយ"),
    ("cheap", "ថោក"),
    ("expensive", "ថ្លៃ"),
    ("green", "ពណ៌បៃតង"),
];

pub(super) const PLACES: &[Word] = &[
    ("at the market", "នៅផ្សារ"),
    ("near the river", "ក្បែរទន្លេ"),
    ("in the village", "នៅក្នុងភូមិ"),
    ("in Phnom Penh", "នៅភ្នំពេញ"),
    ("at school", "នៅសាលារៀន"),
    ("at the hospital", "នៅមន្ទីរពេទ្យ"),
    ("in the forest", "នៅក្នុងព្រៃ"),
    ("on the mountain", "នៅលើភ្នំ"),
    ("at the airport", "នៅព្រលានយន្តហោះ"),
    ("in Siem Reap", "នៅសៀមរាប"),
    ("in Battambang", "នៅបាត់ដំបង"),
    ("in Kampot", "នៅកំពត"),
    ("at the pagoda", "នៅវត្ត"),
    ("beside the lake", "ក្បែរបឹង"),
    ("by the sea", "នៅមាត់សមុទ្រ"),
    ("in the garden", "នៅក្នុងសួនច្បារ"),
    ("in the rice field", "នៅវាលស្រែ"),
    ("at the bus station", "នៅចំណតរថយន្តក្រុង"),
    ("in front of the bank", "នៅមុខធនាគារ"),
    ("behind the house", "នៅក្រោយផ្ទះ"),
    ("under the bridge", "នៅក្រោមស្ពាន"),
    ("at the port", "នៅកំពង់ផែ"),
    ("in the library", "នៅក្នុងបណ្ណាល័យ"),
    ("at the restaurant", "នៅភោជនីយដ្ឋាន"),
    ("at the hotel", "នៅសណ្ឋាគារ"),
    ("at the factory", "នៅរោងចក្រ"),
    ("on the island", "នៅលើកោះ"),
    ("at the museum", "នៅសារមន្ទីរ"),
    ("at the cinema", "នៅរោងកុន"),
    ("along the road", "នៅតាមផ្លូវ"),
    ("in the kitchen", "នៅក្នុងផ្ទះបាយ"),
    ("at the post office", "នៅការិយាល័យប្រៃសណីយ៍"),
    ("near the temple", "ក្បែរប្រាសាទ"),
    ("at the border", "នៅព្រំដែន"),
    ("at the stadium", "នៅពហុកីឡដ្ឋាន"),
    ("at the university", "នៅសាកលវិទ្យាល័យ"),
];

/// Time expressions for the present and the future.
pub(super) const TIMES: &[Word] = &[
    ("today", "ថ្ងៃនេះ"),
    ("tomorrow", "ថ្ងៃស្អែក"),
    ("every day", "រាល់ថ្ងៃ"),
    ("every morning", "រៀងរាល់ព្រឹក"),
    ("every evening", "រៀងរាល់ល្ងាច"),
    ("every week", "រាល់សប្ដាហ៍"),
    ("every month", "រាល់ខែ"),
    ("every year", "រាល់ឆ្នាំ"),
    ("on Monday", "នៅថ្ងៃចន្ទ"),
    ("on Tuesday", "នៅថ្ងៃអង្គារ"),
    ("on Wednesday", "នៅថ្ងៃពុធ"),
    ("on Thursday", "នៅថ្ងៃព្រហស្បតិ៍"),
    ("on Friday", "នៅថ្ងៃសុក្រ"),
    ("on Saturday", "នៅថ្ងៃសៅរ៍"),
    ("on Sunday", "នៅថ្ងៃអាទិត្យ"),
    ("this morning", "ព្រឹកនេះ"),
    ("tonight", "យប់នេះ"),
    ("at noon", "នៅពេលថ្ងៃត្រង់"),
    ("at midnight", "នៅពាក់កណ្ដាលអធ្រាត្រ"),
    ("in the afternoon", "នៅពេលរសៀល"),
    ("in the rainy season", "នៅរដូវវស្សា"),
    ("in the dry season", "នៅរដូវប្រាំង"),
    ("next week", "សប្ដាហ៍ក្រោយ"),
    ("next month", "ខែក្រោយ"),
    ("now", "ឥឡូវនេះ"),
    ("before sunrise", "មុនពេលថ្ងៃរះ"),
    ("after sunset", "ក្រោយពេលថ្ងៃលិច"),
];

/// Time expressions for the past.
pub(super) const PAST_TIMES: &[Word] = &[
    ("yesterday", "ម្សិលមិញ"),
    ("yesterday morning", "ព្រឹកម្សិលមិញ"),
    ("yesterday evening", "ល្ងាចម្សិលមិញ"),
    ("last night", "យប់មិញ"),
    ("last week", "សប្ដាហ៍មុន"),
    ("last month", "ខែមុន"),
    ("last year", "ឆ្នាំមុន"),
    ("two days ago", "ពីរថ្ងៃមុន"),
    ("long ago", "យូរណាស់មកហើយ"),
    ("on New Year's Day", "នៅថ្ងៃចូលឆ្នាំ"),
];
