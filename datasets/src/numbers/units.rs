//! The spellings of units, currencies and magnitudes, and what a unit measures.

/// What ends a unit that is written in letters: anything but a Latin letter or a digit.
const END: &str = "(?:[^0-9A-Za-zÀ-ɏ]|$)";
/// Signs of currencies.
const MONEY: &str = r"US\$|\$|€|£|¥|៛|₹|₩|₫|฿|₭|₱|₽|₺|₪|₦|₴";
/// ISO 4217 codes.
const CODES: &str = "USD|EUR|GBP|JPY|CNY|KHR|THB|VND|LAK|INR|KRW|AUD|CAD|CHF";
/// Units that need no end.
const SYMBOLS: &str =
    "%|‰|°C|℃|°F|℉|°|ភាគរយ|គីឡូម៉ែត្រ|គីឡូក្រាម|សង់ទីម៉ែត្រ|មីលីម៉ែត្រ|ម៉ែត្រ|ដុល្លារ|រៀល|เปอร์เซ็นต์|กิโลเมตร|กิโลกรัม|डॉलर|प्रतिशत";
/// Symbols of the SI with their prefixes, and other short symbols.
const SHORT: &str = "[numcdhkKMGTP]?(?:Hz|Pa|Wh|bit|eV|mol|cal|m[23²³]?|g|W|V|J|L|l|B|Ω|t)|[numk](?:A|N|F|s)|[kMG]b|[KMGT]iB|min|sec|hrs?|s|h|ha|mph|kph|ppm|ppb|ft|lbs?|oz|mi|pt|px|dpi|rpm";
/// What may follow a slash: `km/h`.
const PER: &str = "(?:/(?:s|h|min|L|l|kg|m[23²³]))?";
/// English words, in lower case, without the ending s.
const WORDS: &str = "percent|per cent|(?:square |cubic )?(?:kilo|centi|milli)?(?:meter|metre)|(?:kilo|milli)?gram|tonne|(?:milli)?(?:liter|litre)|(?:kilo|mega|giga)?(?:watt|byte|hertz)|volt|hectare|mile|foot|feet|inche?|degrees celsius|degree|second|minute|hour|day|week|month|year|dollar|euro|riel|yuan|yen|baht|a\\.?m\\.?|p\\.?m\\.?";
/// Magnitudes in several languages.
const MAGNITUDES: &str = "(?i:hundred|thousand|million|billion|trillion)s?|bn|mn|ពាន់លាន|ប៊ីលាន|រយលាន|ដប់លាន|លាន|សែន|ម៉ឺន|ពាន់|ล้าน|แสน|หมื่น|พัน|लाख|करोड़|हज़ार|万|萬|億|亿|千|百|triệu|tỷ|nghìn";

/// The ASCII names, each with its spellings. Words are in lower case and singular. A character stands for itself inside a
/// longer spelling.
pub(super) const NAMES: &[(&str, &[&str])] = &[
    ("hundred", &["hundred", "百"]),
    ("thousand", &["thousand", "k", "千", "ពាន់", "พัน", "हज़ार", "nghìn"]),
    ("million", &["million", "mn", "លាន", "ล้าน", "triệu"]),
    ("billion", &["billion", "bn", "ពាន់លាន", "ប៊ីលាន", "tỷ"]),
    ("trillion", &["trillion"]),
    ("%", &["percent", "per cent", "ភាគរយ", "เปอร์เซ็นต์", "प्रतिशत"]),
    ("per mille", &["‰"]),
    ("2", &["²"]),
    ("3", &["³"]),
    ("ohm", &["Ω"]),
    ("deg", &["°", "degree"]),
    ("degC", &["℃", "degrees celsiu"]),
    ("degF", &["℉"]),
    ("kB", &["KB", "kilobyte"]),
    ("L", &["l", "liter", "litre"]),
    ("mL", &["ml", "milliliter", "millilitre"]),
    ("day", &["day"]),
    ("week", &["week"]),
    ("month", &["month"]),
    ("year", &["year"]),
    ("h", &["hr", "hour"]),
    ("s", &["sec", "second"]),
    ("min", &["minute"]),
    ("am", &["am", "a.m", "a.m."]),
    ("pm", &["pm", "p.m", "p.m."]),
    ("m", &["meter", "metre", "ម៉ែត្រ"]),
    ("km", &["kilometer", "kilometre", "គីឡូម៉ែត្រ", "กิโลเมตร"]),
    ("cm", &["centimeter", "centimetre", "សង់ទីម៉ែត្រ"]),
    ("mm", &["millimeter", "millimetre", "មីលីម៉ែត្រ"]),
    ("m2", &["square meter", "square metre"]),
    ("km2", &["square kilometer", "square kilometre"]),
    ("m3", &["cubic meter", "cubic metre"]),
    ("g", &["gram"]),
    ("kg", &["kilogram", "គីឡូក្រាម", "กิโลกรัม"]),
    ("mg", &["milligram"]),
    ("t", &["tonne"]),
    ("W", &["watt"]),
    ("kW", &["kilowatt"]),
    ("MW", &["megawatt"]),
    ("GW", &["gigawatt"]),
    ("V", &["volt"]),
    ("B", &["byte"]),
    ("MB", &["megabyte"]),
    ("GB", &["gigabyte"]),
    ("Hz", &["hertz"]),
    ("kHz", &["kilohertz"]),
    ("MHz", &["megahertz"]),
    ("GHz", &["gigahertz"]),
    ("ha", &["hectare"]),
    ("mi", &["mile"]),
    ("ft", &["foot", "feet"]),
    ("inch", &["inch", "inche"]),
    ("lb", &["lb"]),
    ("USD", &["US$", "$", "dollar", "ដុល្លារ", "डॉलर"]),
    ("EUR", &["€", "euro"]),
    ("GBP", &["£"]),
    ("JPY", &["¥", "yen"]),
    ("CNY", &["yuan"]),
    ("KHR", &["៛", "រៀល", "riel"]),
    ("INR", &["₹"]),
    ("KRW", &["₩"]),
    ("VND", &["₫"]),
    ("THB", &["฿", "baht"]),
    ("LAK", &["₭"]),
    ("PHP", &["₱"]),
    ("RUB", &["₽"]),
    ("TRY", &["₺"]),
    ("ILS", &["₪"]),
    ("NGN", &["₦"]),
    ("UAH", &["₴"]),
    ("ten thousand", &["ម៉ឺន", "หมื่น", "万", "萬"]),
    ("hundred thousand", &["សែន", "แสน", "लाख"]),
    ("ten million", &["ដប់លាន", "करोड़"]),
    ("hundred million", &["រយលាន", "億", "亿"]),
];

/// Returns the pattern of a number in a text whose digits are ASCII.
pub(super) fn pattern() -> String {
    let numeral = "[0-9]+(?:[.,'_][0-9]+)*";
    format!(
        "(?P<sign>[-+])?(?:(?P<money>{MONEY}|(?:{CODES}) ) ?)?(?P<body>{numeral}(?:[-/:]{numeral})*)\
         (?:(?: ?(?P<scale>{MAGNITUDES}))?[ -]?(?:(?P<symbol>{SYMBOLS}|{MONEY})|(?P<unit>{CODES}|(?:{SHORT}){PER}|(?i:{WORDS})s?){END})\
         | ?(?P<alone>{MAGNITUDES}|k){END}|(?P<nth>st|nd|rd|th){END})?"
    )
}

/// Returns the power of ten of a magnitude by its ASCII name; 0 for other names.
pub(super) fn power(magnitude: &str) -> i32 {
    let one = |word| match word {
        "ten" => 1,
        "hundred" => 2,
        "thousand" => 3,
        "million" => 6,
        "billion" => 9,
        "trillion" => 12,
        _ => 0,
    };
    magnitude.split(' ').map(one).sum()
}

/// Returns the unit without its prefix, and the power of ten that the prefix stands for: `("W", 6)` for `MW`.
pub(super) fn base(unit: &str) -> (&str, i32) {
    const BASES: [&str; 21] = [
        "Hz", "Pa", "Wh", "bit", "eV", "mol", "cal", "m2", "m3", "m", "g", "W", "V", "J", "L", "B", "ohm", "A", "N",
        "F", "b",
    ];
    let (first, rest) = unit.split_at(unit.chars().next().map_or(0, char::len_utf8));
    let power = match first {
        "n" => -9,
        "u" => -6,
        "m" => -3,
        "c" => -2,
        "d" => -1,
        "h" => 2,
        "k" | "K" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        "P" => 15,
        _ => return (unit, 0),
    };
    let measured = rest.split('/').next().unwrap_or_default();
    // A decibel is no tenth of a byte, and meters squared square their prefix.
    match measured {
        _ if unit == "dB" || unit == "Pa" || unit == "mol" || unit == "cal" => (unit, 0),
        "m2" => (rest, 2 * power),
        "m3" => (rest, 3 * power),
        "s" if first == "n" || first == "u" || first == "m" => (rest, power),
        _ if BASES.contains(&measured) => (rest, power),
        _ => (unit, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_power_of_ten() {
        for (unit, expected) in [
            ("MW", ("W", 6)),
            ("km2", ("m2", 6)),
            ("m2", ("m2", 0)),
            ("km/h", ("m/h", 3)),
            ("m", ("m", 0)),
            ("min", ("min", 0)),
            ("mL", ("L", -3)),
            ("ms", ("s", -3)),
            ("hPa", ("Pa", 2)),
            ("Pa", ("Pa", 0)),
            ("dB", ("dB", 0)),
            ("mol", ("mol", 0)),
            ("%", ("%", 0)),
            ("GiB", ("GiB", 0)),
            ("", ("", 0)),
        ] {
            assert_eq!(base(unit), expected, "{unit}");
        }
        assert_eq!((power("hundred million"), power("km")), (8, 0));
    }
}
