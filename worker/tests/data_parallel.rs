//! Stage A on several ranks trains as on one. It continues from a checkpoint with the same results, and a gang that
//! loses a member ends with errors.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod place;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use half::f16;
use llink_datasets::vectors::VectorTable;
use llink_proto::settings::{AlignSettings, Metric};
use llink_worker::Error;
use llink_worker::collective::{AbortHandle, Collective, Ring, RingOptions, Solo};
use llink_worker::llink::statistics::{Statistics, StatisticsFit};
use llink_worker::models::Backend;
use llink_worker::numerics::random::{mix, uniform};
use llink_worker::train::align::data::AlignData;
use llink_worker::train::align::options::AlignOptions;
use llink_worker::train::align::state::AlignState;
use llink_worker::train::align::{AlignOutcome, AlignRun, align};
use llink_worker::train::observer::each;
use llink_worker::train::step_record::StepRecord;

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

    /// Trains without a checkpoint, and returns each step's record.
    fn run(&self, options: &AlignOptions, collective: &mut dyn Collective) -> (Vec<StepRecord>, AlignOutcome) {
        let (mut records, data) = (Vec::new(), data());
        let mut options = options.clone();
        options.settings.micro_batch = self.micro_batch;
        let work = AlignRun { statistics: &self.statistics, ..run(&options, &data, &self.backend, None) };
        let mut watch = each(|record, _| {
            records.push(record.clone());
            Ok(ControlFlow::Continue(()))
        });
        let outcome = align(work, collective, &mut watch).unwrap();
        (records, outcome)
    }
}

fn on_cpu() -> Backend {
    Backend::new(&Device::Cpu, DType::F32)
}

fn grad_norm(record: &StepRecord) -> f64 {
    record.number("grad_norm").unwrap()
}

fn on_ring<T: Send>(world_size: usize, timeout: Duration, work: impl Fn(&mut dyn Collective) -> T + Sync) -> Vec<T> {
    let listeners: Vec<TcpListener> = (0..world_size).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    thread::scope(|scope| {
        let rank = |(rank, listener): (usize, TcpListener)| {
            let options = RingOptions {
                rank,
                addresses: addresses.clone(),
                generation: 3,
                secret: b"of this gang".to_vec(),
                sealed: false,
                timeout,
            };
            let work = &work;
            scope.spawn(move || work(&mut Ring::connect(listener, &options, AbortHandle::new()).unwrap()))
        };
        let ranks: Vec<_> = listeners.into_iter().enumerate().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
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
    Training { backend: place::tensors(dtype), ..Training::default() }
}

fn composed_follows_fused(statistics: &Statistics) {
    let options = with(|settings| settings.steps = 60);
    let fused = Training::in_metric(statistics);
    let (expected, _) = fused.run(&options, &mut Solo::default());
    for (dtype, of_loss, of_norm) in [(DType::F32, 1e-4, 1e-3), (DType::BF16, 0.05, 0.2)] {
        let (mut worst, mut worst_norm) = (0.0_f64, 0.0_f64);
        let training = Training { statistics: statistics.clone(), ..composed(dtype) };
        let (found, _) = training.run(&options, &mut Solo::default());
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            worst = worst.max((a.loss() - b.loss()).abs());
            worst_norm = worst_norm.max((grad_norm(a) / grad_norm(b) - 1.0).abs());
        }
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
                for (single, shared) in alone.iter().zip(&records) {
                    assert!((single.loss() - shared.loss()).abs() < 1e-4, "step {}", single.step);
                }
            }
        }
    }
}

#[test]
fn any_number_of_ranks_sees_the_same_losses() {
    ranks_follow_one(&NOTHING, 1e-4);
}

#[test]
fn any_number_of_ranks_sees_the_same_losses_in_a_fitted_metric() {
    ranks_follow_one(&sharp(), 1e-4);
}

/// Checks that the losses of several ranks are within `tolerance` of those of one.
fn ranks_follow_one(statistics: &Statistics, tolerance: f64) {
    let training = Training::in_metric(statistics);
    let train = |collective: &mut dyn Collective| training.run(&options(), collective);
    let (alone, _) = train(&mut Solo::default());
    assert_eq!(alone.len(), 200);
    assert!(
        alone[199].loss() < 0.6 * alone[0].loss(),
        "nothing was learned: {} to {}",
        alone[0].loss(),
        alone[199].loss()
    );
    for world_size in [2, 3, 4] {
        let ranks = on_ring(world_size, Duration::from_secs(30), |ring| train(ring));
        let mut worst = 0.0_f64;
        for (single, shared) in alone.iter().zip(&ranks[0].0) {
            worst = worst.max((single.loss() - shared.loss()).abs());
            assert!((single.loss() - shared.loss()).abs() < tolerance, "step {}: {single:?} {shared:?}", single.step);
            assert!((grad_norm(single) / grad_norm(shared) - 1.0).abs() < 1e-2);
        }
        println!("{world_size} ranks: losses within {worst:.1e} over {} steps", alone.len());
        for (_, outcome) in &ranks[1..] {
            assert_eq!(outcome.projector, ranks[0].1.projector, "ranks end with different weights");
        }
    }
}

#[test]
fn accumulating_over_micro_batches_changes_nothing_but_memory() {
    let (whole, _) = Training::default().run(&options(), &mut Solo::default());
    let compare = |cut: &[StepRecord], how: &str| {
        let mut worst = 0.0_f64;
        for (whole, cut) in whole.iter().zip(cut) {
            worst = worst.max((whole.loss() - cut.loss()).abs());
            assert!(worst < 1e-4, "{how}, step {}: {whole:?} {cut:?}", cut.step);
        }
        println!("{how}: losses within {worst:.1e} over {} steps", cut.len());
    };
    // The sizes divide the rows evenly, unevenly, one by one, and not at all.
    for micro_batch in [10, 7, 1, 1000] {
        let (cut, _) = Training::in_pieces(micro_batch).run(&options(), &mut Solo::default());
        assert_eq!(cut.len(), whole.len());
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
    for (single, shared) in alone.iter().zip(&ranks[0].0) {
        assert!((single.loss() - shared.loss()).abs() < 1e-4, "{single:?} {shared:?}");
    }
}

#[test]
fn a_resumed_run_ends_with_the_same_bits_at_any_step() {
    for statistics in [NOTHING, sharp()] {
        resumes_with_the_same_bits(&statistics);
    }
}

fn resumes_with_the_same_bits(statistics: &Statistics) {
    let options = with(|settings| settings.steps = 40);
    let mut checkpoints = Vec::new();
    let (data, backend) = (data(), on_cpu());
    let run = |resume| AlignRun { statistics, ..run(&options, &data, &backend, resume) };
    let mut watch = each(|_, snapshot| {
        checkpoints.push(snapshot()?);
        Ok(ControlFlow::Continue(()))
    });
    let whole = align(run(None), &mut Solo::default(), &mut watch).unwrap();
    assert_eq!((whole.next_step, checkpoints.len()), (40, 40));
    for step in [0, 3, 11, 38, 39] {
        let state = AlignState::from_safetensors("checkpoint", &checkpoints[step]).unwrap();
        assert_eq!(state.step, step as u64 + 1);
        let mut last = None;
        let mut watch = each(|_, snapshot| {
            last = Some(snapshot()?);
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!(state.statistics, *statistics);
        let resumed = align(run(Some(state)), &mut Solo::default(), &mut watch);
        assert_eq!(resumed.unwrap().projector, whole.projector, "from step {step}");
        // The last checkpoints are the same file, so moments, queue and cursor are equal too.
        if let Some(last) = last {
            let state = |bytes: &[u8]| AlignState::from_safetensors("checkpoint", bytes).unwrap();
            assert_eq!(state(&last), state(checkpoints.last().unwrap()), "from step {step}");
        }
    }
}

#[test]
fn a_run_may_go_on_with_another_number_of_ranks() {
    let options = with(|settings| settings.steps = 60);
    let mut checkpoint = Vec::new();
    let mut losses: Vec<f64> = Vec::new();
    let data = data();
    let mut watch = each(|record, snapshot| {
        if record.step == 29 {
            checkpoint = snapshot()?;
        }
        losses.push(record.loss());
        Ok(ControlFlow::Continue(()))
    });
    align(run(&options, &data, &on_cpu(), None), &mut Solo::default(), &mut watch).unwrap();
    let ranks = on_ring(3, Duration::from_secs(30), |ring| {
        let state = AlignState::from_safetensors("checkpoint", &checkpoint).unwrap();
        let mut losses = Vec::new();
        let mut watch = each(|record, _| {
            losses.push(record.loss());
            Ok(ControlFlow::Continue(()))
        });
        align(run(&options, &data, &on_cpu(), Some(state)), ring, &mut watch).unwrap();
        losses
    });
    let resumed: &Vec<f64> = &ranks[0];
    assert_eq!(resumed.len(), 30);
    for (a, b) in losses[30..].iter().zip(resumed) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_checkpoint_of_another_training_is_refused_by_name() {
    let options = with(|settings| settings.steps = 2);
    let mut checkpoint = Vec::new();
    let data = data();
    let mut watch = each(|_, snapshot| {
        checkpoint = snapshot()?;
        Ok(ControlFlow::Break(()))
    });
    let outcome = align(run(&options, &data, &on_cpu(), None), &mut Solo::default(), &mut watch);
    assert_eq!(outcome.unwrap().next_step, 1, "the observer ended it after one step");
    let other = with(|settings| (settings.steps, settings.weight_decay) = (2, 0.2));
    let state = AlignState::from_safetensors("checkpoint", &checkpoint).unwrap();
    let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
    let text =
        align(run(&other, &data, &on_cpu(), Some(state)), &mut Solo::default(), proceed).unwrap_err().to_string();
    assert!(text.contains("weight_decay") && text.contains("0.05") && text.contains("0.2"), "{text}");
    let state = AlignState::from_safetensors("checkpoint", &checkpoint).unwrap();
    let (fitted, backend) = (sharp(), on_cpu());
    let work = AlignRun { statistics: &fitted, ..run(&state.options, &data, &backend, Some(state.clone())) };
    let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
    let text = align(work, &mut Solo::default(), proceed).unwrap_err().to_string();
    assert!(text.contains("other statistics"), "{text}");
    let broken = AlignState::from_safetensors("checkpoint", &checkpoint[..checkpoint.len() / 2]).unwrap_err();
    assert!(broken.to_string().starts_with("checkpoint: "), "{broken}");
}

#[test]
fn ranks_that_start_from_different_places_are_refused() {
    let errors = on_ring(2, Duration::from_secs(30), |ring| {
        let options = AlignOptions { seed: 17 + ring.rank() as u64, ..options() };
        let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
        align(run(&options, &data(), &on_cpu(), None), ring, proceed).unwrap_err().to_string()
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
    let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
    let error = align(run(&options, &data(), &on_cpu(), None), &mut Solo::default(), proceed).unwrap_err();
    let Error::Diverged { step, reason, ids } = &error else { panic!("{error}") };
    assert!((1..5).contains(step), "{error}");
    assert!(reason.contains("and 34 more"), "{reason}");
    assert_eq!(ids.len(), 50);
}
