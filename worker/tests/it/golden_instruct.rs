//! Compares Stage B with PyTorch and PEFT: every gradient of the first step, every loss, and the final weights. `text_parts.py`
//! writes the cases in which slots read the windows or the sentences of a text and the projector is trained.

use std::path::PathBuf;

use crate::common::{fixture, golden, on_cpu, read_json, relative, tensors};
use candle_core::DType;
use llink_worker::collective::{Collective, Solo};
use llink_worker::llink::projector::Projector;
use llink_worker::llink::slot_expander::SlotExpander;
use llink_worker::llink::slot_losses::SlotWeights;
use llink_worker::llink::usage_contrast::UsageContrast;
use llink_worker::models::lora::{LoraAdapter, LoraOptions};
use llink_worker::models::{Activations, Backend, Decoder};
use llink_worker::numerics::tensor_file::TensorFile;
use llink_worker::train::instruct::InstructTrainer;
use llink_worker::train::instruct::batch::InstructExample;
use llink_worker::train::instruct::state::InstructParts;
use llink_worker::train::instruct::step::{InstructInput, InstructWeights, LearningRates};
use llink_worker::train::optimizer::{AdamWOptions, AdamWState};
use serde_json::Value;

const BETA1: f64 = 0.9;

/// A golden set of Stage B.
#[derive(Clone, Copy, PartialEq)]
enum Set {
    /// The text's vector alone, and a projector that is frozen.
    Paper,
    /// The windows of a text, and a projector that is trained. The set has no gradients of the adapter.
    Windows,
    /// The same with texts of one to three sentences in place of windows.
    Sentences,
}

impl Set {
    /// Returns the folder of the set's tensors.
    fn folder(self) -> PathBuf {
        match self {
            Set::Paper => golden(),
            Set::Windows => fixture("golden/windows"),
            Set::Sentences => fixture("golden/sentences"),
        }
    }

    /// Returns the folder of the models that the set is about.
    fn models(self) -> PathBuf {
        match self {
            Set::Paper => golden(),
            Set::Windows | Set::Sentences => fixture("golden/seed8"),
        }
    }

    fn trains_projector(self) -> bool {
        self != Set::Paper
    }
}

/// The part of a golden set for Stage B.
struct Case {
    set: Set,
    instruct: Value,
    tensors: Vec<u8>,
    decoder: Decoder,
}

impl Case {
    fn load(set: Set, backend: &Backend) -> Self {
        let folder = set.folder();
        Self {
            set,
            instruct: read_json(folder.join("cases.json"))["instruct"].take(),
            tensors: std::fs::read(folder.join("tensors.safetensors")).unwrap(),
            decoder: Decoder::load_on(&set.models().join("decoder"), backend).unwrap(),
        }
    }

    fn file(&self) -> TensorFile<'_> {
        TensorFile::new("tensors.safetensors", &self.tensors).unwrap()
    }

    fn number(&self, path: &[&str]) -> f64 {
        path.iter().fold(&self.instruct, |value, key| &value[*key]).as_f64().unwrap()
    }

    /// Returns a trainer before the first step.
    fn trainer(&self) -> InstructTrainer {
        let bytes = std::fs::read(self.set.models().join("lora_init/adapter_model.safetensors")).unwrap();
        let mut adapter = LoraAdapter::new(self.decoder.config(), LoraOptions::default(), 1).unwrap();
        adapter.read(&TensorFile::new("adapter_model.safetensors", &bytes).unwrap()).unwrap();
        let median = self.number(&["median_norm"]) as f32;
        let expander = SlotExpander::from_tensors(&self.file(), "instruct.init.", median).unwrap();
        let options = AdamWOptions { beta1: BETA1, beta2: 0.999, weight_decay: self.number(&["weight_decay", "lora"]) };
        let own = || Projector::from_tensors(&self.file(), "instruct.init.projector.").unwrap();
        let projector = self.set.trains_projector().then(own);
        let parts = InstructParts::new(adapter, expander, projector, options);
        let weights = InstructWeights {
            slots: SlotWeights { cosine: 0.05, info_nce: 1e-3, temperature: 0.07 },
            usage: UsageContrast { every: 3, weight: self.number(&["w_usage"]) },
            gradient_clip: self.number(&["clip"]),
        };
        InstructTrainer::new(self.decoder.model(), parts, weights).unwrap()
    }

    /// Returns the examples of the padded tensors.
    fn examples(&self) -> Vec<InstructExample> {
        let file = self.file();
        let (shape, ids) = file.i64("instruct.ids").unwrap();
        let (_, labels) = file.i64("instruct.labels").unwrap();
        let (_, mask) = file.i64("instruct.mask").unwrap();
        let (slots, positions) = file.i64("instruct.positions").unwrap();
        let token = |id: &i64| u32::try_from(*id).unwrap();
        (0..shape[0])
            .map(|row| {
                let at = row * shape[1]..(row + 1) * shape[1];
                let tokens = mask[at.clone()].iter().filter(|m| **m == 1).count();
                let prompt = labels[at.clone()].iter().position(|label| *label != -100).unwrap();
                let ids = &ids[at];
                InstructExample {
                    id: row as u64,
                    prompt: ids[..prompt].iter().map(token).collect(),
                    slots: positions[row * slots[1]..(row + 1) * slots[1]]
                        .iter()
                        .filter_map(|position| usize::try_from(*position).ok())
                        .collect(),
                    answer: ids[prompt..tokens].iter().map(token).collect(),
                }
            })
            .collect()
    }
}

/// Runs the trajectory on one rank. `after` is called after each step.
fn trajectory(
    case: &Case,
    token_budget: usize,
    activations: Activations,
    after: &mut dyn FnMut(usize, &InstructTrainer, &Value),
) -> InstructParts {
    let file = case.file();
    let mut trainer = case.trainer();
    let examples = case.examples();
    let trains_projector = case.set.trains_projector();
    let (_, vectors) = file.f32(if trains_projector { "instruct.vectors" } else { "instruct.projected" }).unwrap();
    let (_, teacher) = file.f32("teacher").unwrap();
    let ids: Vec<u64> = examples.iter().map(|example| example.id).collect();
    let learning_rates = LearningRates {
        lora: case.number(&["lr", "lora"]),
        expander: case.number(&["lr", "expander"]),
        scale: case.number(&["lr", "scale"]),
        projector: if trains_projector { case.number(&["lr", "projector"]) } else { 0.0 },
    };
    let mut collective = Solo::default();
    let steps = case.instruct["trace"].as_array().unwrap().len();
    for step in 0..steps {
        collective.begin_step(step as u64);
        let input = InstructInput {
            step: step as u64,
            ids: &ids,
            own: 0..examples.len(),
            examples: &examples.iter().collect::<Vec<_>>(),
            vectors: &vectors,
            teacher: &teacher,
            answer_tokens: examples.iter().map(|example| example.answer.len()).sum(),
            learning_rates,
            dropout: None,
            token_budget,
            activations,
        };
        let outcome = trainer.step(case.decoder.model(), &input, &mut collective).unwrap();
        let losses = outcome.losses;
        let found = serde_json::json!({
            "loss": losses.loss, "sft": losses.sft, "usage": losses.usage, "cosine": losses.cosine,
            "info_nce": losses.info_nce, "grad_norm": outcome.grad_norm,
        });
        after(step, &trainer, &found);
    }
    trainer.store().unwrap()
}

/// Returns the gradient from the first moments after one step. Clipping scaled it by `clipped`.
fn gradient(after_one_step: &AdamWState, clipped: f64) -> Vec<f32> {
    let share = (1.0 - BETA1) * clipped;
    let moments = after_one_step.first_moment.iter();
    moments.map(|moment| (f64::from(*moment) / share) as f32).collect()
}

/// Returns the largest difference between a tensor of a part and that named after `prefix`. `values` are those of the adapter,
/// the expander and the projector.
fn compare(case: &Case, prefix: &str, of: &InstructParts, [adapter, expander, projector]: [&[f32]; 3]) -> f64 {
    let file = case.file();
    let mut worst: f64 = 0.0;
    let mut check = |name: &str, found: &[f32]| {
        let (_, expected) = file.f32(&format!("{prefix}{name}")).unwrap();
        let error = relative(found, &expected);
        assert!(error < 1e-3, "{prefix}{name} differs by {error}");
        worst = worst.max(error);
    };
    if case.set == Set::Paper {
        for (name, _, place) in of.adapter.tensor_places() {
            check(&name.replace(".weight", ".default.weight"), &adapter[place]);
        }
    }
    let shape = of.expander.shape();
    for ((name, _), place) in shape.tensors().into_iter().zip(shape.ranges()) {
        check(name, &expander[place]);
    }
    if let Some(trained) = &of.projector {
        let shape = trained.shape();
        for ((name, _), place) in shape.tensors().into_iter().zip(shape.ranges()) {
            check(&format!("projector.{name}"), &projector[place]);
        }
    }
    worst
}

#[test]
fn stage_b_takes_the_references_steps() {
    follow(Set::Paper, &on_cpu());
}

#[test]
fn stage_b_takes_the_references_steps_with_weights_in_tensors() {
    follow(Set::Paper, &tensors(DType::F32));
}

#[test]
fn stage_b_with_windows_takes_the_steps_of_the_pytorch_twin() {
    follow(Set::Windows, &on_cpu());
    follow(Set::Windows, &tensors(DType::F32));
}

#[test]
fn stage_b_with_sentences_takes_the_steps_of_the_pytorch_twin() {
    follow(Set::Sentences, &on_cpu());
    follow(Set::Sentences, &tensors(DType::F32));
}

fn follow(set: Set, backend: &Backend) {
    let case = Case::load(set, backend);
    // The steps run in one pass, in several passes, and with layers recomputed in the backward pass.
    for (token_budget, activations) in
        [(usize::MAX, Activations::Kept), (100, Activations::Kept), (usize::MAX, Activations::Recomputed)]
    {
        let mut worst_loss: f64 = 0.0;
        let mut worst_gradient = 0.0;
        let parts = trajectory(&case, token_budget, activations, &mut |step, trainer, found| {
            let expected = &case.instruct["trace"][step];
            for key in ["loss", "sft", "usage", "cosine", "info_nce"] {
                let error = (found[key].as_f64().unwrap() - expected[key].as_f64().unwrap()).abs();
                assert!(error < 1e-4, "step {step}: {key} {} against {}", found[key], expected[key]);
                worst_loss = worst_loss.max(error);
            }
            let (norm, reference) = (found["grad_norm"].as_f64().unwrap(), expected["grad_norm"].as_f64().unwrap());
            assert!((norm / reference - 1.0).abs() < 1e-3, "step {step}: norm {norm} against {reference}");
            if step == 0 {
                let parts = trainer.store().unwrap();
                let clipped = (case.number(&["clip"]) / (norm + 1e-6)).min(1.0);
                let [by_adapter, by_others, by_scale] =
                    [0, 1, 2].map(|group| gradient(&parts.optimizers[group], clipped));
                let by_expander = [by_scale, by_others].concat();
                let moving = parts.optimizers.get(3);
                let by_projector = moving.map_or_else(Vec::new, |optimizer| gradient(optimizer, clipped));
                let found: [&[f32]; 3] = [&by_adapter, &by_expander, &by_projector];
                worst_gradient = compare(&case, "instruct.grad0.", &parts, found);
            }
        });
        let projector = parts.projector.as_ref().map_or(&[][..], |projector| &projector.parameters);
        let found = [&parts.adapter.parameters[..], &parts.expander.parameters, projector];
        let worst = compare(&case, "instruct.final.", &parts, found);
        println!("losses within {worst_loss:.1e}, gradients {worst_gradient:.1e}, weights {worst:.1e}");
    }
}
