//! The projector's start, gradients and files.

use std::sync::Arc;

use candle_core::Tensor;

use super::*;
use crate::llink::mlp::halves;
use crate::numerics::dropout::Dropout;
use crate::ops::RowMasks;
use crate::ops::testing::differences;

const SHAPE: ProjectorShape = ProjectorShape { input: 5, hidden: 12, output: 7 };

fn rows(n: usize) -> Vec<f32> {
    (0..n * SHAPE.input).map(|i| (i as f32 * 1.7).sin()).collect()
}

#[test]
fn starts_within_pytorchs_bounds() {
    let shape = ProjectorShape { input: 64, hidden: 256, output: 96 };
    let projector = Projector::new(shape, 1);
    let ranges = shape.ranges();
    for (tensor, inputs) in [(0, 64.0_f32), (1, 64.0), (2, 256.0), (3, 256.0)] {
        let values = &projector.parameters[ranges[tensor].clone()];
        let bound = 1.0 / inputs.sqrt();
        let largest = values.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        assert!(largest <= bound && largest > 0.9 * bound, "tensor {tensor}: {largest} of {bound}");
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!(mean.abs() < 2.0 * bound / (values.len() as f32).sqrt(), "tensor {tensor}: mean {mean}");
    }
    assert_ne!(projector, Projector::new(shape, 2));
}

/// Compares the gradient of Σ (projected · weights) with central differences for each parameter, with dropout.
#[test]
fn backward_agrees_with_finite_differences() {
    let rows = Tensor::from_vec(rows(4), (4, SHAPE.input), &Device::Cpu).unwrap();
    let dropout = Dropout::new(0.3, 9, 2);
    let masks = [3, 1, 4, 1].map(|id| dropout.row(id));
    let masks = RowMasks::new(Arc::new(masks), &Device::Cpu).unwrap();
    let weights: Vec<f32> = (0..4 * SHAPE.output).map(|i| (i as f32 * 0.9).cos()).collect();
    let forward = |projector: &Projector| {
        let parameters = Tensor::new(projector.parameters.as_slice(), &Device::Cpu).unwrap();
        let mlp = Mlp::new(&SHAPE.tensors(), &parameters, DType::F32).unwrap();
        let tape = mlp.forward(&rows, Some(&masks)).unwrap();
        (mlp, tape)
    };
    let loss = |projector: &Projector| {
        let projected: Vec<f32> = forward(projector).1.output.flatten_all().unwrap().to_vec1().unwrap();
        let terms = projected.iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
        terms.sum::<f64>()
    };
    let projector = Projector::new(SHAPE, 5);
    let (mlp, tape) = forward(&projector);
    let grad = Tensor::from_slice(&weights, (4, SHAPE.output), &Device::Cpu).unwrap();
    let gradient = Tensor::zeros(SHAPE.parameter_count(), DType::F32, &Device::Cpu).unwrap();
    let halves = halves(&SHAPE.tensors(), &gradient).unwrap();
    mlp.backward(&tape, grad, &halves, &mut |_| Ok(())).unwrap();
    let gradient: Vec<f32> = gradient.to_vec1().unwrap();
    let changed = |parameters: &[f32]| loss(&Projector::from_parameters(SHAPE, parameters.to_vec()));
    let differences = differences(&projector.parameters, 4e-3, changed);
    for (index, (derivative, difference)) in gradient.iter().zip(differences).enumerate() {
        let error = (difference - f64::from(*derivative)).abs();
        assert!(error < 3e-3 + 3e-3 * difference.abs(), "parameter {index}: {derivative} against {difference}");
    }
}

#[test]
fn a_file_brings_the_projector_back() {
    let projector = Projector::new(SHAPE, 5);
    let bytes = projector.to_safetensors(HashMap::new()).unwrap();
    assert_eq!(Projector::from_safetensors("projector.safetensors", &bytes).unwrap(), projector);
    let tensors = projector.tensors("").into_iter().filter(|(name, ..)| name != "norm.bias").collect::<Vec<_>>();
    let bytes = tensor_file::write(&tensors, HashMap::new()).unwrap();
    let text = Projector::from_safetensors("projector.safetensors", &bytes).unwrap_err().to_string();
    assert!(text.contains("projector.safetensors") && text.contains("norm.bias"), "{text}");
}

#[test]
fn projecting_many_rows_at_once_changes_nothing() {
    let projector = Projector::new(SHAPE, 5);
    let rows = rows(2 * PROJECT_ROWS + 3);
    let together = projector.project(&rows).unwrap();
    let last = projector.project(&rows[2 * PROJECT_ROWS * SHAPE.input..]).unwrap();
    assert_eq!(together[2 * PROJECT_ROWS * SHAPE.output..], last);
    assert!(projector.project(&rows[1..]).is_err());
}
