//! Compiles the CUDA kernels when the feature `cuda` asks for them; `cuda/build.sh` sets what nvcc needs.

use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "cuda/kernels.cu";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let variable = |name: &str| std::env::var(name).ok();
    let nvcc = variable("CUDA_HOME").map_or_else(|| PathBuf::from("nvcc"), |home| PathBuf::from(home).join("bin/nvcc"));
    let capability = variable("CUDA_COMPUTE_CAP").unwrap_or_else(|| "80".into());
    let out = PathBuf::from(variable("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernels.ptx");
    let status = Command::new(&nvcc)
        .args(["-ptx", "-O3", "-std=c++17", &format!("-arch=compute_{capability}"), "-o"])
        .arg(&out)
        .arg(SOURCE)
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} {SOURCE} ended with {status}", nvcc.display()),
        Err(error) => panic!("{}: {error}. Build with worker/cuda/build.sh, or set CUDA_HOME", nvcc.display()),
    }
}
