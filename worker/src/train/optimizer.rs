//! AdamW and gradient clipping, as PyTorch defines them, over flat f32 tensors.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use crate::Result;
use crate::numerics::vectorized::vectorized;

/// The number of values in a parallel task. A norm is summed in f32 over the same length.
const BLOCK: usize = 1 << 14;
/// Gradients are padded to a multiple of this length.
pub(super) const PIECE: usize = 1024;
/// The default of PyTorch.
const EPSILON: f32 = 1e-8;

/// Returns the length of a flat gradient of `count` parameters with its padding.
pub(super) const fn padded(count: usize) -> usize {
    count.div_ceil(PIECE) * PIECE
}

/// Concatenates gradients to a flat gradient in f32, padded with zeros.
///
/// # Errors
/// [`Error::Tensor`](crate::Error::Tensor) when the gradients lie on different devices.
pub fn flat(pieces: &[Tensor]) -> Result<Tensor> {
    let as_f32 = |piece: &Tensor| piece.flatten_all()?.to_dtype(DType::F32);
    let mut parts: Vec<Tensor> = pieces.iter().map(as_f32).collect::<candle_core::Result<_>>()?;
    let count: usize = parts.iter().map(Tensor::elem_count).sum();
    let missing = padded(count) - count;
    if let (Some(first), 1..) = (pieces.first(), missing) {
        parts.push(Tensor::zeros(missing, DType::F32, first.device())?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

/// The hyperparameters of AdamW besides the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// The decay of the first moment.
    pub beta1: f64,
    /// The decay of the second moment.
    pub beta2: f64,
    /// The decoupled weight decay.
    pub weight_decay: f64,
}

/// The state of AdamW in a checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamWState {
    pub(super) options: AdamWOptions,
    /// The number of steps that were taken.
    pub steps: u64,
    /// The running mean of the gradients, one value for each parameter.
    pub first_moment: Vec<f32>,
    /// The running mean of the squared gradients, one value for each parameter.
    pub second_moment: Vec<f32>,
}

impl AdamWState {
    /// Returns the state of `parameters` parameters before the first step.
    pub fn new(options: AdamWOptions, parameters: usize) -> Self {
        Self { options, steps: 0, first_moment: vec![0.0; parameters], second_moment: vec![0.0; parameters] }
    }
}

impl AdamWOptions {
    /// Returns the constants of the `steps`-th step, counted from 1, as `cuda/kernels.cu` takes them.
    pub fn constants(&self, steps: u64, gradient_scale: f32, learning_rate: f64) -> [f32; 8] {
        self.update(steps, gradient_scale, learning_rate).constants()
    }

    /// Returns the constants of the `steps`-th step, counted from 1.
    fn update(&self, steps: u64, gradient_scale: f32, learning_rate: f64) -> Update {
        let Self { beta1, beta2, weight_decay } = *self;
        let correction1 = 1.0 - beta1.powf(steps as f64);
        let correction2 = 1.0 - beta2.powf(steps as f64);
        Update {
            gradient_scale,
            decay: (1.0 - learning_rate * weight_decay) as f32,
            keep1: (1.0 - beta1) as f32,
            keep2: (1.0 - beta2) as f32,
            beta2: beta2 as f32,
            inverse_root: (1.0 / correction2.sqrt()) as f32,
            step_size: (learning_rate / correction1) as f32,
        }
    }
}

/// Adam with decoupled weight decay and bias correction (Loshchilov and Hutter, 2019). Parameters and moments are f32
/// tensors that stay on their device.
///
/// # Errors
/// Every call fails with [`Error::Tensor`](crate::Error::Tensor) when the device fails.
pub struct AdamW {
    options: AdamWOptions,
    steps: u64,
    /// The parameters, the first moments and the second moments, each padded with zeros: `[3, padded]`.
    state: Tensor,
    count: usize,
}

impl AdamW {
    /// Continues from these parameters and this state, on a device.
    pub fn new(parameters: &[f32], optimizer: &AdamWState, device: &Device) -> Result<Self> {
        let (count, width) = (parameters.len(), padded(parameters.len()));
        let mut state = vec![0f32; 3 * width];
        let rows = [parameters, &optimizer.first_moment, &optimizer.second_moment];
        for (row, values) in state.chunks_exact_mut(width).zip(rows) {
            row[..count].copy_from_slice(values);
        }
        Ok(Self {
            options: optimizer.options,
            steps: optimizer.steps,
            state: Tensor::from_vec(state, (3, width), device)?,
            count,
        })
    }

    /// Returns a view of the parameters, f32 `[n]`, which changes with each step.
    pub fn parameters(&self) -> Result<Tensor> {
        Ok(self.state.get(0)?.narrow(0, 0, self.count)?)
    }

    /// Updates the parameters with `scale` times `gradient`, which has the form of [`flat`]. Another length is refused.
    pub fn step(&mut self, gradient: &Tensor, scale: f32, learning_rate: f64) -> Result<()> {
        self.steps += 1;
        let update = self.options.update(self.steps, scale, learning_rate);
        Ok(self.state.inplace_op2(gradient, &Step(update))?)
    }

    /// Returns copies of the parameters and the moments.
    pub fn store(&self) -> Result<(Vec<f32>, AdamWState)> {
        let row = |row: usize| -> Result<Vec<f32>> { Ok(self.state.get(row)?.narrow(0, 0, self.count)?.to_vec1()?) };
        let (options, steps) = (self.options, self.steps);
        Ok((row(0)?, AdamWState { options, steps, first_moment: row(1)?, second_moment: row(2)? }))
    }
}

struct Step(Update);

impl InplaceOp2 for Step {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(
        &self,
        state: &mut CpuStorage,
        state_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        let spans = (state_layout.contiguous_offsets(), gradient_layout.contiguous_offsets());
        let (CpuStorage::F32(state), CpuStorage::F32(gradient), (Some(own), Some(given))) = (state, gradient, spans)
        else {
            candle_core::bail!("AdamW is for contiguous f32, not {:?}", DType::F32);
        };
        let gradient = &gradient[given.0..given.1];
        if own.1 - own.0 != 3 * gradient.len() {
            candle_core::bail!("AdamW with {} numbers for {} gradients", own.1 - own.0, gradient.len());
        }
        let (parameters, moments) = state[own.0..own.1].split_at_mut(gradient.len());
        apply_to_all(&self.0, parameters, gradient, moments.split_at_mut(gradient.len()));
        Ok(())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        state: &mut candle_core::CudaStorage,
        state_layout: &Layout,
        gradient: &candle_core::CudaStorage,
        gradient_layout: &Layout,
    ) -> candle_core::Result<()> {
        crate::numerics::cuda::adamw(state, state_layout, gradient, gradient_layout, self.0.constants())
    }
}

/// The constants of one step.
#[derive(Debug, Clone, Copy)]
struct Update {
    gradient_scale: f32,
    /// The factor of a parameter under weight decay.
    decay: f32,
    /// The weight of the new gradient in the first moment.
    keep1: f32,
    /// The weight of the new squared gradient in the second moment.
    keep2: f32,
    beta2: f32,
    /// The factor 1 / √(bias correction of the second moment).
    inverse_root: f32,
    /// The learning rate divided by the bias correction of the first moment.
    step_size: f32,
}

impl Update {
    /// Returns the constants in the order in which the kernel takes them.
    const fn constants(&self) -> [f32; 8] {
        [
            self.gradient_scale,
            self.decay,
            self.keep1,
            self.keep2,
            self.beta2,
            self.inverse_root,
            self.step_size,
            EPSILON,
        ]
    }
}

fn apply_to_all(update: &Update, parameters: &mut [f32], gradient: &[f32], (first, second): (&mut [f32], &mut [f32])) {
    let moments = first.par_chunks_mut(BLOCK).zip(second.par_chunks_mut(BLOCK));
    let blocks = parameters.par_chunks_mut(BLOCK).zip(gradient.par_chunks(BLOCK)).zip(moments);
    blocks
        .with_min_len(4)
        .for_each(|((parameters, gradient), (first, second))| apply(update, parameters, gradient, first, second));
}

vectorized! {
    fn apply(update: &Update, parameters: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let moments = first.iter_mut().zip(second);
        for ((parameter, gradient), (first, second)) in parameters.iter_mut().zip(gradient).zip(moments) {
            let gradient = gradient * update.gradient_scale;
            *first += (gradient - *first) * update.keep1;
            *second = *second * update.beta2 + gradient * gradient * update.keep2;
            let deviation = second.sqrt() * update.inverse_root + EPSILON;
            *parameter = *parameter * update.decay - update.step_size * (*first / deviation);
        }
    }
}

/// Returns the factor that reduces a gradient of this norm to a norm of at most `max_norm`.
pub fn clip_factor(norm: f64, max_norm: f64) -> f32 {
    (max_norm / (norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: AdamWOptions = AdamWOptions { beta1: 0.9, beta2: 0.98, weight_decay: 0.05 };

    /// Compares three steps with the definition in f64, and restores the state from a copy after each.
    #[test]
    fn follows_the_definition_and_goes_on_from_where_it_was() {
        let count = BLOCK * 9 + 5;
        let start = |i: usize| (i as f64 * 0.1).sin();
        let gradient = |i: usize, step: u64| (i as f64 * 0.3 + step as f64).cos() * 10.0_f64.powi((i % 7) as i32 - 4);
        let mut parameters: Vec<f32> = (0..count).map(|i| start(i) as f32).collect();
        let mut state = AdamWState::new(OPTIONS, count);
        for step in 1..=3 {
            let gradients: Vec<f32> = (0..count).map(|i| gradient(i, step) as f32).collect();
            let pieces = [&gradients[..700], &gradients[700..]].map(|part| Tensor::new(part, &Device::Cpu).unwrap());
            let mut optimizer = AdamW::new(&parameters, &state, &Device::Cpu).unwrap();
            optimizer.step(&flat(&pieces).unwrap(), 0.5, 0.01 * step as f64).unwrap();
            (parameters, state) = optimizer.store().unwrap();
            assert_eq!(optimizer.parameters().unwrap().to_vec1::<f32>().unwrap(), parameters);
            assert_eq!(state.steps, step);
        }
        for (i, parameter) in parameters.iter().enumerate() {
            let (mut p, mut m, mut v) = (start(i), 0.0, 0.0);
            for step in 1..=3 {
                let (g, lr) = (0.5 * gradient(i, step), 0.01 * step as f64);
                p *= 1.0 - lr * OPTIONS.weight_decay;
                m = 0.9 * m + 0.1 * g;
                v = 0.98 * v + 0.02 * g * g;
                let (m_hat, v_hat) = (m / (1.0 - 0.9_f64.powi(step as i32)), v / (1.0 - 0.98_f64.powi(step as i32)));
                p -= lr * m_hat / (v_hat.sqrt() + 1e-8);
            }
            assert!((f64::from(*parameter) - p).abs() < 1e-5, "parameter {i}: {parameter} against {p}");
        }
    }

    #[test]
    fn a_gradient_of_another_length_is_refused() {
        let state = AdamWState::new(OPTIONS, 2_500);
        let mut optimizer = AdamW::new(&vec![0.5; 2_500], &state, &Device::Cpu).unwrap();
        let short = Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap();
        assert!(optimizer.step(&short, 1.0, 0.1).is_err());
    }

    #[test]
    fn clipping_leaves_small_gradients_alone() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((f64::from(clip_factor(5.0, 1.0)) - 1.0 / (5.0 + 1e-6)).abs() < 1e-7);
    }
}
