//! AdamW and gradient clipping, as PyTorch defines them, over flat f32 buffers.

use rayon::prelude::*;

use crate::llink::kernels::dot;
use crate::llink::vectorized::vectorized;

/// Numbers in a parallel task; also the length over which a norm is summed in f32.
const BLOCK: usize = 1 << 14;
/// PyTorch's default.
const EPSILON: f32 = 1e-8;

/// What AdamW does to its parameters apart from the learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// Adam with decoupled weight decay and bias correction (Loshchilov and Hutter, 2019).
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    pub(super) options: AdamWOptions,
    /// Steps taken.
    pub steps: u64,
    /// Running mean of the gradients, one for each parameter.
    pub first_moment: Vec<f32>,
    /// Running mean of their squares.
    pub second_moment: Vec<f32>,
}

impl AdamW {
    /// For `parameters` parameters, before the first step.
    #[must_use]
    pub fn new(options: AdamWOptions, parameters: usize) -> Self {
        Self {
            options,
            steps: 0,
            first_moment: vec![0.0; parameters],
            second_moment: vec![0.0; parameters],
        }
    }

    /// Moves `parameters` against `gradient` times `gradient_scale`, which is what clipping asks for.
    ///
    /// # Panics
    /// When the lengths differ from the number of parameters.
    pub fn step(&mut self, parameters: &mut [f32], gradient: &[f32], gradient_scale: f32, learning_rate: f64) {
        assert_eq!(
            (parameters.len(), gradient.len()),
            (self.first_moment.len(), self.first_moment.len())
        );
        self.steps += 1;
        let update = self.options.update(self.steps, gradient_scale, learning_rate);
        let moments = self
            .first_moment
            .par_chunks_mut(BLOCK)
            .zip(self.second_moment.par_chunks_mut(BLOCK));
        let blocks = parameters
            .par_chunks_mut(BLOCK)
            .zip(gradient.par_chunks(BLOCK))
            .zip(moments);
        blocks
            .with_min_len(4)
            .for_each(|((parameters, gradient), (first, second))| apply(&update, parameters, gradient, first, second));
    }
}

impl AdamWOptions {
    /// The constants of the `steps`-th step, counted from 1.
    pub(super) fn update(&self, steps: u64, gradient_scale: f32, learning_rate: f64) -> Update {
        let Self {
            beta1,
            beta2,
            weight_decay,
        } = *self;
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

/// One step's constants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Update {
    gradient_scale: f32,
    /// What weight decay leaves of a parameter.
    decay: f32,
    /// The new gradient's weight in the first moment.
    keep1: f32,
    /// And in the second.
    keep2: f32,
    beta2: f32,
    /// One over the root of the second moment's bias correction.
    inverse_root: f32,
    /// The learning rate over the first moment's bias correction.
    step_size: f32,
}

impl AdamWOptions {
    /// The constants of the `steps`-th step, counted from 1, as `cuda/kernels.cu` takes them.
    #[must_use]
    pub fn constants(&self, steps: u64, gradient_scale: f32, learning_rate: f64) -> [f32; 8] {
        self.update(steps, gradient_scale, learning_rate).constants()
    }
}

impl Update {
    /// In the order in which the kernel takes them.
    pub(super) const fn constants(&self) -> [f32; 8] {
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

vectorized! {
    /// AdamW on a block of parameters.
    pub(super) fn apply(update: &Update, parameters: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
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

/// The L2 norm of a gradient and what to multiply it with so that the norm is at most `max_norm` (PyTorch's
/// `clip_grad_norm_`).
#[must_use]
pub fn clip_grad_norm(gradient: &[f32], max_norm: f64) -> (f64, f32) {
    let blocks = gradient.par_chunks(BLOCK).with_min_len(4);
    let squares: Vec<f64> = blocks.map(|block| f64::from(dot(block, block))).collect();
    let norm = squares.iter().sum::<f64>().sqrt();
    (norm, (max_norm / (norm + 1e-6)).min(1.0) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three steps in f64 by the textbook.
    #[test]
    fn follows_the_definition() {
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.98,
            weight_decay: 0.05,
        };
        let count = BLOCK * 9 + 5;
        let start = |i: usize| (i as f64 * 0.1).sin();
        let gradient = |i: usize, step: u64| (i as f64 * 0.3 + step as f64).cos() * 10.0_f64.powi((i % 7) as i32 - 4);
        let mut parameters: Vec<f32> = (0..count).map(|i| start(i) as f32).collect();
        let mut optimizer = AdamW::new(options, count);
        for step in 1..=3 {
            let gradients: Vec<f32> = (0..count).map(|i| gradient(i, step) as f32).collect();
            optimizer.step(&mut parameters, &gradients, 0.5, 0.01 * step as f64);
        }
        for (i, parameter) in parameters.iter().enumerate() {
            let (mut p, mut m, mut v) = (start(i), 0.0, 0.0);
            for step in 1..=3 {
                let (g, lr) = (0.5 * gradient(i, step), 0.01 * step as f64);
                p *= 1.0 - lr * options.weight_decay;
                m = 0.9 * m + 0.1 * g;
                v = 0.98 * v + 0.02 * g * g;
                let (m_hat, v_hat) = (
                    m / (1.0 - 0.9_f64.powi(step as i32)),
                    v / (1.0 - 0.98_f64.powi(step as i32)),
                );
                p -= lr * m_hat / (v_hat.sqrt() + 1e-8);
            }
            assert!(
                (f64::from(*parameter) - p).abs() < 1e-5,
                "parameter {i}: {parameter} against {p}"
            );
        }
    }

    #[test]
    fn clipping_leaves_small_gradients_alone() {
        let (norm, scale) = clip_grad_norm(&[0.3, -0.4], 1.0);
        assert!((norm - 0.5).abs() < 1e-7 && scale == 1.0);
        let (norm, scale) = clip_grad_norm(&[3.0, -4.0], 1.0);
        assert!((norm - 5.0).abs() < 1e-6 && (f64::from(scale) - 1.0 / (5.0 + 1e-6)).abs() < 1e-7);
        assert!(clip_grad_norm(&[f32::NAN, 1.0], 1.0).0.is_nan());
    }
}
