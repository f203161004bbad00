//! A set of objects, and its pods.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

/// The objects that are applied together.
#[derive(Debug, Clone, Default)]
pub struct Set {
    /// The objects as they stand in the files.
    pub objects: Vec<Value>,
}

/// A pod template with its object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pod<'a> {
    pub(crate) owner: &'a Value,
    pub(crate) template: &'a Value,
}

/// The annotation of a ConfigMap that kustomize generates, in a folder that is read without kustomize.
pub(crate) const GENERATED: &str = "llink/generated";

/// Reads a file of YAML documents. Of a folder it reads all YAML files, and the ConfigMaps that its kustomization
/// generates from literals.
///
/// # Errors
/// An error says what cannot be read.
pub fn read(path: &Path) -> Result<Set, String> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|e| format!("{}: {e}", path.display()))?;
        files = entries.flatten().map(|e| e.path()).collect();
        files.retain(|p| p.extension().is_some_and(|e| e == "yaml") && !p.ends_with("kustomization.yaml"));
        files.sort();
    }
    let mut objects = generated(path)?;
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object = Value::deserialize(document).map_err(|e| format!("{}: {e}", file.display()))?;
            if !object.is_null() {
                objects.push(object);
            }
        }
    }
    if objects.is_empty() {
        return Err(format!("{}: no objects", path.display()));
    }
    Ok(Set { objects })
}

fn generated(folder: &Path) -> Result<Vec<Value>, String> {
    let file = folder.join("kustomization.yaml");
    let Ok(text) = std::fs::read_to_string(&file) else {
        return Ok(Vec::new());
    };
    let kustomization: Value = serde_yaml_ng::from_str(&text).map_err(|e| format!("{}: {e}", file.display()))?;
    let made = list(&kustomization["configMapGenerator"]).map(|generator| {
        let pairs = list(&generator["literals"]).filter_map(|l| l.as_str()?.split_once('='));
        let data: serde_json::Map<String, Value> = pairs.map(|(key, value)| (key.to_owned(), value.into())).collect();
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": generator["name"],
                "namespace": kustomization["namespace"],
                "annotations": { GENERATED: "true" },
            },
            "data": data,
        })
    });
    Ok(made.collect())
}

impl Set {
    pub(crate) fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |o| o["kind"] == kind)
    }

    pub(crate) fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
    }

    /// Returns every pod template.
    pub(crate) fn pods(&self) -> Vec<Pod<'_>> {
        let makes_pods = |o: &&Value| o["spec"]["template"]["spec"]["containers"].is_array();
        let pod = |owner| Pod { owner, template: &owner["spec"]["template"] };
        self.objects.iter().filter(makes_pods).map(pod).collect()
    }

    /// Returns the pods that a selector of `matchLabels` picks.
    pub(crate) fn selected(&self, selector: &Value) -> Vec<Pod<'_>> {
        self.pods().into_iter().filter(|pod| matches(selector, &pod.template["metadata"]["labels"])).collect()
    }
}

impl<'a> Pod<'a> {
    pub(crate) fn spec(&self) -> &'a Value {
        &self.template["spec"]
    }

    pub(crate) fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let both = ["initContainers", "containers"];
        let spec = self.spec();
        both.into_iter().flat_map(move |key| list(&spec[key]))
    }

    /// Returns the names of the pod's ports.
    pub(crate) fn port_names(&self) -> Vec<&'a str> {
        self.containers().flat_map(|c| list(&c["ports"])).filter_map(|p| p["name"].as_str()).collect()
    }
}

/// Returns the items of a list, or none if the value is no list.
pub(crate) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Returns whether all labels of the selector are among the labels. An empty selector picks everything.
pub(crate) fn matches(selector: &Value, labels: &Value) -> bool {
    selector.as_object().is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
}

/// Returns the name of an object for faults.
pub(crate) fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}
