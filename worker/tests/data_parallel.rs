//! Stage A on several ranks trains as it does on one, goes on from a checkpoint as if nothing had happened, and a gang that
//! loses a member ends with errors.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod place;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::DType;
use half::f16;
use llink_datasets::vectors::VectorTable;
use llink_worker::Error;
use llink_worker::collective::{AbortHandle, Collective, Ring, RingOptions, Solo};
use llink_worker::llink::statistics::{Metric, Statistics, StatisticsFit, StatisticsOptions};
use llink_worker::train::align::{AlignOutcome, AlignRun, align};
use llink_worker::train::align_data::AlignData;
use llink_worker::train::align_options::AlignOptions;
use llink_worker::train::align_state::AlignState;
use llink_worker::train::observer::each;
use llink_worker::train::random::{mix, uniform};
use llink_worker::train::step_record::StepRecord;

const PAIRS: usize = 600;

/// Trains as the paper does.
const NOTHING: Statistics = Statistics {
    metric: None,
    standardization: None,
    start: None,
};

/// Encoder vectors, and teachers that a projector can learn from them.
fn data() -> AlignData {
    let (encoder, teacher) = tables();
    AlignData::new(encoder, teacher).unwrap()
}

/// All that Stage A can fit on them: a whitened metric, standardized encoder vectors, a LayerNorm that starts at the teachers.
fn sharp() -> Statistics {
    let (encoder, teacher) = tables();
    let mut fit = StatisticsFit::new(StatisticsOptions {
        metric: Metric::Whitened,
        whitening_eps: 1e-3,
        start_at_teachers: true,
        standardize: true,
    });
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
        let mixed: f32 = (0..d_e)
            .map(|k| encoder[row * d_e + k] * noise(2, k * d + column))
            .sum();
        f16::from_f32(mixed.tanh() * 3.0 + 0.3 * noise(3, i))
    });
    let teacher = VectorTable {
        ids: (0..PAIRS as u64).map(mix).collect(),
        width: d,
        values: teacher.collect(),
    };
    let encoder = encoder.into_iter().map(f16::from_f32).collect();
    let encoder = VectorTable {
        ids: teacher.ids.clone(),
        width: d_e,
        values: encoder,
    };
    (encoder, teacher)
}

fn options() -> AlignOptions {
    AlignOptions {
        seed: 17,
        steps: 200,
        batch: 50, // not a multiple of 3 or 4: slices are uneven
        queue_capacity: 301,
        hard_negatives: 20,
        learning_rate: 3e-3,
        warmup_steps: 20,
        dropout: 0.1,
        ..AlignOptions::default()
    }
}

/// A run from the beginning, or from a state.
fn run<'a>(options: &'a AlignOptions, data: &'a AlignData, resume: Option<AlignState>) -> AlignRun<'a> {
    AlignRun {
        options,
        data,
        statistics: &NOTHING,
        resume,
        backend: None,
        micro_batch: 0,
        validation: None,
    }
}

/// Trains without a checkpoint and returns each step's record.
fn train(options: &AlignOptions, collective: &mut dyn Collective) -> (Vec<StepRecord>, AlignOutcome) {
    train_in_pieces(options, 0, collective)
}

/// The same with at most `micro_batch` rows' activations at once.
fn train_in_pieces(
    options: &AlignOptions,
    micro_batch: usize,
    collective: &mut dyn Collective,
) -> (Vec<StepRecord>, AlignOutcome) {
    train_with(&NOTHING, options, micro_batch, collective)
}

/// The same with what was fitted.
fn train_with(
    statistics: &Statistics,
    options: &AlignOptions,
    micro_batch: usize,
    collective: &mut dyn Collective,
) -> (Vec<StepRecord>, AlignOutcome) {
    let mut records = Vec::new();
    let data = data();
    let work = AlignRun {
        micro_batch,
        statistics,
        ..run(options, &data, None)
    };
    let mut watch = each(|record, _| {
        records.push(record.clone());
        Ok(ControlFlow::Continue(()))
    });
    let outcome = align(work, collective, &mut watch).unwrap();
    (records, outcome)
}

fn grad_norm(record: &StepRecord) -> f64 {
    record.number("grad_norm").unwrap()
}

fn on_ring<T: Send>(world_size: usize, timeout: Duration, work: impl Fn(&mut dyn Collective) -> T + Sync) -> Vec<T> {
    let listeners: Vec<TcpListener> = (0..world_size)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
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

/// As [`train_in_pieces`], in tensors.
fn train_in_pieces_of_tensors(
    dtype: DType,
    micro_batch: usize,
    options: &AlignOptions,
    collective: &mut dyn Collective,
) -> Vec<StepRecord> {
    train_in_tensors_with(&NOTHING, dtype, micro_batch, options, collective)
}

/// As [`train_with`], in tensors.
fn train_in_tensors_with(
    statistics: &Statistics,
    dtype: DType,
    micro_batch: usize,
    options: &AlignOptions,
    collective: &mut dyn Collective,
) -> Vec<StepRecord> {
    let (mut records, data, backend) = (Vec::new(), data(), place::tensors(dtype));
    let work = AlignRun {
        micro_batch,
        backend: Some(&backend),
        statistics,
        ..run(options, &data, None)
    };
    let mut watch = each(|record, _| {
        records.push(record.clone());
        Ok(ControlFlow::Continue(()))
    });
    align(work, collective, &mut watch).unwrap();
    records
}

#[test]
fn tensors_take_the_steps_of_slices_with_the_same_masks_and_negatives() {
    tensors_follow_slices(&NOTHING, [1e-4, 0.05]);
}

#[test]
fn tensors_take_the_steps_of_slices_in_a_fitted_metric() {
    tensors_follow_slices(&sharp(), [1e-4, 0.05]);
}

/// Within these differences of the losses, in f32 and in bf16.
fn tensors_follow_slices(statistics: &Statistics, [of_loss, of_loss_bf16]: [f64; 2]) {
    let options = AlignOptions { steps: 60, ..options() };
    let (slices, _) = train_with(statistics, &options, 0, &mut Solo::default());
    for (dtype, of_loss, of_norm) in [(DType::F32, of_loss, 1e-3), (DType::BF16, of_loss_bf16, 0.2)] {
        let (mut worst, mut worst_norm) = (0.0_f64, 0.0_f64);
        let tensors = train_in_tensors_with(statistics, dtype, 0, &options, &mut Solo::default());
        assert_eq!(tensors.len(), slices.len());
        for (a, b) in tensors.iter().zip(&slices) {
            worst = worst.max((a.loss() - b.loss()).abs());
            worst_norm = worst_norm.max((grad_norm(a) / grad_norm(b) - 1.0).abs());
        }
        println!("{dtype:?}: losses within {worst:.1e}, gradient norms within {worst_norm:.1e}");
        assert!(
            worst < of_loss && worst_norm < of_norm,
            "{dtype:?}: {worst:.1e} {worst_norm:.1e}"
        );
    }
}

#[test]
fn ranks_that_compute_in_tensors_see_the_losses_of_one() {
    let options = AlignOptions { steps: 40, ..options() };
    for statistics in [NOTHING, sharp()] {
        let train =
            |collective: &mut dyn Collective| train_in_tensors_with(&statistics, DType::F32, 0, &options, collective);
        let alone = train(&mut Solo::default());
        for world_size in [2, 4] {
            for records in on_ring(world_size, Duration::from_secs(60), |ring| train(ring)) {
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

/// Within this difference of the losses.
fn ranks_follow_one(statistics: &Statistics, tolerance: f64) {
    let train = |collective: &mut dyn Collective| train_with(statistics, &options(), 0, collective);
    let (alone, _) = train(&mut Solo::default());
    assert_eq!(alone.len(), 200);
    assert!(
        alone[199].loss() < 0.6 * alone[0].loss(),
        "nothing was learnt: {} to {}",
        alone[0].loss(),
        alone[199].loss()
    );
    for world_size in [2, 3, 4] {
        let ranks = on_ring(world_size, Duration::from_secs(30), |ring| train(ring));
        let mut worst = 0.0_f64;
        for (single, shared) in alone.iter().zip(&ranks[0].0) {
            worst = worst.max((single.loss() - shared.loss()).abs());
            assert!(
                (single.loss() - shared.loss()).abs() < tolerance,
                "step {}: {single:?} {shared:?}",
                single.step
            );
            assert!((grad_norm(single) / grad_norm(shared) - 1.0).abs() < 1e-2);
        }
        println!(
            "{world_size} ranks: losses within {worst:.1e} over {} steps",
            alone.len()
        );
        for (_, outcome) in &ranks[1..] {
            assert_eq!(
                outcome.projector, ranks[0].1.projector,
                "ranks end with different weights"
            );
        }
    }
}

#[test]
fn accumulating_over_micro_batches_changes_nothing_but_memory() {
    let (whole, _) = train(&options(), &mut Solo::default());
    let compare = |cut: &[StepRecord], how: &str| {
        let mut worst = 0.0_f64;
        for (whole, cut) in whole.iter().zip(cut) {
            worst = worst.max((whole.loss() - cut.loss()).abs());
            assert!(worst < 1e-4, "{how}, step {}: {whole:?} {cut:?}", cut.step);
        }
        println!("{how}: losses within {worst:.1e} over {} steps", cut.len());
    };
    // Cuts that fit, that do not, one row at a time, and more than there are.
    for micro_batch in [10, 7, 1, 1000] {
        let (cut, _) = train_in_pieces(&options(), micro_batch, &mut Solo::default());
        assert_eq!(cut.len(), whole.len());
        compare(&cut, &format!("micro-batches of {micro_batch}"));
    }
    let ranks = on_ring(2, Duration::from_secs(30), |ring| train_in_pieces(&options(), 8, ring));
    compare(&ranks[0].0, "2 ranks, micro-batches of 8");
    assert_eq!(ranks[0].1.projector, ranks[1].1.projector);
    let cut = train_in_pieces_of_tensors(DType::F32, 7, &options(), &mut Solo::default());
    compare(&cut, "in tensors, micro-batches of 7");
    let ranks = on_ring(2, Duration::from_secs(60), |ring| {
        train_in_pieces_of_tensors(DType::F32, 8, &options(), ring)
    });
    compare(&ranks[0], "in tensors on 2 ranks, micro-batches of 8");
}

#[test]
fn ranks_without_rows_take_part() {
    let options = AlignOptions {
        batch: 2,
        steps: 5,
        ..options()
    };
    let (alone, _) = train(&options, &mut Solo::default());
    let ranks = on_ring(3, Duration::from_secs(30), |ring| train(&options, ring));
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
    let options = AlignOptions { steps: 40, ..options() };
    let mut checkpoints = Vec::new();
    let data = data();
    let run = |resume| AlignRun {
        statistics,
        ..run(&options, &data, resume)
    };
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
        // Moments, queue and cursor as well: the last checkpoints are the same file.
        if let Some(last) = last {
            let state = |bytes: &[u8]| AlignState::from_safetensors("checkpoint", bytes).unwrap();
            assert_eq!(state(&last), state(checkpoints.last().unwrap()), "from step {step}");
        }
    }
}

#[test]
fn a_run_may_go_on_with_another_number_of_ranks() {
    let options = AlignOptions { steps: 60, ..options() };
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
    align(run(&options, &data, None), &mut Solo::default(), &mut watch).unwrap();
    let ranks = on_ring(3, Duration::from_secs(30), |ring| {
        let state = AlignState::from_safetensors("checkpoint", &checkpoint).unwrap();
        let mut losses = Vec::new();
        let mut watch = each(|record, _| {
            losses.push(record.loss());
            Ok(ControlFlow::Continue(()))
        });
        align(run(&options, &data, Some(state)), ring, &mut watch).unwrap();
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
    let options = AlignOptions { steps: 2, ..options() };
    let mut checkpoint = Vec::new();
    let data = data();
    let mut watch = each(|_, snapshot| {
        checkpoint = snapshot()?;
        Ok(ControlFlow::Break(()))
    });
    let outcome = align(run(&options, &data, None), &mut Solo::default(), &mut watch);
    assert_eq!(outcome.unwrap().next_step, 1, "the observer ended it after one step");
    let other = AlignOptions {
        weight_decay: 0.2,
        ..options
    };
    let state = AlignState::from_safetensors("checkpoint", &checkpoint).unwrap();
    let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
    let text = align(run(&other, &data, Some(state)), &mut Solo::default(), proceed)
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("weight_decay") && text.contains("0.05") && text.contains("0.2"),
        "{text}"
    );
    let state = AlignState::from_safetensors("checkpoint", &checkpoint).unwrap();
    let fitted = sharp();
    let work = AlignRun {
        statistics: &fitted,
        ..run(&state.options, &data, Some(state.clone()))
    };
    let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
    let text = align(work, &mut Solo::default(), proceed).unwrap_err().to_string();
    assert!(text.contains("other statistics"), "{text}");
    let broken = AlignState::from_safetensors("checkpoint", &checkpoint[..checkpoint.len() / 2]).unwrap_err();
    assert!(broken.to_string().starts_with("checkpoint: "), "{broken}");
}

#[test]
fn ranks_that_start_from_different_places_are_refused() {
    let errors = on_ring(2, Duration::from_secs(30), |ring| {
        let options = AlignOptions {
            seed: 17 + ring.rank() as u64,
            ..options()
        };
        let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
        align(run(&options, &data(), None), ring, proceed)
            .unwrap_err()
            .to_string()
    });
    assert!(
        errors.iter().all(|text| text.contains("different weights")),
        "{errors:?}"
    );
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
        let result = align(run(&options(), &data(), None), ring, &mut watch);
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
    let options = AlignOptions {
        learning_rate: 1e30,
        warmup_steps: 0,
        dropout: 0.0,
        ..options()
    };
    let proceed = &mut each(|_, _| Ok(ControlFlow::Continue(())));
    let error = align(run(&options, &data(), None), &mut Solo::default(), proceed).unwrap_err();
    let Error::Diverged { step, reason, ids } = &error else {
        panic!("{error}")
    };
    assert!((1..5).contains(step), "{error}");
    assert!(reason.contains("and 34 more"), "{reason}");
    assert_eq!(ids.len(), 50);
}
