//! Checks the page headers of a Parquet column before its pages are decoded. The reader allocates the size that a
//! page's header declares. In a damaged or hostile file that is up to 2 GiB for a page of a few bytes.

/// The largest decompressed page that is accepted. Writers aim at 1 MiB.
const LARGEST_PAGE: i64 = 256 << 20;

/// Returns why the first faulty page of `chunk`, a sequence of pages, must not be decoded. It declares more than
/// [`LARGEST_PAGE`] bytes, or a field has the wrong type, which misleads readers that trust it. A header that ends too
/// soon is not reported, because every reader refuses it.
pub(crate) fn flaw(chunk: &[u8]) -> Option<String> {
    let mut rest = chunk;
    while !rest.is_empty() {
        let header = match PageSizes::read(&mut rest) {
            Ok(header) => header,
            Err(Unread::Mistyped(id)) => return Some(format!("field {id} of a page header has the wrong type")),
            Err(Unread::Ended) => return None,
        };
        if !(0..=LARGEST_PAGE).contains(&header.decoded) {
            return Some(format!("a page declares a size of {} bytes", header.decoded));
        }
        rest = rest.get(usize::try_from(header.stored).ok()?..)?;
    }
    None
}

/// The reason why a header could not be read.
#[derive(Debug, PartialEq, Eq)]
enum Unread {
    /// The header is not complete, or its form is unknown.
    Ended,
    /// The field with this number has another type than the format says.
    Mistyped(i64),
}

/// The sizes in a `PageHeader`, in Thrift's compact protocol:
/// <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.
#[derive(Default)]
struct PageSizes {
    /// `uncompressed_page_size` of the header.
    decoded: i64,
    /// `compressed_page_size` of the header.
    stored: i64,
}

/// The types of a field in the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const I8: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// The types of the fields 1, 2, … of a `PageHeader`. The tables below are for fields 5 to 8: the headers of data,
/// index, dictionary and version-2 data pages. `TRUE` stands for both truth values.
const PAGE_HEADER: &[u8] = &[I32, I32, I32, I32, STRUCT, STRUCT, STRUCT, STRUCT];
const INNER: [&[u8]; 4] =
    [&[I32, I32, I32, I32, STRUCT], &[], &[I32, I32, TRUE], &[I32, I32, I32, I32, I32, I32, TRUE, STRUCT]];

/// Returns true if the field has the type in the table; a field that is not in the table may have any type.
fn is_typed(fields: &[u8], id: i64, kind: u8) -> bool {
    let index = usize::try_from(id - 1).unwrap_or(usize::MAX);
    let kind = if kind == FALSE { TRUE } else { kind };
    fields.get(index).is_none_or(|expected| *expected == kind)
}

impl PageSizes {
    /// Reads a header and advances `from` past it.
    fn read(from: &mut &[u8]) -> Result<Self, Unread> {
        let mut sizes = Self::default();
        let mut id = 0;
        while let Some(kind) = field(from, &mut id).ok_or(Unread::Ended)? {
            if !is_typed(PAGE_HEADER, id, kind) {
                return Err(Unread::Mistyped(id));
            }
            match id {
                2 => sizes.decoded = signed(from).ok_or(Unread::Ended)?,
                3 => sizes.stored = signed(from).ok_or(Unread::Ended)?,
                5..=8 => inner(from, INNER[id as usize - 5])?,
                _ => skip(from, kind, 0).ok_or(Unread::Ended)?,
            }
        }
        Ok(sizes)
    }
}

/// Skips the header of one kind of page.
fn inner(from: &mut &[u8], fields: &[u8]) -> Result<(), Unread> {
    let mut id = 0;
    while let Some(kind) = field(from, &mut id).ok_or(Unread::Ended)? {
        if !is_typed(fields, id, kind) {
            return Err(Unread::Mistyped(id));
        }
        skip(from, kind, 1).ok_or(Unread::Ended)?;
    }
    Ok(())
}

/// Returns the type of the next field and puts its number into `id`; `Some(None)` is the end of the struct.
fn field(from: &mut &[u8], id: &mut i64) -> Option<Option<u8>> {
    let byte = *from.split_off_first()?;
    if byte == 0 {
        return Some(None);
    }
    *id = match i64::from(byte >> 4) {
        0 => signed(from)?,
        step => id.checked_add(step)?,
    };
    Some(Some(byte & 0x0F))
}

/// Skips a value.
fn skip(from: &mut &[u8], kind: u8, depth: u8) -> Option<()> {
    const DEEPEST: u8 = 8;
    match kind {
        TRUE | FALSE => {}
        I8 => drop(from.split_off(..1)?),
        I16 | I32 | I64 => drop(varint(from)?),
        DOUBLE => drop(from.split_off(..8)?),
        BINARY => {
            let length = usize::try_from(varint(from)?).ok()?;
            from.split_off(..length)?;
        }
        _ if depth >= DEEPEST => return None,
        LIST | SET => {
            let byte = *from.split_off_first()?;
            let length = match byte >> 4 {
                15 => varint(from)?,
                length => u64::from(length),
            };
            (0..length).try_for_each(|_| skip_element(from, byte & 0x0F, depth + 1))?;
        }
        MAP => {
            let length = varint(from)?;
            let kinds = if length == 0 { 0 } else { *from.split_off_first()? };
            for _ in 0..length {
                skip_element(from, kinds >> 4, depth + 1)?;
                skip_element(from, kinds & 0x0F, depth + 1)?;
            }
        }
        STRUCT => {
            let mut id = 0;
            while let Some(kind) = field(from, &mut id)? {
                skip(from, kind, depth + 1)?;
            }
        }
        _ => return None,
    }
    Some(())
}

/// Skips an element of a list. A truth value in a list, unlike one in a field, is a byte of its own.
fn skip_element(from: &mut &[u8], kind: u8, depth: u8) -> Option<()> {
    match kind {
        TRUE | FALSE => from.split_off(..1).map(drop),
        _ => skip(from, kind, depth),
    }
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *from.split_off_first()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Reads a number whose sign is in its lowest bit (zigzag).
fn signed(from: &mut &[u8]) -> Option<i64> {
    let value = varint(from)?;
    Some((value >> 1) as i64 ^ -((value & 1) as i64))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, RecordBatch, StringArray};
    use bytes::Bytes;
    use parquet::arrow::ArrowWriter;
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::reader::{FileReader, SerializedFileReader};

    use super::*;

    /// Returns a column chunk of several pages, and the decoded size of the pages according to the file.
    fn chunk(version: WriterVersion) -> (Vec<u8>, i64) {
        let texts: Vec<String> = (0..500).map(|n| format!("sentence {n} {}", "x".repeat(n % 40))).collect();
        let column: ArrayRef = Arc::new(StringArray::from(texts));
        let batch = RecordBatch::try_from_iter([("english", column)]).unwrap();
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_compression(parquet::basic::Compression::SNAPPY)
            .set_data_page_row_count_limit(64)
            .set_write_batch_size(64)
            .build();
        let mut file = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        let reader = SerializedFileReader::new(Bytes::from(file.clone())).unwrap();
        let column = reader.metadata().row_group(0).column(0).clone();
        let (start, length) = column.byte_range();
        let chunk = file[start as usize..(start + length) as usize].to_vec();
        (chunk, column.uncompressed_size())
    }

    #[test]
    fn all_pages_of_a_chunk_are_seen() {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            let (chunk, decoded) = chunk(version);
            let (mut rest, mut pages, mut headers, mut found) = (chunk.as_slice(), 0, 0, 0);
            while !rest.is_empty() {
                let before = rest.len();
                let header = PageSizes::read(&mut rest).unwrap();
                headers += (before - rest.len()) as i64;
                found += header.decoded;
                rest = &rest[header.stored as usize..];
                pages += 1;
            }
            assert!(pages > 5, "{pages}");
            assert_eq!(found + headers, decoded);
            assert_eq!(flaw(&chunk), None);
        }
    }

    #[test]
    fn a_page_that_asks_for_too_much_is_found_wherever_it_stands() {
        let (sound, _) = chunk(WriterVersion::PARQUET_1_0);
        let found = |parts: &[&[u8]]| flaw(&parts.concat()).unwrap_or_default();
        // The bytes are: type data page; 2^31 − 1 bytes decoded; 4 stored; the end; the page.
        let hostile = [0x15, 0, 0x15, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0x15, 8, 0, 1, 2, 3, 4];
        assert!(found(&[&hostile]).contains("2147483647 bytes"));
        assert!(found(&[&sound, &hostile]).contains("2147483647 bytes"));
        assert_eq!(found(&[&sound, &hostile[..6]]), "");
        // The header follows a list of two truth values, a map of a number to a text, and an empty set. No real page
        // header has these.
        let odd = [0x99, 0x21, 1, 2, 0x1B, 1, 0x58, 6, 1, b'x', 0x1A, 0x05];
        assert!(found(&[&odd, &[0x05, 4], &hostile[3..]]).contains("2147483647 bytes"));
    }

    #[test]
    fn a_field_of_another_type_is_found() {
        // A truth value replaces the decoded size; readers that only use the field's number take the next bytes for the
        // size.
        let hostile = [0x15, 0, 0x11, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0x15, 8, 0];
        assert_eq!(flaw(&hostile).unwrap(), "field 2 of a page header has the wrong type");
        // The same fault inside the header of a data page.
        let hostile = [0x15, 0, 0x15, 8, 0x15, 8, 0x2C, 0x15, 2, 0x11, 0x15, 2];
        assert_eq!(flaw(&hostile).unwrap(), "field 2 of a page header has the wrong type");
    }
}
