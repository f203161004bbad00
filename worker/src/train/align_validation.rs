//! Held-out pairs that Stage A is measured on while it trains.

use half::slice::HalfFloatSliceExt;
use llink_datasets::vectors::VectorTable;

use super::step_record::Validation;
use crate::collective::Solo;
use crate::llink::align_losses::{AlignBatch, AlignWeights, LossBuffers, align_losses};
use crate::llink::projector::Projector;
use crate::llink::retrieval::retrieval_metrics;
use crate::llink::teacher_queue::TeacherQueue;
use crate::llink::whitening::Whitening;
use crate::{Error, Result};

/// A small fixed set of pairs that training does not see.
#[derive(Debug, Clone)]
pub struct AlignValidation {
    ids: Vec<u64>,
    encoder: Vec<f32>,
    teacher: Vec<f32>,
    width: usize,
    temperature: f64,
    metric: Option<Whitening>,
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
            metric: None,
        })
    }

    /// Measures InfoNCE and retrieval in this metric; none takes cosines of the vectors as they are.
    #[must_use]
    pub fn in_metric(mut self, metric: Option<Whitening>) -> Self {
        self.metric = metric;
        self
    }

    /// Symmetric InfoNCE among these pairs alone, which is the score, and retrieval; the latter in plain cosine too (`cosine_r1`,
    /// `cosine_mrr`) where there is a metric. The projector is for the encoder's own vectors.
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
            metric: self.metric.as_ref(),
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
        let plain = retrieval_metrics(&projected, &self.teacher, self.width)?;
        let retrieval = match &self.metric {
            Some(metric) => retrieval_metrics(&metric.apply(&projected), &metric.apply(&self.teacher), self.width)?,
            None => plain,
        };
        let mut numbers = vec![
            ("info_nce", losses.info_nce),
            ("direction", losses.direction),
            ("r1", retrieval.r1),
            ("mrr", retrieval.mrr),
        ];
        if self.metric.is_some() {
            numbers.extend([("cosine_r1", plain.r1), ("cosine_mrr", plain.mrr)]);
        }
        Ok(Validation {
            numbers,
            score: losses.info_nce,
        })
    }
}
