//! The check of the commands in documents: whatever they name must exist.

use std::path::Path;

use serde_json::Value;

use crate::set::{Set, list};

/// The Secrets that `certs --kubernetes` and the commands of README.md make.
const MADE: [&str; 4] = ["llink-coordinator-tls", "llink-worker-tls", "llink-authority", "llink-tokens"];

/// The short and long names of kinds in kubectl.
const KINDS: [(&str, &str); 12] = [
    ("pod", "Pod"),
    ("pods", "Pod"),
    ("job", "Job"),
    ("deployment", "Deployment"),
    ("deploy", "Deployment"),
    ("statefulset", "StatefulSet"),
    ("service", "Service"),
    ("svc", "Service"),
    ("secret", "Secret"),
    ("configmap", "ConfigMap"),
    ("pvc", "PersistentVolumeClaim"),
    ("namespace", "Namespace"),
];

/// Returns the code lines of a document that call kubectl or helm, each with its number.
#[must_use]
pub fn commands(text: &str) -> Vec<(usize, String)> {
    let (mut fenced, mut found) = (false, Vec::new());
    let mut before = String::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if !fenced && !line.starts_with("    ") {
            continue;
        }
        let line = line.split(" # ").next().unwrap_or_default().trim();
        if let Some(begun) = line.strip_suffix('\\') {
            before.push_str(begun);
            continue;
        }
        let whole = std::mem::take(&mut before) + line;
        if ["kubectl ", "helm ", "llink-coord "].iter().any(|tool| whole.contains(tool)) {
            found.push((number + 1, whole));
        }
    }
    found
}

/// Returns the names in a document's commands that do not exist. `root` is the folder in which people run them.
#[must_use]
pub fn check(root: &Path, text: &str, sets: &[Set]) -> Vec<String> {
    let mut faults = Vec::new();
    for (line, command) in commands(text) {
        for part in command.split(['|', ';', '&']) {
            let words: Vec<&str> = part.split_whitespace().collect();
            let Some(at) = words.iter().position(|w| *w == "kubectl" || *w == "helm") else {
                continue;
            };
            for text in named(root, &words[at..], sets) {
                faults.push(format!("line {line}: {text}: {command}"));
            }
        }
    }
    faults
}

fn named(root: &Path, words: &[&str], sets: &[Set]) -> Vec<String> {
    let mut faults = Vec::new();
    for pair in words.windows(2) {
        let (option, path) = (pair[0], pair[1]);
        let file = match option {
            "-k" => root.join(path).join("kustomization.yaml"),
            "-f" | "--values" if path != "-" && !path.starts_with('/') => root.join(path),
            "llink" if words[0] == "helm" && !path.starts_with('-') => root.join(path).join("Chart.yaml"),
            _ => continue,
        };
        if path.starts_with("k8s/") && !file.is_file() {
            faults.push(format!("there is no {}", file.display()));
        }
    }
    if words[0] != "kubectl" || words.contains(&"create") {
        return faults;
    }
    let mut objects: Vec<(&str, &str)> = words.iter().filter_map(|w| w.split_once('/')).collect();
    objects.extend(words.windows(2).map(|pair| (pair[0], pair[1])));
    for (kind, name) in objects {
        let Some((_, kind)) = KINDS.iter().find(|(word, _)| *word == kind) else {
            continue;
        };
        if name.starts_with("llink") && !MADE.contains(&name) && !exists(sets, kind, name) {
            faults.push(format!("there is no {kind} {name}"));
        }
    }
    // The labels and annotations of llink.
    for word in words.iter().filter(|w| w.starts_with("llink/")) {
        let key = word.split('=').next().unwrap_or(word);
        let known = sets.iter().flat_map(|s| &s.objects).any(|o| o.to_string().contains(&format!("\"{key}\"")));
        if !known {
            faults.push(format!("nothing looks for the label {key}"));
        }
    }
    faults
}

fn exists(sets: &[Set], kind: &str, name: &str) -> bool {
    sets.iter().any(|set| match kind {
        "Pod" => {
            let ordinal = |o: &Value| o["metadata"]["name"].as_str().is_some_and(|n| format!("{n}-0") == name);
            set.find("Pod", name).is_some() || set.of_kind("StatefulSet").any(ordinal)
        }
        "PersistentVolumeClaim" => {
            let claims = |o: &Value| list(&o["spec"]["volumeClaimTemplates"]).count() > 0;
            set.find(kind, name).is_some() || set.of_kind("StatefulSet").any(claims)
        }
        kind => set.find(kind, name).is_some(),
    })
}
