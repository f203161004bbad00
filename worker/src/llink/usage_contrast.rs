//! The usage contrast. On every n-th step, the loss with the slots must be lower than with zeros in their place.

use candle_core::{DType, Tensor};
use llink_proto::settings::InstructSettings;

use crate::Result;

/// The loss `weight · max(0, sft − zero)` on every `every`-th step. `zero` is the next-token loss with zero vectors in
/// the slots, without a gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UsageContrast {
    /// The number of steps from one contrast to the next. 0 turns it off.
    pub every: u64,
    /// The weight of the contrast in the total.
    pub weight: f64,
}

impl From<&InstructSettings> for UsageContrast {
    fn from(settings: &InstructSettings) -> Self {
        Self { every: settings.usage_every, weight: settings.usage_weight }
    }
}

impl UsageContrast {
    /// Returns whether `step` needs a second pass with zeros in the slots.
    pub const fn is_due(&self, step: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }

    /// Returns the contrast without its weight: how much worse the slots are than zeros, at least 0.
    pub const fn loss(&self, sft: f64, zero: f64) -> f64 {
        (sft - zero).max(0.0)
    }

    /// Returns the factor of the gradient of `sft` in the total loss. It is 1, or 1 + weight if the slots are worse
    /// than zeros. Losses and factor are f32 `[1]` on the device, so the host does not wait.
    pub fn sft_factor(&self, sft: &Tensor, zero: &Tensor) -> Result<Tensor> {
        Ok(sft.gt(zero)?.to_dtype(DType::F32)?.affine(self.weight, 1.0)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    const CONTRAST: UsageContrast = UsageContrast { every: 3, weight: 0.05 };

    #[test]
    fn every_third_step_is_contrasted() {
        let due: Vec<u64> = (0..10).filter(|step| CONTRAST.is_due(*step)).collect();
        assert_eq!(due, [0, 3, 6, 9]);
        assert!(!UsageContrast { every: 0, ..CONTRAST }.is_due(0));
    }

    #[test]
    fn slots_that_help_cost_nothing_and_slots_that_harm_do() {
        let factor = |sft: f32, zero: f32| {
            let [sft, zero] = [sft, zero].map(|loss| Tensor::new(&[loss], &Device::Cpu).unwrap());
            CONTRAST.sft_factor(&sft, &zero).unwrap().to_vec1::<f32>().unwrap()[0]
        };
        assert_eq!((CONTRAST.loss(1.0, 1.5), factor(1.0, 1.5)), (0.0, 1.0));
        assert_eq!((CONTRAST.loss(1.5, 1.0), factor(1.5, 1.0)), (0.5, 1.05));
        assert_eq!((CONTRAST.loss(1.0, 1.0), factor(1.0, 1.0)), (0.0, 1.0));
        assert!(factor(f32::NAN, 1.0).is_finite(), "the loss itself shows NaN");
    }
}
