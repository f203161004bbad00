//! Stage A on several ranks trains as on one. It continues from a checkpoint with the same results, and a gang that
//! loses a member ends with errors.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::common::gang::on_ring;
use crate::common::{assert_refused, on_cpu, tensors};
use candle_core::DType;
use half::f16;
use llink_datasets::vectors::VectorTable;
use llink_proto::settings::{AlignSettings, Metric};
use llink_worker::collective::{Collective, Solo};
use llink_worker::llink::statistics::{Statistics, StatisticsFit};
use llink_worker::models::Backend;
use llink_worker::numerics::random::{mix, uniform};
use llink_worker::train::align::data::AlignData;
use llink_worker::train::align::options::AlignOptions;
use llink_worker::train::align::state::AlignState;
use llink_worker::train::align::{AlignOutcome, AlignRun, align};
use llink_worker::train::observer::{Snapshot, each};
use llink_worker::train::step_record::StepRecord;
use llink_worker::{Error, Result};

const PAIRS: usize = 600;

/// The statistics of a training as in the paper.
const NOTHING: Statistics = Statistics { metric: None, standardization: None, start: None };

/// Returns encoder vectors, and teachers that a projector can learn from them.
fn data() -> AlignData {
    let (encoder, teacher) = tables();
    AlignData::new(encoder, teacher).unwrap()
}

/// Fits everything that Stage A can fit: a whitened metric, standardized encoder vectors, and a LayerNorm that starts
/// at the teachers.
fn sharp() -> Statistics {
    let (encoder, teacher) = tables();
    let mut fit =
        StatisticsFit::new(AlignSettings { metric: Metric::Whitened, standardize: true, ..AlignSettings::default() });
    fit.add_encoder(&encoder).unwrap();
    fit.add_teacher(&teacher).unwrap();
    fit.finish().unwrap()
}

fn tables() -> (VectorTable, VectorTable) {
    let (d_e, d) = (24, 40);
    let noise = |key: u64, i: usize| 2.0 * uniform(key, i as u64) - 1.0;
    let encoder: Vec<f32> = (0..PAIRS * d_e).map(|i| noise(1, i)).collect();
    let teacher = (0..PAIRS * d).map(|i| {
        let (row, column) = (i / d, i % d);
        let mixed: f32 = (0..d_e).map(|k| encoder[row * d_e + k] * noise(2, k * d + column)).sum();
        f16::from_f32(mixed.tanh() * 3.0 + 0.3 * noise(3, i))
    });
    let teacher = VectorTable { ids: (0..PAIRS as u64).map(mix).collect(), width: d, values: teacher.collect() };
    let encoder = encoder.into_iter().map(f16::from_f32).collect();
    let encoder = VectorTable { ids: teacher.ids.clone(), width: d_e, values: encoder };
    (encoder, teacher)
}

fn options() -> AlignOptions {
    let settings = AlignSettings {
        steps: 200,
        batch: 50, // not a multiple of 3 or 4, so that slices are uneven
        queue: 301,
        hard_negatives: 20,
        learning_rate: 3e-3,
        warmup_steps: 20,
        dropout: 0.1,
        ..AlignSettings::default()
    };
    AlignOptions { seed: 17, settings }
}

/// The same options, except for some settings.
fn with(change: impl FnOnce(&mut AlignSettings)) -> AlignOptions {
    let mut options = options();
    change(&mut options.settings);
    options
}

/// Returns a run from the beginning, or from a state.
fn run<'a>(
    options: &'a AlignOptions,
    data: &'a AlignData,
    backend: &'a Backend,
    resume: Option<AlignState>,
) -> AlignRun<'a> {
    AlignRun { options, data, statistics: &NOTHING, resume, backend, validation: None }
}

/// The settings of a test's training. The default is the CPU, the paper's form, and all rows at once.
struct Training {
    statistics: Statistics,
    backend: Backend,
    micro_batch: Option<u32>,
}

impl Default for Training {
    fn default() -> Self {
        Self { statistics: NOTHING, backend: on_cpu(), micro_batch: None }
    }
}

impl Training {
    fn in_metric(statistics: &Statistics) -> Self {
        Self { statistics: statistics.clone(), ..Self::default() }
    }

    fn in_pieces(micro_batch: u32) -> Self {
        Self { micro_batch: Some(micro_batch), ..Self::default() }
    }

    fn run(&self, options: &AlignOptions, collective: &mut dyn Collective) -> (Vec<StepRecord>, AlignOutcome) {
        let (data, mut options) = (data(), options.clone());
        options.settings.micro_batch = self.micro_batch;
        let work = AlignRun { statistics: &self.statistics, ..run(&options, &data, &self.backend, None) };
        let (records, _, outcome) = observed(work, collective, |_| false);
        (records, outcome)
    }
}

/// Trains, and returns each step's record, the checkpoint after each of the steps that are `saved`, and the outcome.
fn observed(
    work: AlignRun<'_>,
    collective: &mut dyn Collective,
    saved: impl Fn(u64) -> bool,
) -> (Vec<StepRecord>, Vec<Vec<u8>>, AlignOutcome) {
    let (mut records, mut checkpoints) = (Vec::new(), Vec::new());
    let mut watch = each(|record, snapshot| {
        records.push(record.clone());
        if saved(record.step) {
            checkpoints.push(snapshot()?);
        }
        Ok(ControlFlow::Continue(()))
    });
    let outcome = align(work, collective, &mut watch).unwrap();
    (records, checkpoints, outcome)
}

fn proceed(_: &StepRecord, _: Snapshot<'_>) -> Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

fn state(checkpoint: &[u8]) -> AlignState {
    AlignState::from_safetensors("checkpoint", checkpoint).unwrap()
}

/// Returns the largest difference of two runs' losses.
fn apart(a: &[StepRecord], b: &[StepRecord]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a.loss() - b.loss()).abs()).fold(0.0, f64::max)
}

/// Returns the largest relative difference of two runs' gradient norms.
fn norms_apart(a: &[StepRecord], b: &[StepRecord]) -> f64 {
    let norm = |record: &StepRecord| record.number("grad_norm").unwrap();
    a.iter().zip(b).map(|(a, b)| (norm(a) / norm(b) - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn composed_operations_take_the_steps_of_fused_ones_with_the_same_masks_and_negatives() {
    composed_follows_fused(&NOTHING);
}

#[test]
fn composed_operations_take_the_steps_of_fused_ones_in_a_fitted_metric() {
    composed_follows_fused(&sharp());
}

/// Returns a training in the form of GPUs.
fn composed(dtype: DType) -> Training {
    Training { backend: tensors(dtype), ..Training::default() }
}

fn composed_follows_fused(statistics: &Statistics) {
    let options = with(|settings| settings.steps = 60);
    let fused = Training::in_metric(statistics);
    let (expected, _) = fused.run(&options, &mut Solo::default());
    for (dtype, of_loss, of_norm) in [(DType::F32, 1e-4, 1e-3), (DType::BF16, 0.05, 0.2)] {
        let training = Training { statistics: statistics.clone(), ..composed(dtype) };
        let (found, _) = training.run(&options, &mut Solo::default());
        let (worst, worst_norm) = (apart(&found, &expected), norms_apart(&found, &expected));
        println!("{dtype:?}: losses within {worst:.1e}, gradient norms within {worst_norm:.1e}");
        assert!(worst < of_loss && worst_norm < of_norm, "{dtype:?}: {worst:.1e} {worst_norm:.1e}");
    }
}

#[test]
fn ranks_that_compose_their_operations_see_the_losses_of_one() {
    let options = with(|settings| settings.steps = 40);
    for statistics in [NOTHING, sharp()] {
        let training = Training { statistics, ..composed(DType::F32) };
        let (alone, _) = training.run(&options, &mut Solo::default());
        for world_size in [2, 4] {
            for (records, _) in on_ring(world_size, Duration::from_secs(60), |ring| training.run(&options, ring)) {
                assert!(apart(&alone, &records) < 1e-4, "{world_size} ranks");
            }
        }
    }
}

#[test]
fn any_number_of_ranks_sees_the_same_losses() {
    ranks_follow_one(&NOTHING);
}

#[test]
fn any_number_of_ranks_sees_the_same_losses_in_a_fitted_metric() {
    ranks_follow_one(&sharp());
}

fn ranks_follow_one(statistics: &Statistics) {
    let training = Training::in_metric(statistics);
    let train = |collective: &mut dyn Collective| training.run(&options(), collective);
    let (alone, _) = train(&mut Solo::default());
    assert_eq!(alone.len(), 200);
    let (first, last) = (alone[0].loss(), alone[199].loss());
    assert!(last < 0.6 * first, "nothing was learned: {first} to {last}");
    for world_size in [2, 3, 4] {
        let ranks = on_ring(world_size, Duration::from_secs(30), train);
        let worst = apart(&alone, &ranks[0].0);
        println!("{world_size} ranks: losses within {worst:.1e} over {} steps", alone.len());
        assert!(worst < 1e-4 && norms_apart(&alone, &ranks[0].0) < 1e-2, "{world_size} ranks: {worst}");
        for (_, outcome) in &ranks[1..] {
            assert_eq!(outcome.projector, ranks[0].1.projector, "ranks end with different weights");
        }
    }
}

#[test]
fn accumulating_over_micro_batches_changes_nothing_but_memory() {
    let (whole, _) = Training::default().run(&options(), &mut Solo::default());
    let compare = |cut: &[StepRecord], how: &str| {
        let worst = apart(&whole, cut);
        println!("{how}: losses within {worst:.1e} over {} steps", cut.len());
        assert!(worst < 1e-4, "{how}: {worst}");
    };
    // The sizes divide the rows evenly, unevenly, one by one, and not at all.
    for micro_batch in [10, 7, 1, 1000] {
        let (cut, _) = Training::in_pieces(micro_batch).run(&options(), &mut Solo::default());
        compare(&cut, &format!("micro-batches of {micro_batch}"));
    }
    let ranks = on_ring(2, Duration::from_secs(30), |ring| Training::in_pieces(8).run(&options(), ring));
    compare(&ranks[0].0, "2 ranks, micro-batches of 8");
    assert_eq!(ranks[0].1.projector, ranks[1].1.projector);
    let training = Training { micro_batch: Some(7), ..composed(DType::F32) };
    let (cut, _) = training.run(&options(), &mut Solo::default());
    compare(&cut, "composed operations, micro-batches of 7");
    let ranks = on_ring(2, Duration::from_secs(60), |ring| training.run(&options(), ring));
    compare(&ranks[0].0, "composed operations on 2 ranks, micro-batches of 7");
}

#[test]
fn ranks_without_rows_take_part() {
    let options = with(|settings| (settings.batch, settings.steps) = (2, 5));
    let (alone, _) = Training::default().run(&options, &mut Solo::default());
    let ranks = on_ring(3, Duration::from_secs(30), |ring| Training::default().run(&options, ring));
    assert!(apart(&alone, &ranks[0].0) < 1e-4, "{alone:?} {:?}", ranks[0].0);
}

#[test]
fn a_resumed_run_ends_with_the_same_bits_at_any_step() {
    let options = with(|settings| settings.steps = 40);
    let (data, backend) = (data(), on_cpu());
    for statistics in &[NOTHING, sharp()] {
        let train = |resume| {
            let work = AlignRun { statistics, ..run(&options, &data, &backend, resume) };
            observed(work, &mut Solo::default(), |_| true)
        };
        let (_, checkpoints, whole) = train(None);
        assert_eq!((whole.next_step, checkpoints.len()), (40, 40));
        for step in [0, 3, 11, 38, 39] {
            let from = state(&checkpoints[step]);
            assert_eq!((from.step, &from.statistics), (step as u64 + 1, statistics));
            let (_, after, resumed) = train(Some(from));
            assert_eq!(resumed.projector, whole.projector, "from step {step}");
            // The last checkpoints are the same file, so moments, queue and cursor are equal too.
            let last = after.last().unwrap_or(&checkpoints[39]);
            assert_eq!(state(last), state(&checkpoints[39]), "from step {step}");
        }
    }
}

#[test]
fn a_run_may_go_on_with_another_number_of_ranks() {
    let options = with(|settings| settings.steps = 60);
    let (data, backend) = (data(), on_cpu());
    let whole = run(&options, &data, &backend, None);
    let (alone, checkpoints, _) = observed(whole, &mut Solo::default(), |step| step == 29);
    let ranks = on_ring(3, Duration::from_secs(30), |ring| {
        observed(run(&options, &data, &backend, Some(state(&checkpoints[0]))), ring, |_| false).0
    });
    assert!(apart(&alone[30..], &ranks[0]) < 1e-4);
}

#[test]
fn a_checkpoint_of_another_training_is_refused_by_name() {
    let options = with(|settings| settings.steps = 2);
    let mut checkpoint = Vec::new();
    let (data, backend) = (data(), on_cpu());
    let mut watch = each(|_, snapshot| {
        checkpoint = snapshot()?;
        Ok(ControlFlow::Break(()))
    });
    let outcome = align(run(&options, &data, &backend, None), &mut Solo::default(), &mut watch);
    assert_eq!(outcome.unwrap().next_step, 1, "the observer ended it after one step");
    let refused = |work: AlignRun<'_>, words: &[&str]| {
        assert_refused(align(work, &mut Solo::default(), &mut each(proceed)), words);
    };
    let other = with(|settings| (settings.steps, settings.weight_decay) = (2, 0.2));
    let (from, fitted) = (state(&checkpoint), sharp());
    refused(run(&other, &data, &backend, Some(from.clone())), &["weight_decay", "0.05", "0.2"]);
    let work = AlignRun { statistics: &fitted, ..run(&from.options, &data, &backend, Some(from.clone())) };
    refused(work, &["other statistics"]);
    let broken = AlignState::from_safetensors("checkpoint", &checkpoint[..checkpoint.len() / 2]).unwrap_err();
    assert!(broken.to_string().starts_with("checkpoint: "), "{broken}");
}

#[test]
fn ranks_that_start_from_different_places_are_refused() {
    let errors = on_ring(2, Duration::from_secs(30), |ring| {
        let options = AlignOptions { seed: 17 + ring.rank() as u64, ..options() };
        align(run(&options, &data(), &on_cpu(), None), ring, &mut each(proceed)).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|text| text.contains("different weights")), "{errors:?}");
}

#[test]
fn a_member_that_is_lost_ends_the_gang_with_errors() {
    let timeout = Duration::from_secs(20);
    let results = on_ring(3, timeout, |ring| {
        let rank = ring.rank();
        let started = Instant::now();
        let mut watch = each(|record, _| match (rank, record.step) {
            (1, 20) => Err(Error::Input("the disk is full".into())),
            _ => Ok(ControlFlow::Continue(())),
        });
        let result = align(run(&options(), &data(), &on_cpu(), None), ring, &mut watch);
        (result.unwrap_err(), started.elapsed())
    });
    assert!(matches!(&results[1].0, Error::Input(text) if text == "the disk is full"));
    for rank in [0, 2] {
        let (error, elapsed) = &results[rank];
        assert!(matches!(error, Error::Peer { .. }), "{error}");
        assert!(error.to_string().contains("at step 21"), "{error}");
        assert!(*elapsed < timeout, "{elapsed:?}");
    }
}

#[test]
fn numbers_that_run_away_are_named_with_step_and_pairs() {
    let options = with(|settings| {
        settings.learning_rate = 1e30;
        settings.warmup_steps = 0;
        settings.dropout = 0.0;
    });
    let watch = &mut each(proceed);
    let error = align(run(&options, &data(), &on_cpu(), None), &mut Solo::default(), watch).unwrap_err();
    let Error::Diverged { step, reason, ids } = &error else { panic!("{error}") };
    assert!((1..5).contains(step), "{error}");
    assert!(reason.contains("and 34 more"), "{reason}");
    assert_eq!(ids.len(), 50);
}
