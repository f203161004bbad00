//! What the pages of a Parquet column say of their size, read before they are decoded: the reader sets aside as much memory as a
//! page's header asks for, and in a damaged or hostile file that is up to 2 GiB for a page of a few bytes.

/// The largest page, decompressed, that is taken in. Writers aim at 1 MiB.
const LARGEST_PAGE: i64 = 256 << 20;

/// The size of the first page in `chunk` that declares more than [`LARGEST_PAGE`] bytes, or a negative number. `chunk` holds
/// pages end to end. Where it does not hold what a page header must, nothing is found: the reader itself refuses that.
pub(crate) fn oversized_page(chunk: &[u8]) -> Option<i64> {
    let mut rest = chunk;
    while !rest.is_empty() {
        let header = PageSizes::read(&mut rest)?;
        if !(0..=LARGEST_PAGE).contains(&header.decoded) {
            return Some(header.decoded);
        }
        rest = rest.get(usize::try_from(header.stored).ok()?..)?;
    }
    None
}

/// Of a `PageHeader`, Thrift's compact protocol: <https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>.
#[derive(Default)]
struct PageSizes {
    /// `uncompressed_page_size`
    decoded: i64,
    /// `compressed_page_size`
    stored: i64,
}

/// The types of a field, in compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const I8: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const STRUCT: u8 = 12;

impl PageSizes {
    /// Reads a header and leaves `from` behind it.
    fn read(from: &mut &[u8]) -> Option<Self> {
        let mut sizes = Self::default();
        let mut id = 0;
        while let Some(kind) = field(from, &mut id)? {
            match (id, kind) {
                (2, I32) => sizes.decoded = signed(from)?,
                (3, I32) => sizes.stored = signed(from)?,
                _ => skip(from, kind, 0)?,
            }
        }
        Some(sizes)
    }
}

/// The next field's type, and its number in `id`; `Some(None)` at the struct's end.
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

/// Leaves a value behind. Lists and maps do not occur in page headers.
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
        STRUCT if depth < DEEPEST => {
            let mut id = 0;
            while let Some(kind) = field(from, &mut id)? {
                skip(from, kind, depth + 1)?;
            }
        }
        _ => return None,
    }
    Some(())
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

/// A number whose sign stands in its lowest bit.
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

    /// A column's chunk of several pages, and how long its file says that its pages are, decoded.
    fn chunk(version: WriterVersion) -> (Vec<u8>, i64) {
        let texts: Vec<String> = (0..500)
            .map(|n| format!("sentence {n} {}", "x".repeat(n % 40)))
            .collect();
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
            assert_eq!(oversized_page(&chunk), None);
        }
    }

    #[test]
    fn a_page_that_asks_for_too_much_is_found_wherever_it_stands() {
        let (sound, _) = chunk(WriterVersion::PARQUET_1_0);
        // type: data page; 2^31 − 1 bytes decoded; 4 stored; the end; the page.
        let hostile = [0x15, 0, 0x15, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0x15, 8, 0, 1, 2, 3, 4];
        assert_eq!(oversized_page(&hostile), Some(i64::from(i32::MAX)));
        let last = [sound.as_slice(), &hostile].concat();
        assert_eq!(oversized_page(&last), Some(i64::from(i32::MAX)));
        assert_eq!(oversized_page(&[sound.as_slice(), &hostile[..6]].concat()), None);
    }
}
