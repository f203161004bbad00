//! How fast the models are on this machine, reported in the fields of the PyTorch baseline.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::backend::{Backend, WeightsIn};
use super::batches::token_batches;
use super::bert::Bert;
use super::llama::Llama;
use super::ops::{FrozenMatrix, Precision, Stored};
use super::sentence::{Head, Reading};
use crate::train::random::noise;
use crate::{Error, Result};

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Encoder vectors of `encoder_ids.json` with the model in `encoder/`.
    Embed,
    /// Teacher vectors of `decoder_ids.json` with the model in `decoder/`.
    Teacher,
}

/// How to measure it.
#[derive(Debug, Clone)]
pub struct Options {
    /// The first so many sequences.
    pub n: usize,
    /// Tokens in a batch.
    pub token_budget: usize,
    /// Where and how to compute.
    pub backend: Backend,
    /// A safetensors file to write the vectors to, as `vectors` [n, width].
    pub out: Option<PathBuf>,
}

/// Measures `job` on `dir`, after one batch to warm up; loading is timed apart.
///
/// The folder holds `encoder_ids.json` and `decoder_ids.json`, lists of token-id lists, beside the two models. The
/// report's `gflops` are the model's own operations (padding and what the last layer leaves out are not counted);
/// `floor` is what one large product of the same kernel reaches right before, in GFLOP/s, and `of_floor` the share.
///
/// # Errors
/// [`Error::Io`] or [`Error::Model`] when something in `dir` is missing or not supported; [`Error::Tensor`] when the
/// device fails.
pub fn run(job: Job, dir: &Path, options: &Options) -> Result<Value> {
    let Options {
        n,
        token_budget,
        ref backend,
        ref out,
    } = *options;
    let (device, dtype) = (backend.device(), backend.dtype());
    let (name, part) = match job {
        Job::Embed => ("embed", "encoder"),
        Job::Teacher => ("teacher", "decoder"),
    };
    let start = Instant::now();
    let model = match job {
        Job::Embed => Model::Encoder(Bert::load(
            &dir.join(part),
            Head::load(&Reading::default(), &[], 0, backend.device())?,
            backend,
        )?),
        Job::Teacher => Model::Decoder(Llama::load(&dir.join(part), device, dtype)?),
    };
    let load_seconds = start.elapsed().as_secs_f64();
    let ids = read_ids(&dir.join(format!("{part}_ids.json")), n)?;
    let lengths: Vec<usize> = ids.iter().map(Vec::len).collect();
    if let Some(first) = token_batches(&lengths, token_budget).first() {
        let warm_up: Vec<Vec<u32>> = first.iter().map(|&index| ids[index].clone()).collect();
        model.vectors(&warm_up, token_budget)?;
    }
    let floor = (backend.weights() == WeightsIn::File).then(|| model.product_gflops(dtype));
    let (products, floor) = floor.map_or((None, None), |(precision, floor)| (Some(precision), Some(floor)));
    let start = Instant::now();
    let vectors = model.vectors(&ids, token_budget)?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(out) = out {
        write_vectors(out, &vectors)?;
    }
    let tokens: usize = lengths.iter().sum();
    let gflops = model.operations(&lengths) / seconds / 1e9;
    Ok(json!({
        "job": name,
        "engine": concat!("llink ", env!("CARGO_PKG_VERSION")),
        "device": if device.is_cpu() { "cpu" } else { "cuda" },
        "flash_attention": cfg!(feature = "flash-attn") && device.is_cuda() && dtype == DType::BF16,
        "dtype": match dtype { DType::F32 => "f32", DType::BF16 => "bf16", _ => dtype.as_str() },
        "products": products.map(|precision| match precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }),
        "threads": rayon::current_num_threads(),
        "sentences": ids.len(),
        "tokens": tokens,
        "seconds": rounded(seconds),
        "sentences_per_s": rounded(ids.len() as f64 / seconds),
        "tokens_per_s": rounded(tokens as f64 / seconds),
        "gflops": rounded(gflops),
        "floor": floor.map(rounded),
        "of_floor": floor.map(|floor| rounded(gflops / floor)),
        "load_s": rounded(load_seconds),
        "peak_rss_mib": memory_mib("VmHWM:"),
        "private_rss_mib": memory_mib("RssAnon:"),
    }))
}

enum Model {
    Encoder(Bert),
    Decoder(Llama),
}

impl Model {
    fn vectors(&self, ids: &[Vec<u32>], token_budget: usize) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Encoder(model) => model.vectors(ids, token_budget, &mut |_| {}),
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

    /// The rate of the widest of the model's linear maps for many rows, the best of some tries, and what its
    /// multiplications are done in.
    fn product_gflops(&self, dtype: DType) -> (Precision, f64) {
        const ROWS: usize = 1_024;
        let (inner, outer) = match self {
            Self::Encoder(model) => (model.config().hidden_size, model.config().intermediate_size),
            Self::Decoder(model) => (model.config().hidden_size, model.config().intermediate_size),
        };
        let wish = match dtype {
            DType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        };
        let weights = noise(1, inner * outer);
        let matrix = FrozenMatrix::new(Stored::F32(Arc::new(weights)), outer, inner, wish);
        let x: Vec<f32> = noise(2, ROWS * inner);
        let seconds = (0..8).map(|_| {
            let start = Instant::now();
            std::hint::black_box(matrix.product(&x, None));
            start.elapsed().as_secs_f64()
        });
        let best = seconds.fold(f64::MAX, f64::min);
        (matrix.precision(), 2.0 * (ROWS * inner * outer) as f64 / best / 1e9)
    }
}

fn write_vectors(path: &Path, vectors: &[Vec<f32>]) -> Result<()> {
    let width = vectors.first().map_or(0, Vec::len);
    let tensor = Tensor::from_vec(vectors.concat(), (vectors.len(), width), &Device::Cpu)?;
    Ok(tensor.save_safetensors("vectors", path)?)
}

fn read_ids(path: &Path, n: usize) -> Result<Vec<Vec<u32>>> {
    let name = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: name(), source })?;
    let mut ids: Vec<Vec<u32>> = serde_json::from_str(&text).map_err(|error| Error::Model {
        path: name(),
        reason: error.to_string(),
    })?;
    ids.truncate(n);
    Ok(ids)
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// A figure of this process's memory, where the system says.
pub(crate) fn memory_mib(figure: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(figure))?;
    line.split_whitespace()
        .nth(1)?
        .parse::<u64>()
        .ok()
        .map(|kib| kib / 1024)
}
