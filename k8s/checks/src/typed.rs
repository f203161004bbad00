//! The check of each object with k8s-openapi's types. They drop unknown fields when they read and write an object, so
//! the check finds these.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::set::{Set, name};

pub(crate) fn check(set: &Set) -> Vec<String> {
    let mut faults = Vec::new();
    for object in &set.objects {
        let at = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let written = match (at("apiVersion").as_str(), at("kind").as_str()) {
            ("v1", "Namespace") => round_trip::<Namespace>(object),
            ("v1", "ConfigMap") => round_trip::<ConfigMap>(object),
            ("v1", "Secret") => round_trip::<Secret>(object),
            ("v1", "Service") => round_trip::<Service>(object),
            ("v1", "ServiceAccount") => round_trip::<ServiceAccount>(object),
            ("v1", "PersistentVolumeClaim") => round_trip::<PersistentVolumeClaim>(object),
            ("apps/v1", "Deployment") => round_trip::<Deployment>(object),
            ("apps/v1", "StatefulSet") => round_trip::<StatefulSet>(object),
            ("batch/v1", "Job") => round_trip::<Job>(object),
            ("policy/v1", "PodDisruptionBudget") => round_trip::<PodDisruptionBudget>(object),
            ("networking.k8s.io/v1", "NetworkPolicy") => round_trip::<NetworkPolicy>(object),
            ("networking.k8s.io/v1", "Ingress") => round_trip::<Ingress>(object),
            // The kinds of other projects have no types here, and k8s/checks/run has no schema for them.
            ("monitoring.coreos.com/v1" | "keda.sh/v1alpha1", _) => Ok(object.clone()),
            (version, kind) => Err(format!("{version} {kind} is not known here")),
        };
        match written {
            Ok(written) => lost(object, &written, &mut String::new(), &mut |path| {
                faults.push(format!("{}: no such field, or not of this form: {path}", name(object)));
            }),
            Err(e) => faults.push(format!("{}: {e}", name(object))),
        }
    }
    faults
}

fn round_trip<T: DeserializeOwned + Serialize>(object: &Value) -> Result<Value, String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|e| e.to_string())?;
    serde_json::to_value(typed).map_err(|e| e.to_string())
}

/// Reports the values of `before` that are missing from `after`. Empty maps and lists may be missing.
fn lost(before: &Value, after: &Value, path: &mut String, tell: &mut impl FnMut(&str)) {
    let length = path.len();
    match (before, after) {
        (Value::Object(b), _) => {
            for (key, value) in b {
                let empty = value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty)
                    || value.is_null();
                path.push('.');
                path.push_str(key);
                match after.get(key) {
                    Some(kept) => lost(value, kept, path, tell),
                    None if empty => {}
                    None => tell(path),
                }
                path.truncate(length);
            }
        }
        (Value::Array(b), Value::Array(a)) if a.len() == b.len() => {
            for (i, (before, after)) in b.iter().zip(a).enumerate() {
                path.push_str(&format!("[{i}]"));
                lost(before, after, path, tell);
                path.truncate(length);
            }
        }
        (before, after) if before == after => {}
        _ => tell(path),
    }
}
