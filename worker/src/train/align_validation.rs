//! Held-out pairs that Stage A is measured on while it trains.

use half::slice::HalfFloatSliceExt;
use llink_datasets::vectors::VectorTable;

use super::step_record::Validation;
use crate::collective::Solo;
use crate::llink::align_losses::{AlignBatch, AlignWeights, LossBuffers, align_losses};
use crate::llink::projector::Projector;
use crate::llink::retrieval::retrieval_metrics;
use crate::llink::teacher_queue::TeacherQueue;
use crate::{Error, Result};

/// A small fixed set of pairs that training does not see.
#[derive(Debug, Clone)]
pub struct AlignValidation {
    ids: Vec<u64>,
    encoder: Vec<f32>,
    teacher: Vec<f32>,
    width: usize,
    temperature: f64,
}

impl AlignValidation {
    /// The last `pairs` of the tables (retrieval at the end is measured on the first), or all there are. InfoNCE is taken
    /// at `temperature`, the same at every step, so that steps can be compared.
    ///
    /// # Errors
    /// [`Error::Input`] when the tables are of different pairs.
    pub fn new(encoder: &VectorTable, teacher: &VectorTable, pairs: usize, temperature: f64) -> Result<Self> {
        if encoder.ids != teacher.ids {
            return Err(Error::Input(
                "the held-out encoder and teacher vectors are of different pairs".into(),
            ));
        }
        let first = encoder.len().saturating_sub(pairs);
        let rows = |table: &VectorTable| {
            let halves = &table.values[first * table.width..];
            let mut rows = vec![0.0; halves.len()];
            halves.convert_to_f32_slice(&mut rows);
            rows
        };
        Ok(Self {
            ids: encoder.ids[first..].to_vec(),
            encoder: rows(encoder),
            teacher: rows(teacher),
            width: teacher.width,
            temperature,
        })
    }

    /// Symmetric InfoNCE among these pairs alone, which is the score, and retrieval.
    ///
    /// # Errors
    /// [`Error::Input`] when the projector gives NaN or infinity.
    pub fn measure(&self, projector: &Projector) -> Result<Validation> {
        let projected = projector.project(&self.encoder)?;
        let batch = AlignBatch {
            ids: &self.ids,
            teacher: &self.teacher,
            own: 0..self.ids.len(),
            projected: &projected,
            temperature: self.temperature,
        };
        let (queue, weights) = (
            TeacherQueue::new(0, self.width),
            AlignWeights {
                hard_negatives: 0,
                direction: 0.0,
                log_norm: 0.0,
            },
        );
        let losses = align_losses(
            &batch,
            &queue,
            &weights,
            &mut Solo::default(),
            &mut LossBuffers::default(),
        )?;
        let retrieval = retrieval_metrics(&projected, &self.teacher, self.width)?;
        Ok(Validation {
            numbers: vec![
                ("info_nce", losses.info_nce),
                ("direction", losses.direction),
                ("r1", retrieval.r1),
                ("mrr", retrieval.mrr),
            ],
            score: losses.info_nce,
        })
    }
}
