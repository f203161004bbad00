//! Numbers of texts in many scripts and forms.

use proptest::prelude::*;

use super::*;

/// Returns what was read as `kind values unit`.
fn seen(text: &str) -> Vec<String> {
    let shown = |number: Number| {
        let values: Vec<String> = number.values.iter().map(ToString::to_string).collect();
        format!("{:?} {} {}", number.kind, values.join(" "), number.unit).trim_end().to_owned()
    };
    read(text).into_iter().map(shown).collect()
}

fn ascii(text: &str) -> String {
    Scanner::default().ascii(text)
}

#[test]
fn digits_are_all_decimal_digits_of_unicode() {
    let decimal = regex::Regex::new("^\\d$").unwrap();
    let wrong = |c: &char| decimal.is_match(c.encode_utf8(&mut [0; 4])) != digit(*c).is_some();
    assert_eq!(('\0'..=char::MAX).find(wrong), None);
    for (text, value) in
        [("០៩", [0, 9]), ("٠٩", [0, 9]), ("०९", [0, 9]), ("๐๙", [0, 9]), ("０９", [0, 9]), ("𝟘𝟡", [0, 9])]
    {
        assert_eq!(text.chars().filter_map(digit).collect::<Vec<_>>(), value);
    }
}

#[test]
fn english_numbers_have_their_values_and_units() {
    for (text, expected) in [
        ("1,234.5 and 0.5", vec!["Cardinal 1234.5", "Cardinal 0.5"]),
        ("1,234 1.234", vec!["Cardinal 1234", "Cardinal 1.234"]),
        ("12,34,567 or 1 234 567.5 or 1'234", vec!["Cardinal 1234567", "Cardinal 1234567.5", "Cardinal 1234"]),
        ("in 2020 100 people", vec!["Cardinal 2020", "Cardinal 100"]),
        ("-5 °C, COVID-19, (−3)", vec!["Cardinal -5 degC", "Cardinal 19", "Cardinal -3"]),
        ("30 MW is not 1.5kW", vec!["Cardinal 30 MW", "Cardinal 1.5 kW"]),
        ("5 million km² for US$3bn", vec!["Cardinal 5000000 km2", "Cardinal 3000000000 USD"]),
        ("40% of 5 percent", vec!["Cardinal 40 %", "Cardinal 5 %"]),
        ("10-year loans, 5–10 km", vec!["Cardinal 10 year", "Range 5 10 km"]),
        ("12 kilometers at 100 km/h", vec!["Cardinal 12 km", "Cardinal 100 km/h"]),
        ("5 mothers, 5 millionaires", vec!["Cardinal 5", "Cardinal 5"]),
        ("the 3rd of 21st", vec!["Ordinal 3", "Ordinal 21"]),
        ("at 14:30 or 2:30 pm, not 16:9", vec!["Time 14 30", "Time 2 30 pm", "Ratio 16 9"]),
        ("on 2020-05-12, 25/12/2020", vec!["Date 2020 5 12", "Date 2020 12 25"]),
        ("12 May 2020; May 12, 2020; Sept", vec!["Date 2020 5 12", "Date 2020 5 12"]),
        ("May 2020, 3rd of June, Jan. 5", vec!["Date 2020 5", "Date 6 3", "Date 1 5"]),
        ("H1N1 in 192.168.0.1 version 1.2.3", vec!["Code", "Code"]),
    ] {
        assert_eq!(seen(text), expected, "{text}");
    }
}

#[test]
fn numbers_of_any_script_are_written_in_ascii() {
    for (text, expected) in [
        ("ថាមពល ៣០ MW និង ១,៥ kW", "30 MW, 1.5 kW"),
        ("៥លាននាក់ ៤០ភាគរយ ១០០ដុល្លារ", "5 million, 40%, 100 USD"),
        ("١٬٢٣٤٫٥", "1234.5"),
        ("१२,३४,५६७ रुपये", "1234567"),
        ("１，０００．５円", "1000.5"),
        ("1.234.567,8 km²", "1234567.8 km2"),
        ("1.234 oder 1,234", "1.234, 1,234"),
        ("au 12/05/2020 à 14:30", "12/05/2020, 14:30"),
        ("€5, 5 €, ៥០០៛", "EUR 5, 5 EUR, 500 KHR"),
        ("−5 ℃ ; H1N1 ; 100万円", "-5 degC, 100 ten thousand"),
        ("$5m, £3bn, 2nd", "USD 5 million, GBP 3 billion, 2nd"),
        ("no number", ""),
    ] {
        assert_eq!(ascii(text), expected, "{text}");
    }
}

#[test]
fn the_same_quantity_is_the_same_number() {
    let same = |one: &str, other: &str| same(&read(one), &read(other));
    for (one, other) in [
        ("1.5 kW for 2 hours", "1,500 watts for 2 h"),
        ("$5 million", "5,000,000 dollars"),
        ("on 12 May 2020", "on May 12, 2020"),
        ("10 km and 3 days", "3 days, 10,000 m"),
        ("1 km²", "1,000,000 square meters"),
    ] {
        assert!(same(one, other), "{one} / {other}");
    }
    for (one, other) in [
        ("30 MW", "1.5 kW"),
        ("30 MW", "30 kW"),
        ("5 million", "5"),
        ("5 days", "5 years"),
        ("40%", "40"),
        ("3rd", "3"),
        ("12", "12 12"),
        ("May 12", "12"),
    ] {
        assert!(!same(one, other), "{one} / {other}");
    }
}

#[test]
fn a_translation_agrees_if_it_has_the_numbers() {
    for (english, foreign) in [
        ("On 12 May 2020 two of 1,500 died.", "ថ្ងៃទី១២ ខែឧសភា ឆ្នាំ២០២០ មាន ១.៥០០ នាក់"),
        ("5 million people", "៥ លាននាក់"),
        ("1.5 billion", "១៥០០ លាន"),
        ("It costs 5,000,000.", "៥ លាន"),
        ("two dogs", "ឆ្កែ ២"),
        ("twenty-five dogs", "ឆ្កែ ២៥"),
        ("H1N1 flu", "ជំងឺផ្តាសាយ"),
        ("a 3D view", "ទិដ្ឋភាព"),
        ("5 times", "ចំនួនប្រាំដង"),
        ("at 3 pm", "ម៉ោង ១៥"),
        ("no number", "គ្មានលេខ"),
        ("30 MW", "៣០ មេហ្គាវ៉ាត់"),
    ] {
        assert!(agree(english, foreign), "{english} / {foreign}");
    }
    for (english, foreign) in [
        ("30 dogs", "ឆ្កែ ៣១"),
        ("30 dogs", "ឆ្កែ"),
        ("dogs", "ឆ្កែ ៣០"),
        ("1.5 m", "១៥ m"),
        ("in 2020 and 2021", "ក្នុងឆ្នាំ ២០២០"),
    ] {
        assert!(!agree(english, foreign), "{english} / {foreign}");
    }
}

#[test]
fn rules_are_checked_before_they_are_used() {
    let rules = |pattern: &str| Rules { pattern: pattern.into(), ..Rules::default() };
    assert!(Scanner::new(&rules("(")).unwrap_err().contains("not valid"));
    assert!(Scanner::new(&rules("[0-9]")).unwrap_err().contains("`sign`"));
    let text = serde_json::to_string(&Rules::default()).unwrap();
    assert_eq!(serde_json::from_str::<Rules>(&text).unwrap(), Rules::default());
}

proptest! {
    #[test]
    fn spans_lie_in_the_text_in_order(text in "([ a-z0-9.,:/$%°៣០១²' -]|万|million|May|km|−|é){0,40}") {
        let mut end = 0;
        for number in read(&text) {
            prop_assert!(number.range.start >= end && number.range.start < number.range.end);
            end = number.range.end;
            let span = &text[number.range.clone()];
            prop_assert!(span.chars().any(|c| digit(c).is_some()));
        }
        prop_assert!(agree(&text, &text));
        prop_assert!(same(&read(&text), &read(&text)));
    }

    #[test]
    fn a_number_is_read_in_every_form(whole in 0_u64..10_000_000_000, cents in 1_u32..100, script in 0_usize..4) {
        let zero = ['0', '០', '٠', '०'][script] as u32;
        let grouped = |mark: char| {
            let digits = whole.to_string();
            let place = |at: usize| at > 0 && (digits.len() - at).is_multiple_of(3);
            digits.chars().enumerate().flat_map(|(at, c)| [place(at).then_some(mark), Some(c)]).flatten().collect::<String>()
        };
        let value = Decimal::parse(&format!("{whole}.{cents:02}")).unwrap().to_string();
        for (group, mark) in [(',', '.'), ('.', ','), (' ', ','), ('\'', '.'), ('\u{202F}', ',')] {
            let text = format!("{}{mark}{cents:02}", grouped(group));
            let script = |c: char| c.to_digit(10).and_then(|d| char::from_u32(zero + d)).unwrap_or(c);
            let text: String = text.chars().map(script).collect();
            let written = ascii(&text);
            prop_assert_eq!(Decimal::parse(&written).map(|n| n.to_string()), Some(value.clone()), "{} {}", text, written);
        }
    }
}
