//! The held-out pairs on which Stage A is measured during training.

use candle_core::{DType, Device, Tensor};
use half::slice::HalfFloatSliceExt;
use llink_datasets::vectors::VectorTable;

use crate::llink::align_losses::{AlignBatch, AlignWeights, align_losses};
use crate::llink::projector::Projector;
use crate::llink::retrieval::retrieval_metrics;
use crate::llink::teacher_queue::{StoredQueue, TeacherQueue};
use crate::llink::whitening::{Metric, Whitening};
use crate::ops::Backend;
use crate::train::step_record::Validation;
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
    /// Takes the last `pairs` of the tables, or all if there are fewer. Retrieval at the end uses the first ones.
    /// InfoNCE has the same `temperature` at every step, so that steps can be compared. It and retrieval are measured in
    /// `metric`; `None` compares the vectors themselves.
    ///
    /// # Errors
    /// [`Error::Input`] when the tables hold different pairs.
    pub fn new(
        [encoder, teacher]: [&VectorTable; 2],
        pairs: usize,
        temperature: f64,
        metric: Option<Whitening>,
    ) -> Result<Self> {
        if encoder.ids != teacher.ids {
            return Err(Error::Input("the held-out encoder and teacher vectors are of different pairs".into()));
        }
        let first = encoder.len().saturating_sub(pairs);
        let rows = |table: &VectorTable| table.values[first * table.width..].to_f32_vec();
        Ok(Self {
            ids: encoder.ids[first..].to_vec(),
            encoder: rows(encoder),
            teacher: rows(teacher),
            width: teacher.width,
            temperature,
            metric,
        })
    }

    /// Measures symmetric InfoNCE, which is the score, and retrieval among these pairs alone. With a metric, retrieval
    /// is measured in plain cosine too (`cosine_r1`, `cosine_mrr`). The projector is for the encoder's own vectors.
    ///
    /// # Errors
    /// [`Error::Input`] when the projector gives NaN or infinity.
    pub fn measure(&self, projector: &Projector) -> Result<Validation> {
        let projected = projector.project(&self.encoder)?;
        let backend = Backend::new(&Device::Cpu, DType::F32);
        let rows = |values: &[f32]| Tensor::from_slice(values, (self.ids.len(), self.width), backend.device());
        let metric = self.metric.as_ref().map(|metric| Metric::new(metric, &backend)).transpose()?;
        let batch = AlignBatch {
            ids: &self.ids,
            projected: &rows(&projected)?,
            teacher: &rows(&self.teacher)?,
            own: 0..self.ids.len(),
            temperature: self.temperature,
            metric: metric.as_ref(),
        };
        let queue = TeacherQueue::new(&StoredQueue::new(0, self.width), &backend)?;
        let weights = AlignWeights { hard_negatives: 0, direction: 0.0, log_norm: 0.0 };
        let found = align_losses(&batch, &queue, &weights)?;
        let [info_nce, direction, _] = found.losses;
        let [info_nce, direction] = [info_nce.to_scalar::<f32>()?, direction.to_scalar()?].map(f64::from);
        let plain = retrieval_metrics(&projected, &self.teacher, self.width)?;
        let retrieval = match &self.metric {
            Some(metric) => retrieval_metrics(&metric.apply(&projected)?, &metric.apply(&self.teacher)?, self.width)?,
            None => plain,
        };
        let mut numbers =
            vec![("info_nce", info_nce), ("direction", direction), ("r1", retrieval.r1), ("mrr", retrieval.mrr)];
        if self.metric.is_some() {
            numbers.extend([("cosine_r1", plain.r1), ("cosine_mrr", plain.mrr)]);
        }
        Ok(Validation { numbers, score: info_nce })
    }
}
