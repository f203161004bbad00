//! Each check catches the fault that it is for: the base is sound, and each fault that is planted into it is named.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use llink_k8s_checks::{Set, faults, read};
use serde_json::{Value, json};

fn base() -> Set {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../base")).unwrap()
}

fn object<'a>(set: &'a mut Set, kind: &str, name: &str) -> &'a mut Value {
    set.objects
        .iter_mut()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
        .unwrap()
}

#[test]
fn the_base_is_sound() {
    assert_eq!(faults(&base()), Vec::<String>::new());
}

const COORDINATOR: (&str, &str) = ("StatefulSet", "llink-coordinator");
const WORKER: (&str, &str) = ("Deployment", "llink-worker");
const POD: &str = "/spec/template/spec";
const CONTAINER: &str = "/spec/template/spec/containers/0";

/// Object, where in it, the key, what stands there instead (`None`: nothing), and a word of the fault that must follow.
#[allow(clippy::type_complexity)]
fn planted() -> Vec<(
    (&'static str, &'static str),
    String,
    &'static str,
    Option<Value>,
    &'static str,
)> {
    let pod = |rest: &str| format!("{POD}{rest}");
    let container = |rest: &str| format!("{CONTAINER}{rest}");
    let top = |rest: &str| rest.to_owned();
    vec![
        // Misspelt and misplaced fields, wrong types.
        (
            WORKER,
            pod(""),
            "terminationGracePeriod",
            Some(json!(3)),
            "no such field",
        ),
        (WORKER, container("/env/0"), "vaule", Some(json!("x")), "no such field"),
        (WORKER, top("/spec"), "replicas", Some(json!("two")), "invalid type"),
        (WORKER, top(""), "apiVersion", Some(json!("apps/v2")), "not known"),
        (WORKER, container(""), "ports", Some(json!({})), "invalid type"),
        // Enums and quantities.
        (
            WORKER,
            container(""),
            "imagePullPolicy",
            Some(json!("Sometimes")),
            "none of",
        ),
        (
            WORKER,
            pod("/topologySpreadConstraints/0"),
            "whenUnsatisfiable",
            Some(json!("ScheduleAnyhow")),
            "none of",
        ),
        (
            WORKER,
            pod("/tolerations/0"),
            "effect",
            Some(json!("NoScheduling")),
            "none of",
        ),
        (
            WORKER,
            pod("/volumes/2/emptyDir"),
            "medium",
            Some(json!("memory")),
            "none of",
        ),
        (
            COORDINATOR,
            top("/spec/volumeClaimTemplates/0/spec/accessModes"),
            "0",
            Some(json!("ReadWriteOnePod")),
            "none of",
        ),
        (
            WORKER,
            container("/resources/limits"),
            "memory",
            Some(json!("64GB")),
            "no quantity",
        ),
        (
            WORKER,
            pod("/volumes/2/emptyDir"),
            "sizeLimit",
            Some(json!("8 Gi")),
            "no quantity",
        ),
        (
            WORKER,
            top("/metadata"),
            "name",
            Some(json!("llink_worker")),
            "not a name",
        ),
        // Security of pods.
        (WORKER, pod("/securityContext"), "runAsNonRoot", None, "runAsNonRoot"),
        (
            WORKER,
            pod("/securityContext"),
            "runAsUser",
            Some(json!(0)),
            "other than root",
        ),
        (
            WORKER,
            pod("/securityContext/seccompProfile"),
            "type",
            Some(json!("Unconfined")),
            "RuntimeDefault",
        ),
        (
            WORKER,
            pod(""),
            "automountServiceAccountToken",
            Some(json!(true)),
            "automountServiceAccountToken",
        ),
        (WORKER, pod(""), "hostNetwork", Some(json!(true)), "opens the node"),
        (
            WORKER,
            pod("/volumes/1"),
            "hostPath",
            Some(json!({ "path": "/" })),
            "hostPath",
        ),
        (
            WORKER,
            container("/securityContext"),
            "readOnlyRootFilesystem",
            Some(json!(false)),
            "readOnlyRootFilesystem",
        ),
        (
            WORKER,
            container("/securityContext"),
            "allowPrivilegeEscalation",
            None,
            "allowPrivilegeEscalation",
        ),
        (
            WORKER,
            container("/securityContext/capabilities"),
            "add",
            Some(json!(["NET_ADMIN"])),
            "capabilities",
        ),
        // Probes.
        (WORKER, container(""), "livenessProbe", None, "livenessProbe is missing"),
        (
            WORKER,
            container("/readinessProbe/grpc"),
            "port",
            Some(json!(7079)),
            "does not name",
        ),
        (
            WORKER,
            container("/livenessProbe/grpc"),
            "service",
            Some(json!("ready")),
            "process alone",
        ),
        (
            WORKER,
            container("/startupProbe"),
            "exec",
            Some(json!({ "command": ["true"] })),
            "exactly one",
        ),
        // Images and resources.
        (
            WORKER,
            container(""),
            "image",
            Some(json!("llink-cuda:latest")),
            "not fixed",
        ),
        (
            WORKER,
            container(""),
            "image",
            Some(json!("registry:5000/llink-cuda")),
            "not fixed",
        ),
        (
            WORKER,
            container("/resources/limits"),
            "nvidia.com/gpu",
            Some(json!("2")),
            "must be the same",
        ),
        (
            WORKER,
            container("/resources/limits"),
            "memory",
            None,
            "no memory limit",
        ),
        (
            WORKER,
            container("/resources/requests"),
            "memory",
            Some(json!("96Gi")),
            "more memory",
        ),
        (
            WORKER,
            pod("/volumes/2/emptyDir"),
            "sizeLimit",
            Some(json!("64Gi")),
            "as large as the memory limit",
        ),
        (WORKER, pod("/volumes/1/emptyDir"), "sizeLimit", None, "no sizeLimit"),
        (
            WORKER,
            pod(""),
            "terminationGracePeriodSeconds",
            Some(json!(60)),
            "LLINK_GRACE_S",
        ),
        // References.
        (
            WORKER,
            pod(""),
            "serviceAccountName",
            Some(json!("llink-wrker")),
            "no ServiceAccount",
        ),
        (
            WORKER,
            container("/volumeMounts/0"),
            "name",
            Some(json!("tsl")),
            "no such volume",
        ),
        (
            WORKER,
            container("/volumeMounts/1"),
            "mountPath",
            Some(json!("/etc/llink/tls")),
            "mounted twice",
        ),
        (
            WORKER,
            container("/volumeMounts/0"),
            "mountPath",
            Some(json!("/etc/llink/tsl")),
            "lies in no volume",
        ),
        (
            WORKER,
            pod("/volumes/0/secret"),
            "secretName",
            Some(json!("llink-tls")),
            "no Secret",
        ),
        (WORKER, container("/envFrom/0/secretRef"), "optional", None, "no Secret"),
        (
            WORKER,
            container("/env/8/valueFrom/configMapKeyRef"),
            "key",
            Some(json!("allow-roots")),
            "no key",
        ),
        (
            WORKER,
            container("/env/8/valueFrom/configMapKeyRef"),
            "name",
            Some(json!("llink-setting")),
            "no ConfigMap",
        ),
        (
            WORKER,
            top("/spec/selector/matchLabels"),
            "app.kubernetes.io/name",
            Some(json!("worker")),
            "its own pods",
        ),
        (
            COORDINATOR,
            top("/spec"),
            "serviceName",
            Some(json!("coordinator")),
            "no Service",
        ),
        (
            COORDINATOR,
            top("/spec"),
            "replicas",
            Some(json!(2)),
            "replicas must be 1",
        ),
        (
            COORDINATOR,
            top("/spec/volumeClaimTemplates/0/spec"),
            "accessModes",
            Some(json!(["ReadWriteOnce"])),
            "ReadWriteOncePod",
        ),
        (
            ("Service", "llink-coordinator"),
            top("/spec/selector"),
            "app.kubernetes.io/name",
            Some(json!("coordinator")),
            "picks no pod",
        ),
        (
            ("Service", "llink-coordinator"),
            top("/spec/ports/0"),
            "targetPort",
            Some(json!("grcp")),
            "no port of",
        ),
        (
            ("PodDisruptionBudget", "llink-worker"),
            top("/spec/selector/matchLabels"),
            "app.kubernetes.io/name",
            Some(json!("llink-coordinator")),
            "blocks the drain",
        ),
        (
            ("PodDisruptionBudget", "llink-worker"),
            top("/spec"),
            "maxUnavailable",
            Some(json!(0)),
            "blocks drains",
        ),
        (
            ("ConfigMap", "llink-settings"),
            top("/metadata"),
            "namespace",
            Some(json!("default")),
            "another namespace",
        ),
        // Network.
        (
            ("NetworkPolicy", "default-deny"),
            top("/spec/podSelector"),
            "matchLabels",
            Some(json!({ "a": "b" })),
            "denies all traffic",
        ),
        (
            ("NetworkPolicy", "coordinator"),
            top("/spec/podSelector/matchLabels"),
            "app.kubernetes.io/name",
            Some(json!("coordinator")),
            "picks no pod",
        ),
        (
            ("NetworkPolicy", "coordinator"),
            top("/spec/ingress/0/ports/0"),
            "port",
            Some(json!("grcp")),
            "no port of who is called",
        ),
        (
            ("NetworkPolicy", "coordinator"),
            top("/spec/ingress/1"),
            "from",
            None,
            "opens to everybody",
        ),
        (
            ("NetworkPolicy", "workers"),
            top("/spec"),
            "policyTypes",
            Some(json!(["Ingress"])),
            "not the type Egress",
        ),
        (
            ("NetworkPolicy", "workers"),
            top("/spec/egress/1/to/0/podSelector/matchLabels"),
            "app.kubernetes.io/name",
            Some(json!("llink-coordinators")),
            "may not call the coordinator",
        ),
        (
            ("NetworkPolicy", "workers"),
            top("/spec/ingress/0/ports/0"),
            "port",
            Some(json!(7000)),
            "on every port",
        ),
    ]
}

#[test]
fn each_planted_fault_is_named() {
    for ((kind, name), at, key, value, word) in planted() {
        let mut set = base();
        let place = object(&mut set, kind, name)
            .pointer_mut(&at)
            .unwrap_or_else(|| panic!("{kind}/{name} has no {at}"));
        match (place, value.clone()) {
            (Value::Object(fields), Some(value)) => drop(fields.insert(key.into(), value)),
            (Value::Object(fields), None) => {
                assert!(fields.remove(key).is_some(), "{kind}/{name}{at} has no {key}");
            }
            (Value::Array(items), Some(value)) => items[key.parse::<usize>().unwrap()] = value,
            (other, _) => panic!("{kind}/{name}{at} is {other}"),
        }
        let found = faults(&set);
        assert!(
            found.iter().any(|fault| fault.contains(word)),
            "{kind}/{name}{at}/{key} = {value:?}: expected a fault with {word:?}, found {found:#?}"
        );
    }
}

#[test]
fn an_object_that_stands_there_twice_is_named() {
    let mut set = base();
    let twice = set.objects[1].clone();
    set.objects.push(twice);
    assert!(faults(&set).iter().any(|f| f.contains("twice")));
}
