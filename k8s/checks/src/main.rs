//! `llink-k8s-checks FILE…` checks files. Each file is a set of objects that are applied together, such as
//! `kubectl kustomize` prints. A folder stands for its YAML files.
//!
//! `llink-k8s-checks over BEFORE AFTER` checks whether the second set can be applied over the first.
//!
//! `llink-k8s-checks same FIRST SECOND [KIND/NAME…]` checks that both sets are the same, except for these objects.
//!
//! `llink-k8s-checks documents ROOT DOCUMENT… -- FILE…` checks that the documents' commands name existing things.

use std::path::Path;
use std::process::ExitCode;

use llink_k8s_checks::{Set, differences, document_faults, faults, read, refused, without};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let found = match words.as_slice() {
        ["over", before, after] => two(before, after, refused),
        ["same", first, second, except @ ..] => {
            let except: Vec<String> = except.iter().map(|&name| name.to_owned()).collect();
            two(first, second, |first, second| differences(&without(first, &except), &without(second, &except)))
        }
        ["documents", root, rest @ ..] => documents(Path::new(root), rest),
        files => files.iter().flat_map(|file| one(file)).collect(),
    };
    for fault in &found {
        println!("{fault}");
    }
    if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(path: &str) -> Vec<String> {
    match read(Path::new(path)) {
        Ok(set) => {
            println!("{path}: {} objects", set.objects.len());
            faults(&set).into_iter().map(|fault| format!("{path}: {fault}")).collect()
        }
        Err(e) => vec![e],
    }
}

fn two(first: &str, second: &str, compare: impl Fn(&Set, &Set) -> Vec<String>) -> Vec<String> {
    match (read(Path::new(first)), read(Path::new(second))) {
        (Ok(a), Ok(b)) => {
            let told = compare(&a, &b).into_iter();
            told.map(|fault| format!("{first}, {second}: {fault}")).collect()
        }
        (a, b) => [a, b].into_iter().filter_map(Result::err).collect(),
    }
}

fn documents(root: &Path, words: &[&str]) -> Vec<String> {
    let mut parts = words.split(|word| *word == "--");
    let (documents, files) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let sets: Result<Vec<Set>, String> = files.iter().map(|file| read(Path::new(file))).collect();
    let sets = match sets {
        Ok(sets) => sets,
        Err(e) => return vec![e],
    };
    let mut faults = Vec::new();
    for document in documents {
        match std::fs::read_to_string(root.join(document)) {
            Ok(text) => {
                let found = document_faults(root, &text, &sets).into_iter();
                faults.extend(found.map(|fault| format!("{document}: {fault}")));
            }
            Err(e) => faults.push(format!("{document}: {e}")),
        }
    }
    faults
}
