//! Comparisons of two sets: whether one can be applied over the other, and whether both are the same.

use serde_json::Value;

use crate::set::{GENERATED, Set, name};

/// The fields that the API server refuses to change.
const IMMUTABLE: [(&str, &[&str]); 3] = [
    (
        "StatefulSet",
        &["/spec/selector", "/spec/serviceName", "/spec/podManagementPolicy", "/spec/volumeClaimTemplates"],
    ),
    ("Deployment", &["/spec/selector"]),
    ("Job", &["/spec/selector", "/spec/completionMode", "/spec/template", "/spec/podFailurePolicy"]),
];

/// Returns the reasons why `after` cannot be applied over `before`.
#[must_use]
pub fn refused(before: &Set, after: &Set) -> Vec<String> {
    let mut faults = Vec::new();
    for (kind, fields) in IMMUTABLE {
        for old in before.of_kind(kind) {
            let Some(new) = after.of_kind(kind).find(|o| name(o) == name(old)) else {
                continue;
            };
            for field in fields.iter().filter(|field| old.pointer(field) != new.pointer(field)) {
                faults.push(format!("{}: {field} is immutable, and differs", name(old)));
            }
        }
    }
    // The pods of a workload that the second set does not name keep running, with their GPUs.
    for pod in before.pods().iter().filter(|p| p.asks_for("nvidia.com/gpu")) {
        let goes_on = after.objects.iter().any(|o| name(o) == name(pod.owner));
        let moved = after.pods().iter().any(|p| p.asks_for("nvidia.com/gpu"));
        if !goes_on && moved {
            faults.push(format!("{}: stays and keeps its GPUs", name(pod.owner)));
        }
    }
    faults
}

/// Returns the differences of two sets that are meant to be the same. Additions of their tools do not count: names that
/// end in a hash, checksums, and the labels for the managing tool.
#[must_use]
pub fn differences(first: &Set, second: &Set) -> Vec<String> {
    let (first, second) = (bare(first), bare(second));
    let mut faults = Vec::new();
    for (own, other, whose) in [(&first, &second, "first"), (&second, &first, "second")] {
        for object in own.iter().filter(|o| !other.iter().any(|x| name(x) == name(o))) {
            faults.push(format!("{}: in the {whose} alone", name(object)));
        }
    }
    for object in &first {
        if let Some(other) = second.iter().find(|o| name(o) == name(object)) {
            differ(object, other, &mut String::new(), &mut |path| {
                faults.push(format!(
                    "{}: {path}: {} and {}",
                    name(object),
                    object.pointer(path).unwrap_or(&Value::Null),
                    other.pointer(path).unwrap_or(&Value::Null)
                ));
            });
        }
    }
    faults
}

fn bare(set: &Set) -> Vec<Value> {
    set.objects.iter().map(|object| bare_value(object.clone(), "")).collect()
}

fn bare_value(value: Value, key: &str) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(key, _)| {
                !["app.kubernetes.io/managed-by", GENERATED].contains(&key.as_str())
                    && !["checksum/", "helm.sh/"].iter().any(|start| key.starts_with(start))
            });
            let kept = kept.map(|(key, value)| (key.clone(), bare_value(value, &key)));
            let kept: serde_json::Map<String, Value> = kept.filter(|(_, value)| !is_empty(value)).collect();
            Value::Object(kept)
        }
        Value::Array(items) => {
            let mut items: Vec<Value> = items.into_iter().map(|item| bare_value(item, "")).collect();
            // Patches put their additions first, and the order of named items has no meaning.
            items.sort_by_key(|item| {
                let named = ["name", "mountPath", "key"].iter().find_map(|k| item.get(k)?.as_str());
                named.map(|n| format!("{n} {}", item["mountPath"]))
            });
            Value::Array(items)
        }
        Value::String(text) if key == "name" && text.starts_with("llink-") => Value::String(without_hash(&text).into()),
        other => other,
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// Returns `llink-settings` for `llink-settings-6fmgbk4dd8`, and `llink-worker` for `llink-worker-3b1f0c9d2a`.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((rest, hash)) if hash.len() == 10 && hash.chars().any(|c| c.is_ascii_digit()) => rest,
        _ => name,
    }
}

fn differ(first: &Value, second: &Value, path: &mut String, tell: &mut impl FnMut(&str)) {
    let length = path.len();
    match (first, second) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                path.push('/');
                path.push_str(&key.replace('~', "~0").replace('/', "~1"));
                match (a.get(key), b.get(key)) {
                    (Some(a), Some(b)) => differ(a, b, path, tell),
                    _ => tell(path),
                }
                path.truncate(length);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                path.push_str(&format!("/{i}"));
                differ(a, b, path, tell);
                path.truncate(length);
            }
        }
        (a, b) if a == b => {}
        _ => tell(path),
    }
}

impl crate::set::Pod<'_> {
    fn asks_for(&self, resource: &str) -> bool {
        self.owner["spec"]["replicas"] != 0
            && self.containers().any(|c| c["resources"]["limits"].get(resource).is_some())
    }
}

/// Returns the set without the objects that these names (`KIND/NAME`) pick.
#[must_use]
pub fn without(set: &Set, names: &[String]) -> Set {
    let keeps = |o: &&Value| !names.contains(&name(o));
    Set { objects: set.objects.iter().filter(keeps).cloned().collect() }
}
