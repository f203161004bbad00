//! Vectors of the encoder and of the decoder.

use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use llink_worker::models::{Backend, Bert, Llama, token_batches};
use llink_worker::numerics::random::noise;
use llink_worker::{Error, Result};
use serde_json::{Value, json};

use super::{Job, Options};

/// Measures vectors of the ids in the folder, after one batch to warm up; loading is timed apart.
///
/// `gflops` are the model's own operations (padding and what the last layer leaves out are not counted). On the CPU `gemm_gflops` is what
/// one large f32 product by the library `gemm` reaches right before, and `of_gemm` the share.
pub(super) fn measure(options: &Options, backend: &Backend) -> Result<Value> {
    let (device, dtype, budget) = (backend.device(), backend.dtype(), options.budget);
    let part = match options.job {
        Job::Embed => "encoder",
        _ => "decoder",
    };
    let start = Instant::now();
    let model = Model::load(options.job, &options.dir.join(part), backend)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let ids = read_ids(&options.dir.join(format!("{part}_ids.json")), options.n)?;
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    if let Some(first) = token_batches(&lengths, budget).first() {
        let warm_up: Vec<Vec<u32>> = first.iter().map(|&index| ids[index].clone()).collect();
        model.vectors(&warm_up, budget)?;
    }
    let gemm = device.is_cpu().then(|| model.gemm_gflops()).transpose()?;
    let start = Instant::now();
    let vectors = model.vectors(&ids, budget)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(out) = &options.out {
        let width = vectors.first().map_or(0, Vec::len);
        Tensor::from_vec(vectors.concat(), (vectors.len(), width), &Device::Cpu)?.save_safetensors("vectors", out)?;
    }
    let tokens: usize = lengths.iter().sum();
    let gflops = model.operations(&lengths) / seconds / 1e9;
    Ok(json!({
        "flash_attention": cfg!(feature = "flash-attn") && device.is_cuda() && dtype == DType::BF16,
        "dtype": dtype.as_str(),
        "sentences": ids.len(),
        "tokens": tokens,
        "seconds": rounded(seconds),
        "sentences_per_s": rounded(ids.len() as f64 / seconds),
        "tokens_per_s": rounded(tokens as f64 / seconds),
        "gflops": rounded(gflops),
        "gemm_gflops": gemm.map(rounded),
        "of_gemm": gemm.map(|gemm| rounded(gflops / gemm)),
        "load_s": rounded(load_seconds),
    }))
}

enum Model {
    Encoder(Bert),
    Decoder(Llama),
}

impl Model {
    fn load(job: Job, dir: &Path, backend: &Backend) -> Result<Self> {
        Ok(match job {
            Job::Embed => Self::Encoder(Bert::load_with_mean(dir, backend)?),
            _ => Self::Decoder(Llama::load_on(dir, backend)?),
        })
    }

    fn vectors(&self, ids: &[Vec<u32>], token_budget: usize) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Encoder(model) => model.vectors(ids, 0, token_budget, &mut |_| {}),
            Self::Decoder(model) => model.vectors(ids, token_budget, &mut |_| {}),
        }
    }

    /// The additions and multiplications that vectors of sequences of `lengths` take: those of the linear maps, and
    /// those of queries with keys and of weights with values.
    fn operations(&self, lengths: &[usize]) -> f64 {
        let mut total = 0.0;
        for &length in lengths {
            let n = length as f64;
            total += match self {
                Self::Encoder(model) => {
                    let config = model.config();
                    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
                    let linear = 4.0 * hidden * hidden + 2.0 * hidden * inner;
                    config.num_hidden_layers as f64 * (2.0 * n * linear + 4.0 * n * n * hidden)
                }
                Self::Decoder(model) => {
                    let config = model.config();
                    let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
                    let width = (config.num_attention_heads * config.head_dim) as f64;
                    let keys = 2.0 * hidden * (config.num_key_value_heads * config.head_dim) as f64;
                    let rest = 2.0 * hidden * width + 3.0 * hidden * inner;
                    // A query sees half of the keys on average; the last layer has one query.
                    let whole = 2.0 * n * (keys + rest) + 2.0 * n * (n + 1.0) * width;
                    let last = 2.0 * (n * keys + rest) + 4.0 * n * width;
                    config.num_hidden_layers.saturating_sub(1) as f64 * whole + last
                }
            };
        }
        total
    }

    /// Returns the rate of the widest of the model's linear maps for many rows, the best of some tries.
    fn gemm_gflops(&self) -> Result<f64> {
        const ROWS: usize = 1_024;
        let (inner, outer) = match self {
            Self::Encoder(model) => (model.config().hidden_size, model.config().intermediate_size),
            Self::Decoder(model) => (model.config().hidden_size, model.config().intermediate_size),
        };
        let x = Tensor::from_vec(noise(1, ROWS * inner), (ROWS, inner), &Device::Cpu)?;
        let weights = Tensor::from_vec(noise(2, inner * outer), (inner, outer), &Device::Cpu)?;
        let mut best = f64::INFINITY;
        for _ in 0..8 {
            let start = Instant::now();
            std::hint::black_box(x.matmul(&weights)?);
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(2.0 * (ROWS * inner * outer) as f64 / best / 1e9)
    }
}

fn read_ids(path: &Path, n: usize) -> Result<Vec<Vec<u32>>> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: name(), source })?;
    let mut ids: Vec<Vec<u32>> =
        serde_json::from_str(&text).map_err(|error| Error::Model { path: name(), reason: error.to_string() })?;
    ids.truncate(n);
    Ok(ids)
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
