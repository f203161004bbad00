//! Compares the CUDA kernels, run on the CPU, with the CPU's own. `cuda_on_cpu.hpp` replaces CUDA's headers, and the
//! C++ compiler replaces nvcc. Without a C++ compiler the test is skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::skip::skip;
use candle_core::{Device, Tensor};
use llink_worker::numerics::dropout::Dropout;
use llink_worker::train::optimizer::{AdamW, AdamWOptions, AdamWState, flat};

const MAIN: &str = r#"
#include "cuda_on_cpu.hpp"
#include "kernels.cu"
#include <cstdio>
#include <vector>
// Reads words from stdin and writes words to stdout: `mask ROWS WIDTH THRESHOLD` or `adamw COUNT`.
template <typename T> static std::vector<T> read_words(size_t n) {
    std::vector<T> words(n);
    if (fread(words.data(), 4, n, stdin) != n) exit(3);
    return words;
}
int main(int argc, char **argv) {
    if (argv[1][0] == 'm') {
        const uint64_t rows = atoll(argv[2]); const uint32_t width = atoi(argv[3]);
        const uint32_t threshold = strtoul(argv[4], nullptr, 10);
        auto scale = read_words<float>(1); auto keys = read_words<uint32_t>(2 * rows); auto x = read_words<float>(rows * width);
        std::vector<float> out(rows * width), narrow_out(rows * width);
        launch(rows * width, 96u, mask_rows_f32, x.data(), out.data(), keys.data(), rows * width, width, threshold, scale[0]);
        std::vector<__nv_bfloat16> half(rows * width), half_out(rows * width);
        for (size_t i = 0; i < half.size(); ++i) half[i] = __float2bfloat16(x[i]);
        launch(rows * width, 96u, mask_rows_bf16, half.data(), half_out.data(), keys.data(), rows * width, width, threshold, scale[0]);
        for (size_t i = 0; i < half.size(); ++i) narrow_out[i] = __bfloat162float(half_out[i]);
        fwrite(out.data(), 4, out.size(), stdout); fwrite(narrow_out.data(), 4, narrow_out.size(), stdout);
    } else {
        const uint64_t count = atoll(argv[2]);
        auto c = read_words<float>(8); auto state = read_words<float>(3 * count); auto gradient = read_words<float>(count);
        launch(count, 128u, adamw, state.data(), gradient.data(), count, c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]);
        fwrite(state.data(), 4, state.size(), stdout);
    }
}
"#;

/// Returns the compiled program, or `None` without a C++ compiler.
fn program(dir: &Path) -> Option<PathBuf> {
    let source = dir.join("main.cpp");
    std::fs::write(&source, format!("#include <cstdlib>\n{MAIN}")).unwrap();
    let program = dir.join("kernels");
    let compiled = Command::new("c++")
        .args(["-std=c++17", "-O1", "-ffp-contract=off", "-I", concat!(env!("CARGO_MANIFEST_DIR"), "/cuda"), "-o"])
        .args([&program, &source])
        .status();
    match compiled {
        Ok(status) => {
            assert!(status.success(), "the kernels do not compile");
            Some(program)
        }
        Err(error) => {
            println!("{error}");
            skip("c++");
            None
        }
    }
}

fn run(program: &Path, args: &[String], input: &[u32]) -> Vec<f32> {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(args)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let words = output.stdout.chunks_exact(4);
    words.map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn kernels_compute_what_the_cpu_computes() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = program(dir.path()) else { return };

    let (rows, width) = (37usize, 205usize);
    let dropout = Dropout::new(0.3, 11, 7);
    let masks: Vec<_> = (0..rows as u64).map(|row| dropout.row(row * 31)).collect();
    let x: Vec<f32> = (0..rows * width).map(|i| (i as f32 * 0.37).sin() * 3.0).collect();
    let mut expected = x.clone();
    for (row, mask) in expected.chunks_exact_mut(width).zip(&masks) {
        mask.apply(row);
    }
    let (threshold, scale) = masks[0].constants();
    let keys: Vec<u32> = masks.iter().flat_map(|mask| mask.key()).collect();
    let args = ["mask".to_owned(), rows.to_string(), width.to_string(), threshold.to_string()];
    let found = run(&program, &args, &[bits(&[scale]), keys, bits(&x)].concat());
    assert_eq!(found[..x.len()], expected);
    for (narrow, wide) in found[x.len()..].iter().zip(&expected) {
        assert!((narrow - wide).abs() <= wide.abs() / 64.0, "{narrow} {wide}");
    }
    assert!(expected.iter().filter(|x| **x == 0.0).count() > x.len() / 5);

    let count = 1_000usize;
    let options = AdamWOptions { beta1: 0.9, beta2: 0.98, weight_decay: 0.05 };
    let mut parameters: Vec<f32> = (0..count).map(|i| (i as f32 * 0.1).sin()).collect();
    let mut state = AdamWState::new(options, count);
    for step in 0..3 {
        let gradient: Vec<f32> = (0..count).map(|i| (i as f32 * 0.3 + step as f32).cos()).collect();
        let constants = options.constants(state.steps + 1, 0.5, 0.01);
        let input = [bits(&constants), bits(&parameters), bits(&state.first_moment)].concat();
        let input = [input, bits(&state.second_moment), bits(&gradient)].concat();
        let found = run(&program, &["adamw".into(), count.to_string()], &input);
        let mut optimizer = AdamW::new(&parameters, &state, &Device::Cpu).unwrap();
        let gradient = flat(&[Tensor::new(gradient, &Device::Cpu).unwrap()]).unwrap();
        optimizer.step(&gradient, 0.5, 0.01).unwrap();
        (parameters, state) = optimizer.store().unwrap();
        let expected = [&parameters[..], &state.first_moment, &state.second_moment].concat();
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{found} {expected}");
        }
    }
}
