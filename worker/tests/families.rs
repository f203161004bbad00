//! Compares decoders with Llama's architecture with Transformers and PEFT: Qwen2 (biases), Qwen3 (norms of heads),
//! Mistral (its own head width). `fixtures/families/make.py` wrote the models and the expected results.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../../datasets/tests/support/skip.rs"]
mod skip;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use llink_worker::llink::next_token_loss::AnswerTokens;
use llink_worker::models::lora::{LoraAdapter, LoraOptions};
use llink_worker::models::{Activations, Adapter, Backend, Decoder, TrainingBatch};
use serde_json::{Value, json};
use skip::python_with;

const FAMILIES: [(&str, &str); 3] = [("qwen2", "qwen2.5"), ("qwen3", "qwen2.5"), ("mistral", "mistral")];
/// The position of the answer's first token.
const ANSWER: usize = 7;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Returns a family's weights with a tokenizer whose tokens have rows.
fn folder(family: &str, tokenizer: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for source in [format!("families/{family}"), format!("chat/{tokenizer}")] {
        for entry in std::fs::read_dir(fixtures().join(source)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

fn expected(family: &str) -> HashMap<String, Tensor> {
    let path = fixtures().join("families").join(family).join("expected.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn ids(x: &Tensor) -> Vec<u32> {
    numbers(x).into_iter().map(|id| id as u32).collect()
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let gap: f64 = found.iter().zip(expected).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = expected.iter().map(|b| f64::from(*b).powi(2)).sum();
    let error = (gap / norm).sqrt();
    println!("{what}: relative error {error:.1e}");
    assert!(error < 1e-4, "{what}: relative error {error:.1e}");
}

fn backends() -> [(&'static str, Backend); 2] {
    [
        ("mapped weights", Backend::new(&Device::Cpu, DType::F32)),
        ("weights in tensors", Backend::of_tensors(&Device::Cpu, DType::F32)),
    ]
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
            assert_close(&name("states"), &states, &numbers(&expected["hidden"]));
            let logits = numbers(&decoder.logits(&prompt).unwrap());
            assert_close(&name("logits"), &logits, &numbers(&expected["logits"]));
            let last = decoder.last_hidden(&[prompt.clone(), prompt[..5].to_vec()], 64, &mut |_| {}).unwrap();
            let width = decoder.hidden_size();
            assert_close(&name("last state"), &last[0], &states[(prompt.len() - 1) * width..]);
            assert_close(&name("state in a batch"), &last[1], &states[4 * width..5 * width]);
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
                let name = |what: &str| format!("{family}, {held}, {activations:?}: {what}");
                let pass = model.train(&on_device, &batch, embeddings.clone(), activations).unwrap();
                assert_close(&name("loss"), &numbers(pass.loss()), &numbers(&expected["loss"]));
                let mut gradient = vec![0.0; adapter.parameters.len()];
                let mut ready = |layer: usize, values: Tensor| {
                    gradient[adapter.layer_range(layer)].copy_from_slice(&numbers(&values));
                    Ok(())
                };
                let grad_embeddings = pass.backward(&mut ready).unwrap();
                assert_close(
                    &name("gradient of the embeddings"),
                    &numbers(&grad_embeddings),
                    &numbers(&expected["grad_embeddings"]),
                );
                for (tensor, _, place) in &places {
                    let wanted = numbers(&expected[&format!("grad {tensor}")]);
                    assert_close(&name(tensor), &gradient[place.clone()], &wanted);
                }
            }
        }
    }
}

fn changed(family: &str, tokenizer: &str, change: impl FnOnce(&mut Value)) -> llink_worker::Result<Decoder> {
    let dir = folder(family, tokenizer);
    let path = dir.path().join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    load(dir.path())
}

fn load(dir: &Path) -> llink_worker::Result<Decoder> {
    Decoder::load(dir, &Device::Cpu, DType::F32)
}

#[test]
fn a_sliding_window_is_the_longest_sequence_and_refused_where_it_would_slide_within_a_sentence() {
    let decoder = load(folder("mistral", "mistral").path()).unwrap();
    assert_eq!(decoder.config().max_position_embeddings, 200);
    let error = decoder.logits(&[5; 201]).unwrap_err().to_string();
    assert!(error.contains("201") && error.contains("200"), "{error}");
    let longest = |family, tokenizer, change: fn(&mut Value)| {
        let decoder = changed(family, tokenizer, change)?;
        llink_worker::Result::Ok(decoder.config().max_position_embeddings)
    };
    let window = |config: &mut Value| config["sliding_window"] = json!(64);
    let error = longest("mistral", "mistral", window).unwrap_err().to_string();
    assert!(error.contains("sliding_window 64"), "{error}");
    // Qwen's configuration has a window, which is used only if another key says so.
    assert_eq!(longest("qwen2", "qwen2.5", window).unwrap(), 512);
    let error = longest("qwen2", "qwen2.5", |config| {
        config["sliding_window"] = json!(64);
        config["use_sliding_window"] = json!(true);
        config.as_object_mut().unwrap().remove("layer_types");
    });
    assert!(error.unwrap_err().to_string().contains("sliding_window 64"));
}

#[test]
fn other_families_are_refused_by_name() {
    for architecture in ["GemmaForCausalLM", "Gemma2ForCausalLM", "Phi3ForCausalLM"] {
        let error = changed("qwen2", "qwen2.5", |config| config["architectures"] = json!([architecture]));
        let error = error.err().unwrap().to_string();
        assert!(error.contains(architecture) && error.contains("Qwen3ForCausalLM"), "{error}");
    }
    let error = changed("qwen3", "qwen2.5", |config| {
        config["architectures"] = json!(null);
        config["model_type"] = json!("gemma3");
    });
    let error = error.err().unwrap().to_string();
    assert!(error.contains("gemma3") && error.contains("mistral"), "{error}");
}

#[test]
fn transformers_and_peft_still_compute_what_is_expected() {
    let Some(python) = python_with(&["torch", "transformers", "peft"]) else {
        return;
    };
    let made = std::process::Command::new(python)
        .args([fixtures().join("families/make.py").to_str().unwrap(), "--check"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    let apart: HashMap<String, f64> = serde_json::from_slice(&made.stdout).unwrap();
    println!("{apart:?}");
    assert!(apart.values().all(|gap| *gap < 1e-4), "{apart:?}");
}
