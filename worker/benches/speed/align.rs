//! How fast a step of Stage A is, on the inputs of the reference's own benchmark: random vectors at the paper's sizes and a
//! full queue, the steady state of training.

use std::time::Instant;

use half::f16;
use llink_worker::Result;
use llink_worker::collective::Solo;
use llink_worker::llink::projector::{Projector, ProjectorShape};
use llink_worker::llink::teacher_queue::StoredQueue;
use llink_worker::models::Backend;
use llink_worker::numerics::dropout::Dropout;
use llink_worker::numerics::kernels::normalize;
use llink_worker::numerics::random::{key, mix, noise};
use llink_worker::train::align::options::AlignOptions;
use llink_worker::train::align::step::{AlignTrainer, StepInput};
use llink_worker::train::optimizer::AdamWState;
use llink_worker::train::step::StepSeconds;
use serde_json::{Value, json};

use super::Options;

const SHAPE: ProjectorShape = ProjectorShape { input: 768, hidden: 3072, output: 2048 };
const ROWS: usize = 20_000;
const TEMPERATURE: f64 = 0.1;

/// Times steps of a batch of pairs on one rank, after one to warm up. `phases_ms` says where a median step's time went.
pub(super) fn measure(asked: &Options, backend: &Backend) -> Result<Value> {
    let (batch, steps) = (asked.batch.unwrap_or(128), asked.steps);
    let options = AlignOptions::default();
    let settings = &options.settings;
    let (encoder, teacher) = (noise(1, ROWS * SHAPE.input), noise(2, ROWS * SHAPE.output));
    let queue = full_queue(settings.queue as usize)?;
    let optimizer = AdamWState::new(options.adamw(), SHAPE.parameter_count());
    let (projector, weights, clip) = (Projector::new(SHAPE, 0), settings.into(), settings.gradient_clip);
    let mut trainer = AlignTrainer::new(backend, &projector, &optimizer, &queue, weights, clip)?;
    let mut timed = Vec::with_capacity(steps);
    for step in 0..=steps as u64 {
        let rows: Vec<usize> = (0..batch as u64).map(|i| mix(key(&[step, i])) as usize % ROWS).collect();
        let ids: Vec<u64> = rows.iter().map(|row| *row as u64).collect();
        let started = Instant::now();
        let gather = |values: &[f32], width: usize| -> Vec<f32> {
            rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
        };
        let input = StepInput {
            step,
            ids: &ids,
            own: 0..batch,
            encoder: &gather(&encoder, SHAPE.input),
            teacher: &gather(&teacher, SHAPE.output),
            temperature: TEMPERATURE,
            learning_rate: settings.learning_rate,
            dropout: Some(Dropout::new(settings.dropout, 0, step)),
        };
        let data = started.elapsed().as_secs_f64();
        let outcome = trainer.step(&input, &mut Solo::default())?;
        timed.push((started.elapsed().as_secs_f64(), StepSeconds { data, ..outcome.seconds }));
    }
    timed.remove(0);
    timed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (seconds, phases) = timed[timed.len() / 2];
    Ok(json!({
        "dtype": backend.dtype().as_str(),
        "batch": batch,
        "queue": settings.queue,
        "step_ms": seconds * 1e3,
        "pairs_per_s": batch as f64 / seconds,
        "phases_ms": {
            "data": phases.data * 1e3,
            "forward": phases.forward * 1e3,
            "backward": phases.backward * 1e3,
            "optimizer": phases.optimizer * 1e3,
        },
    }))
}

/// A full queue of random directions, of no pair that is trained on.
fn full_queue(capacity: usize) -> Result<StoredQueue> {
    let mut rows = noise(3, 1024 * SHAPE.output);
    for row in rows.chunks_exact_mut(SHAPE.output) {
        let raw = row.to_vec();
        normalize(&raw, row);
    }
    let rows: Vec<f16> = rows.into_iter().map(f16::from_f32).collect();
    // The same directions with signs flipped by block: no two rows are alike, and making them takes no time.
    let vectors = (0..capacity).step_by(1024).flat_map(|first| {
        let flips = mix(first as u64);
        let flipped = rows.iter().enumerate();
        flipped.map(move |(i, x)| if flips >> (i % 61) & 1 == 0 { *x } else { -*x })
    });
    let vectors = vectors.take(capacity * SHAPE.output).collect();
    let ids = (0..capacity).map(|i| (ROWS + i) as u64).collect();
    StoredQueue::restore(capacity, SHAPE.output, vectors, ids, 0)
}
