//! Fast paths for common text, ASCII and Khmer. Each answers only if it is certain, and then as the general path would.

/// Returns true if a text is certainly in NFC: all its characters are below the combining marks, or Khmer. U+17DD is
/// excluded. U+17D2 has a combining class, but no other character here has one, so no order can be wrong.
pub(super) fn is_composed(text: &str) -> bool {
    text.is_ascii()
        || text.chars().all(|c| matches!(c, '\0'..='\u{2FF}' | '\u{1780}'..='\u{17DC}' | '\u{17E0}'..='\u{17F9}'))
}

/// Returns true if a text is certainly a clean line: no space at its ends or beside another, and no character that
/// might be white space, a control or of no width.
pub(super) fn is_tidy(text: &str) -> bool {
    let bytes = text.as_bytes();
    let mut before = b' ';
    for (at, &byte) in bytes.iter().enumerate() {
        let is_suspect = match byte {
            b' ' => before == b' ',
            0..=0x1F | 0x7F => true,
            // U+0080..U+00BF include controls, the no-break space and the soft hyphen.
            0xC2 => true,
            // U+1680 is a space.
            0xE1 => bytes.get(at + 1) == Some(&0x9A),
            // U+2000..U+2FFF include spaces and characters of no width.
            0xE2 => true,
            // U+3000 is a space.
            0xE3 => bytes.get(at + 1) == Some(&0x80),
            // U+F000..U+FFFF include the byte order mark and the interlinear marks.
            0xEF => true,
            _ => false,
        };
        if is_suspect {
            return false;
        }
        before = byte;
    }
    before != b' '
}

/// Returns the comparison form of a text in which no character depends on its neighbors or has a compatibility form.
pub(super) fn form(text: &str) -> Option<String> {
    let mut form = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            'A'..='Z' => form.push(c.to_ascii_lowercase()),
            '!'..='~' => form.push(c),
            '\0'..='\u{9F}' => {}
            '\u{1780}'..='\u{17DC}' | '\u{17E0}'..='\u{17E9}' => form.push(c),
            // These are the letters of Latin-1.
            '\u{DF}'..='\u{F6}' | '\u{F8}'..='\u{FF}' => form.push(c),
            '\u{C0}'..='\u{D6}' | '\u{D8}'..='\u{DE}' => form.push(char::from(c as u8 + 0x20)),
            '\u{200B}'..='\u{200D}' | '\u{FEFF}' => {}
            // These are dashes and quotation marks.
            '\u{2013}' | '\u{2014}' | '\u{2018}'..='\u{201E}' => form.push(c),
            _ => return None,
        }
    }
    Some(form)
}
