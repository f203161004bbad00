//! The check of every pod: it is locked down and probed, has a fixed image, and stays within its memory.

use serde_json::Value;

use crate::fields::quantity;
use crate::set::{Pod, Set, list, name};

const GPU: &str = "nvidia.com/gpu";

pub(crate) fn check(set: &Set) -> Vec<String> {
    let mut faults = Vec::new();
    for pod in set.pods() {
        let mut tell = |text: String| faults.push(format!("{}: {text}", name(pod.owner)));
        locked_down(&pod, &mut tell);
        for container in pod.containers() {
            let which = container["name"].as_str().unwrap_or("?").to_owned();
            let mut tell = |text: String| tell(format!("container {which}: {text}"));
            contained(container, &mut tell);
            probed(container, &mut tell);
            fixed_image(container, &mut tell);
            resources(container, &mut tell);
            environment(container, &mut tell);
        }
        spread(&pod, &mut tell);
        memory_volumes(&pod, &mut tell);
        grace(&pod, &mut tell);
    }
    faults
}

fn locked_down(pod: &Pod<'_>, tell: &mut impl FnMut(String)) {
    let (spec, security) = (pod.spec(), &pod.spec()["securityContext"]);
    let wanted = [
        (&spec["automountServiceAccountToken"], Value::Bool(false), "automountServiceAccountToken: false"),
        (&spec["enableServiceLinks"], Value::Bool(false), "enableServiceLinks: false"),
        (&security["runAsNonRoot"], Value::Bool(true), "runAsNonRoot: true"),
        (&security["seccompProfile"]["type"], "RuntimeDefault".into(), "seccompProfile RuntimeDefault"),
    ];
    for (found, expected, text) in wanted {
        if *found != expected {
            tell(format!("expected {text}"));
        }
    }
    if security["runAsUser"].as_u64().unwrap_or(0) == 0 {
        tell("runAsUser must be a user other than root".into());
    }
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[key] == true && !(key == "hostNetwork" && asks_for_rdma(pod)) {
            tell(format!("{key} opens the node"));
        }
    }
    if spec["hostNetwork"] == true && spec["dnsPolicy"] != "ClusterFirstWithHostNet" {
        tell("on the node's network it does not find Services: dnsPolicy must be ClusterFirstWithHostNet".into());
    }
    if list(&spec["volumes"]).any(|v| v.get("hostPath").is_some()) {
        tell("a hostPath volume opens the node".into());
    }
}

fn asks_for_rdma(pod: &Pod<'_>) -> bool {
    pod.containers().any(|c| {
        let limits = c["resources"]["limits"].as_object();
        limits.is_some_and(|l| l.keys().any(|key| key.starts_with("rdma/")))
    })
}

/// Checks that the container listens on addresses of both families, and keeps models where it may write.
fn environment(container: &Value, tell: &mut impl FnMut(String)) {
    let variables: Vec<&Value> = list(&container["env"]).collect();
    for variable in &variables {
        let value = variable["value"].as_str().unwrap_or_default();
        if ["LLINK_LISTEN", "LLINK_HEALTH", "LLINK_METRICS"].iter().any(|v| variable["name"] == *v)
            && !value.starts_with("[::]:")
        {
            tell(format!("{} is {value:?}: only [::] serves IPv6 and IPv4", variable["name"]));
        }
    }
    if !variables.iter().any(|v| v["name"] == "HF_HOME") {
        tell("HF_HOME is not set: models would be kept on the read-only root".into());
    }
}

/// Checks that a rollout counts only its own pods. Otherwise new pods avoid the nodes of ending ones.
fn spread(pod: &Pod<'_>, tell: &mut impl FnMut(String)) {
    let by_rollout = |c: &Value| list(&c["matchLabelKeys"]).any(|key| key == "pod-template-hash");
    if pod.owner["kind"] == "Deployment" && !list(&pod.spec()["topologySpreadConstraints"]).all(by_rollout) {
        tell(
            "topologySpreadConstraints without matchLabelKeys pod-template-hash count pods of the last rollout".into(),
        );
    }
}

fn contained(container: &Value, tell: &mut impl FnMut(String)) {
    let security = &container["securityContext"];
    if security["allowPrivilegeEscalation"] != false {
        tell("expected allowPrivilegeEscalation: false".into());
    }
    if security["readOnlyRootFilesystem"] != true {
        tell("expected readOnlyRootFilesystem: true".into());
    }
    if security["capabilities"]["drop"] != serde_json::json!(["ALL"]) || security["capabilities"].get("add").is_some() {
        tell("expected capabilities to be dropped, all of them".into());
    }
    if security["privileged"] == true || security["runAsUser"] == 0 || security["runAsNonRoot"] == false {
        tell("runs as root".into());
    }
}

fn probed(container: &Value, tell: &mut impl FnMut(String)) {
    let ports: Vec<&Value> = list(&container["ports"]).map(|p| &p["containerPort"]).collect();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let found = &container[probe];
        if !found.is_object() {
            tell(format!("{probe} is missing"));
            continue;
        }
        let kinds = ["grpc", "httpGet", "tcpSocket", "exec"].iter().filter(|k| found.get(**k).is_some()).count();
        if kinds != 1 {
            tell(format!("{probe} needs exactly one of grpc, httpGet, tcpSocket, exec"));
        }
        if let Some(grpc) = found.get("grpc")
            && !ports.contains(&&grpc["port"])
        {
            tell(format!("{probe} asks port {}, which the container does not name", grpc["port"]));
        }
    }
    if container["livenessProbe"]["grpc"].get("service").is_some() {
        tell("livenessProbe must ask for the process alone, because readiness depends on other services".into());
    }
}

fn fixed_image(container: &Value, tell: &mut impl FnMut(String)) {
    let image = container["image"].as_str().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    let fixed =
        last.contains("@sha256:") || last.split_once(':').is_some_and(|(_, tag)| !tag.is_empty() && tag != "latest");
    if !fixed {
        tell(format!("image {image:?} is not fixed: name a tag other than latest, or a digest"));
    }
}

fn resources(container: &Value, tell: &mut impl FnMut(String)) {
    let (requests, limits) = (&container["resources"]["requests"], &container["resources"]["limits"]);
    for key in ["cpu", "memory"] {
        if requests.get(key).is_none() {
            tell(format!("requests no {key}"));
        }
    }
    if limits.get("memory").is_none() {
        tell("has no memory limit".into());
    }
    for (key, request) in requests.as_object().into_iter().flatten() {
        if let (Some(request), Some(limit)) = (quantity(request), limits.get(key).and_then(quantity))
            && request > limit
        {
            tell(format!("requests more {key} than its limit"));
        }
    }
    if requests.get(GPU) != limits.get(GPU) {
        tell(format!("{GPU}: requests and limits must be the same"));
    }
    if limits.get(GPU).is_some_and(|gpu| quantity(gpu).is_none_or(|n| n < 1.0 || n.fract() != 0.0)) {
        tell(format!("{GPU} must be a whole number"));
    }
}

/// Checks that volumes in memory fit into the memory limit, towards which they count.
fn memory_volumes(pod: &Pod<'_>, tell: &mut impl FnMut(String)) {
    let limit: f64 = pod.containers().filter_map(|c| quantity(&c["resources"]["limits"]["memory"])).sum();
    for volume in list(&pod.spec()["volumes"]) {
        let Some(empty) = volume.get("emptyDir") else { continue };
        let (in_memory, size) = (empty["medium"] == "Memory", quantity(&empty["sizeLimit"]));
        match size {
            None => tell(format!("volume {} has no sizeLimit", volume["name"])),
            Some(size) if in_memory && size >= limit => {
                tell(format!("volume {} in memory is as large as the memory limit", volume["name"]));
            }
            Some(_) => {}
        }
    }
}

/// Checks that the worker's own grace period ends 5 s before the platform kills the worker.
fn grace(pod: &Pod<'_>, tell: &mut impl FnMut(String)) {
    let platform = pod.spec()["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
    for container in pod.containers() {
        let own = list(&container["env"]).find(|e| e["name"] == "LLINK_GRACE_S");
        let own = own.and_then(|e| e["value"].as_str()?.parse::<u64>().ok());
        if own.is_some_and(|own| own + 5 > platform) {
            tell(format!("LLINK_GRACE_S is not 5 s within terminationGracePeriodSeconds {platform}"));
        }
    }
}
