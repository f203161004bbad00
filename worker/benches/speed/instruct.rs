//! How fast a step of Stage B is, on the inputs of the reference's own benchmark: random tokens, half of them the answer, eight
//! slots, a step without usage contrast.

use std::time::{Duration, Instant};

use candle_core::DType;
use llink_worker::collective::{AbortHandle, Collective, Ring, Solo};
use llink_worker::llink::slot_expander::{SlotExpander, SlotExpanderShape, median_embedding_norm};
use llink_worker::llink::slot_losses::SlotWeights;
use llink_worker::llink::usage_contrast::UsageContrast;
use llink_worker::models::lora::{LoraAdapter, LoraOptions};
use llink_worker::models::{Activations, Backend, Llama};
use llink_worker::numerics::random::{key, mix, noise};
use llink_worker::train::batch::rank_slice;
use llink_worker::train::instruct::InstructTrainer;
use llink_worker::train::instruct::batch::InstructExample;
use llink_worker::train::instruct::state::InstructParts;
use llink_worker::train::instruct::step::{InstructInput, InstructWeights, LearningRates};
use llink_worker::train::optimizer::AdamWOptions;
use llink_worker::train::step::StepSeconds;
use llink_worker::{Error, Result};
use serde_json::{Value, json};

use super::{Options, gang};

const LENGTH: usize = 96;
const SLOTS: usize = 8;
const FIRST_SLOT: usize = 10;

/// Times steps of the folder's decoder after one to warm up. Several ranks share this machine's threads and talk over loopback.
/// `phases_s` says where a median step's time went on the first rank.
pub(super) fn measure(options: &Options, backend: &Backend) -> Result<Value> {
    let decoder = Llama::load_on(&options.dir.join("decoder"), backend)?;
    let (device, dtype, batch) = (backend.device(), backend.dtype(), options.batch.unwrap_or(4));
    let ranks = options.ranks.max(1);
    let mut timed = match ranks {
        1 => time_steps(&decoder, options, &mut Solo::default())?,
        _ => on_ranks(&decoder, options, ranks)?,
    };
    timed.steps.remove(0);
    timed.steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (seconds, phases) = timed.steps[timed.steps.len() / 2];
    Ok(json!({
        "flash_attention": cfg!(feature = "flash-attn") && device.is_cuda() && dtype == DType::BF16,
        "dtype": dtype.as_str(),
        "ranks": ranks,
        "batch": batch,
        "length": LENGTH,
        "step_s": seconds,
        "tokens_per_s": (batch * LENGTH) as f64 / seconds,
        "trainable": timed.trainable,
        "phases_s": {
            "forward": phases.forward,
            "backward": phases.backward,
            "reduce": phases.reduce,
            "optimizer": phases.optimizer,
        },
    }))
}

/// What one rank measured.
struct Timed {
    steps: Vec<(f64, StepSeconds)>,
    trainable: usize,
}

/// Every rank's steps on a thread pool of its own; what the first one measured.
fn on_ranks(decoder: &Llama, options: &Options, ranks: usize) -> Result<Timed> {
    let (listeners, addresses) = gang::listeners(ranks);
    let threads = (rayon::current_num_threads() / ranks).max(1);
    let all = gang::on_ranks(listeners, |rank, listener| {
        let ring = gang::options(rank, &addresses, Duration::from_secs(600));
        let mut ring = Ring::connect(listener, &ring, AbortHandle::default())?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| Error::Input(format!("{threads} threads: {error}")))?;
        pool.install(|| time_steps(decoder, options, &mut ring))
    });
    all.into_iter().collect::<Result<Vec<Timed>>>().map(|mut all| all.swap_remove(0))
}

fn time_steps(decoder: &Llama, options: &Options, collective: &mut dyn Collective) -> Result<Timed> {
    let (width, vocabulary) = (decoder.config().hidden_size, decoder.config().vocab_size as u64);
    let (parts, weights) = parts(decoder)?;
    let trainable = parts.adapter.parameters.len() + parts.expander.parameters.len();
    let mut trainer = InstructTrainer::new(decoder, parts, weights)?;
    let batch = options.batch.unwrap_or(4);
    let own = rank_slice(batch, collective.rank(), collective.world_size());
    let mut steps = Vec::with_capacity(options.steps + 1);
    for step in 0..=options.steps as u64 {
        let examples: Vec<_> = (0..batch as u64).map(|id| example(step, id, vocabulary)).collect();
        let ids: Vec<u64> = (0..batch as u64).collect();
        let projected = noise(2 * step, batch * width);
        // All ranks begin together, as they do after a step before.
        collective.barrier()?;
        let started = Instant::now();
        let input = InstructInput {
            step: 3 * step + 1, // never one that contrasts
            ids: &ids,
            own: own.clone(),
            examples: &examples[own.clone()].iter().collect::<Vec<_>>(),
            vectors: &projected[own.start * width..own.end * width],
            teacher: &noise(2 * step + 1, batch * width),
            answer_tokens: batch * LENGTH / 2,
            learning_rates: LearningRates { lora: 1e-4, expander: 1e-4, scale: 1e-4, projector: 0.0 },
            dropout: None,
            token_budget: batch * LENGTH,
            activations: match options.recompute {
                true => Activations::Recomputed,
                false => Activations::Kept,
            },
        };
        let outcome = trainer.step(decoder, &input, collective)?;
        steps.push((started.elapsed().as_secs_f64(), outcome.seconds));
    }
    Ok(Timed { steps, trainable })
}

fn parts(decoder: &Llama) -> Result<(InstructParts, InstructWeights)> {
    let width = decoder.config().hidden_size;
    let options = LoraOptions { dropout: 0.0, ..LoraOptions::default() };
    let adapter = LoraAdapter::new(decoder.config(), options, 0)?;
    let shape = SlotExpanderShape { width, hidden: 2 * width, slots: SLOTS };
    let some_rows: Vec<u32> = (0..1024.min(decoder.config().vocab_size as u32)).collect();
    let median = median_embedding_norm(
        &decoder.embed(&some_rows)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?,
        width,
    )?;
    let expander = SlotExpander::new(shape, median, 0);
    let adamw = AdamWOptions { beta1: 0.9, beta2: 0.999, weight_decay: 0.01 };
    let weights = InstructWeights {
        slots: SlotWeights { cosine: 0.05, info_nce: 1e-3, temperature: 0.07 },
        usage: UsageContrast { every: 3, weight: 0.05 },
        gradient_clip: 1.0,
    };
    Ok((InstructParts::new(adapter, expander, None, adamw), weights))
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
