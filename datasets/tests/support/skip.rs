//! Tests that need more than Rust, such as a Python with some packages, and are skipped if it is missing.
//!
//! `LLINK_MAY_SKIP` lists what may be missing, separated by commas. If it is set, a test that misses anything else
//! fails. CI sets it.
#![allow(dead_code, clippy::print_stdout, clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

/// Reports that a test is skipped because `missing` is missing.
///
/// # Panics
/// When `LLINK_MAY_SKIP` is set and does not list it.
pub fn skip(missing: &str) {
    if let Ok(listed) = std::env::var("LLINK_MAY_SKIP") {
        let listed = listed.split(',').any(|name| name == missing);
        assert!(listed, "this test must run here, but {missing} is missing");
    }
    println!("skipped: {missing} is missing");
}

/// Returns a Python with these modules: `LLINK_PYTHON`, else `python3`. Without one, the test is skipped.
pub fn python_with(modules: &[&str]) -> Option<PathBuf> {
    let python = std::env::var_os("LLINK_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let imports = |module: &&&str| {
        let tried = Command::new(&python).args(["-c", &format!("import {module}")]).output();
        tried.is_ok_and(|output| output.status.success())
    };
    let missing = modules.iter().find(|module| !imports(module));
    missing.map(|module| skip(module)).is_none().then_some(python)
}
