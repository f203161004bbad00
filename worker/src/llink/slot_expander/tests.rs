//! The slot expander's gradients against finite differences, with and without windows.

use super::*;
use crate::ops::testing::differences;

const SHAPE: SlotExpanderShape = SlotExpanderShape { width: 6, hidden: 10, slots: 3 };

fn projected(rows: usize) -> Vec<f32> {
    (0..rows * SHAPE.width).map(|i| (i as f32 * 1.3).sin() * 2.0).collect()
}

struct Case {
    scale: Tensor,
    others: Tensor,
}

impl Case {
    fn of(scale: &[f32], others: &[f32]) -> Self {
        Self { scale: Tensor::new(scale, &Device::Cpu).unwrap(), others: Tensor::new(others, &Device::Cpu).unwrap() }
    }

    fn expansion(&self) -> Expansion {
        Expansion::new(SHAPE, 0.8, (&self.scale, &self.others), DType::F32).unwrap()
    }

    /// Computes Σ (slots · weights).
    fn loss(&self, vectors: &Tensor, windows: usize, weights: &Tensor) -> f64 {
        let slots = self.expansion().forward(vectors, windows).unwrap().slots;
        let terms: Vec<f32> = (slots * weights).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        terms.iter().map(|term| f64::from(*term)).sum()
    }
}

fn tensor(values: &[f32], width: usize) -> Tensor {
    Tensor::from_slice(values, (values.len() / width, width), &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares a gradient with central differences of `loss`, which gets the values with one of them changed.
fn hold_to_differences(what: &str, values: &[f32], gradient: &[f32], loss: impl Fn(&[f32]) -> f64) {
    assert_eq!(values.len(), gradient.len(), "{what}");
    for (index, (derivative, difference)) in gradient.iter().zip(differences(values, 2e-3, loss)).enumerate() {
        let error = (difference - f64::from(*derivative)).abs();
        assert!(error < 3e-3 + 3e-3 * difference.abs(), "{what} {index}: {derivative} against {difference}");
    }
}

#[test]
fn every_slot_has_the_median_norm() {
    for (rows, windows) in [(4, 0), (8, 1), (16, 3)] {
        let slots = SlotExpander::new(SHAPE, 0.8, 3).expand(&projected(rows), windows).unwrap();
        assert_eq!(slots.len(), 4 * 3 * 6);
        for slot in slots.chunks(SHAPE.width) {
            assert!((dot(slot, slot).sqrt() - 0.8).abs() < 1e-6);
        }
    }
}

#[test]
fn a_window_changes_its_own_slots_alone() {
    let expander = SlotExpander::new(SHAPE, 0.8, 3);
    let mut vectors = projected(4);
    let before = expander.expand(&vectors, 3).unwrap();
    vectors[2 * SHAPE.width + 1] += 1.0; // the second window
    let after = expander.expand(&vectors, 3).unwrap();
    let slots = before.chunks(SHAPE.width).zip(after.chunks(SHAPE.width));
    let changed: Vec<bool> = slots.map(|(before, after)| before != after).collect();
    assert_eq!(changed, [false, true, false]);
}

#[test]
fn the_scale_of_what_comes_in_does_not_matter() {
    let expander = SlotExpander::new(SHAPE, 0.8, 3);
    let large: Vec<f32> = projected(2).iter().map(|x| 100.0 * x).collect();
    let (small, large) = (expander.expand(&projected(2), 0).unwrap(), expander.expand(&large, 0).unwrap());
    assert!(small.iter().zip(&large).all(|(a, b)| (a - b).abs() < 1e-4));
}

#[test]
fn vectors_of_another_width_or_number_are_refused() {
    let expander = SlotExpander::new(SHAPE, 0.8, 3);
    assert!(expander.expand(&[0.5; 7], 0).is_err());
    assert!(expander.expand(&projected(3), 1).is_err());
    let error = expander.expand(&projected(3), 2).unwrap_err().to_string();
    assert!(error.contains("3 slots") && error.contains("2 windows"), "{error}");
}

/// Checks the gradient of Σ (slots · weights) with respect to each parameter and to the projected vectors.
#[test]
fn backward_agrees_with_finite_differences() {
    [0, 1, 3].into_iter().for_each(backward_agrees);
}

fn backward_agrees(windows: usize) {
    let vectors = tensor(&projected(4 * (1 + windows)), SHAPE.width);
    let weights: Vec<f32> = (0..4 * SHAPE.slots * SHAPE.width).map(|i| (i as f32 * 0.9).cos()).collect();
    let weights = tensor(&weights, SHAPE.width);
    let case = Case::of(&[1.2], &SlotExpander::new(SHAPE, 0.8, 5).parameters[1..]);
    let expansion = case.expansion();
    let tape = expansion.forward(&vectors, windows).unwrap();
    let mut told = 0;
    let flat = Tensor::zeros(SHAPE.parameter_count() - 1, DType::F32, &Device::Cpu).unwrap();
    let halves = crate::llink::mlp::halves(&SHAPE.mlp(), &flat).unwrap();
    let gradient = expansion
        .backward(&tape, &weights, &halves, &mut |part| {
            told += part.elem_count();
            Ok(())
        })
        .unwrap();
    assert_eq!(told, SHAPE.parameter_count(), "every part is reported once");
    let (scale, others) = (numbers(&case.scale), numbers(&case.others));
    hold_to_differences("scale", &scale, &numbers(&gradient.scale), |scale| {
        Case::of(scale, &others).loss(&vectors, windows, &weights)
    });
    hold_to_differences("parameter", &others, &numbers(&flat), |others| {
        Case::of(&scale, others).loss(&vectors, windows, &weights)
    });
    hold_to_differences("vector", &numbers(&vectors), &numbers(&gradient.projected), |vectors| {
        case.loss(&tensor(vectors, SHAPE.width), windows, &weights)
    });
}

#[test]
fn a_file_brings_the_expander_back() {
    let expander = SlotExpander::new(SHAPE, 0.123_456_79, 5);
    let bytes = expander.to_safetensors(HashMap::new()).unwrap();
    assert_eq!(SlotExpander::from_safetensors("slots.safetensors", &bytes).unwrap(), expander);
    let bytes = tensor_file::write(&expander.tensors(""), HashMap::new()).unwrap();
    let text = SlotExpander::from_safetensors("slots.safetensors", &bytes).unwrap_err().to_string();
    assert!(text.contains("slots.safetensors") && text.contains("median_norm"), "{text}");
}

#[test]
fn the_median_is_the_lower_one() {
    assert_eq!(median_embedding_norm(&[3.0, 4.0, 0.0, 1.0, 2.0, 0.0, 0.0, 9.0], 2).unwrap(), 2.0);
    assert_eq!(median_embedding_norm(&[3.0, -1.0, 2.0], 1).unwrap(), 2.0);
    assert!(median_embedding_norm(&[], 4).is_err());
}
