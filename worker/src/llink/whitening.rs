//! The metric in which Stage A compares vectors: the cosine of (x − mean) · matrix.
//!
//! A decoder's states are anisotropic. Those of different sentences have a mean cosine of about 0.84, so cosines of raw
//! vectors hardly tell sentences apart. InfoNCE, mining, the teacher queue and retrieval compare whitened vectors
//! instead. The direction and the log-norm loss use raw vectors, which keeps the projector in the decoder's own space.

use candle_core::{DType, Device, Tensor};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::matmul as product;
use faer::{Accum, Mat, MatRef, Par};
use llink_proto::settings;

use super::moments::Moments;
use crate::numerics::tensor_file::{self, TensorFile, Values};
use crate::ops::Backend;
use crate::ops::{matmul, subtract_row};
use crate::{Error, Result};

/// The map (x − mean) · matrix. It is fitted once on the teachers of the training split and is constant afterwards.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    /// The mean, `[d]`.
    mean: Vec<f32>,
    /// The matrix, `[d, d]`, row-major. `None` is the identity, which only centers vectors.
    matrix: Option<Vec<f32>>,
}

impl Whitening {
    /// Checks and holds a mean `[d]` and a matrix `[d, d]`. `None` only centers vectors.
    ///
    /// # Errors
    /// [`Error::Input`] when the matrix has another size, or a number is NaN or infinite.
    pub fn new(mean: Vec<f32>, matrix: Option<Vec<f32>>) -> Result<Self> {
        let width = mean.len();
        if let Some(numbers) = matrix.as_ref().map(Vec::len).filter(|n| *n != width * width) {
            return Err(Error::Input(format!("a whitening of {width} dimensions with a matrix of {numbers} numbers")));
        }
        if !mean.iter().chain(matrix.iter().flatten()).all(|x| x.is_finite()) {
            return Err(Error::Input("a whitening that holds NaN or infinity".into()));
        }
        Ok(Self { mean, matrix })
    }

    /// Returns the map that subtracts the vectors' mean.
    ///
    /// # Errors
    /// [`Error::Input`] when the mean is not finite.
    pub fn centering(vectors: &Moments) -> Result<Self> {
        Self::new(vectors.narrow_mean(), None)
    }

    /// Returns the map that subtracts the mean and divides by the deviation along each eigenvector of the covariance.
    /// `eps` times the largest eigenvalue is added to all eigenvalues.
    ///
    /// # Errors
    /// [`Error::Input`] when no covariance was collected, or it is singular and `eps` is 0.
    pub fn from_moments(vectors: &Moments, eps: f64) -> Result<Self> {
        let mean = vectors.narrow_mean();
        let covariance = vectors
            .covariance()
            .ok_or_else(|| Error::Input("a whitening needs the covariance of the vectors".into()))?;
        let matrix = inverse_root(&covariance, mean.len(), eps)?;
        Self::new(mean, Some(matrix))
    }

    /// Returns the decoder's width, `d`.
    pub const fn width(&self) -> usize {
        self.mean.len()
    }

    /// Returns the mean that is subtracted, `[d]`.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Returns the matrix `[d, d]` by which centered vectors are multiplied. `None` if they are only centered.
    pub fn matrix(&self) -> Option<&[f32]> {
        self.matrix.as_deref()
    }

    /// Returns which metric this is.
    pub const fn metric(&self) -> settings::Metric {
        match self.matrix {
            None => settings::Metric::Centered,
            Some(_) => settings::Metric::Whitened,
        }
    }

    /// Maps rows `[n, d]`. The cosines of the result are the metric.
    ///
    /// # Errors
    /// [`Error::Tensor`] when these are not whole rows.
    pub fn apply(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let backend = Backend::new(&Device::Cpu, DType::F32);
        let rows = Tensor::from_slice(rows, (rows.len() / self.width(), self.width()), &Device::Cpu)?;
        Ok(Metric::new(self, &backend)?.apply(&rows)?.flatten_all()?.to_vec1()?)
    }

    /// Returns the tensors of a file: `{prefix}mean`, and `{prefix}matrix` if there is one.
    pub fn tensors(&self, prefix: &str) -> Vec<tensor_file::Tensor<'_>> {
        let width = self.width();
        let mean = (format!("{prefix}mean"), vec![width], Values::F32(&self.mean));
        let matrix =
            self.matrix.as_ref().map(|matrix| (format!("{prefix}matrix"), vec![width, width], Values::F32(matrix)));
        std::iter::once(mean).chain(matrix).collect()
    }

    /// Reads what [`Whitening::tensors`] wrote. Returns `None` if the file has no such tensors.
    ///
    /// # Errors
    /// [`Error::Model`] when the tensors do not match.
    pub fn from_tensors(file: &TensorFile<'_>, prefix: &str) -> Result<Option<Self>> {
        let Some(mean) = file.optional_f32(&format!("{prefix}mean"))? else {
            return Ok(None);
        };
        let matrix = file.optional_f32(&format!("{prefix}matrix"))?;
        Self::new(mean, matrix).map(Some).map_err(|error| file.error(error.to_string()))
    }
}

/// A [`Whitening`] in f32 on a device.
pub(crate) struct Metric {
    mean: Tensor,           // [d]
    matrix: Option<Tensor>, // [d, d]
}

impl Metric {
    pub(crate) fn new(whitening: &Whitening, backend: &Backend) -> Result<Self> {
        let (width, device) = (whitening.width(), backend.device());
        let matrix = whitening.matrix().map(|matrix| Tensor::from_slice(matrix, (width, width), device));
        Ok(Self { mean: Tensor::from_slice(whitening.mean(), width, device)?, matrix: matrix.transpose()? })
    }

    pub(crate) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let centered = subtract_row(rows, &self.mean)?;
        match &self.matrix {
            Some(matrix) => matmul(&centered, matrix),
            None => Ok(centered),
        }
    }

    /// Turns the gradient of the result of [`Metric::apply`], `[n, d]`, into that of its argument.
    pub(crate) fn backward(&self, grad_seen: &Tensor) -> Result<Tensor> {
        match &self.matrix {
            Some(matrix) => matmul(grad_seen, &matrix.t()?),
            None => Ok(grad_seen.clone()),
        }
    }
}

/// Returns U diag((l + eps · max l)^-½) Uᵀ of the covariance U diag(l) Uᵀ, `[d, d]`. The covariance is given as its
/// lower triangle in column-major order.
///
/// The decomposition runs on one thread, so its bits do not depend on the number of threads. 2,048 dimensions take 2
/// seconds, and 4,096 take 20.
fn inverse_root(covariance: &[f64], width: usize, eps: f64) -> Result<Vec<f32>> {
    let failed = |reason: &str| Error::Input(format!("the whitening of {width} dimensions failed: {reason}"));
    let covariance = MatRef::from_column_major_slice(covariance, width, width);
    let (mut values, mut vectors) = (Diag::<f64>::zeros(width), Mat::<f64>::zeros(width, width));
    let scratch = evd::self_adjoint_evd_scratch::<f64>(width, ComputeEigenvectors::Yes, Par::Seq, Default::default());
    evd::self_adjoint_evd(
        covariance,
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        Default::default(),
    )
    .map_err(|_| failed("the eigenvalues were not found"))?;
    let values: Vec<f64> = values.column_vector().iter().copied().collect();
    let largest = values.iter().fold(0.0_f64, |most, l| most.max(*l));
    // Rounding may leave a tiny eigenvalue below zero.
    let factors: Vec<f64> = values.iter().map(|l| (l.max(0.0) + eps * largest).sqrt().recip()).collect();
    if !factors.iter().all(|factor| factor.is_finite()) {
        return Err(failed(
            "an eigenvalue is 0, and whitening_eps adds nothing to it. Set align.whitening_eps above 0",
        ));
    }
    let scaled = Mat::from_fn(width, width, |i, k| vectors[(i, k)] * factors[k]);
    let mut root = Mat::<f64>::zeros(width, width);
    product(root.as_mut(), Accum::Replace, scaled.as_ref(), vectors.transpose(), 1.0, Par::rayon(0));
    Ok((0..width * width).map(|at| root[(at / width, at % width)] as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_goes_back_through_the_matrix() {
        let whitening = Whitening::new(vec![1.0, -2.0], Some(vec![2.0, 1.0, 0.0, 3.0])).unwrap();
        assert_eq!(whitening.apply(&[2.0, 1.0, 1.0, -2.0]).unwrap(), [2.0, 10.0, 0.0, 0.0]);
        let centering = Whitening::new(vec![1.0, -2.0], None).unwrap();
        assert_eq!(centering.apply(&[2.0, 1.0]).unwrap(), [1.0, 3.0]);
        let gradient = Tensor::new(&[[1.0_f32, 10.0]], &Device::Cpu).unwrap();
        let backend = Backend::new(&Device::Cpu, DType::F32);
        let back = |whitening| Metric::new(whitening, &backend).unwrap().backward(&gradient).unwrap();
        // d/dx0 of 1·seen0 + 10·seen1 is 2 + 10, d/dx1 is 30.
        assert_eq!(back(&whitening).to_vec2::<f32>().unwrap(), [[12.0, 30.0]]);
        assert_eq!(back(&centering).to_vec2::<f32>().unwrap(), [[1.0, 10.0]]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Whitening::new(vec![1.0, 2.0], Some(vec![1.0; 3])).is_err());
        assert!(Whitening::new(vec![1.0, f32::NAN], None).is_err());
    }
}
