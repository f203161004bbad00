//! The cached vectors that Stage A trains on.

use half::slice::HalfFloatSliceExt;
use llink_datasets::vectors::VectorTable;

use crate::llink::projector::ProjectorShape;
use crate::{Error, Result};

/// Cached vectors to train on: row `i` of both tables is the same pair.
#[derive(Debug, Clone)]
pub struct AlignData {
    encoder: VectorTable,
    teacher: VectorTable,
}

impl AlignData {
    /// Pairs the tables up.
    ///
    /// # Errors
    /// [`Error::Input`] when they differ in length or order, or a vector holds NaN or infinity; by id.
    pub fn new(encoder: VectorTable, teacher: VectorTable) -> Result<Self> {
        if let Some(row) = encoder.ids.iter().zip(&teacher.ids).position(|(a, b)| a != b) {
            return Err(Error::Input(format!(
                "row {row} is pair {} among the encoder's vectors and pair {} among the teacher's",
                encoder.ids[row], teacher.ids[row]
            )));
        }
        if encoder.len() != teacher.len() {
            let longer = if encoder.len() > teacher.len() {
                &encoder
            } else {
                &teacher
            };
            let first = longer.ids[encoder.len().min(teacher.len())];
            return Err(Error::Input(format!(
                "{} encoder vectors and {} teacher vectors: pair {first} and what follows are in one only",
                encoder.len(),
                teacher.len()
            )));
        }
        for (name, table) in [("encoder", &encoder), ("teacher", &teacher)] {
            if let Some(at) = table.values.iter().position(|value| !value.is_finite()) {
                let id = table.ids[at / table.width];
                return Err(Error::Input(format!(
                    "the {name} vector of pair {id} holds NaN or infinity"
                )));
            }
        }
        Ok(Self { encoder, teacher })
    }

    /// How many pairs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.encoder.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.encoder.is_empty()
    }

    /// The pairs' ids, row by row.
    #[must_use]
    pub fn ids(&self) -> &[u64] {
        &self.encoder.ids
    }

    /// The projector's shape for these vectors; `hidden` 0 is four times the encoder's width.
    #[must_use]
    pub const fn projector_shape(&self, hidden: usize) -> ProjectorShape {
        let (input, output) = (self.encoder.width, self.teacher.width);
        ProjectorShape {
            input,
            hidden: if hidden == 0 { 4 * input } else { hidden },
            output,
        }
    }
}

/// A batch in f32.
#[derive(Debug, Default)]
pub(super) struct AlignBatchRows {
    /// Of the global batch, `[B]`.
    pub(super) ids: Vec<u64>,
    /// Of this rank's part, `[b, d_e]`.
    pub(super) encoder: Vec<f32>,
    /// Of the global batch, `[B, d]`.
    pub(super) teacher: Vec<f32>,
}

impl AlignBatchRows {
    /// Teachers of the global batch, encoder vectors of this rank's part.
    pub(super) fn read(&mut self, data: &AlignData, rows: &[usize], own: &[usize]) {
        self.ids.clear();
        self.ids.extend(rows.iter().map(|row| data.encoder.ids[*row]));
        for (table, rows, values) in [
            (&data.encoder, own, &mut self.encoder),
            (&data.teacher, rows, &mut self.teacher),
        ] {
            values.resize(rows.len() * table.width, 0.0);
            for (row, values) in rows.iter().zip(values.chunks_exact_mut(table.width)) {
                table.row(*row).convert_to_f32_slice(values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    fn table(ids: &[u64], width: usize) -> VectorTable {
        let values = (0..ids.len() * width).map(|i| f16::from_f32(i as f32)).collect();
        VectorTable {
            ids: ids.to_vec(),
            width,
            values,
        }
    }

    #[test]
    fn tables_that_do_not_fit_are_refused_by_id() {
        let refused = |encoder, teacher| AlignData::new(encoder, teacher).unwrap_err().to_string();
        assert!(AlignData::new(table(&[5, 6], 2), table(&[5, 6], 3)).is_ok());
        let text = refused(table(&[5, 6], 2), table(&[5, 77], 3));
        assert!(
            text.contains("row 1") && text.contains('6') && text.contains("77"),
            "{text}"
        );
        let text = refused(table(&[5, 66], 2), table(&[5], 3));
        assert!(text.contains("66"), "{text}");
        let mut broken = table(&[5, 66], 3);
        broken.values[4] = f16::NAN;
        let text = refused(table(&[5, 66], 2), broken);
        assert!(text.contains("teacher") && text.contains("66"), "{text}");
    }

    #[test]
    fn a_batch_holds_the_rows_it_was_asked_for() {
        let data = AlignData::new(table(&[5, 6, 7], 1), table(&[5, 6, 7], 2)).unwrap();
        let mut batch = AlignBatchRows::default();
        batch.read(&data, &[2, 0], &[0]);
        assert_eq!(
            (batch.ids, batch.encoder, batch.teacher),
            (vec![7, 5], vec![0.0], vec![4.0, 5.0, 0.0, 1.0])
        );
    }
}
