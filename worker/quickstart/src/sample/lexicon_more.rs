//! The words of the sentence shapes that are not about an action on counted things.

use super::lexicon::Word;

/// Actions of people without a counted object.
pub(super) const ACTIONS: &[Word] = &[
    ("sleeps", "គេង"),
    ("sings", "ច្រៀង"),
    ("cooks food", "ចម្អិនអាហារ"),
    ("reads a book", "អានសៀវភៅ"),
    ("rests", "សម្រាក"),
    ("runs", "រត់"),
    ("swims", "ហែលទឹក"),
    ("dances", "រាំ"),
    ("works", "ធ្វើការ"),
    ("plays football", "លេងបាល់ទាត់"),
    ("drinks coffee", "ផឹកកាហ្វេ"),
    ("drinks tea", "ផឹកតែ"),
    ("eats rice", "ញ៉ាំបាយ"),
    ("studies English", "រៀនភាសាអង់គ្លេស"),
    ("watches television", "មើលទូរទស្សន៍"),
    ("listens to music", "ស្ដាប់តន្ត្រី"),
    ("bathes", "ងូតទឹក"),
    ("laughs", "សើច"),
    ("cries", "យំ"),
    ("waits", "រង់ចាំ"),
    ("rides a bicycle", "ជិះកង់"),
    ("plants rice", "ស្ទូងស្រូវ"),
    ("writes a letter", "សរសេរសំបុត្រ"),
    ("takes a walk", "ដើរលេង"),
    ("sews clothes", "ដេរខោអាវ"),
    ("prays", "បួងសួង"),
    ("sweeps the house", "បោសផ្ទះ"),
    ("tells stories", "និទានរឿង"),
];

pub(super) const WEATHER: &[Word] = &[
    ("hot", "អាកាសធាតុក្ដៅ"),
    ("cold", "អាកាសធាតុត្រជាក់"),
    ("humid", "អាកាសធាតុសើម"),
    ("dry", "អាកាសធាតុស្ងួត"),
    ("rainy", "មេឃភ្លៀង"),
    ("clear", "មេឃស្រឡះ"),
    ("cloudy", "មេឃមានពពក"),
    ("dark", "មេឃងងឹត"),
    ("windy", "ខ្យល់បក់ខ្លាំង"),
    ("foggy", "មានអ័ព្ទ"),
    ("stormy", "មានព្យុះ"),
    ("dusty", "មានធូលីច្រើន"),
];

pub(super) const CITIES: &[Word] = &[
    ("Phnom Penh", "ភ្នំពេញ"),
    ("Siem Reap", "សៀមរាប"),
    ("Battambang", "បាត់ដំបង"),
    ("Kampot", "កំពត"),
    ("Kep", "កែប"),
    ("Takeo", "តាកែវ"),
    ("Kampong Cham", "កំពង់ចាម"),
    ("Kampong Thom", "កំពង់ធំ"),
    ("Kampong Chhnang", "កំពង់ឆ្នាំង"),
    ("Kampong Speu", "កំពង់ស្ពឺ"),
    ("Kratie", "ក្រចេះ"),
    ("Pursat", "ពោធិ៍សាត់"),
    ("Prey Veng", "ព្រៃវែង"),
    ("Svay Rieng", "ស្វាយរៀង"),
    ("Stung Treng", "ស្ទឹងត្រែង"),
    ("Ratanakiri", "រតនគិរី"),
    ("Mondulkiri", "មណ្ឌលគិរី"),
    ("Koh Kong", "កោះកុង"),
    ("Pailin", "ប៉ៃលិន"),
    ("Preah Vihear", "ព្រះវិហារ"),
];

pub(super) const VEHICLES: &[Word] = &[
    ("bus", "រថយន្តក្រុង"),
    ("train", "រថភ្លើង"),
    ("boat", "ទូក"),
    ("plane", "យន្តហោះ"),
    ("motorbike", "ម៉ូតូ"),
    ("car", "ឡាន"),
    ("bicycle", "កង់"),
    ("ox cart", "រទេះគោ"),
    ("truck", "រថយន្តដឹកទំនិញ"),
    ("taxi", "តាក់ស៊ី"),
];

/// Companions on a journey, in the plural.
pub(super) const COMPANIONS: &[Word] = &[
    ("students", "សិស្ស"),
    ("teachers", "គ្រូបង្រៀន"),
    ("farmers", "កសិករ"),
    ("doctors", "វេជ្ជបណ្ឌិត"),
    ("tourists", "ភ្ញៀវទេសចរ"),
    ("soldiers", "ទាហាន"),
    ("workers", "កម្មករ"),
    ("singers", "អ្នកចម្រៀង"),
    ("engineers", "វិស្វករ"),
    ("children", "ក្មេង"),
    ("friends", "មិត្តភក្តិ"),
    ("merchants", "ឈ្មួញ"),
];

pub(super) const OF_PEOPLE: &[Word] = &[
    ("friendly", "រួសរាយ"),
    ("clever", "ឆ្លាត"),
    ("tired", "ហត់នឿយ"),
    ("happy", "សប្បាយរីករាយ"),
    ("hungry", "ឃ្លាន"),
    ("poor", "ក្រីក្រ"),
    ("tall", "ខ្ពស់"),
    ("brave", "ក្លាហាន"),
    ("famous", "ល្បីល្បាញ"),
    ("kind", "ចិត្តល្អ"),
    ("honest", "ស្មោះត្រង់"),
    ("lazy", "ខ្ជិល"),
];

/// Counts of things.
pub(super) const NUMBERS: &[u64] = &[
    2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 25, 30, 36, 40, 45, 50, 60, 75, 80, 90, 100,
    120, 150, 200, 250, 300, 400, 500, 750, 1000,
];
