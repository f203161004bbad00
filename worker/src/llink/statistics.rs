//! What Stage A fits on the training split before its first step: the metric, the encoder's standardization, the LayerNorm's start.

use std::collections::HashMap;

use llink_datasets::vectors::VectorTable;

use super::moments::{Moments, Spread};
use super::projector::Projector;
use super::whitening::Whitening;
use crate::train::tensor_file::{self, Tensor, TensorFile, Values};
use crate::{Error, Result};

/// A dimension that hardly varies is divided as if it had this share of the mean variance.
const LEAST_VARIANCE: f64 = 1e-6;

/// What vectors are compared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metric {
    /// Cosines of the vectors themselves: the paper's.
    #[default]
    Cosine,
    /// Cosines around the teachers' mean.
    Centered,
    /// Cosines around the teachers' mean, with their deviations along each direction divided out.
    Whitened,
}

/// What is to be fitted. The default fits nothing, as in the paper.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StatisticsOptions {
    /// What InfoNCE, mining and retrieval compare vectors in.
    pub metric: Metric,
    /// The share of the covariance's largest eigenvalue that is added to all before the whitening divides by them; above 0.
    pub whitening_eps: f64,
    /// Whether the projector's LayerNorm starts at the teachers' deviation and mean.
    pub start_at_teachers: bool,
    /// Whether each dimension of the encoder's vectors is standardized before the projector.
    pub standardize: bool,
}

/// What was fitted, constant while training runs. The same on all ranks, for all read one file.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Statistics {
    /// What InfoNCE, mining and retrieval see of a vector; none sees it as it is.
    pub metric: Option<Whitening>,
    /// What is done to the encoder's vectors before the projector. Exported projectors have it folded in.
    pub standardization: Option<PerDimension>,
    /// The teachers' mean and deviation, which the projector's LayerNorm starts at.
    pub start: Option<PerDimension>,
}

/// Mean and deviation of each dimension of some vectors.
#[derive(Debug, Clone, PartialEq)]
pub struct PerDimension {
    mean: Vec<f32>,
    deviation: Vec<f32>,
}

impl PerDimension {
    /// # Errors
    /// [`Error::Input`] when the two differ in length or a deviation is no positive number.
    pub fn new(mean: Vec<f32>, deviation: Vec<f32>) -> Result<Self> {
        let sound = mean.len() == deviation.len()
            && mean.iter().all(|x| x.is_finite())
            && deviation.iter().all(|x| x.is_finite() && *x > 0.0);
        match sound {
            true => Ok(Self { mean, deviation }),
            false => Err(Error::Input(
                "means and deviations must be as many, finite, and deviations above 0".into(),
            )),
        }
    }

    fn of(moments: &Moments) -> Result<Self> {
        let variances = moments.variances();
        let least = LEAST_VARIANCE * variances.iter().sum::<f64>() / variances.len() as f64;
        let deviation = variances.iter().map(|variance| (variance + least).sqrt() as f32);
        Self::new(moments.narrow_mean(), deviation.collect())
    }

    /// The means, `[width]`.
    #[must_use]
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// The deviations, `[width]`: all above 0.
    #[must_use]
    pub fn deviation(&self) -> &[f32] {
        &self.deviation
    }

    /// Takes the mean from rows `[n, width]` and divides by the deviation.
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
    /// The tensors of a file, their names after `prefix`: `metric.mean`, `metric.matrix`, `encoder.mean`, `encoder.deviation`,
    /// `teacher.mean`, `teacher.deviation`. Those are left out that nothing uses.
    #[must_use]
    pub fn tensors(&self, prefix: &str) -> Vec<Tensor<'_>> {
        let metric = self.metric.iter().flat_map(|m| m.tensors(&format!("{prefix}metric.")));
        let named = |name: &str, part: &'static str| format!("{name}{part}");
        let encoder = self
            .standardization
            .iter()
            .flat_map(|s| s.tensors(&named(prefix, "encoder")));
        let teacher = self.start.iter().flat_map(|s| s.tensors(&named(prefix, "teacher")));
        metric.chain(encoder).chain(teacher).collect()
    }

    /// What [`Statistics::tensors`] put into a file.
    ///
    /// # Errors
    /// [`Error::Model`] when tensors do not fit each other.
    pub fn from_tensors(file: &TensorFile<'_>, prefix: &str) -> Result<Self> {
        Ok(Self {
            metric: Whitening::from_tensors(file, &format!("{prefix}metric."))?,
            standardization: PerDimension::from_tensors(file, &format!("{prefix}encoder"))?,
            start: PerDimension::from_tensors(file, &format!("{prefix}teacher"))?,
        })
    }

    /// As the file `statistics.safetensors`.
    ///
    /// # Errors
    /// None that its invariants allow.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let metadata = HashMap::from([("metric".to_owned(), self.metric_name().to_owned())]);
        tensor_file::write(&self.tensors(""), metadata)
    }

    /// From the safetensors file `name`, whose content is `bytes`.
    ///
    /// # Errors
    /// [`Error::Model`] when it is no such file.
    pub fn from_safetensors(name: &str, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::new(name, bytes)?;
        file.text("metric")?;
        Self::from_tensors(&file, "")
    }

    /// What job files and reports call the metric: `cosine`, `centred` or `whitened`.
    #[must_use]
    pub fn metric_name(&self) -> &'static str {
        self.metric.as_ref().map_or("cosine", Whitening::name)
    }

    /// Refuses statistics of vectors of other widths.
    ///
    /// # Errors
    /// [`Error::Input`] naming the widths.
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

    /// The projector as it starts: its LayerNorm at the teachers' deviation and mean where that was fitted.
    pub fn start(&self, projector: &mut Projector) {
        if let Some(PerDimension { mean, deviation }) = &self.start {
            projector.start_at(deviation, mean);
        }
    }

    /// The projector as every loader takes it: for the encoder's own vectors, the standardization folded into its first Linear.
    #[must_use]
    pub fn folded(&self, projector: &Projector) -> Projector {
        match &self.standardization {
            Some(PerDimension { mean, deviation }) => projector.folded(mean, deviation),
            None => projector.clone(),
        }
    }
}

/// Fits [`Statistics`] in one pass over the training split's vectors.
#[derive(Debug)]
pub struct StatisticsFit {
    options: StatisticsOptions,
    encoder: Option<Moments>,
    teacher: Option<Moments>,
}

impl StatisticsFit {
    /// A fit that has seen no vector.
    #[must_use]
    pub const fn new(options: StatisticsOptions) -> Self {
        Self {
            options,
            encoder: None,
            teacher: None,
        }
    }

    /// Whether the encoder's vectors are needed.
    #[must_use]
    pub const fn reads_encoder(&self) -> bool {
        self.options.standardize
    }

    /// Whether the teacher's vectors are needed.
    #[must_use]
    pub fn reads_teacher(&self) -> bool {
        self.options.metric != Metric::Cosine || self.options.start_at_teachers
    }

    /// Takes in encoder vectors.
    ///
    /// # Errors
    /// [`Error::Input`] when a vector holds NaN or infinity; by id.
    pub fn add_encoder(&mut self, table: &VectorTable) -> Result<()> {
        add("encoder", &mut self.encoder, Spread::Variances, table)
    }

    /// Takes in teacher vectors.
    ///
    /// # Errors
    /// As [`StatisticsFit::add_encoder`].
    pub fn add_teacher(&mut self, table: &VectorTable) -> Result<()> {
        let spread = match self.options.metric {
            Metric::Whitened => Spread::Covariance,
            Metric::Cosine | Metric::Centered => Spread::Variances,
        };
        add("teacher", &mut self.teacher, spread, table)
    }

    /// What the vectors so far give.
    ///
    /// # Errors
    /// [`Error::Input`] when there were fewer than two vectors or all were the same.
    pub fn finish(self) -> Result<Statistics> {
        let options = self.options;
        let (reads_encoder, reads_teacher) = (self.reads_encoder(), self.reads_teacher());
        let standardization = match reads_encoder {
            true => Some(PerDimension::of(&varied("encoder", self.encoder)?)?),
            false => None,
        };
        let (mut metric, mut start) = (None, None);
        if reads_teacher {
            let teacher = varied("teacher", self.teacher)?;
            start = match options.start_at_teachers {
                true => Some(PerDimension::of(&teacher)?),
                false => None,
            };
            metric = match options.metric {
                Metric::Cosine => None,
                Metric::Centered => Some(Whitening::centering(&teacher)?),
                Metric::Whitened => Some(Whitening::from_moments(&teacher, options.whitening_eps)?),
            };
        }
        Ok(Statistics {
            metric,
            standardization,
            start,
        })
    }
}

fn add(whose: &str, moments: &mut Option<Moments>, spread: Spread, table: &VectorTable) -> Result<()> {
    if let Some(at) = table.values.iter().position(|value| !value.is_finite()) {
        let id = table.ids[at / table.width];
        return Err(Error::Input(format!(
            "the {whose} vector of pair {id} holds NaN or infinity"
        )));
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

/// Moments that a deviation can be taken of.
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
