//! Stage B on several ranks trains as on one, and continues from a checkpoint with the same results.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::common::gang::on_ring;
use crate::common::{assert_refused, fixture, on_cpu, tensors};
use candle_core::DType;
use half::f16;
use llink_datasets::instructions::InstructionRow;
use llink_datasets::vectors::VectorTable;
use llink_proto::settings::InstructSettings;
use llink_worker::collective::{Collective, Solo};
use llink_worker::llink::projector::{Projector, ProjectorShape};
use llink_worker::models::{Backend, Decoder};
use llink_worker::numerics::random::{mix, uniform};
use llink_worker::train::instruct::data::InstructData;
use llink_worker::train::instruct::options::{InstructArm, InstructOptions};
use llink_worker::train::instruct::state::InstructState;
use llink_worker::train::instruct::{InstructRun, InstructTrained, instruct};
use llink_worker::train::observer::each;
use llink_worker::train::step_record::StepRecord;

const TIMEOUT: Duration = Duration::from_secs(60);
const ROWS: usize = 60;
const ENCODER_WIDTH: usize = 24;
const TASKS: [&str; 3] = ["Translate to English:", "Say in short what this says:", "What is it about?"];

fn decoder_on(backend: &Backend) -> Decoder {
    Decoder::load_on(&fixture("golden/seed8/decoder"), backend).unwrap()
}

fn decoder() -> Decoder {
    decoder_on(&on_cpu())
}

/// Returns instructions whose answers differ in length, with random vectors.
fn data(decoder: &Decoder, options: &InstructOptions) -> InstructData {
    let answers = ["the teacher reads", "twelve mangoes", "the market is open in the morning", "yes"];
    let row = |i: usize| InstructionRow {
        id: mix(i as u64),
        task: "translate".into(),
        instruction: TASKS[i % 3].into(),
        foreign: "គ្រូ អាន".repeat(1 + i % 2),
        english_ref: answers[i % 4].into(),
        answer: format!("{} {}", answers[i % 4], i % 7),
    };
    let rows: Vec<InstructionRow> = (0..ROWS).map(row).collect();
    let table = |key: u64, width: usize| VectorTable {
        ids: rows.iter().map(|row| row.id).collect(),
        width,
        values: (0..(ROWS * width) as u64).map(|i| f16::from_f32(2.0 * uniform(key, i) - 1.0)).collect(),
    };
    let width = decoder.hidden_size();
    let shape = ProjectorShape { input: ENCODER_WIDTH, hidden: 48, output: width };
    let (encoder, teacher) = (table(1, ENCODER_WIDTH), table(2, width));
    InstructData::new(decoder, options, &rows, encoder, teacher, Projector::new(shape, 5)).unwrap()
}

fn options(arm: InstructArm) -> InstructOptions {
    let settings = InstructSettings {
        batch: 10, // not a multiple of 4, so that slices are uneven
        slots: 4,
        lora_rank: 4,
        lora_alpha: 4.0,
        lora_dropout: 0.1,
        max_tokens: 200,
        learning_rate: 3e-3,
        expander_learning_rate: 1e-3,
        usage_weight: 0.5,
        ..InstructSettings::default()
    };
    InstructOptions { seed: 11, steps: 30, arm, settings }
}

/// Returns options with slots, with slots and a trained projector, and without slots.
fn kinds() -> [InstructOptions; 3] {
    let mut moving = options(InstructArm::Slots);
    moving.settings.projector_learning_rate = 2e-3;
    [options(InstructArm::Slots), moving, options(InstructArm::Direct)]
}

fn run<'a>(
    options: &'a InstructOptions,
    decoder: &'a Decoder,
    data: &'a InstructData,
    resume: Option<InstructState>,
) -> InstructRun<'a> {
    InstructRun { options, decoder, median_norm: 0.8, data, start: None, resume, validation: None }
}

/// Trains until `until` steps are done. Returns every step's record, the trained parts, and the last snapshot.
fn train(
    decoder: &Decoder,
    options: &InstructOptions,
    token_budget: u32,
    until: u64,
    resume: Option<InstructState>,
    collective: &mut dyn Collective,
) -> (Vec<StepRecord>, InstructTrained, Vec<u8>) {
    let data = data(decoder, options);
    let mut options = options.clone();
    options.settings.token_budget = token_budget;
    let run = run(&options, decoder, &data, resume);
    let (mut records, mut saved) = (Vec::new(), Vec::new());
    let mut watch = each(|record, snapshot| {
        records.push(record.clone());
        if record.step + 1 < until {
            return Ok(ControlFlow::Continue(()));
        }
        saved = snapshot()?;
        Ok(ControlFlow::Break(()))
    });
    let trained = instruct(run, collective, &mut watch).unwrap();
    (records, trained, saved)
}

/// Returns the largest difference of two runs' losses.
fn apart(a: &[StepRecord], b: &[StepRecord]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a.loss() - b.loss()).abs()).fold(0.0, f64::max)
}

fn equal(a: &InstructTrained, b: &InstructTrained) -> bool {
    a.adapter == b.adapter && a.expander == b.expander && a.projector == b.projector
}

#[test]
fn any_number_of_ranks_sees_the_same_losses() {
    let [fixed, moving, _] = kinds();
    for options in [fixed, moving] {
        ranks_see_the_same_losses(&options);
    }
}

fn ranks_see_the_same_losses(options: &InstructOptions) {
    let (alone, trained, _) = train(&decoder(), options, u32::MAX, 30, None, &mut Solo::default());
    assert_eq!(alone.len(), 30);
    let (first, last) = (alone[0].loss(), alone[29].loss());
    assert!(last < 0.8 * first, "nothing was learned: {first} to {last}");
    for world_size in [2, 4] {
        let ranks = on_ring(world_size, TIMEOUT, |ring| train(&decoder(), options, u32::MAX, 30, None, ring));
        let worst = apart(&alone, &ranks[0].0);
        println!("{world_size} ranks: losses within {worst:.1e}");
        assert!(worst < 1e-4, "{world_size} ranks differ from one by {worst}");
        assert!(ranks.iter().all(|(_, other, _)| equal(other, &ranks[0].1)));
    }
    let (pieces, in_pieces, _) = train(&decoder(), options, 60, 30, None, &mut Solo::default());
    let worst = apart(&alone, &pieces);
    println!("in several passes: losses within {worst:.1e}");
    assert!(worst < 1e-4, "accumulating gradients changes the losses by {worst}");
    assert_eq!(in_pieces.adapter.parameters.len(), trained.adapter.parameters.len());
    let as_it_was = data(&decoder(), options).projector().clone();
    match trained.projector {
        Some(projector) => assert!(options.moves_projector() && projector != as_it_was),
        None => assert!(!options.moves_projector()),
    }
}

/// Weights are in tensors, as on GPUs. In f32 the difference is that of another order of addition; in bf16 it is
/// larger.
#[test]
fn weights_in_tensors_give_the_same_steps_with_the_same_masks() {
    for options in kinds() {
        let (arm, moves) = (options.arm, options.moves_projector());
        let (mapped, ..) = train(&decoder(), &options, u32::MAX, 20, None, &mut Solo::default());
        for (dtype, budget, tolerance) in
            [(DType::F32, u32::MAX, 1e-3), (DType::F32, 60, 1e-3), (DType::BF16, 200, 0.15)]
        {
            let decoder = decoder_on(&tensors(dtype));
            let (tensors, ..) = train(&decoder, &options, budget, 20, None, &mut Solo::default());
            let worst = apart(&mapped, &tensors);
            println!("{arm:?} {moves} {dtype:?} {budget}: losses within {worst:.1e}");
            assert!(worst < tolerance, "{arm:?} {moves} {dtype:?}: {worst}");
        }
    }
}

#[test]
fn ranks_with_no_rows_and_with_several_passes_sum_the_same_gradients() {
    for mut options in kinds() {
        let arm = options.arm;
        options.settings.batch = 3;
        let (alone, ..) = train(&decoder(), &options, u32::MAX, 10, None, &mut Solo::default());
        for world_size in [2, 4] {
            // Of four ranks, the first has no example. Of two ranks, one has a single example, and the other has two
            // passes.
            let ranks = on_ring(world_size, TIMEOUT, |ring| train(&decoder(), &options, 30, 10, None, ring));
            for (records, other, _) in &ranks {
                let worst = apart(&alone, records);
                assert!(worst < 1e-4, "{arm:?}: {world_size} ranks differ from one by {worst}");
                assert!(equal(other, &ranks[0].1));
            }
        }
    }
}

#[test]
fn a_resumed_run_gives_the_same_bits() {
    for options in kinds() {
        let arm = options.arm;
        let (whole, trained, _) = train(&decoder(), &options, 100, 30, None, &mut Solo::default());
        let (before, _, saved) = train(&decoder(), &options, 100, 13, None, &mut Solo::default());
        let state = InstructState::from_safetensors(decoder().config(), "saved", &saved).unwrap();
        assert_eq!((before.len(), state.step), (13, 13));
        let (after, resumed, _) = train(&decoder(), &options, 100, 30, Some(state), &mut Solo::default());
        assert!(apart(&whole[13..], &after) == 0.0 && equal(&trained, &resumed), "{arm:?}");
    }
}

#[test]
fn a_checkpoint_of_another_training_is_refused() {
    let trained_with = options(InstructArm::Slots);
    let (_, _, saved) = train(&decoder(), &trained_with, 100, 2, None, &mut Solo::default());
    let state = InstructState::from_safetensors(decoder().config(), "saved", &saved).unwrap();
    let mut other = trained_with;
    other.settings.usage_weight = 0.25;
    let decoder = decoder();
    let data = data(&decoder, &other);
    let run = run(&other, &decoder, &data, Some(state));
    let mut watch = each(|_, _| Ok(ControlFlow::Continue(())));
    assert_refused(instruct(run, &mut Solo::default(), &mut watch), &["usage_weight", "0.25"]);
}
