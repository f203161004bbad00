//! Tests that each check finds its fault. The base has no faults, and each planted fault is named.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use llink_k8s_checks::{Set, differences, document_faults, faults, read, refused};
use serde_json::{Value, json};

fn base() -> Set {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../base")).unwrap()
}

fn object<'a>(set: &'a mut Set, kind: &str, name: &str) -> &'a mut Value {
    set.objects.iter_mut().find(|o| o["kind"] == kind && o["metadata"]["name"] == name).unwrap()
}

#[test]
fn the_base_is_sound() {
    assert_eq!(faults(&base()), Vec::<String>::new());
}

const COORDINATOR: (&str, &str) = ("StatefulSet", "llink-coordinator");
const WORKER: (&str, &str) = ("Deployment", "llink-worker");
const POD: &str = "/spec/template/spec";
const CONTAINER: &str = "/spec/template/spec/containers/0";

/// A fault: the object, the path in it, the key, the planted value (`None` removes the key), and a word of the expected
/// text.
#[allow(clippy::type_complexity)]
fn planted() -> Vec<((&'static str, &'static str), String, &'static str, Option<Value>, &'static str)> {
    let pod = |rest: &str| format!("{POD}{rest}");
    let container = |rest: &str| format!("{CONTAINER}{rest}");
    let top = |rest: &str| rest.to_owned();
    vec![
        // Misspelt and misplaced fields, wrong types.
        (WORKER, pod(""), "terminationGracePeriod", Some(json!(3)), "no such field"),
        (WORKER, container("/env/0"), "vaule", Some(json!("x")), "no such field"),
        (WORKER, top("/spec"), "replicas", Some(json!("two")), "invalid type"),
        (WORKER, top(""), "apiVersion", Some(json!("apps/v2")), "not known"),
        (WORKER, container(""), "ports", Some(json!({})), "invalid type"),
        // Enums and quantities.
        (WORKER, container(""), "imagePullPolicy", Some(json!("Sometimes")), "none of"),
        (WORKER, pod("/topologySpreadConstraints/0"), "whenUnsatisfiable", Some(json!("ScheduleAnyhow")), "none of"),
        (WORKER, pod("/tolerations/0"), "effect", Some(json!("NoScheduling")), "none of"),
        (WORKER, pod("/volumes/3/emptyDir"), "medium", Some(json!("memory")), "none of"),
        (
            COORDINATOR,
            top("/spec/volumeClaimTemplates/0/spec/accessModes"),
            "0",
            Some(json!("ReadWriteOnePod")),
            "none of",
        ),
        (WORKER, container("/resources/limits"), "memory", Some(json!("64GB")), "no quantity"),
        (WORKER, pod("/volumes/3/emptyDir"), "sizeLimit", Some(json!("8 Gi")), "no quantity"),
        (WORKER, top("/metadata"), "name", Some(json!("llink_worker")), "not a name"),
        // The security of pods.
        (WORKER, pod("/securityContext"), "runAsNonRoot", None, "runAsNonRoot"),
        (WORKER, pod("/securityContext"), "runAsUser", Some(json!(0)), "other than root"),
        (WORKER, pod("/securityContext/seccompProfile"), "type", Some(json!("Unconfined")), "RuntimeDefault"),
        (WORKER, pod(""), "automountServiceAccountToken", Some(json!(true)), "automountServiceAccountToken"),
        (WORKER, pod(""), "hostNetwork", Some(json!(true)), "opens the node"),
        (WORKER, pod("/volumes/1"), "hostPath", Some(json!({ "path": "/" })), "hostPath"),
        (WORKER, container("/securityContext"), "readOnlyRootFilesystem", Some(json!(false)), "readOnlyRootFilesystem"),
        (WORKER, container("/securityContext"), "allowPrivilegeEscalation", None, "allowPrivilegeEscalation"),
        (WORKER, container("/securityContext/capabilities"), "add", Some(json!(["NET_ADMIN"])), "capabilities"),
        // Probes.
        (WORKER, container(""), "livenessProbe", None, "livenessProbe is missing"),
        (WORKER, container("/readinessProbe/grpc"), "port", Some(json!(7079)), "does not name"),
        (WORKER, container("/livenessProbe/grpc"), "service", Some(json!("ready")), "process alone"),
        (WORKER, container("/startupProbe"), "exec", Some(json!({ "command": ["true"] })), "exactly one"),
        // Images and resources.
        (WORKER, container(""), "image", Some(json!("llink-cuda:latest")), "not fixed"),
        (WORKER, container(""), "image", Some(json!("registry:5000/llink-cuda")), "not fixed"),
        (WORKER, container("/resources/limits"), "nvidia.com/gpu", Some(json!("2")), "must be the same"),
        (WORKER, container("/resources/limits"), "memory", None, "no memory limit"),
        (WORKER, container("/resources/requests"), "memory", Some(json!("96Gi")), "more memory"),
        (WORKER, pod("/volumes/3/emptyDir"), "sizeLimit", Some(json!("64Gi")), "as large as the memory limit"),
        (WORKER, pod("/volumes/1/emptyDir"), "sizeLimit", None, "no sizeLimit"),
        (WORKER, pod(""), "terminationGracePeriodSeconds", Some(json!(60)), "LLINK_GRACE_S"),
        // References.
        (WORKER, pod(""), "serviceAccountName", Some(json!("llink-wrker")), "no ServiceAccount"),
        (WORKER, container("/volumeMounts/0"), "name", Some(json!("tsl")), "no such volume"),
        (WORKER, container("/volumeMounts/1"), "mountPath", Some(json!("/etc/llink/tls")), "mounted twice"),
        (WORKER, container("/volumeMounts/0"), "mountPath", Some(json!("/etc/llink/tsl")), "lies in no volume"),
        (WORKER, pod("/volumes/0/secret"), "secretName", Some(json!("llink-tls")), "no Secret"),
        (WORKER, container("/envFrom/0/secretRef"), "optional", None, "no Secret"),
        (WORKER, container("/env/9/valueFrom/configMapKeyRef"), "key", Some(json!("allow-roots")), "no key"),
        (WORKER, container("/env/9/valueFrom/configMapKeyRef"), "name", Some(json!("llink-setting")), "no ConfigMap"),
        (WORKER, top("/spec/selector/matchLabels"), "app.kubernetes.io/name", Some(json!("worker")), "its own pods"),
        (COORDINATOR, top("/spec"), "serviceName", Some(json!("coordinator")), "no Service"),
        (COORDINATOR, top("/spec"), "replicas", Some(json!(2)), "replicas must be 1"),
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
        (("Service", "llink-coordinator"), top("/spec/ports/0"), "targetPort", Some(json!("grcp")), "no port of"),
        (
            ("PodDisruptionBudget", "llink-worker"),
            top("/spec/selector"),
            "matchLabels",
            Some(json!({ "app.kubernetes.io/name": "llink-coordinator" })),
            "blocks the drain",
        ),
        (("PodDisruptionBudget", "llink-worker"), top("/spec"), "maxUnavailable", Some(json!(0)), "blocks drains"),
        (("ConfigMap", "llink-settings"), top("/metadata"), "namespace", Some(json!("default")), "another namespace"),
        // Faults that a real control plane showed.
        (WORKER, pod("/topologySpreadConstraints/0"), "matchLabelKeys", None, "pods of the last rollout"),
        (COORDINATOR, container("/env/0"), "value", Some(json!("0.0.0.0:7070")), "only [::] serves"),
        (WORKER, container("/env/5"), "value", Some(json!("0.0.0.0:7071")), "only [::] serves"),
        (WORKER, container("/env/7"), "name", Some(json!("HF_HOMES")), "HF_HOME is not set"),
        (("ConfigMap", "llink-settings"), top("/metadata"), "annotations", None, "keep the old values"),
        (("ServiceAccount", "llink-worker"), top(""), "kind", Some(json!("Namespace")), "deletes the state"),
        // Network.
        (
            ("NetworkPolicy", "clients"),
            top("/spec/egress/0/to/0/podSelector/matchLabels"),
            "app.kubernetes.io/name",
            Some(json!("llink-worker")),
            "nothing lets them out",
        ),
        (
            ("NetworkPolicy", "names"),
            top("/spec/egress/0/to/0/podSelector/matchLabels"),
            "k8s-app",
            Some(json!("coredns")),
            "no pod may ask kube-dns",
        ),
        (
            ("NetworkPolicy", "names"),
            top("/spec/egress/0/to/1/podSelector/matchLabels"),
            "k8s-app",
            Some(json!("nodelocaldns")),
            "the pods of NodeLocal DNSCache",
        ),
        (
            ("NetworkPolicy", "names"),
            top("/spec/egress/0/to/2/ipBlock"),
            "cidr",
            Some(json!("169.254.20.0/32")),
            "NodeLocal DNSCache at",
        ),
        (("NetworkPolicy", "names"), top("/spec/egress/1/ports/0"), "port", Some(json!(53)), "OpenShift"),
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
            "not a port of the called pods",
        ),
        (("NetworkPolicy", "coordinator"), top("/spec/ingress/1"), "from", None, "opens to everybody"),
        (("NetworkPolicy", "workers"), top("/spec"), "policyTypes", Some(json!(["Ingress"])), "not the type Egress"),
        (
            ("NetworkPolicy", "workers"),
            top("/spec/egress/1/to/0/podSelector/matchLabels"),
            "app.kubernetes.io/name",
            Some(json!("llink-coordinators")),
            "may not call the coordinator",
        ),
        (("NetworkPolicy", "workers"), top("/spec/ingress/0/ports/0"), "port", Some(json!(7000)), "on every port"),
    ]
}

#[test]
fn each_planted_fault_is_named() {
    for ((kind, name), at, key, value, word) in planted() {
        let mut set = base();
        let place =
            object(&mut set, kind, name).pointer_mut(&at).unwrap_or_else(|| panic!("{kind}/{name} has no {at}"));
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

/// Returns the base with the Job of the Kueue overlay.
fn queued() -> Set {
    let mut set = base();
    let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("../overlays/kueue/workers.yaml");
    set.objects.extend(read(&job).unwrap().objects);
    object(&mut set, "Deployment", "llink-worker")["spec"]["replicas"] = json!(0);
    set
}

#[test]
fn faults_of_a_job_in_a_queue_are_named() {
    assert_eq!(faults(&queued()), Vec::<String>::new());
    let job = |change: &dyn Fn(&mut Value)| {
        let mut set = queued();
        change(object(&mut set, "Job", "llink-worker"));
        faults(&set)
    };
    let cases = [
        (job(&|j| j["spec"]["suspend"] = json!(true)), "what the queue has admitted"),
        (
            job(&|j| drop(j["spec"]["podFailurePolicy"]["rules"].as_array_mut().unwrap().remove(0))),
            "drains count as failures",
        ),
        (job(&|j| j["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] = json!([1])), "exit code 75"),
        (job(&|j| j["spec"]["podReplacementPolicy"] = json!("TerminatingOrFailed")), "still has"),
        (
            job(&|j| j["spec"]["template"]["metadata"]["labels"]["llink/workload"] = json!("deployment")),
            "every eviction is refused",
        ),
    ];
    for (found, word) in cases {
        assert!(found.iter().any(|f| f.contains(word)), "{word}: {found:#?}");
    }
}

#[test]
fn what_cannot_be_applied_over_the_base_is_named() {
    let before = base();
    assert_eq!(refused(&before, &queued()), Vec::<String>::new());
    let mut after = base();
    object(&mut after, "StatefulSet", "llink-coordinator")["spec"]["volumeClaimTemplates"][0]["metadata"]["labels"] =
        json!({ "a": "b" });
    object(&mut after, "Deployment", "llink-worker")["spec"]["selector"]["matchLabels"]["a"] = json!("b");
    let found = refused(&before, &after);
    for field in ["volumeClaimTemplates", "/spec/selector"] {
        assert!(found.iter().any(|f| f.contains(field)), "{field}: {found:#?}");
    }
    let mut job = queued();
    object(&mut job, "Job", "llink-worker")["spec"]["template"]["spec"]["containers"][0]["image"] =
        json!("llink-cuda:0.2.0");
    assert!(refused(&queued(), &job).iter().any(|f| f.contains("/spec/template is immutable")));
    let mut left = queued();
    left.objects.retain(|o| o["kind"] != "Deployment");
    assert!(refused(&before, &left).iter().any(|f| f.contains("keeps its GPUs")));
}

#[test]
fn two_sets_that_differ_are_told_apart() {
    let mut other = base();
    let settings = object(&mut other, "ConfigMap", "llink-settings");
    settings["metadata"]["name"] = json!("llink-settings-6fmgbk4dd8");
    let worker = object(&mut other, "Deployment", "llink-worker");
    worker["metadata"]["labels"]["helm.sh/chart"] = json!("llink-0.1.0");
    worker["spec"]["template"]["metadata"]["annotations"] = json!({ "checksum/settings": "1" });
    worker["spec"]["template"]["spec"]["containers"][0]["env"].as_array_mut().unwrap().reverse();
    assert_eq!(differences(&base(), &other), Vec::<String>::new());
    object(&mut other, "Deployment", "llink-worker")["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] =
        json!("x");
    other.objects.retain(|o| o["kind"] != "PodDisruptionBudget");
    let found = differences(&base(), &other);
    assert!(found.iter().any(|f| f.contains("/env/")), "{found:#?}");
    assert!(found.iter().any(|f| f.contains("in the first alone")), "{found:#?}");
}

#[test]
fn commands_that_name_what_is_not_there_are_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read_up = |text: &str| document_faults(&root, text, &[base()]);
    let sound = "    kubectl apply -k k8s/overlays/cpu   # all of it\n    kubectl -n llink get pod llink-coordinator-0\n        ```\nkubectl label namespace ingress llink/ingress=true\n```\n";
    assert_eq!(read_up(sound), Vec::<String>::new());
    for (command, word) in [
        ("kubectl apply -k k8s/overlays/gpus", "overlays/gpus"),
        ("kubectl apply -f k8s/example/restore.yaml", "example/restore.yaml"),
        ("kubectl -n llink scale statefulset llink-coord --replicas 0", "no StatefulSet llink-coord"),
        ("kubectl -n llink port-forward service/llink-coordinators 7070", "no Service"),
        ("kubectl label namespace monitoring llink/monitor=true", "llink/monitor"),
        ("helm upgrade --install llink k8s/charts", "k8s/charts"),
    ] {
        let found = read_up(&format!("Text.\n\n    {command}\n"));
        assert!(found.iter().any(|f| f.contains(word) && f.starts_with("line 3")), "{command}: {found:#?}");
    }
}
