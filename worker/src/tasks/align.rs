//! Stage A as a task: this rank's vectors, ring, checkpoints and progress around the training loop.

use std::collections::HashMap;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use llink_datasets::store::Store;
use llink_datasets::vectors::{self, VectorTable, read_vectors};
use llink_proto::{Align, Artifact, Seat, TaskResult};
use serde_json::json;

use super::TaskContext;
use super::checkpoints::{Checkpoints, Restored};
use crate::collective::{AbortHandle, Collective, Ring, RingOptions, Solo};
use crate::train::align::{AlignOutcome, StepReport, align};
use crate::train::align_data::AlignData;
use crate::train::align_options::AlignOptions;
use crate::train::checkpoint::AlignState;
use crate::{Error, Result};

/// Between two looks at the figures that people see.
const SHOW_EVERY: Duration = Duration::from_millis(200);

pub(super) fn run(context: &TaskContext, task: &Align) -> Result<TaskResult> {
    let proto = task.options.as_ref().ok_or_else(|| Error::Input("an align task without its options".into()))?;
    let options = AlignOptions {
        seed: proto.seed,
        steps: proto.steps,
        batch: proto.batch as usize,
        queue_capacity: proto.queue_capacity as usize,
        hard_negatives: proto.hard_negatives as usize,
        temperature_start: proto.temperature_start,
        temperature_end: proto.temperature_end,
        learning_rate: proto.learning_rate,
        learning_rate_floor: proto.learning_rate_floor,
        warmup_steps: proto.warmup_steps,
        weight_decay: proto.weight_decay,
        beta1: proto.beta1,
        beta2: proto.beta2,
        gradient_clip: proto.gradient_clip,
        dropout: proto.dropout,
        weight_direction: proto.weight_direction,
        weight_log_norm: proto.weight_log_norm,
        projector_hidden: proto.projector_hidden as usize,
    };
    let store = context.store()?;
    let encoder = read_tables(context, &store, &task.encoder_vectors)?;
    let teacher = read_tables(context, &store, &task.teacher_vectors)?;
    let data = AlignData::new(encoder, teacher)?;
    let mut collective = join(context, Duration::from_secs_f64(proto.step_timeout_s))?;
    let checkpoints = Checkpoints::new(context, &store, &task.directory);
    let restored = agree_on_checkpoint(&checkpoints, collective.as_mut())?;
    let mut training = Training::new(context, &checkpoints, &options, proto.checkpoint_every, collective.as_ref());
    let state = match &restored {
        Some(restored) => {
            training.metrics.clone_from(&restored.metrics);
            Some(AlignState::from_safetensors(&restored.name, &restored.state)?)
        }
        None => None,
    };
    let outcome = align(&options, &data, collective.as_mut(), state, &mut |report, snapshot| {
        context.control.check()?;
        training.observe(report, snapshot)?;
        Ok(ControlFlow::Continue(()))
    })?;
    if collective.rank() > 0 {
        return Ok(TaskResult::default());
    }
    let metrics = std::mem::take(&mut training.metrics);
    let warnings = restored.map(|r| r.warnings).unwrap_or_default();
    finish(context, &store, task, &outcome, metrics, warnings, collective.world_size())
}

pub(super) fn read_tables(context: &TaskContext, store: &Store, artifacts: &[Artifact]) -> Result<VectorTable> {
    let mut tables = Vec::with_capacity(artifacts.len());
    for artifact in artifacts {
        context.control.check()?;
        let content = context.read(store, artifact)?;
        tables.push(read_vectors(&store.describe(&artifact.path), content)?);
    }
    Ok(vectors::concat(tables)?)
}

/// The collective of this gang, and the wire that aborts it when the task is told to stop.
fn join(context: &TaskContext, timeout: Duration) -> Result<Box<dyn Collective>> {
    let abort = AbortHandle::default();
    let wire = abort.clone();
    context.control.on_stop(move |reason| wire.abort(reason));
    let seat = context.seat.unwrap_or(Seat {
        rank: 0,
        world_size: 1,
        generation: context.token,
    });
    if seat.world_size == 1 {
        return Ok(Box::new(Solo::new(abort)));
    }
    let failed = |source| Error::Io {
        path: format!("listening on {}", context.local_address),
        source,
    };
    let listener = TcpListener::bind((context.local_address, 0)).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    let addresses = (context.rendezvous)(address)?;
    let options = RingOptions {
        rank: seat.rank as usize,
        addresses,
        generation: seat.generation,
        timeout,
    };
    Ok(Box::new(Ring::connect(listener, &options, abort)?))
}

/// Rank 0 looks for the newest whole checkpoint and tells the others which one it is.
fn agree_on_checkpoint(checkpoints: &Checkpoints<'_>, collective: &mut dyn Collective) -> Result<Option<Restored>> {
    let mut words = [0.0_f32; 8];
    let mut own = None;
    if collective.rank() == 0 {
        own = checkpoints.newest()?;
        if let Some(restored) = &own {
            // 16 bits fit an f32 exactly; the first four words are the step plus one, so that 0 says that there is none.
            let numbers = [restored.step + 1, restored.generation];
            for (word, shift) in words.iter_mut().zip([0, 16, 32, 48, 0, 16, 32, 48]).take(4) {
                *word = (numbers[0] >> shift & 0xffff) as f32;
            }
            for (word, shift) in words[4..].iter_mut().zip([0, 16, 32, 48]) {
                *word = (numbers[1] >> shift & 0xffff) as f32;
            }
        }
    }
    collective.broadcast(0, &mut words)?;
    if collective.rank() == 0 {
        return Ok(own);
    }
    let number = |words: &[f32]| words.iter().rev().fold(0_u64, |n, word| n << 16 | *word as u64);
    match number(&words[..4]) {
        0 => Ok(None),
        step => checkpoints.load(step - 1, number(&words[4..])).map(Some),
    }
}

/// What the loop tells after each step, and what is made of it.
struct Training<'a> {
    context: &'a TaskContext,
    checkpoints: &'a Checkpoints<'a>,
    steps: u64,
    checkpoint_every: u64,
    rank: usize,
    world_size: usize,
    metrics: String,
    shown: Instant,
    pairs_since: u64,
}

impl<'a> Training<'a> {
    fn new(
        context: &'a TaskContext,
        checkpoints: &'a Checkpoints<'a>,
        options: &AlignOptions,
        checkpoint_every: u64,
        collective: &dyn Collective,
    ) -> Self {
        Self {
            context,
            checkpoints,
            steps: options.steps,
            checkpoint_every,
            rank: collective.rank(),
            world_size: collective.world_size(),
            metrics: String::new(),
            shown: Instant::now(),
            pairs_since: 0,
        }
    }

    fn observe(&mut self, report: &StepReport, snapshot: &dyn Fn() -> Result<Vec<u8>>) -> Result<()> {
        let done = report.step + 1;
        self.context.control.advance(done, self.steps);
        self.pairs_since += report.pairs as u64;
        if self.rank > 0 {
            return Ok(());
        }
        self.metrics.push_str(&line(report));
        if self.shown.elapsed() >= SHOW_EVERY || done == self.steps {
            let pairs_per_s = self.pairs_since as f64 / self.shown.elapsed().as_secs_f64().max(1e-9);
            self.context.control.show([
                ("loss", report.loss),
                ("temperature", report.temperature),
                ("pairs_per_s", pairs_per_s),
                ("ranks", self.world_size as f64),
            ]);
            (self.shown, self.pairs_since) = (Instant::now(), 0);
        }
        if self.checkpoint_every > 0 && done.is_multiple_of(self.checkpoint_every) && done < self.steps {
            self.checkpoints.save(report.step, &snapshot()?, &self.metrics)?;
        }
        Ok(())
    }
}

/// One step as a JSON line.
fn line(report: &StepReport) -> String {
    let seconds = &report.seconds;
    let line = json!({
        "step": report.step, "loss": report.loss, "info_nce": report.info_nce, "direction": report.direction,
        "log_norm": report.log_norm, "grad_norm": report.grad_norm, "learning_rate": report.learning_rate,
        "temperature": report.temperature, "pairs": report.pairs, "seconds": {
            "data": seconds.data, "forward": seconds.forward, "backward": seconds.backward,
            "reduce": seconds.reduce, "optimizer": seconds.optimizer,
        },
    });
    format!("{line}\n")
}

fn finish(
    context: &TaskContext,
    store: &Store,
    task: &Align,
    outcome: &AlignOutcome,
    metrics: String,
    warnings: Vec<String>,
    world_size: usize,
) -> Result<TaskResult> {
    // Under the lease's token: a rank 0 that was given up on and comes late cannot touch what its successor writes.
    let directory = format!("{}/generation-{}", task.directory, context.token);
    let projector = outcome.projector.to_safetensors(HashMap::new())?;
    let steps = metrics.lines().count() as u64;
    let artifacts = vec![
        context.write(store, &format!("{directory}/projector.safetensors"), "projector", 0, projector.into())?,
        context.write(store, &format!("{directory}/metrics.jsonl"), "metrics", steps, metrics.into())?,
    ];
    let mut result = TaskResult {
        artifacts,
        warnings,
        ..TaskResult::default()
    };
    result.figures.insert("ranks".into(), world_size as f64);
    if let Some(last) = &outcome.last {
        let figures = [("loss", last.loss), ("info_nce", last.info_nce), ("temperature", last.temperature)];
        result.figures.extend(figures.map(|(name, value)| (name.to_owned(), value)));
    }
    Ok(result)
}
