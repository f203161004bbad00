//! How fast a step of Stage B is, on the inputs of the reference's own benchmark: random tokens, half of them the answer, eight
//! slots, a step without usage contrast.

use std::path::Path;
use std::time::Instant;

use candle_core::DType;
use serde_json::{Value, json};

use super::bench::noise;
use super::instruct_batch::InstructExample;
use super::instruct_step::{InstructInput, InstructOutcome, InstructTrainer, InstructWeights, LearningRates};
use super::on_device::DeviceInstructTrainer;
use super::optimizer::{AdamW, AdamWOptions};
use super::random::{key, mix};
use super::step::StepSeconds;
use crate::Result;
use crate::collective::Solo;
use crate::llink::slot_expander::{SlotExpander, SlotExpanderShape, median_embedding_norm};
use crate::llink::slot_losses::SlotWeights;
use crate::llink::usage_contrast::UsageContrast;
use crate::models::bench::memory_mib;
use crate::models::lora::{LoraAdapter, LoraOptions};
use crate::models::{Activations, Backend, Form, Llama};

const LENGTH: usize = 96;
const SLOTS: usize = 8;
const FIRST_SLOT: usize = 10;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct InstructBench {
    /// Examples in a step.
    pub batch: usize,
    /// Timed steps.
    pub steps: usize,
    /// What the forward pass keeps.
    pub activations: Activations,
}

/// Times steps of the decoder in `dir` after one to warm up, on one rank. One JSON object whose fields are those of
/// `bench_reference.py instruct`; `phases_s` says where a median step's time went.
///
/// # Errors
/// Those of loading the decoder and of a step.
pub fn bench_instruct(dir: &Path, options: InstructBench, backend: &Backend) -> Result<Value> {
    let decoder = Llama::load_on(dir, backend)?;
    let (device, dtype) = (backend.device(), backend.dtype());
    let (width, vocabulary) = (decoder.config().hidden_size, decoder.config().vocab_size as u64);
    let (adapter, expander, optimizers, weights) = parts(&decoder)?;
    let trainable = adapter.parameters.len() + expander.parameters.len();
    let mut take_step: StepTaker<'_> = match decoder.form() {
        Form::Slices => {
            let mut trainer = InstructTrainer::new(adapter, expander, optimizers, weights);
            Box::new(move |decoder, input| trainer.step(decoder, input, &mut Solo::default()))
        }
        Form::Tensors => {
            let mut trainer = DeviceInstructTrainer::new(&decoder, adapter, &expander, &optimizers, weights)?;
            Box::new(move |decoder, input| trainer.step(decoder, input, &mut Solo::default()))
        }
    };
    let batch = options.batch;
    let mut timed: Vec<(f64, StepSeconds)> = Vec::with_capacity(options.steps + 1);
    for step in 0..=options.steps as u64 {
        let examples: Vec<_> = (0..batch as u64).map(|id| example(step, id, vocabulary)).collect();
        let ids: Vec<u64> = (0..batch as u64).collect();
        let started = Instant::now();
        let input = InstructInput {
            step: 3 * step + 1, // never one that contrasts
            ids: &ids,
            own: 0..batch,
            examples: &examples.iter().collect::<Vec<_>>(),
            projected: &noise(2 * step, batch * width),
            teacher: &noise(2 * step + 1, batch * width),
            answer_tokens: batch * LENGTH / 2,
            learning_rates: LearningRates {
                lora: 1e-4,
                expander: 1e-4,
                scale: 1e-4,
            },
            dropout: None,
            token_budget: batch * LENGTH,
            activations: options.activations,
        };
        let outcome = take_step(&decoder, &input)?;
        timed.push((started.elapsed().as_secs_f64(), outcome.seconds));
    }
    timed.remove(0);
    timed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (seconds, phases) = timed[timed.len() / 2];
    Ok(json!({
        "job": "instruct",
        "engine": concat!("llink ", env!("CARGO_PKG_VERSION")),
        "device": if device.is_cpu() { "cpu" } else { "cuda" },
        "dtype": match dtype { DType::F32 => "f32", DType::BF16 => "bf16", _ => dtype.as_str() },
        "threads": rayon::current_num_threads(),
        "batch": batch,
        "length": LENGTH,
        "step_s": seconds,
        "tokens_per_s": (batch * LENGTH) as f64 / seconds,
        "trainable": trainable,
        "phases_s": {
            "forward": phases.forward,
            "backward": phases.backward,
            "optimizer": phases.optimizer,
        },
        "peak_rss_mib": memory_mib("VmHWM:"),
        "private_rss_mib": memory_mib("RssAnon:"),
    }))
}

/// Takes a step, whatever computes it.
type StepTaker<'a> = Box<dyn FnMut(&Llama, &InstructInput<'_>) -> Result<InstructOutcome> + 'a>;

fn parts(decoder: &Llama) -> Result<(LoraAdapter, SlotExpander, [AdamW; 3], InstructWeights)> {
    let width = decoder.config().hidden_size;
    let options = LoraOptions {
        dropout: 0.0,
        ..LoraOptions::default()
    };
    let adapter = LoraAdapter::new(decoder.config(), options, 0)?;
    let shape = SlotExpanderShape {
        width,
        hidden: 2 * width,
        slots: SLOTS,
    };
    let some_rows: Vec<u32> = (0..1024.min(decoder.config().vocab_size as u32)).collect();
    let median = median_embedding_norm(&decoder.embed_f32(&some_rows)?, width)?;
    let expander = SlotExpander::new(shape, median, 0);
    let adamw = AdamWOptions {
        beta1: 0.9,
        beta2: 0.999,
        weight_decay: 0.01,
    };
    let optimizers = InstructTrainer::optimizers(&adapter, &expander, adamw);
    let weights = InstructWeights {
        slots: SlotWeights {
            cosine: 0.05,
            info_nce: 1e-3,
            temperature: 0.07,
        },
        usage: UsageContrast { every: 3, weight: 0.05 },
        gradient_clip: 1.0,
    };
    Ok((adapter, expander, optimizers, weights))
}

fn example(step: u64, id: u64, vocabulary: u64) -> InstructExample {
    let token = |place: usize| (5 + mix(key(&[step, id, place as u64])) % (vocabulary - 5)) as u32;
    InstructExample {
        id,
        prompt: (0..LENGTH / 2).map(token).collect(),
        slots: (FIRST_SLOT..FIRST_SLOT + SLOTS).collect(),
        answer: (LENGTH / 2..LENGTH).map(token).collect(),
    }
}
