//! The check of values for which schemas accept any string: enums, quantities and names.

use serde_json::Value;

use crate::set::{Set, name};

/// The fields with their known values. The last parts of a path decide.
const ENUMS: [(&str, &[&str]); 20] = [
    (".imagePullPolicy", &["Always", "IfNotPresent", "Never"]),
    (".restartPolicy", &["Always", "OnFailure", "Never"]),
    (".protocol", &["TCP", "UDP", "SCTP"]),
    (".whenUnsatisfiable", &["DoNotSchedule", "ScheduleAnyway"]),
    (".medium", &["", "Memory"]),
    (".accessModes[]", &["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]),
    (".policyTypes[]", &["Ingress", "Egress"]),
    (".effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"]),
    (".tolerations[].operator", &["Exists", "Equal", "Lt", "Gt"]),
    (".seccompProfile.type", &["RuntimeDefault", "Localhost", "Unconfined"]),
    (".fsGroupChangePolicy", &["OnRootMismatch", "Always"]),
    (".unhealthyPodEvictionPolicy", &["IfHealthyBudget", "AlwaysAllow"]),
    (".podManagementPolicy", &["OrderedReady", "Parallel"]),
    (".completionMode", &["Indexed", "NonIndexed"]),
    (".podReplacementPolicy", &["TerminatingOrFailed", "Failed"]),
    (".podFailurePolicy.rules[].action", &["Ignore", "FailJob", "FailIndex", "Count"]),
    (".strategy.type", &["RollingUpdate", "Recreate"]),
    (".updateStrategy.type", &["RollingUpdate", "OnDelete"]),
    (".onPodConditions[].status", &["True", "False", "Unknown"]),
    (".pathType", &["Exact", "Prefix", "ImplementationSpecific"]),
];

/// The parts of paths below which each value is a quantity.
const QUANTITIES: [&str; 2] = [".limits.", ".requests."];

pub(crate) fn check(set: &Set) -> Vec<String> {
    let mut faults = Vec::new();
    for object in &set.objects {
        each_leaf(object, &mut String::new(), &mut |path, value| {
            if let Some(fault) = fault(path, value) {
                faults.push(format!("{}: {path}: {fault}", name(object)));
            }
        });
        let written = object["metadata"]["name"].as_str().unwrap_or_default();
        if !is_name(written) {
            faults.push(format!("{}: not a name that Kubernetes takes", name(object)));
        }
    }
    faults
}

fn fault(path: &str, value: &Value) -> Option<String> {
    let text = value.as_str();
    if let Some((_, known)) = ENUMS.iter().find(|(end, _)| path.ends_with(end)) {
        let ok = text.is_some_and(|t| known.contains(&t));
        return (!ok).then(|| format!("{value} is none of {}", known.join(", ")));
    }
    let is_quantity = path.ends_with(".sizeLimit") || QUANTITIES.iter().any(|part| path.contains(part));
    if is_quantity && quantity(value).is_none() {
        return Some(format!("{value} is no quantity such as 500m, 2Gi"));
    }
    None
}

/// Parses a quantity as a number, by the grammar of apimachinery.
pub(crate) fn quantity(value: &Value) -> Option<f64> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor = match suffix {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        _ => return None,
    };
    number.parse::<f64>().ok().map(|n| n * factor)
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(fits) && !name.starts_with('-') && !name.ends_with('-')
}

fn each_leaf(value: &Value, path: &mut String, tell: &mut impl FnMut(&str, &Value)) {
    let length = path.len();
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                path.push('.');
                path.push_str(key);
                each_leaf(value, path, tell);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for item in items {
                path.push_str("[]");
                each_leaf(item, path, tell);
                path.truncate(length);
            }
        }
        leaf => tell(path, leaf),
    }
}
