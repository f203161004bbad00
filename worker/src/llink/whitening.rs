//! The metric that Stage A compares vectors in: cosines of (x − mean) · matrix.
//!
//! A decoder's states are anisotropic: those of different sentences have a mean cosine of about 0.84, so cosines of raw vectors hardly
//! tell sentences apart. InfoNCE, mining, the teacher queue and retrieval see whitened vectors instead. The direction and the log-norm
//! loss see raw ones, which keeps the projector in the decoder's own space.

use candle_core::{DType, Device, Tensor};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{self, ComputeEigenvectors};
use faer::linalg::matmul::matmul as product;
use faer::{Accum, Mat, MatRef, Par};

use super::moments::Moments;
use crate::models::Backend;
use crate::models::ops::{matmul, subtract_row};
use crate::train::tensor_file::{self, TensorFile, Values};
use crate::{Error, Result};

/// (x − mean) · matrix. Fitted once on the training split's teachers, constant from then on, without a gradient of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Whitening {
    /// `[d]`
    mean: Vec<f32>,
    /// `[d, d]`, row-major. None is the identity: vectors are centered and no more.
    matrix: Option<Vec<f32>>,
}

impl Whitening {
    /// From a mean `[d]` and a matrix `[d, d]`; none only centers.
    ///
    /// # Errors
    /// [`Error::Input`] when the matrix has another size, or a number is NaN or infinite.
    pub fn new(mean: Vec<f32>, matrix: Option<Vec<f32>>) -> Result<Self> {
        let width = mean.len();
        if let Some(numbers) = matrix.as_ref().map(Vec::len).filter(|n| *n != width * width) {
            return Err(Error::Input(format!(
                "a whitening of {width} dimensions with a matrix of {numbers} numbers"
            )));
        }
        if !mean.iter().chain(matrix.iter().flatten()).all(|x| x.is_finite()) {
            return Err(Error::Input("a whitening that holds NaN or infinity".into()));
        }
        Ok(Self { mean, matrix })
    }

    /// Takes the vectors' mean away.
    ///
    /// # Errors
    /// [`Error::Input`] when it is not finite.
    pub fn centering(vectors: &Moments) -> Result<Self> {
        Self::new(vectors.narrow_mean(), None)
    }

    /// Takes the vectors' mean away and divides by their deviations along the eigenvectors of the covariance, whose eigenvalues have
    /// `eps` times the largest one added.
    ///
    /// # Errors
    /// [`Error::Input`] when no covariance was kept or it is singular and `eps` is 0.
    pub fn from_moments(vectors: &Moments, eps: f64) -> Result<Self> {
        let mean = vectors.narrow_mean();
        let covariance = vectors
            .covariance()
            .ok_or_else(|| Error::Input("a whitening needs the covariance of the vectors".into()))?;
        let matrix = inverse_root(&covariance, mean.len(), eps)?;
        Self::new(mean, Some(matrix))
    }

    /// `d`, the decoder's width.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.mean.len()
    }

    /// The mean that is taken away, `[d]`.
    #[must_use]
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// The matrix `[d, d]` that centered vectors are multiplied by; none where they are not.
    #[must_use]
    pub fn matrix(&self) -> Option<&[f32]> {
        self.matrix.as_deref()
    }

    /// What job files and reports call it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.matrix {
            None => "centred",
            Some(_) => "whitened",
        }
    }

    /// Rows `[n, d]` as the metric sees them: cosines of the result are the metric.
    ///
    /// # Errors
    /// [`Error::Tensor`] when these are not whole rows.
    pub fn apply(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let backend = Backend::new(&Device::Cpu, DType::F32);
        let rows = Tensor::from_slice(rows, (rows.len() / self.width(), self.width()), &Device::Cpu)?;
        Ok(Metric::new(self, &backend)?.apply(&rows)?.flatten_all()?.to_vec1()?)
    }

    /// As tensors of a file: `{prefix}mean`, and `{prefix}matrix` where there is one.
    #[must_use]
    pub fn tensors(&self, prefix: &str) -> Vec<tensor_file::Tensor<'_>> {
        let width = self.width();
        let mean = (format!("{prefix}mean"), vec![width], Values::F32(&self.mean));
        let matrix = self
            .matrix
            .as_ref()
            .map(|matrix| (format!("{prefix}matrix"), vec![width, width], Values::F32(matrix)));
        std::iter::once(mean).chain(matrix).collect()
    }

    /// What [`Whitening::tensors`] wrote; none where the file has no such tensors.
    ///
    /// # Errors
    /// [`Error::Model`] when the tensors do not fit each other.
    pub fn from_tensors(file: &TensorFile<'_>, prefix: &str) -> Result<Option<Self>> {
        let Some(mean) = file.optional_f32(&format!("{prefix}mean"))? else {
            return Ok(None);
        };
        let matrix = file.optional_f32(&format!("{prefix}matrix"))?;
        Self::new(mean, matrix)
            .map(Some)
            .map_err(|error| file.error(error.to_string()))
    }
}

/// A [`Whitening`] where vectors are compared, f32.
pub(crate) struct Metric {
    mean: Tensor,           // [d]
    matrix: Option<Tensor>, // [d, d]
}

impl Metric {
    pub(crate) fn new(whitening: &Whitening, backend: &Backend) -> Result<Self> {
        let (width, device) = (whitening.width(), backend.device());
        let matrix = whitening
            .matrix()
            .map(|matrix| Tensor::from_slice(matrix, (width, width), device));
        Ok(Self {
            mean: Tensor::from_slice(whitening.mean(), width, device)?,
            matrix: matrix.transpose()?,
        })
    }

    /// Rows [n, d] as the metric sees them.
    pub(crate) fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        let centered = subtract_row(rows, &self.mean)?;
        match &self.matrix {
            Some(matrix) => matmul(&centered, matrix),
            None => Ok(centered),
        }
    }

    /// From the gradient by [`Metric::apply`]'s result [n, d] to that by its argument.
    pub(crate) fn backward(&self, grad_seen: &Tensor) -> Result<Tensor> {
        match &self.matrix {
            Some(matrix) => matmul(grad_seen, &matrix.t()?),
            None => Ok(grad_seen.clone()),
        }
    }
}

/// U diag((l + eps · max l)^-½) Uᵀ of the covariance U diag(l) Uᵀ, `[d, d]`, of which the lower triangle is given in column-major order.
///
/// The decomposition runs on one thread, so that no bit depends on their number: 2,048 dimensions take 2 seconds, 4,096 take 20.
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
    // Rounding may leave a vanishing eigenvalue below zero.
    let factors: Vec<f64> = values
        .iter()
        .map(|l| (l.max(0.0) + eps * largest).sqrt().recip())
        .collect();
    if !factors.iter().all(|factor| factor.is_finite()) {
        return Err(failed(
            "an eigenvalue is 0, and whitening_eps adds nothing to it. Set align.whitening_eps above 0",
        ));
    }
    let scaled = Mat::from_fn(width, width, |i, k| vectors[(i, k)] * factors[k]);
    let mut root = Mat::<f64>::zeros(width, width);
    product(
        root.as_mut(),
        Accum::Replace,
        scaled.as_ref(),
        vectors.transpose(),
        1.0,
        Par::rayon(0),
    );
    Ok((0..width * width)
        .map(|at| root[(at / width, at % width)] as f32)
        .collect())
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
