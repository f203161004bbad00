//! AdamW whose parameters and moments stay on the device.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Tensor};

use super::padded;
use crate::Result;
use crate::train::optimizer::{AdamW, AdamWOptions, Update, apply};

/// Parameters with their moments, f32.
pub(crate) struct DeviceAdamW {
    options: AdamWOptions,
    steps: u64,
    /// Parameters, first moments, second moments, each with zeros behind: [3, padded].
    state: Tensor,
    count: usize,
}

impl DeviceAdamW {
    /// What is on the host, put on a device.
    pub(crate) fn new(parameters: &[f32], optimizer: &AdamW, device: &Device) -> Result<Self> {
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

    /// The parameters [n], f32: a view that changes with each step.
    pub(crate) fn parameters(&self) -> Result<Tensor> {
        Ok(self.state.get(0)?.narrow(0, 0, self.count)?)
    }

    /// Moves the parameters against `gradient`, a flat buffer, times `scale`.
    pub(crate) fn step(&mut self, gradient: &Tensor, scale: f32, learning_rate: f64) -> Result<()> {
        self.steps += 1;
        let update = self.options.update(self.steps, scale, learning_rate);
        Ok(self.state.inplace_op2(gradient, &Step(update))?)
    }

    /// Parameters and moments on the host.
    pub(crate) fn to_host(&self) -> Result<(Vec<f32>, AdamW)> {
        let row = |row: usize| -> Result<Vec<f32>> { Ok(self.state.get(row)?.narrow(0, 0, self.count)?.to_vec1()?) };
        let mut optimizer = AdamW::new(self.options, 0);
        optimizer.steps = self.steps;
        optimizer.first_moment = row(1)?;
        optimizer.second_moment = row(2)?;
        Ok((row(0)?, optimizer))
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
        let (first, second) = moments.split_at_mut(gradient.len());
        apply(&self.0, parameters, gradient, first, second);
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
        crate::device::kernels::adamw(state, state_layout, gradient, gradient_layout, self.0.constants())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::on_device::flat;

    #[test]
    fn steps_are_those_of_the_host_and_go_on_from_where_they_were() {
        let options = AdamWOptions {
            beta1: 0.9,
            beta2: 0.98,
            weight_decay: 0.05,
        };
        let mut parameters: Vec<f32> = (0..2_500).map(|i| (i as f32 * 0.1).sin()).collect();
        let mut optimizer = AdamW::new(options, parameters.len());
        let mut device = DeviceAdamW::new(&parameters, &optimizer, &Device::Cpu).unwrap();
        for step in 0..4 {
            let gradient: Vec<f32> = (0..2_500).map(|i| (i as f32 * 0.3 + step as f32).cos()).collect();
            optimizer.step(&mut parameters, &gradient, 0.5, 0.01);
            let pieces = [&gradient[..700], &gradient[700..]].map(|part| Tensor::new(part, &Device::Cpu).unwrap());
            device.step(&flat(&pieces).unwrap(), 0.5, 0.01).unwrap();
            let (found, state) = device.to_host().unwrap();
            assert_eq!((&found, &state), (&parameters, &optimizer));
            assert_eq!(device.parameters().unwrap().to_vec1::<f32>().unwrap(), parameters);
            device = DeviceAdamW::new(&found, &state, &Device::Cpu).unwrap();
        }
        assert!(
            device
                .step(&Tensor::zeros(5, DType::F32, &Device::Cpu).unwrap(), 1.0, 0.1)
                .is_err()
        );
    }
}
