//! Compares Stage A with the PyTorch reference: losses, gradients, weights and retrieval along a golden trajectory.

use crate::common::{golden, on_cpu, read_json, relative, tensors};
use candle_core::DType;
use llink_worker::collective::Solo;
use llink_worker::llink::align_losses::AlignWeights;
use llink_worker::llink::moments::{Moments, Spread};
use llink_worker::llink::projector::{Projector, ProjectorShape};
use llink_worker::llink::retrieval::retrieval_metrics;
use llink_worker::llink::teacher_queue::StoredQueue;
use llink_worker::llink::whitening::Whitening;
use llink_worker::models::Backend;
use llink_worker::numerics::tensor_file::TensorFile;
use llink_worker::train::align::step::{AlignTrainer, StepInput};
use llink_worker::train::optimizer::{AdamWOptions, AdamWState};
use llink_worker::train::schedule::{cosine_lr, temperature};
use serde_json::Value;

/// The metric's name in the golden set. `None` is the cosine of the vectors themselves.
type Case = Option<&'static str>;

#[test]
fn the_golden_trajectory_is_followed() {
    follow(&on_cpu(), None);
}

#[test]
fn the_golden_trajectory_is_followed_by_composed_operations() {
    follow(&tensors(DType::F32), None);
}

#[test]
fn the_golden_trajectory_is_followed_in_each_metric() {
    for case in ["centre", "whiten"] {
        follow(&on_cpu(), Some(case));
        follow(&tensors(DType::F32), Some(case));
    }
}

/// Fits the metric on the golden teachers and compares it with the golden one.
fn metric(file: &TensorFile<'_>, cases: &Value, case: &str) -> Whitening {
    let (shape, teacher) = file.f32("align.teacher").unwrap();
    let mut moments = Moments::new(shape[1], Spread::Covariance);
    moments.add(&teacher);
    let fitted = match case {
        "centre" => Whitening::centering(&moments),
        _ => Whitening::from_moments(&moments, cases[format!("align_{case}")]["eps"].as_f64().unwrap()),
    };
    let fitted = fitted.unwrap();
    let golden = |part: &str| file.f32(&format!("{case}.{part}")).unwrap().1;
    let of_mean = relative(fitted.mean(), &golden("mean"));
    let of_matrix = fitted.matrix().map_or(0.0, |fitted| relative(fitted, &golden("matrix")));
    println!("{case}: mean within {of_mean:.1e}, matrix within {of_matrix:.1e}");
    assert!(of_mean < 1e-6 && of_matrix < 1e-5, "{case}: {of_mean} {of_matrix}");
    fitted
}

fn follow(backend: &Backend, case: Case) {
    let folder = golden();
    let cases = read_json(folder.join("cases.json"));
    let bytes = std::fs::read(folder.join("tensors.safetensors")).unwrap();
    let file = TensorFile::new("tensors.safetensors", &bytes).unwrap();
    let (align, n_hard) = (&cases["align"], cases["hyper"]["n_hard"].as_u64().unwrap() as usize);
    let number = |value: &Value| value.as_f64().unwrap();

    let (encoder_shape, encoder) = file.f32("align.encoder").unwrap();
    let (teacher_shape, teacher) = file.f32("align.teacher").unwrap();
    let (d_e, d) = (encoder_shape[1], teacher_shape[1]);
    let projector = Projector::from_tensors(&file, "align.init.").unwrap();
    let shape = projector.shape();
    assert_eq!(shape, ProjectorShape { input: d_e, hidden: 4 * d_e, output: d });
    let adamw = AdamWOptions {
        beta1: number(&align["betas"][0]),
        beta2: number(&align["betas"][1]),
        weight_decay: number(&align["weight_decay"]),
    };
    let weights = AlignWeights { hard_negatives: n_hard, direction: 0.05, log_norm: 0.02 };
    let queue = StoredQueue::new(align["queue_capacity"].as_u64().unwrap() as usize, d);
    let optimizer = AdamWState::new(adamw, shape.parameter_count());
    let clip = number(&align["clip"]);
    let metric = case.map(|case| metric(&file, &cases, case));
    let trainer = AlignTrainer::new(backend, &projector, &optimizer, &queue, weights, clip).unwrap();
    let mut trainer = trainer.with_metric(metric.as_ref()).unwrap();

    let trace = align["trace"].as_array().unwrap();
    let results = case.map_or(align, |case| &cases[format!("align_{case}")]);
    let numbers = results["trace"].as_array().unwrap();
    let (total, mut worst_loss, mut worst_norm) = (trace.len() as u64, 0.0_f64, 0.0_f64);
    for ((step, given), expected) in (0..).zip(trace).zip(numbers) {
        let ids: Vec<u64> = given["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let rows = |values: &[f32], width: usize| -> Vec<f32> {
            ids.iter().flat_map(|id| &values[*id as usize * width..][..width]).copied().collect()
        };
        let tau = temperature(step, total, 0.17, 0.08);
        let learning_rate = cosine_lr(step + 1, total + 1, 3, 1e-2, 1e-4);
        assert!((tau - number(&given["tau"])).abs() < 1e-12);
        assert!((learning_rate - number(&given["lr"])).abs() < 1e-12);
        let input = StepInput {
            step,
            ids: &ids,
            own: 0..ids.len(),
            encoder: &rows(&encoder, d_e),
            teacher: &rows(&teacher, d),
            temperature: tau,
            learning_rate,
            dropout: None,
        };
        let outcome = trainer.step(&input, &mut Solo::default()).unwrap();
        for (name, found) in [
            ("loss", outcome.losses.total(&weights)),
            ("info_nce", outcome.losses.info_nce),
            ("direction", outcome.losses.direction),
            ("log_norm", outcome.losses.log_norm),
        ] {
            let error = (found - number(&expected[name])).abs();
            worst_loss = worst_loss.max(error);
            assert!(error < 1e-4, "step {step}: {name} {found} against {}", expected[name]);
        }
        let error = (outcome.grad_norm / number(&expected["grad_norm"]) - 1.0).abs();
        worst_norm = worst_norm.max(error);
        assert!(error < 1e-3, "step {step}: grad_norm {} against {}", outcome.grad_norm, expected["grad_norm"]);
        if let (4, None) = (step, case) {
            let gradient = trainer.gradient().unwrap();
            for ((name, _), range) in shape.tensors().into_iter().zip(shape.ranges()) {
                let expected = file.f32(&format!("align.grad4.{name}")).unwrap().1;
                let error = relative(&gradient[range], &expected);
                println!("gradient of {name} at step 4: {error:.1e}");
                assert!(error < 1e-3, "gradient of {name} at step 4: {error}");
            }
        }
    }
    println!("losses within {worst_loss:.1e}, gradient norms within {worst_norm:.1e}");
    let projector = trainer.projector().unwrap();
    for ((name, _), range) in shape.tensors().into_iter().zip(shape.ranges()) {
        let expected = file.f32(&format!("{}.final.{name}", case.unwrap_or("align"))).unwrap().1;
        let error = relative(&projector.parameters[range], &expected);
        println!("{name} after {total} steps: {error:.1e}");
        assert!(error < 1e-3, "{name} after {total} steps: {error}");
    }

    let seen = |rows: &[f32]| metric.as_ref().map_or(rows.to_vec(), |metric| metric.apply(rows).unwrap());
    let projected = projector.project(&encoder).unwrap();
    let metrics = retrieval_metrics(&seen(&projected), &seen(&teacher), d).unwrap();
    let retrieval = case.map_or(&cases["retrieval"], |_| &results["retrieval"]);
    for (name, found) in [
        ("r1", metrics.r1),
        ("r5", metrics.r5),
        ("r10", metrics.r10),
        ("mrr", metrics.mrr),
        ("mean_rank", metrics.mean_rank),
    ] {
        assert!((found - number(&retrieval[name])).abs() < 1e-9, "{name} {found} against {}", retrieval[name]);
    }
}
