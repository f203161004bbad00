//! Compares Stage B's parts without a decoder with the PyTorch reference: the first step's slots, the median embedding
//! norm, and the losses of the slots.

use crate::common::{assert_close, golden, read_json};
use candle_core::{Device, Tensor};
use llink_worker::llink::next_token_loss::AnswerTokens;
use llink_worker::llink::slot_expander::{SlotExpander, median_embedding_norm};
use llink_worker::llink::slot_losses::{SlotLosses, SlotWeights};
use llink_worker::numerics::tensor_file::TensorFile;

#[test]
fn the_first_steps_slots_and_their_losses_are_the_references() {
    let folder = golden();
    let cases = read_json(folder.join("cases.json"));
    let bytes = std::fs::read(folder.join("tensors.safetensors")).unwrap();
    let file = TensorFile::new("tensors.safetensors", &bytes).unwrap();
    let instruct = &cases["instruct"];
    let expected_median = instruct["median_norm"].as_f64().unwrap();

    let weights = std::fs::read(folder.join("decoder/model.safetensors")).unwrap();
    let (shape, embedding) =
        TensorFile::new("model.safetensors", &weights).unwrap().f32("model.embed_tokens.weight").unwrap();
    let median = median_embedding_norm(&embedding, shape[1]).unwrap();
    assert!((f64::from(median) - expected_median).abs() < 1e-6, "{median} {expected_median}");

    let expander = SlotExpander::from_tensors(&file, "instruct.init.", median).unwrap();
    let (_, projected) = file.f32("instruct.projected").unwrap();
    let (slots_shape, expected) = file.f32("instruct.slots0").unwrap();
    let (pairs, slots, width) = (slots_shape[0], slots_shape[1], slots_shape[2]);
    assert_eq!((expander.shape().slots, expander.shape().width), (slots, width));
    let found = expander.expand(&projected, 0).unwrap();
    assert_close("slots", &found, &expected, 1e-4);

    let (_, teacher) = file.f32("teacher").unwrap();
    let slot_weights = SlotWeights { cosine: 0.05, info_nce: 1e-3, temperature: 0.07 };
    let rows = |values: Vec<f32>| Tensor::from_vec(values, ((), width), &Device::Cpu).unwrap();
    let counts = vec![slots; pairs];
    let losses = SlotLosses::new(&rows(found), &counts, &rows(teacher), 0..pairs, &slot_weights).unwrap();
    let losses: Vec<f32> = losses.shares.to_vec1().unwrap();
    let trace = &instruct["trace"][0];
    for (name, found) in [("cosine", f64::from(losses[0])), ("info_nce", f64::from(losses[1]))] {
        let expected = trace[name].as_f64().unwrap();
        println!("{name} within {:.1e}", (found - expected).abs());
        assert!((found - expected).abs() < 1e-4, "{name} {found} against {expected}");
    }
}

/// The labels of the reference's batch are 64-bit integers among the tensors of the slots' file.
#[test]
fn answers_begin_after_the_prompt() {
    let bytes = std::fs::read(golden().join("tensors.safetensors")).unwrap();
    let file = TensorFile::new("tensors.safetensors", &bytes).unwrap();
    let (shape, labels) = file.i64("instruct.labels").unwrap();
    let (_, ids) = file.i64("instruct.ids").unwrap();
    let answer = AnswerTokens::new(&labels, shape[1], 1 << 20).unwrap();
    assert_eq!(answer.positions.len(), labels.iter().filter(|label| **label != -100).count());
    for (position, target) in answer.positions.iter().zip(&answer.targets) {
        assert_eq!(ids[position + 1], i64::from(*target), "each answer token is predicted from the one before");
    }
}
