//! Encodes instruction examples in memory as one shard.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::Int32Type;
use bytes::Bytes;

use crate::Result;
use crate::role::Role;
use crate::rows::InstructionExample;
use crate::table::{Layout, bad, encode, shard_facts};

/// Encodes examples as a shard with the columns that [`super::write_shard`] gives them. The same examples give the same
/// bytes.
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
    let batch = RecordBatch::try_from_iter(columns).map_err(|e| bad(name, e.to_string()))?;
    let metadata = shard_facts(stage_key, role);
    encode(name, &batch.schema(), [Ok(batch)], &Layout::of_shard(&["task", "instruction"], &metadata))
}
