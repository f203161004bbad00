//! One optimizer step on a batch that threads share: gradients summed in a fixed order, clipped, AdamW.

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use candle_nn::{AdamW, Optimizer as _, ParamsAdamW};

use llink_worker::Result;
use llink_worker::train::schedule::cosine_lr;

/// The largest norm of a gradient.
const CLIP: f64 = 1.0;
/// Share of the steps that warm up.
const WARMUP: f64 = 0.05;

/// AdamW with a warm-up and half a cosine down to a hundredth.
pub(super) struct Optimizer {
    adamw: AdamW,
    variables: Vec<Var>,
    steps: u64,
    peak: f64,
}

impl Optimizer {
    pub(super) fn new(variables: Vec<Var>, steps: u64, peak: f64) -> Result<Self> {
        let options = ParamsAdamW { lr: peak, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.01 };
        Ok(Self { adamw: AdamW::new(variables.clone(), options)?, variables, steps, peak })
    }

    /// Takes a step on the shares of a batch, each with the number of its tokens. `loss` gives a share's mean loss over its
    /// tokens; returns that over the batch's.
    pub(super) fn step<S: Sync>(
        &mut self,
        step: u64,
        shares: &[(S, usize)],
        threads: usize,
        loss: impl Fn(&S) -> Result<Tensor> + Sync,
    ) -> Result<f64> {
        let tokens: usize = shares.iter().map(|(_, tokens)| tokens).sum();
        let run = |(share, part): &(S, usize)| {
            let loss = (loss(share)? * (*part as f64 / tokens as f64))?;
            Ok((f64::from(loss.to_scalar::<f32>()?), loss.backward()?))
        };
        // Thread i takes shares i, i + threads, …
        let found: Vec<Vec<Result<(f64, GradStore)>>> = std::thread::scope(|scope| {
            let work = |first: usize| shares.iter().skip(first).step_by(threads).map(run).collect();
            let started: Vec<_> = (0..threads).map(|first| scope.spawn(move || work(first))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            started.into_iter().map(join).collect()
        });
        let (mut total, mut stores) = (0.0, Vec::new());
        for found in found.into_iter().flatten() {
            let (loss, gradients) = found?;
            total += loss;
            stores.push(gradients);
        }
        let mut gradients = Vec::with_capacity(self.variables.len());
        let mut square = 0.0;
        for variable in &self.variables {
            let mut sum: Option<Tensor> = None;
            for gradient in stores.iter().filter_map(|store| store.get(variable)) {
                sum = Some(match sum {
                    None => gradient.clone(),
                    Some(sum) => (sum + gradient)?,
                });
            }
            let Some(sum) = sum else { continue };
            square += f64::from(sum.sqr()?.sum_all()?.to_scalar::<f32>()?);
            gradients.push((variable, sum));
        }
        let scale = (CLIP / (square.sqrt() + 1e-6)).min(1.0);
        // Only the crate can make a store: one of the shares' is filled anew.
        if let Some(mut store) = stores.pop() {
            for (variable, gradient) in gradients {
                store.insert(variable, (gradient * scale)?);
            }
            let warmup = (WARMUP * self.steps as f64).ceil() as u64;
            let rate = cosine_lr(step + 1, self.steps + 1, warmup, self.peak, 0.01 * self.peak);
            self.adamw.set_learning_rate(rate);
            self.adamw.step(&store)?;
        }
        Ok(total)
    }
}
