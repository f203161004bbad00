//! Compares decoders with Llama's architecture with Transformers and PEFT: Qwen2 (biases), Qwen3 (norms of heads),
//! Mistral (its own head width). `fixtures/families/make.py` wrote the models and the expected results.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use crate::common::skip::python_with;
use crate::common::{assert_close, assert_refused, copy, edit_json, fixture, on_cpu, told_by};
use candle_core::{DType, Device, Tensor};
use llink_worker::llink::next_token_loss::AnswerTokens;
use llink_worker::models::lora::{LoraAdapter, LoraOptions};
use llink_worker::models::{Activations, Adapter, Backend, Decoder, TrainingBatch};
use serde_json::{Value, json};

const FAMILIES: [(&str, &str); 3] = [("qwen2", "qwen2.5"), ("qwen3", "qwen2.5"), ("mistral", "mistral")];
/// The position of the answer's first token.
const ANSWER: usize = 7;
const TOLERANCE: f64 = 1e-4;

/// Returns a family's weights with a tokenizer whose tokens have rows.
fn folder(family: &str, tokenizer: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for source in [format!("families/{family}"), format!("chat/{tokenizer}")] {
        copy(&fixture(&source), dir.path());
    }
    dir
}

fn expected(family: &str) -> HashMap<String, Tensor> {
    let path = fixture("families").join(family).join("expected.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn ids(x: &Tensor) -> Vec<u32> {
    numbers(x).into_iter().map(|id| id as u32).collect()
}

fn backends() -> [(&'static str, Backend); 2] {
    [("mapped weights", on_cpu()), ("weights in tensors", Backend::of_tensors(&Device::Cpu, DType::F32))]
}

#[test]
fn states_logits_and_continuations_are_those_of_transformers() {
    for (family, tokenizer) in FAMILIES {
        let (dir, expected) = (folder(family, tokenizer), expected(family));
        let prompt = ids(&expected["ids"]);
        for (held, backend) in backends() {
            let decoder = Decoder::load_on(dir.path(), &backend).unwrap();
            let name = |what: &str| format!("{family}, {held}: {what}");
            let states = numbers(&decoder.hidden_states(&prompt).unwrap());
            assert_close(&name("states"), &states, &numbers(&expected["hidden"]), TOLERANCE);
            let logits = numbers(&decoder.logits(&prompt).unwrap());
            assert_close(&name("logits"), &logits, &numbers(&expected["logits"]), TOLERANCE);
            let last = decoder.last_hidden(&[prompt.clone(), prompt[..5].to_vec()], 64, &mut |_| {}).unwrap();
            let width = decoder.hidden_size();
            assert_close(&name("last state"), &last[0], &states[(prompt.len() - 1) * width..], TOLERANCE);
            assert_close(&name("state in a batch"), &last[1], &states[4 * width..5 * width], TOLERANCE);
            // This generates token by token, with the key/value cache.
            assert_eq!(decoder.generate(&prompt, 8, &[]).unwrap(), ids(&expected["greedy"]), "{}", name("greedy"));
        }
    }
}

#[test]
fn an_adapters_loss_and_gradients_are_those_of_peft() {
    for (family, tokenizer) in FAMILIES {
        let (dir, expected) = (folder(family, tokenizer), expected(family));
        let ids = ids(&expected["ids"]);
        for (held, backend) in backends() {
            let decoder = Decoder::load_on(dir.path(), &backend).unwrap();
            let options = LoraOptions { rank: 2, alpha: 4.0, dropout: 0.0, ..LoraOptions::default() };
            let mut adapter = LoraAdapter::new(decoder.config(), options, 0).unwrap();
            let places = adapter.tensor_places();
            for (name, _, place) in &places {
                adapter.parameters[place.clone()].copy_from_slice(&numbers(&expected[name]));
            }
            let answer =
                AnswerTokens { positions: (ANSWER - 1..ids.len() - 1).collect(), targets: ids[ANSWER..].to_vec() };
            let offsets = [0, ids.len()];
            let batch = TrainingBatch {
                ids: &ids,
                offsets: &offsets,
                answer: &answer,
                answer_tokens: answer.targets.len(),
                dropout: None,
            };
            let model = decoder.model();
            let embeddings = decoder.embed(&ids).unwrap();
            let on_device = Adapter::new(&adapter, model).unwrap();
            for activations in [Activations::Kept, Activations::Recomputed] {
                let check = |what: &str, found: &[f32], wanted: &str| {
                    let name = format!("{family}, {held}, {activations:?}: {what}");
                    assert_close(&name, found, &numbers(&expected[wanted]), TOLERANCE);
                };
                let pass = model.train(&on_device, &batch, embeddings.clone(), activations).unwrap();
                check("loss", &numbers(pass.loss()), "loss");
                let mut gradient = vec![0.0; adapter.parameters.len()];
                let mut ready = |layer: usize, values: Tensor| {
                    gradient[adapter.layer_range(layer)].copy_from_slice(&numbers(&values));
                    Ok(())
                };
                let grad_embeddings = pass.backward(&mut ready).unwrap();
                check("gradient of the embeddings", &numbers(&grad_embeddings), "grad_embeddings");
                for (tensor, _, place) in &places {
                    check(tensor, &gradient[place.clone()], &format!("grad {tensor}"));
                }
            }
        }
    }
}

fn changed(family: &str, tokenizer: &str, change: impl FnOnce(&mut Value)) -> llink_worker::Result<Decoder> {
    let dir = folder(family, tokenizer);
    edit_json(dir.path().join("config.json"), change);
    load(dir.path())
}

fn load(dir: &Path) -> llink_worker::Result<Decoder> {
    Decoder::load(dir, &Device::Cpu, DType::F32)
}

#[test]
fn a_sliding_window_is_the_longest_sequence_and_refused_where_it_would_slide_within_a_sentence() {
    let decoder = load(folder("mistral", "mistral").path()).unwrap();
    assert_eq!(decoder.config().max_position_embeddings, 200);
    assert_refused(decoder.logits(&[5; 201]), &["201", "200"]);
    let window = |config: &mut Value| config["sliding_window"] = json!(64);
    assert_refused(changed("mistral", "mistral", window), &["sliding_window 64"]);
    // Qwen's configuration has a window, which is used only if another key says so.
    let decoder = changed("qwen2", "qwen2.5", window).unwrap();
    assert_eq!(decoder.config().max_position_embeddings, 512);
    let used = changed("qwen2", "qwen2.5", |config| {
        window(config);
        config["use_sliding_window"] = json!(true);
        config.as_object_mut().unwrap().remove("layer_types");
    });
    assert_refused(used, &["sliding_window 64"]);
}

#[test]
fn other_families_are_refused_by_name() {
    for architecture in ["GemmaForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM"] {
        let loaded = changed("qwen2", "qwen2.5", |config| config["architectures"] = json!([architecture]));
        assert_refused(loaded, &[architecture, "Qwen3ForCausalLM"]);
    }
    let loaded = changed("qwen3", "qwen2.5", |config| {
        config["architectures"] = json!(null);
        config["model_type"] = json!("gemma3");
    });
    assert_refused(loaded, &["gemma3", "mistral"]);
}

#[test]
fn transformers_and_peft_still_compute_what_is_expected() {
    let Some(python) = python_with(&["torch", "transformers", "peft"]) else {
        return;
    };
    let apart = told_by(Command::new(python).arg(fixture("families/make.py")).arg("--check"));
    println!("{apart}");
    assert!(apart.as_object().unwrap().values().all(|gap| gap.as_f64().unwrap() < TOLERANCE), "{apart}");
}
