//! The statistics that Stage A fits on the training split before its first step: the metric, the encoder's
//! standardization, and the LayerNorm's start.

use std::collections::HashMap;

use llink_datasets::vectors::VectorTable;
use llink_proto::settings::{AlignSettings, Metric};

use super::moments::{Moments, Spread};
use super::parameters::split_mut;
use super::projector::Projector;
use super::whitening::Whitening;
use crate::numerics::tensor_file::{self, Tensor, TensorFile, Values};
use crate::{Error, Result};

/// The smallest variance of a dimension, as a share of the mean variance. Smaller variances are raised to it before the
/// division.
const LEAST_VARIANCE: f64 = 1e-6;

/// The fitted statistics, constant during training. All ranks read them from one file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statistics {
    /// The metric in which InfoNCE, mining and retrieval compare vectors. `None` compares the vectors themselves.
    pub metric: Option<Whitening>,
    /// The standardization of the encoder's vectors before the projector. Exported projectors include it in their
    /// weights.
    pub standardization: Option<PerDimension>,
    /// The mean and the deviation of the teachers, at which the projector's LayerNorm starts.
    pub start: Option<PerDimension>,
}

/// The mean and the standard deviation of each dimension of a set of vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct PerDimension {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl PerDimension {
    /// Checks and holds a mean and a deviation, `[width]` each.
    ///
    /// # Errors
    /// [`Error::Input`] when the two differ in length or a deviation is not positive.
    pub fn new(mean: Vec<f32>, deviation: Vec<f32>) -> Result<Self> {
        let sound = mean.len() == deviation.len()
            && mean.iter().all(|x| x.is_finite())
            && deviation.iter().all(|x| x.is_finite() && *x > 0.0);
        match sound {
            true => Ok(Self { mean, deviation }),
            false => Err(Error::Input("means and deviations must be as many, finite, and deviations above 0".into())),
        }
    }

    fn of(moments: &Moments) -> Result<Self> {
        let variances = moments.variances();
        let least = LEAST_VARIANCE * variances.iter().sum::<f64>() / variances.len() as f64;
        let deviation = variances.iter().map(|variance| (variance + least).sqrt() as f32);
        Self::new(moments.narrow_mean(), deviation.collect())
    }

    /// Returns the means, `[width]`.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Returns the deviations, `[width]`, all above 0.
    pub fn deviation(&self) -> &[f32] {
        &self.deviation
    }

    /// Subtracts the mean from rows `[n, width]` and divides by the deviation.
    pub fn standardize(&self, rows: &mut [f32]) {
        for row in rows.chunks_exact_mut(self.mean.len()) {
            for ((x, mean), deviation) in row.iter_mut().zip(&self.mean).zip(&self.deviation) {
                *x = (*x - mean) / deviation;
            }
        }
    }

    fn tensors(&self, name: &str) -> [Tensor<'_>; 2] {
        [("mean", &self.mean), ("deviation", &self.deviation)]
            .map(|(part, values)| (format!("{name}.{part}"), vec![values.len()], Values::F32(values)))
    }

    fn from_tensors(file: &TensorFile<'_>, name: &str) -> Result<Option<Self>> {
        let Some(mean) = file.optional_f32(&format!("{name}.mean"))? else {
            return Ok(None);
        };
        let (_, deviation) = file.f32(&format!("{name}.deviation"))?;
        let read = Self::new(mean, deviation);
        read.map(Some).map_err(|error| file.error(format!("{name}: {error}")))
    }
}

impl Statistics {
    /// Returns the fitted statistics as tensors of a file. After `prefix` they are named `metric.mean`,
    /// `metric.matrix`, `encoder.mean`, `encoder.deviation`, `teacher.mean` and `teacher.deviation`.
    pub fn tensors(&self, prefix: &str) -> Vec<Tensor<'_>> {
        let metric = self.metric.iter().flat_map(|m| m.tensors(&format!("{prefix}metric.")));
        let encoder = self.standardization.iter().flat_map(|s| s.tensors(&format!("{prefix}encoder")));
        let teacher = self.start.iter().flat_map(|s| s.tensors(&format!("{prefix}teacher")));
        metric.chain(encoder).chain(teacher).collect()
    }

    /// Reads what [`Statistics::tensors`] wrote to a file.
    ///
    /// # Errors
    /// [`Error::Model`] when tensors do not match each other.
    pub fn from_tensors(file: &TensorFile<'_>, prefix: &str) -> Result<Self> {
        Ok(Self {
            metric: Whitening::from_tensors(file, &format!("{prefix}metric."))?,
            standardization: PerDimension::from_tensors(file, &format!("{prefix}encoder"))?,
            start: PerDimension::from_tensors(file, &format!("{prefix}teacher"))?,
        })
    }

    /// Returns the content of `statistics.safetensors`.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let metadata = HashMap::from([("metric".to_owned(), self.metric().name().to_owned())]);
        tensor_file::write(&self.tensors(""), metadata)
    }

    /// Reads statistics from the safetensors file `name` with content `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when the content is not such a file.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        file.text("metric")?;
        Self::from_tensors(&file, "")
    }

    /// Returns the metric of Stage A.
    pub fn metric(&self) -> Metric {
        self.metric.as_ref().map_or(Metric::Cosine, Whitening::metric)
    }

    /// Checks the widths of the statistics.
    ///
    /// # Errors
    /// [`Error::Input`] naming the widths when they differ.
    pub fn check(&self, encoder: usize, teacher: usize) -> Result<()> {
        let of_metric = self.metric.as_ref().map(Whitening::width);
        let widths = [
            ("encoder", self.standardization.as_ref().map(|s| s.mean.len()), encoder),
            ("teacher", of_metric, teacher),
            ("teacher", self.start.as_ref().map(|s| s.mean.len()), teacher),
        ];
        for (whose, found, expected) in widths {
            if let Some(found) = found.filter(|found| *found != expected) {
                return Err(Error::Input(format!(
                    "the statistics are of {whose} vectors of {found} numbers, the vectors have {expected}"
                )));
            }
        }
        Ok(())
    }

    /// Starts the projector's LayerNorm at the teachers' deviation and mean, if these were fitted.
    ///
    /// A fresh LayerNorm gives vectors of norm √d. The teachers of a middle layer are many times longer, so a whitened
    /// loss would see all projected vectors as one point.
    pub fn start(&self, projector: &mut Projector) {
        if let Some(PerDimension { mean, deviation }) = &self.start {
            let [.., norm, norm_bias] = split_mut(&projector.shape().tensors(), &mut projector.parameters);
            norm.copy_from_slice(deviation);
            norm_bias.copy_from_slice(mean);
        }
    }

    /// Returns the projector for the encoder's own vectors, with the standardization folded into its first Linear.
    #[must_use]
    pub fn folded(&self, projector: &Projector) -> Projector {
        match &self.standardization {
            Some(PerDimension { mean, deviation }) => projector.folded(mean, deviation),
            None => projector.clone(),
        }
    }
}

/// Fits [`Statistics`] in one pass over the vectors of the training split.
#[derive(Debug)]
pub struct StatisticsFit {
    settings: AlignSettings,
    encoder: Option<Moments>,
    teacher: Option<Moments>,
}

impl StatisticsFit {
    /// Returns a fit that has seen no vectors.
    pub const fn new(settings: AlignSettings) -> Self {
        Self { settings, encoder: None, teacher: None }
    }

    /// Returns whether the encoder's vectors are needed.
    pub const fn reads_encoder(&self) -> bool {
        self.settings.standardize
    }

    /// Returns whether the teacher's vectors are needed.
    pub fn reads_teacher(&self) -> bool {
        self.settings.metric != Metric::Cosine || self.settings.starts_at_teachers()
    }

    /// Adds encoder vectors.
    ///
    /// # Errors
    /// [`Error::Input`] naming the pair when a vector holds NaN or infinity.
    pub fn add_encoder(&mut self, table: &VectorTable) -> Result<()> {
        add("encoder", &mut self.encoder, Spread::Variances, table)
    }

    /// Adds teacher vectors.
    pub fn add_teacher(&mut self, table: &VectorTable) -> Result<()> {
        let spread = match self.settings.metric {
            Metric::Whitened => Spread::Covariance,
            Metric::Cosine | Metric::Centered => Spread::Variances,
        };
        add("teacher", &mut self.teacher, spread, table)
    }

    /// Returns the statistics of the vectors so far.
    ///
    /// # Errors
    /// [`Error::Input`] when there were fewer than two vectors or all were equal.
    pub fn finish(self) -> Result<Statistics> {
        let (reads_encoder, reads_teacher) = (self.reads_encoder(), self.reads_teacher());
        let mut statistics = Statistics::default();
        if reads_encoder {
            statistics.standardization = Some(PerDimension::of(&varied("encoder", self.encoder)?)?);
        }
        if reads_teacher {
            let teacher = varied("teacher", self.teacher)?;
            if self.settings.starts_at_teachers() {
                statistics.start = Some(PerDimension::of(&teacher)?);
            }
            statistics.metric = match self.settings.metric {
                Metric::Cosine => None,
                Metric::Centered => Some(Whitening::centering(&teacher)?),
                Metric::Whitened => Some(Whitening::from_moments(&teacher, self.settings.whitening_eps)?),
            };
        }
        Ok(statistics)
    }
}

fn add(whose: &str, moments: &mut Option<Moments>, spread: Spread, table: &VectorTable) -> Result<()> {
    if let Some(at) = table.values.iter().position(|value| !value.is_finite()) {
        let id = table.ids[at / table.width];
        return Err(Error::Input(format!("the {whose} vector of pair {id} holds NaN or infinity")));
    }
    let moments = moments.get_or_insert_with(|| Moments::new(table.width, spread));
    let width = moments.mean().len();
    if width != table.width {
        return Err(Error::Input(format!(
            "{whose} vectors of {width} numbers are followed by some of {}",
            table.width
        )));
    }
    moments.add(&table.values);
    Ok(())
}

/// Checks that the vectors differ, so that a deviation exists.
fn varied(whose: &str, moments: Option<Moments>) -> Result<Moments> {
    let rows = moments.as_ref().map_or(0, Moments::rows);
    match moments {
        Some(moments) if rows >= 2 && moments.variances().iter().any(|variance| *variance > 0.0) => Ok(moments),
        _ => Err(Error::Input(format!(
            "statistics of {rows} {whose} vectors that do not differ: there is nothing to divide by. Train on at least two different \
             sentences"
        ))),
    }
}

#[cfg(test)]
mod tests;
