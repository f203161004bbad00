//! Compares the models with PyTorch. Token ids must be equal, and vectors and logits must agree up to rounding.
//!
//! `LLINK_GOLDEN` names another golden set of the same kind.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::common::{assert_refused, assert_rows_close, fixture, golden, read_json, tensors};
use candle_core::{DType, Device, Tensor};
use llink_worker::models::{Decoder, Encoder, TeacherLayer, TextLimits, layer_number};
use serde::de::DeserializeOwned;
use serde_json::Value;

const TOLERANCE: f64 = 1e-4;
const TOLERANCE_BF16: f64 = 2e-2;

struct Golden {
    dir: PathBuf,
    cases: Value,
    tensors: HashMap<String, Tensor>,
}

impl Golden {
    fn load() -> Self {
        Self::of(golden())
    }

    fn of(dir: PathBuf) -> Self {
        let cases = read_json(dir.join("cases.json"));
        let tensors = candle_core::safetensors::load(dir.join("tensors.safetensors"), &Device::Cpu).unwrap();
        Self { dir, cases, tensors }
    }

    fn encoder(&self) -> Encoder {
        Encoder::load(&self.dir.join("encoder"), &Device::Cpu, DType::F32).unwrap()
    }

    fn decoder(&self, folder: &str) -> Decoder {
        let mut decoder = Decoder::load(&self.dir.join(folder), &Device::Cpu, DType::F32).unwrap();
        let token = self.cases["teacher"]["slot_token"].as_str().unwrap();
        decoder.set_teacher_slot(token).unwrap();
        decoder
    }

    fn case<T: DeserializeOwned>(&self, part: &str, key: &str) -> T {
        serde_json::from_value(self.cases[part][key].clone()).unwrap()
    }

    fn texts(&self, part: &str) -> Vec<String> {
        self.case(part, "texts")
    }

    fn ids(&self, part: &str) -> Vec<Vec<u32>> {
        self.case(part, "ids")
    }

    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        self.tensors[name].to_vec2().unwrap()
    }
}

#[test]
fn encoder_token_ids_are_exact() {
    let golden = Golden::load();
    let ids = golden.encoder().tokenize(&golden.texts("encoder"), TextLimits::default()).unwrap();
    assert_eq!(ids, golden.ids("encoder"));
}

#[test]
fn encoder_vectors_agree() {
    let golden = Golden::load();
    let mut done = 0;
    let vectors = golden
        .encoder()
        .embed(&golden.texts("encoder"), TextLimits::default(), 4096, &mut |tokens| done = tokens)
        .unwrap();
    assert_rows_close("encoder vectors", &vectors, &golden.rows("encoder.pooled"), TOLERANCE);
    assert_eq!(done, golden.ids("encoder").iter().map(|ids| ids.len() as u64).sum::<u64>());
}

/// `text_parts.py` writes the expected vectors. Some texts have fewer tokens than windows.
#[test]
fn the_vectors_of_windows_agree() {
    let (golden, twin) = (Golden::of(fixture("golden/seed8")), Golden::of(fixture("golden/windows")));
    let (encoder, ids) = (golden.encoder(), golden.ids("encoder"));
    for windows in [2, 8] {
        let expected = twin.tensors[&format!("vectors.{windows}")].flatten_from(1).unwrap();
        let expected = expected.to_vec2().unwrap();
        for budget in [64, 4096] {
            let found = encoder.embed_windows(&ids, windows, budget, &mut |_| {}).unwrap();
            assert_rows_close("vectors of windows", &found, &expected, TOLERANCE);
        }
    }
}

#[test]
fn teacher_token_ids_are_exact() {
    let golden = Golden::load();
    let ids = golden.decoder("decoder").tokenize_teacher(&golden.texts("teacher")).unwrap();
    assert_eq!(ids, golden.ids("teacher"));
}

#[test]
fn teacher_vectors_agree() {
    let golden = Golden::load();
    let vectors = golden.decoder("decoder").teacher(&golden.texts("teacher"), 4096, &mut |_| {}).unwrap();
    assert_rows_close("teacher vectors", &vectors, &golden.rows("teacher"), TOLERANCE);
}

#[test]
fn pooled_teachers_agree_in_both_forms_and_stop_at_their_layer() {
    let golden = Golden::load();
    let layers: Vec<u32> = golden.case("teacher", "mean_layers");
    assert!(!layers.is_empty());
    let folder = golden.dir.join("decoder");
    let in_tensors = Decoder::load_on(&folder, &tensors(DType::F32)).unwrap();
    for (form, decoder) in [("slices", golden.decoder("decoder")), ("tensors", in_tensors)] {
        let ids = decoder.tokenize_sentences(&golden.texts("teacher")).unwrap();
        let without_slot = golden.ids("teacher").into_iter().map(|ids| ids[..ids.len() - 1].to_vec());
        assert_eq!(ids, without_slot.collect::<Vec<_>>());
        for layer in &layers {
            let vectors = decoder.pooled(&ids, TeacherLayer::Number(*layer), 4096, &mut |_| {}).unwrap();
            let expected = golden.rows(&format!("teacher.mean.{layer}"));
            assert_rows_close(&format!("mean of layer {layer} in {form}"), &vectors, &expected, TOLERANCE);
        }
        // A single token is not left out of the mean, although it is the first. The mean is then its embedding.
        let id = ids[0][1];
        let vectors = decoder.pooled(&[vec![id]], TeacherLayer::Share(0.0), 4096, &mut |_| {}).unwrap();
        let embedding = decoder.embed(&[id]).unwrap().to_vec2::<f32>().unwrap();
        assert_rows_close("the embedding of one token", &vectors, &embedding, 1e-6);
    }
}

#[test]
fn a_layer_is_a_number_or_a_share_of_the_depth() {
    for (layer, expected) in [
        (TeacherLayer::Number(0), 0),
        (TeacherLayer::Number(30), 30),
        (TeacherLayer::Share(0.3333), 10),
        (TeacherLayer::Share(0.5), 15),
        (TeacherLayer::Share(1.0), 30),
    ] {
        assert_eq!(layer_number(layer, 30).unwrap(), expected);
    }
    for layer in [TeacherLayer::Number(31), TeacherLayer::Share(1.2)] {
        assert_refused(layer_number(layer, 30), &["embed.teacher.layer", "30 layers"]);
    }
}

#[test]
fn logits_agree() {
    let golden = Golden::load();
    let logits = golden.decoder("decoder").logits(&golden.ids("teacher")[0]).unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    assert_rows_close("logits", &logits, &golden.rows("decoder.logits0"), TOLERANCE);
}

#[test]
fn greedy_continuation_is_exact() {
    let golden = Golden::load();
    let decoder = golden.decoder("decoder");
    let from: Vec<u32> = golden.case("decoder", "greedy_from");
    let expected: Vec<u32> = golden.case("decoder", "greedy");
    let generated = decoder.generate(&from, expected.len(), &[]).unwrap();
    assert_eq!(generated, expected);
    assert_eq!(decoder.generate(&from, expected.len(), &[expected[0]]).unwrap(), [0u32; 0]);
}

#[test]
fn generation_with_cached_keys_equals_whole_passes() {
    let golden = Golden::load();
    let decoder = golden.decoder("decoder");
    for mut ids in golden.ids("teacher") {
        let generated = decoder.generate(&ids, 6, &[]).unwrap();
        for token in generated {
            let logits = decoder.logits(&ids).unwrap();
            let last = logits.get(ids.len() - 1).unwrap();
            assert_eq!(last.argmax(0).unwrap().to_scalar::<u32>().unwrap(), token);
            ids.push(token);
        }
    }
}

#[test]
fn bf16_shards_load_with_the_published_config_keys() {
    let golden = Golden::load();
    let decoder = golden.decoder("decoder_sharded");
    assert_eq!(decoder.config().dtype, Some(DType::BF16));
    assert_eq!(decoder.config().rope_scaling, golden.decoder("decoder").config().rope_scaling);
    let vectors = decoder.teacher(&golden.texts("teacher"), 4096, &mut |_| {}).unwrap();
    assert_rows_close("teacher vectors from bf16 shards", &vectors, &golden.rows("teacher"), TOLERANCE_BF16);
}

#[test]
fn bf16_arithmetic_agrees() {
    let golden = Golden::load();
    let encoder = Encoder::load(&golden.dir.join("encoder"), &Device::Cpu, DType::BF16).unwrap();
    let vectors = encoder.embed(&golden.texts("encoder"), TextLimits::default(), 200, &mut |_| {}).unwrap();
    assert_rows_close("encoder vectors in bf16", &vectors, &golden.rows("encoder.pooled"), TOLERANCE_BF16);
    let decoder = Decoder::load(&golden.dir.join("decoder"), &Device::Cpu, DType::BF16).unwrap();
    let vectors = decoder.last_hidden(&golden.ids("teacher"), 100, &mut |_| {}).unwrap();
    assert_rows_close("teacher vectors in bf16", &vectors, &golden.rows("teacher"), TOLERANCE_BF16);
}

/// Tests the form of GPUs. In f32 on the CPU it is as close to PyTorch as the fused form; on a GPU and in bf16 it is
/// less precise.
#[test]
fn the_tensor_form_agrees_in_f32_and_bf16() {
    let golden = Golden::load();
    for (dtype, tolerance) in [(DType::F32, TOLERANCE), (DType::BF16, TOLERANCE_BF16)] {
        let backend = tensors(dtype);
        let encoder = Encoder::load_on(&golden.dir.join("encoder"), &backend).unwrap();
        // The budgets give one batch, batches of several lengths, and batches of one sequence.
        for budget in [4096, 200, 1] {
            let vectors = encoder.embed(&golden.texts("encoder"), TextLimits::default(), budget, &mut |_| {}).unwrap();
            let what = format!("encoder vectors as tensors in {dtype:?}, budget {budget}");
            assert_rows_close(&what, &vectors, &golden.rows("encoder.pooled"), tolerance);
        }
        let mut decoder = Decoder::load_on(&golden.dir.join("decoder"), &backend).unwrap();
        let token = golden.cases["teacher"]["slot_token"].as_str().unwrap();
        decoder.set_teacher_slot(token).unwrap();
        for budget in [4096, 100, 1] {
            let vectors = decoder.last_hidden(&golden.ids("teacher"), budget, &mut |_| {}).unwrap();
            let what = format!("teacher vectors as tensors in {dtype:?}, budget {budget}");
            assert_rows_close(&what, &vectors, &golden.rows("teacher"), tolerance);
        }
        let logits = decoder.logits(&golden.ids("teacher")[0]).unwrap().to_dtype(DType::F32).unwrap();
        let logits = logits.to_vec2::<f32>().unwrap();
        assert_rows_close(
            &format!("logits as tensors in {dtype:?}"),
            &logits,
            &golden.rows("decoder.logits0"),
            tolerance,
        );
    }
    let decoder = Decoder::load_on(&golden.dir.join("decoder"), &tensors(DType::F32)).unwrap();
    let (from, expected) =
        (golden.case::<Vec<u32>>("decoder", "greedy_from"), golden.case::<Vec<u32>>("decoder", "greedy"));
    assert_eq!(decoder.generate(&from, expected.len(), &[]).unwrap(), expected);
    assert!(decoder.embed(&[u32::MAX]).is_err(), "no id is read beyond the table");
}
