//! The check of references between objects: selectors, volumes, ConfigMaps, Secrets, claims, accounts and ports.

use serde_json::Value;

use crate::set::{GENERATED, Pod, Set, list, matches, name};

/// The Secrets that people make with `llink-coord certs --kubernetes`.
const MADE_BY_HAND: [&str; 2] = ["llink-coordinator-tls", "llink-worker-tls"];

pub(crate) fn check(set: &Set) -> Vec<String> {
    let mut faults = Vec::new();
    let mut tell = |object: &Value, text: String| faults.push(format!("{}: {text}", name(object)));
    let namespace = set.of_kind("StatefulSet").next().map(|s| &s["metadata"]["namespace"]);
    for (i, object) in set.objects.iter().enumerate() {
        if object["kind"] != "Namespace" && namespace.is_some_and(|n| *n != object["metadata"]["namespace"]) {
            tell(object, "lies in another namespace than the rest".into());
        }
        if object["kind"] == "Namespace" && set.of_kind("StatefulSet").next().is_some() {
            tell(object, "is in one set with the state, so deleting the set deletes the state".into());
        }
        if set.objects[..i].iter().any(|other| name(other) == name(object)) {
            tell(object, "is in the set twice".into());
        }
    }
    for pod in set.pods() {
        let owner = pod.owner;
        let selector = &owner["spec"]["selector"]["matchLabels"];
        if owner["kind"] != "Job" && (selector.is_null() || !matches(selector, &pod.template["metadata"]["labels"])) {
            tell(owner, "its selector does not pick its own pods".into());
        }
        let mut tell = |text: String| tell(owner, text);
        mounts(&pod, &mut tell);
        sources(set, &pod, &mut tell);
    }
    for service in set.of_kind("Service") {
        services(set, service, &mut |text| tell(service, text));
    }
    budgets(set, &mut tell);
    for owner in set.of_kind("StatefulSet") {
        let wanted = owner["spec"]["serviceName"].as_str().unwrap_or_default();
        if set.find("Service", wanted).is_none() {
            tell(owner, format!("there is no Service {wanted:?}"));
        }
    }
    coordinator(set, &mut tell);
    faults
}

fn mounts(pod: &Pod<'_>, tell: &mut impl FnMut(String)) {
    let claims = list(&pod.owner["spec"]["volumeClaimTemplates"]).map(|c| &c["metadata"]["name"]);
    let volumes: Vec<&Value> = list(&pod.spec()["volumes"]).map(|v| &v["name"]).chain(claims).collect();
    let mut used = Vec::new();
    for container in pod.containers() {
        let mut paths: Vec<&str> = Vec::new();
        for mount in list(&container["volumeMounts"]) {
            let path = mount["mountPath"].as_str().unwrap_or_default();
            if !volumes.contains(&&mount["name"]) {
                tell(format!("mounts {} at {path}, and there is no such volume", mount["name"]));
            }
            if paths.contains(&path) || !path.starts_with('/') {
                tell(format!("{path}: mounted twice, or not absolute"));
            }
            paths.push(path);
            used.push(&mount["name"]);
        }
        // Files that the environment names must be in a volume, because the image has none of them.
        for variable in list(&container["env"]) {
            let Some(path) = variable["value"].as_str().filter(|v| v.starts_with('/')) else {
                continue;
            };
            if !paths
                .iter()
                .any(|mount| path.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
            {
                tell(format!("{} is {path}, which lies in no volume", variable["name"]));
            }
        }
    }
    for volume in volumes.iter().filter(|v| !used.contains(v)) {
        tell(format!("volume {volume} is mounted nowhere"));
    }
}

fn sources(set: &Set, pod: &Pod<'_>, tell: &mut impl FnMut(String)) {
    let mut secret = |name: &Value, optional: &Value| {
        let name = name.as_str().unwrap_or_default();
        if *optional != true && !MADE_BY_HAND.contains(&name) && set.find("Secret", name).is_none() {
            tell(format!("there is no Secret {name:?}, and it is not optional"));
        }
    };
    for volume in list(&pod.spec()["volumes"]) {
        if let Some(source) = volume.get("secret") {
            secret(&source["secretName"], &source["optional"]);
        }
    }
    for source in pod.containers().flat_map(|c| list(&c["envFrom"])) {
        if let Some(reference) = source.get("secretRef") {
            secret(&reference["name"], &reference["optional"]);
        }
    }
    for volume in list(&pod.spec()["volumes"]) {
        if let Some(claim) = volume.get("persistentVolumeClaim") {
            let claim = claim["claimName"].as_str().unwrap_or_default();
            if set.find("PersistentVolumeClaim", claim).is_none() {
                tell(format!("there is no PersistentVolumeClaim {claim:?}"));
            }
        }
    }
    for variable in pod.containers().flat_map(|c| list(&c["env"])) {
        let Some(reference) = variable["valueFrom"].get("configMapKeyRef") else {
            continue;
        };
        let (map, key) =
            (reference["name"].as_str().unwrap_or_default(), reference["key"].as_str().unwrap_or_default());
        match set.find("ConfigMap", map) {
            None => tell(format!("there is no ConfigMap {map:?}")),
            Some(found) if !reaches_pods(found, pod) => tell(format!(
                "ConfigMap {map} may change and the pods keep the old values: no hash in its name, no checksum in the template"
            )),
            Some(found) if found["data"].get(key).is_none() => tell(format!("ConfigMap {map} has no key {key:?}")),
            Some(_) => {}
        }
    }
    let account = pod.spec()["serviceAccountName"].as_str().unwrap_or("default");
    match set.find("ServiceAccount", account) {
        None => tell(format!("there is no ServiceAccount {account:?}")),
        Some(found) if found["automountServiceAccountToken"] != false => {
            tell(format!("ServiceAccount {account} gives its token to pods"));
        }
        Some(_) => {}
    }
}

/// Returns whether a changed ConfigMap changes the pod template, by a hash in its name or a checksum beside it.
fn reaches_pods(map: &Value, pod: &Pod<'_>) -> bool {
    let hashed = |name: &str| {
        let suffix = name.rsplit_once('-').map_or("", |(_, suffix)| suffix);
        suffix.len() == 10 && suffix.chars().all(|c| c.is_ascii_digit() || "bcdfghkmt".contains(c))
    };
    let annotations = pod.template["metadata"]["annotations"].as_object();
    map["metadata"]["annotations"][GENERATED] == "true"
        || map["metadata"]["name"].as_str().is_some_and(hashed)
        || annotations.is_some_and(|a| a.keys().any(|key| key.starts_with("checksum/")))
}

fn services(set: &Set, service: &Value, tell: &mut impl FnMut(String)) {
    let selector = &service["spec"]["selector"];
    let pods = set.selected(selector);
    if selector.is_null() || pods.is_empty() {
        tell("its selector picks no pod".into());
    }
    for port in list(&service["spec"]["ports"]) {
        let Some(target) = port["targetPort"].as_str() else {
            continue;
        };
        for pod in &pods {
            if !pod.port_names().contains(&target) {
                tell(format!("port {target:?} is no port of {}", name(pod.owner)));
            }
        }
    }
}

fn budgets(set: &Set, tell: &mut impl FnMut(&Value, String)) {
    for budget in set.of_kind("PodDisruptionBudget") {
        let pods = set.selected(&budget["spec"]["selector"]["matchLabels"]);
        if pods.is_empty() {
            tell(budget, "its selector picks no pod".into());
        }
        for pod in pods.iter().filter(|p| p.owner["kind"] == "Job") {
            tell(budget, format!("picks pods of {}, which has no scale: every eviction is refused", name(pod.owner)));
        }
        for pod in pods.iter().filter(|p| p.owner["kind"] == "StatefulSet") {
            tell(budget, format!("blocks the drain of {}, which is there once", name(pod.owner)));
        }
        if budget["spec"]["maxUnavailable"] == 0 || budget["spec"].get("minAvailable").is_some() {
            tell(budget, "blocks drains: say maxUnavailable 1".into());
        }
    }
}

/// The coordinator is one, unless others wait on a replica of its state, and its volume has one writer.
fn coordinator(set: &Set, tell: &mut impl FnMut(&Value, String)) {
    for owner in set.of_kind("StatefulSet") {
        let mut variables = list(&owner["spec"]["template"]["spec"]["containers"]).flat_map(|c| list(&c["env"]));
        if owner["spec"]["replicas"] != 1 && !variables.any(|variable| variable["name"] == "LLINK_REPLICA") {
            tell(owner, "there is one coordinator without LLINK_REPLICA: replicas must be 1".into());
        }
        for claim in list(&owner["spec"]["volumeClaimTemplates"]) {
            if claim["spec"]["accessModes"] != serde_json::json!(["ReadWriteOncePod"]) {
                tell(owner, "its state must be ReadWriteOncePod".into());
            }
        }
    }
}
