//! Encodes instruction examples in memory as one shard.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{Field, Int32Type, Schema};
use bytes::Bytes;

use crate::Result;
use crate::role::Role;
use crate::rows::InstructionExample;
use crate::table::{Layout, ROLE_KEY, SCHEMA_VERSION, SCHEMA_VERSION_KEY, STAGE_KEY, ZSTD_LEVEL, bad, encode};

/// Encodes examples as a shard with the columns that [`super::write_shard`] gives them. The same examples give the same
/// bytes.
///
/// # Errors
/// [`crate::Error::Content`] where they can't be encoded.
pub fn encode_instructions(rows: &[InstructionExample], name: &str, role: &Role, stage_key: &str) -> Result<Bytes> {
    let texts = |of: fn(&InstructionExample) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(of)))
    };
    let tasks: DictionaryArray<Int32Type> = rows.iter().map(|row| row.task.as_str()).collect();
    let ids = UInt64Array::from_iter_values(rows.iter().map(InstructionExample::id));
    let columns: [(&str, ArrayRef); 6] = [
        ("id", Arc::new(ids)),
        ("task", Arc::new(tasks)),
        ("instruction", texts(|row| &row.instruction)),
        ("foreign", texts(|row| &row.foreign)),
        ("english_ref", texts(|row| &row.english_ref)),
        ("answer", texts(|row| &row.answer)),
    ];
    let fields: Vec<_> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), false)).collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| bad(name, e.to_string()))?;
    let metadata = BTreeMap::from([
        (SCHEMA_VERSION_KEY.to_owned(), SCHEMA_VERSION.to_owned()),
        (STAGE_KEY.to_owned(), stage_key.to_owned()),
        (ROLE_KEY.to_owned(), role.to_string()),
    ]);
    let layout = Layout {
        dictionary: &["task", "instruction"],
        statistics: &["id"],
        metadata: &metadata,
        page_rows: None,
        zstd_level: ZSTD_LEVEL,
    };
    encode(name, &batch.schema(), &[batch], &layout)
}
