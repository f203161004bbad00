//! The assignment says which row of which cleaned table goes to which place of which shard. It is written as it is
//! decided, so memory holds the rows of one shard.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;

use super::split::PlannedShard;
use crate::Result;
use crate::role::{Corpus, Role, Side};
use crate::table::{GroupWriter, bad};

/// The location of a kept row: (file, row).
pub(crate) type Place = (u32, u32);

/// A table of (shard, position, file, row) with one row group for each shard.
pub(crate) struct Assignment {
    name: String,
    corpus: Corpus,
    shard_rows: usize,
    schema: SchemaRef,
    writer: GroupWriter,
    waiting: Vec<Place>,
    pub shards: Vec<PlannedShard>,
}

impl Assignment {
    pub(crate) fn new(name: &str, corpus: Corpus, shard_rows: u32) -> Result<Self> {
        let columns = ["shard", "position", "file", "row"];
        let fields = columns.map(|column| Field::new(column, DataType::UInt32, false));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        Ok(Self {
            name: name.to_owned(),
            corpus,
            shard_rows: shard_rows as usize,
            writer: GroupWriter::new(name, &schema, &["shard", "file"])?,
            schema,
            waiting: Vec::new(),
            shards: Vec::new(),
        })
    }

    /// Adds the next row of a side.
    pub(crate) fn push(&mut self, side: Side, place: Place) -> Result<()> {
        self.waiting.push(place);
        if self.waiting.len() == self.shard_rows {
            self.end_shard(side)?;
        }
        Ok(())
    }

    /// Ends a side, which has no more rows.
    pub(crate) fn end_side(&mut self, side: Side) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.end_shard(side)
    }

    pub(crate) fn finish(self) -> Result<(Bytes, Vec<PlannedShard>)> {
        Ok((self.writer.finish()?, self.shards))
    }

    fn end_shard(&mut self, side: Side) -> Result<()> {
        let role = Role::Shard(self.corpus, side);
        let number = self.shards.iter().filter(|shard| shard.role == role).count();
        let (index, rows) = (self.shards.len() as u32, self.waiting.len() as u32);
        let column =
            |values: &mut dyn Iterator<Item = u32>| -> ArrayRef { Arc::new(UInt32Array::from_iter_values(values)) };
        let columns = vec![
            column(&mut std::iter::repeat_n(index, rows as usize)),
            column(&mut (0..rows)),
            column(&mut self.waiting.iter().map(|place| place.0)),
            column(&mut self.waiting.iter().map(|place| place.1)),
        ];
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        self.writer.write(&batch.map_err(|e| bad(&self.name, e.to_string()))?)?;
        self.shards.push(PlannedShard {
            index,
            path: format!("{role}/{number:05}.parquet"),
            role,
            rows: u64::from(rows),
        });
        self.waiting.clear();
        Ok(())
    }
}
