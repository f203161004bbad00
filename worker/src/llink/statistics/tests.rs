//! Statistics of vectors: whitening, standardizing, and what cannot be fitted.

use super::*;
use crate::numerics::random::uniform;
use half::f16;

const D: usize = 12;
const PAIRS: usize = 300;

fn table(width: usize, value: impl Fn(usize, usize) -> f32) -> VectorTable {
    let values = (0..PAIRS * width).map(|at| f16::from_f32(value(at / width, at % width)));
    VectorTable { ids: (0..PAIRS as u64).collect(), width, values: values.collect() }
}

/// Returns correlated dimensions, far from zero and of very different scales.
fn teachers() -> VectorTable {
    table(D, |row, column| {
        let noise = |k: usize| uniform(row as u64, k as u64) - 0.5;
        let scale = 0.1 * (1 + column * column) as f32;
        scale * (noise(column) + 0.8 * noise(100)) + 20.0 * (column % 3) as f32
    })
}

fn whitened(eps: f64) -> AlignSettings {
    AlignSettings {
        metric: Metric::Whitened,
        whitening_eps: eps,
        start_at_teachers: Some(true),
        ..AlignSettings::default()
    }
}

fn fit(options: AlignSettings, encoder: &VectorTable, teacher: &VectorTable) -> Result<Statistics> {
    let mut fit = StatisticsFit::new(options);
    if fit.reads_encoder() {
        fit.add_encoder(encoder)?;
    }
    if fit.reads_teacher() {
        fit.add_teacher(teacher)?;
    }
    fit.finish()
}

fn widened(table: &VectorTable) -> Vec<f32> {
    table.values.iter().map(|x| x.to_f32()).collect()
}

#[test]
fn whitened_vectors_have_no_covariance_left() {
    let teachers = teachers();
    let statistics = fit(whitened(1e-9), &teachers, &teachers).unwrap();
    let seen = statistics.metric.as_ref().unwrap().apply(&widened(&teachers)).unwrap();
    for i in 0..D {
        for j in 0..D {
            let products = seen.chunks(D).map(|row| f64::from(row[i]) * f64::from(row[j]));
            let covariance = products.sum::<f64>() / (PAIRS - 1) as f64;
            let expected = if i == j { 1.0 } else { 0.0 };
            assert!((covariance - expected).abs() < 1e-2, "{i} {j}: {covariance}");
        }
    }
}

#[test]
fn eps_keeps_what_hardly_varies_small() {
    let teachers = teachers();
    let spread = |eps: f64| {
        let statistics = fit(whitened(eps), &teachers, &teachers).unwrap();
        let seen = statistics.metric.unwrap().apply(&widened(&teachers)).unwrap();
        seen.chunks(D).map(|row| row[0] * row[0]).sum::<f32>()
    };
    assert!(spread(1e-1) < 0.1 * spread(1e-6));
}

#[test]
fn what_is_written_is_read() {
    let teachers = teachers();
    let encoder = table(5, |row, column| uniform(row as u64, 50 + column as u64));
    let all = AlignSettings { standardize: true, ..whitened(1e-3) };
    let centered = AlignSettings { metric: Metric::Centered, ..AlignSettings::default() };
    let standardized = AlignSettings { standardize: true, ..AlignSettings::default() };
    for options in [all.clone(), whitened(1e-3), centered, standardized, AlignSettings::default()] {
        let statistics = fit(options.clone(), &encoder, &teachers).unwrap();
        let nothing = options == AlignSettings::default();
        assert_eq!(statistics == Statistics::default(), nothing);
        let bytes = statistics.to_safetensors().unwrap();
        assert_eq!(Statistics::from_safetensors("s", &bytes).unwrap(), statistics);
        statistics.check(5, D).unwrap();
    }
    let statistics = fit(all, &encoder, &teachers).unwrap();
    let text = statistics.check(6, D).unwrap_err().to_string();
    assert!(text.contains("encoder vectors of 5"), "{text}");
    assert!(statistics.check(5, 9).is_err());
}

#[test]
fn a_folded_projector_gives_for_raw_vectors_what_the_other_gives_for_standardized_ones() {
    use crate::llink::projector::ProjectorShape;
    // These resemble an encoder's outlier dimensions, which are far from zero in units of their deviation.
    let encoder = table(5, |row, column| {
        (uniform(row as u64, column as u64) - 0.5) * 0.02 + if column == 3 { 4.0 } else { 0.05 }
    });
    let options = AlignSettings { standardize: true, ..AlignSettings::default() };
    let statistics = fit(options, &encoder, &encoder).unwrap();
    let shape = ProjectorShape { input: 5, hidden: 20, output: D };
    let projector = Projector::new(shape, 3);
    let raw = widened(&encoder);
    let mut standardized = raw.clone();
    statistics.standardization.as_ref().unwrap().standardize(&mut standardized);
    for column in 0..5 {
        let values: Vec<f32> = standardized.iter().skip(column).step_by(5).copied().collect();
        let mean = values.iter().sum::<f32>() / PAIRS as f32;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / (PAIRS - 1) as f32;
        assert!(mean.abs() < 1e-3 && (variance - 1.0).abs() < 1e-2, "{column}: {mean} {variance}");
    }
    let expected = projector.project(&standardized).unwrap();
    let found = statistics.folded(&projector).project(&raw).unwrap();
    let gap = |(a, b): (&f32, &f32)| (a - b).abs();
    assert!(found.iter().zip(&expected).map(gap).fold(0.0, f32::max) < 2e-3);
}

#[test]
fn a_dimension_that_does_not_vary_stays_finite() {
    let encoder = table(5, |row, column| if column == 2 { 3.0 } else { uniform(row as u64, column as u64) });
    let options = AlignSettings { standardize: true, ..AlignSettings::default() };
    let statistics = fit(options, &encoder, &encoder).unwrap();
    let mut rows = widened(&encoder);
    statistics.standardization.unwrap().standardize(&mut rows);
    assert!(rows.iter().skip(2).step_by(5).all(|x| x.abs() < 1e-3));
}

#[test]
fn vectors_that_nothing_can_be_fitted_on_are_refused() {
    let same = table(D, |_, column| column as f32);
    let text = fit(whitened(1e-3), &same, &same).unwrap_err().to_string();
    assert!(text.contains("300 teacher vectors that do not differ"), "{text}");
    assert!(StatisticsFit::new(whitened(1e-3)).finish().is_err());
    let mut broken = teachers();
    broken.values[D * 7 + 1] = f16::NAN;
    let text = fit(whitened(1e-3), &broken, &broken).unwrap_err().to_string();
    assert!(text.contains("teacher vector of pair 7"), "{text}");
    let mut fit = StatisticsFit::new(whitened(1e-3));
    fit.add_teacher(&teachers()).unwrap();
    let other = table(D + 1, |row, column| uniform(row as u64, column as u64));
    assert!(fit.add_teacher(&other).unwrap_err().to_string().contains("12 numbers"));
}
