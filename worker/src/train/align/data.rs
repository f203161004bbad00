//! The cached vectors that Stage A trains on.

use llink_datasets::vectors::VectorTable;

use crate::llink::projector::ProjectorShape;
use crate::train::batch::gather;
use crate::{Error, Result};

/// The cached vectors to train on. Row `i` of both tables is the same pair.
#[derive(Debug, Clone)]
pub struct AlignData {
    encoder: VectorTable,
    teacher: VectorTable,
}

impl AlignData {
    /// Checks that the tables hold the same pairs.
    ///
    /// # Errors
    /// [`Error::Input`] naming the pair when they differ in length or order, or a vector holds NaN or infinity.
    pub fn new(encoder: VectorTable, teacher: VectorTable) -> Result<Self> {
        if let Some(row) = encoder.ids.iter().zip(&teacher.ids).position(|(a, b)| a != b) {
            return Err(Error::Input(format!(
                "row {row} is pair {} among the encoder's vectors and pair {} among the teacher's",
                encoder.ids[row], teacher.ids[row]
            )));
        }
        if encoder.len() != teacher.len() {
            let longer = if encoder.len() > teacher.len() { &encoder } else { &teacher };
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
                return Err(Error::Input(format!("the {name} vector of pair {id} holds NaN or infinity")));
            }
        }
        Ok(Self { encoder, teacher })
    }

    pub(crate) fn len(&self) -> usize {
        self.encoder.len()
    }

    /// Returns the pair ids by row.
    pub(super) fn ids(&self) -> &[u64] {
        &self.encoder.ids
    }

    /// Returns the projector's shape for these vectors. Without `hidden` it is four times as wide as the encoder.
    pub(super) fn projector_shape(&self, hidden: Option<u32>) -> ProjectorShape {
        let (input, output) = (self.encoder.width, self.teacher.width);
        ProjectorShape { input, hidden: hidden.map_or(4 * input, |hidden| hidden as usize), output }
    }
}

/// A batch in f32.
#[derive(Debug)]
pub(super) struct AlignBatchRows {
    /// The pair ids of the global batch, `[B]`.
    pub(super) ids: Vec<u64>,
    /// The encoder vectors of this rank's rows, `[b, d_e]`.
    pub(super) encoder: Vec<f32>,
    /// The teacher vectors of the global batch, `[B, d]`.
    pub(super) teacher: Vec<f32>,
}

impl AlignBatchRows {
    /// Reads the teachers of the global batch and the encoder vectors of this rank's rows.
    pub(super) fn read(data: &AlignData, rows: &[usize], own: &[usize]) -> Self {
        let ids = rows.iter().map(|row| data.encoder.ids[*row]).collect();
        Self { ids, encoder: gather(&data.encoder, own), teacher: gather(&data.teacher, rows) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    fn table(ids: &[u64], width: usize) -> VectorTable {
        let values = (0..ids.len() * width).map(|i| f16::from_f32(i as f32)).collect();
        VectorTable { ids: ids.to_vec(), width, values }
    }

    #[test]
    fn tables_that_do_not_fit_are_refused_by_id() {
        let refused = |encoder, teacher| AlignData::new(encoder, teacher).unwrap_err().to_string();
        assert!(AlignData::new(table(&[5, 6], 2), table(&[5, 6], 3)).is_ok());
        let text = refused(table(&[5, 6], 2), table(&[5, 77], 3));
        assert!(text.contains("row 1") && text.contains('6') && text.contains("77"), "{text}");
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
        let batch = AlignBatchRows::read(&data, &[2, 0], &[0]);
        assert_eq!((batch.ids, batch.encoder, batch.teacher), (vec![7, 5], vec![0.0], vec![4.0, 5.0, 0.0, 1.0]));
    }
}
