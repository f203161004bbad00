use super::*;

const SHAPE: SlotExpanderShape = SlotExpanderShape {
    width: 6,
    hidden: 10,
    slots: 3,
};

fn projected(rows: usize) -> Vec<f32> {
    (0..rows * SHAPE.width).map(|i| (i as f32 * 1.3).sin() * 2.0).collect()
}

#[test]
fn every_slot_has_the_median_norm() {
    let expander = SlotExpander::new(SHAPE, 0.8, 3);
    let mut activations = ExpanderActivations::default();
    expander.forward(&projected(4), &mut activations);
    assert_eq!(activations.slots.len(), 4 * 3 * 6);
    for slot in activations.slots.chunks(SHAPE.width) {
        assert!((dot(slot, slot).sqrt() - 0.8).abs() < 1e-6);
    }
}

#[test]
fn the_scale_of_what_comes_in_does_not_matter() {
    let expander = SlotExpander::new(SHAPE, 0.8, 3);
    let (mut small, mut large) = (ExpanderActivations::default(), ExpanderActivations::default());
    expander.forward(&projected(2), &mut small);
    expander.forward(&projected(2).iter().map(|x| 100.0 * x).collect::<Vec<_>>(), &mut large);
    assert!(small.slots.iter().zip(&large.slots).all(|(a, b)| (a - b).abs() < 1e-4));
}

/// The gradient of Σ (slots · weights) against central differences, parameter by parameter.
#[test]
fn backward_agrees_with_finite_differences() {
    let vectors = projected(4);
    let weights: Vec<f32> = (0..4 * SHAPE.slots * SHAPE.width)
        .map(|i| (i as f32 * 0.9).cos())
        .collect();
    let loss = |expander: &SlotExpander| {
        let mut activations = ExpanderActivations::default();
        expander.forward(&vectors, &mut activations);
        activations
            .slots
            .iter()
            .zip(&weights)
            .map(|(x, w)| f64::from(*x) * f64::from(*w))
            .sum::<f64>()
    };
    let mut expander = SlotExpander::new(SHAPE, 0.8, 5);
    expander.parameters[0] = 1.2;
    let mut activations = ExpanderActivations::default();
    expander.forward(&vectors, &mut activations);
    let mut gradient = vec![f32::NAN; SHAPE.parameter_count()];
    expander.backward(&mut activations, &mut weights.clone(), &mut gradient);
    for (index, derivative) in gradient.iter().enumerate() {
        let (at, width) = (expander.parameters[index], 2e-3);
        expander.parameters[index] = at + width;
        let above = loss(&expander);
        expander.parameters[index] = at - width;
        let difference = (above - loss(&expander)) / f64::from(2.0 * width);
        expander.parameters[index] = at;
        let error = (difference - f64::from(*derivative)).abs();
        assert!(
            error < 3e-3 + 3e-3 * difference.abs(),
            "parameter {index}: {derivative} against {difference}"
        );
    }
}

/// The same by the vectors that come in.
#[test]
fn the_gradient_by_the_vectors_agrees_with_finite_differences() {
    let mut vectors = projected(3);
    let weights: Vec<f32> = (0..3 * SHAPE.slots * SHAPE.width)
        .map(|i| (i as f32 * 0.7).sin())
        .collect();
    let mut expander = SlotExpander::new(SHAPE, 0.8, 6);
    expander.parameters[0] = 0.9;
    let loss = |vectors: &[f32]| {
        let mut activations = ExpanderActivations::default();
        expander.forward(vectors, &mut activations);
        let terms = activations.slots.iter().zip(&weights);
        terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
    };
    let mut activations = ExpanderActivations::default();
    expander.forward(&vectors, &mut activations);
    let mut gradient = vec![f32::NAN; SHAPE.parameter_count()];
    expander.backward(&mut activations, &mut weights.clone(), &mut gradient);
    let by_projected = expander.by_projected(&mut activations).to_vec();
    for (index, derivative) in by_projected.iter().enumerate() {
        let (at, width) = (vectors[index], 2e-3);
        vectors[index] = at + width;
        let above = loss(&vectors);
        vectors[index] = at - width;
        let difference = (above - loss(&vectors)) / f64::from(2.0 * width);
        vectors[index] = at;
        let error = (difference - f64::from(*derivative)).abs();
        assert!(
            error < 3e-3 + 3e-3 * difference.abs(),
            "vector {index}: {derivative} against {difference}"
        );
    }
}

#[test]
fn a_file_brings_the_expander_back() {
    let expander = SlotExpander::new(SHAPE, 0.123_456_79, 5);
    let bytes = expander.to_safetensors(HashMap::new()).unwrap();
    assert_eq!(
        SlotExpander::from_safetensors("slots.safetensors", &bytes).unwrap(),
        expander
    );
    let bytes = tensor_file::write(&expander.tensors(""), HashMap::new()).unwrap();
    let text = SlotExpander::from_safetensors("slots.safetensors", &bytes)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("slots.safetensors") && text.contains("median_norm"),
        "{text}"
    );
}

#[test]
fn the_median_is_the_lower_one() {
    assert_eq!(
        median_embedding_norm(&[3.0, 4.0, 0.0, 1.0, 2.0, 0.0, 0.0, 9.0], 2).unwrap(),
        2.0
    );
    assert_eq!(median_embedding_norm(&[3.0, -1.0, 2.0], 1).unwrap(), 2.0);
    assert!(median_embedding_norm(&[], 4).is_err());
}
