//! `llink-k8s-checks FILE…`: each file is a set of objects that are applied together, such as `kubectl kustomize` prints;
//! a folder stands for the YAML files in it.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut found = 0;
    for path in std::env::args().skip(1) {
        let faults = match llink_k8s_checks::read(Path::new(&path)) {
            Ok(set) => {
                println!("{path}: {} objects", set.objects.len());
                llink_k8s_checks::faults(&set)
            }
            Err(e) => vec![e],
        };
        for fault in &faults {
            println!("{path}: {fault}");
        }
        found += faults.len();
    }
    if found == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
