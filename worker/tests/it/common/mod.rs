//! What several tests share: fixtures, changed copies of models, comparisons, and programs.

pub mod gang;
#[path = "../../../../datasets/tests/support/skip.rs"]
pub mod skip;

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use llink_worker::device::{Arithmetic, Compute, DeviceChoice};
use llink_worker::models::Backend;
use serde_json::Value;

/// Returns a fixture of this repository, which may lie elsewhere than where the test was compiled.
pub fn fixture(name: &str) -> PathBuf {
    let worker = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&worker).join("tests/fixtures").join(name)
}

/// Returns the golden set: the one that `LLINK_GOLDEN` names, or that of the repository.
pub fn golden() -> PathBuf {
    std::env::var_os("LLINK_GOLDEN").map_or_else(|| fixture("golden/seed8"), PathBuf::from)
}

pub fn on_cpu() -> Backend {
    Backend::new(&Device::Cpu, DType::F32)
}

/// Returns the form of GPUs, in which weights are tensors: on the CPU, or on the GPU if `LLINK_TEST_DEVICE` is `cuda`.
pub fn tensors(dtype: DType) -> Backend {
    let device = match std::env::var("LLINK_TEST_DEVICE") {
        Ok(choice) => Compute::open(choice.parse::<DeviceChoice>().unwrap(), Arithmetic::Auto).unwrap().device,
        Err(_) => Device::Cpu,
    };
    Backend::of_tensors(&device, dtype)
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

/// Returns a copy of a folder, for changes.
pub fn copy_of(folder: &Path) -> tempfile::TempDir {
    let made = tempfile::tempdir().unwrap();
    copy(folder, made.path());
    made
}

pub fn read_json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

pub fn edit_json(path: impl AsRef<Path>, change: impl FnOnce(&mut Value)) {
    let mut value = read_json(&path);
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Changes the tensors of a model's folder.
pub fn edit_weights(folder: &Path, change: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let path = folder.join("model.safetensors");
    let mut weights = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
    change(&mut weights);
    candle_core::safetensors::save(&weights, path).unwrap();
}

/// Keeps the first `share` of a file's bytes.
pub fn cut(path: &Path, share: f64) {
    let whole = std::fs::read(path).unwrap();
    std::fs::write(path, &whole[..(whole.len() as f64 * share) as usize]).unwrap();
}

#[track_caller]
pub fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
}

/// Checks that a call was refused with all of these words.
#[track_caller]
pub fn assert_refused<T>(result: Result<T, impl Display>, words: &[&str]) {
    let Err(error) = result else { panic!("accepted; expected a refusal naming {words:?}") };
    assert_says(&error.to_string(), words);
}

/// Returns ‖found − expected‖ / ‖expected‖.
#[track_caller]
pub fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let gap = norm(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    gap / norm(&mut expected.iter().map(|b| f64::from(*b))).max(1e-12)
}

#[track_caller]
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let error = relative(found, expected);
    println!("{what}: relative error {error:.2e}");
    assert!(error <= tolerance, "{what}: relative error {error:.2e} exceeds {tolerance:.0e}");
}

#[track_caller]
pub fn assert_rows_close(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f64) {
    let widths = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(widths(found), widths(expected), "{what}");
    assert_close(what, &found.concat(), &expected.concat(), tolerance);
}

/// Returns the JSON in the last line that a program prints, if it prints any. The program must succeed.
#[track_caller]
pub fn told_by(program: &mut Command) -> Value {
    let output = program.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said.trim().lines().last().and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
}
