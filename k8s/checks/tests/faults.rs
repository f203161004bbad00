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

const COORDINATOR: &str = "StatefulSet/llink-coordinator";
const WORKER: &str = "Deployment/llink-worker";

/// The short forms in paths.
const SHORT: [(&str, &str); 4] = [
    ("CONTAINER", "POD/containers/0"),
    ("POD", "/spec/template/spec"),
    ("LABELS", "podSelector/matchLabels"),
    ("NAME", "app.kubernetes.io~1name"),
];

/// A fault: the object, the path of the value in it, the planted value (`None` removes it), and a word of the expected text.
type Planted = (&'static str, &'static str, Option<Value>, &'static str);

fn set(object: &'static str, path: &'static str, value: impl Into<Value>, word: &'static str) -> Planted {
    (object, path, Some(value.into()), word)
}

fn removed(object: &'static str, path: &'static str, word: &'static str) -> Planted {
    (object, path, None, word)
}

fn planted() -> Vec<Planted> {
    vec![
        // Misspelt and misplaced fields, wrong types.
        set(WORKER, "POD/terminationGracePeriod", 3, "no such field"),
        set(WORKER, "CONTAINER/env/0/vaule", "x", "no such field"),
        set(WORKER, "/spec/replicas", "two", "invalid type"),
        set(WORKER, "/apiVersion", "apps/v2", "not known"),
        set(WORKER, "CONTAINER/ports", json!({}), "invalid type"),
        // Enums and quantities.
        set(WORKER, "CONTAINER/imagePullPolicy", "Sometimes", "none of"),
        set(WORKER, "POD/topologySpreadConstraints/0/whenUnsatisfiable", "ScheduleAnyhow", "none of"),
        set(WORKER, "POD/tolerations/0/effect", "NoScheduling", "none of"),
        set(WORKER, "POD/volumes/3/emptyDir/medium", "memory", "none of"),
        set(COORDINATOR, "/spec/volumeClaimTemplates/0/spec/accessModes/0", "ReadWriteOnePod", "none of"),
        set(WORKER, "CONTAINER/resources/limits/memory", "64GB", "no quantity"),
        set(WORKER, "POD/volumes/3/emptyDir/sizeLimit", "8 Gi", "no quantity"),
        set(WORKER, "/metadata/name", "llink_worker", "not a name"),
        // The security of pods.
        removed(WORKER, "POD/securityContext/runAsNonRoot", "runAsNonRoot"),
        set(WORKER, "POD/securityContext/runAsUser", 0, "other than root"),
        set(WORKER, "POD/securityContext/seccompProfile/type", "Unconfined", "RuntimeDefault"),
        set(WORKER, "POD/automountServiceAccountToken", true, "automountServiceAccountToken"),
        set(WORKER, "POD/hostNetwork", true, "opens the node"),
        set(WORKER, "POD/volumes/1/hostPath", json!({ "path": "/" }), "hostPath"),
        set(WORKER, "CONTAINER/securityContext/readOnlyRootFilesystem", false, "readOnlyRootFilesystem"),
        removed(WORKER, "CONTAINER/securityContext/allowPrivilegeEscalation", "allowPrivilegeEscalation"),
        set(WORKER, "CONTAINER/securityContext/capabilities/add", json!(["NET_ADMIN"]), "capabilities"),
        // Probes.
        removed(WORKER, "CONTAINER/livenessProbe", "livenessProbe is missing"),
        set(WORKER, "CONTAINER/readinessProbe/grpc/port", 7079, "does not name"),
        set(WORKER, "CONTAINER/livenessProbe/grpc/service", "ready", "process alone"),
        set(WORKER, "CONTAINER/startupProbe/exec", json!({ "command": ["true"] }), "exactly one"),
        // Images and resources.
        set(WORKER, "CONTAINER/image", "llink-cuda:latest", "not fixed"),
        set(WORKER, "CONTAINER/image", "registry:5000/llink-cuda", "not fixed"),
        set(WORKER, "CONTAINER/resources/limits/nvidia.com~1gpu", "2", "must be the same"),
        removed(WORKER, "CONTAINER/resources/limits/memory", "no memory limit"),
        set(WORKER, "CONTAINER/resources/requests/memory", "96Gi", "more memory"),
        set(WORKER, "POD/volumes/3/emptyDir/sizeLimit", "64Gi", "as large as the memory limit"),
        removed(WORKER, "POD/volumes/1/emptyDir/sizeLimit", "no sizeLimit"),
        set(WORKER, "POD/terminationGracePeriodSeconds", 60, "LLINK_GRACE_S"),
        // References.
        set(WORKER, "POD/serviceAccountName", "llink-wrker", "no ServiceAccount"),
        set(WORKER, "CONTAINER/volumeMounts/0/name", "tsl", "no such volume"),
        set(WORKER, "CONTAINER/volumeMounts/1/mountPath", "/etc/llink/tls", "mounted twice"),
        set(WORKER, "CONTAINER/volumeMounts/0/mountPath", "/etc/llink/tsl", "lies in no volume"),
        set(WORKER, "POD/volumes/0/secret/secretName", "llink-tls", "no Secret"),
        removed(WORKER, "CONTAINER/envFrom/0/secretRef/optional", "no Secret"),
        set(WORKER, "CONTAINER/env/9/valueFrom/configMapKeyRef/key", "allow-roots", "no key"),
        set(WORKER, "CONTAINER/env/9/valueFrom/configMapKeyRef/name", "llink-setting", "no ConfigMap"),
        set(WORKER, "/spec/selector/matchLabels/NAME", "worker", "its own pods"),
        set(COORDINATOR, "/spec/serviceName", "coordinator", "no Service"),
        set(COORDINATOR, "/spec/replicas", 2, "replicas must be 1"),
        set(COORDINATOR, "/spec/volumeClaimTemplates/0/spec/accessModes", json!(["ReadWriteOnce"]), "ReadWriteOncePod"),
        set("Service/llink-coordinator", "/spec/selector/NAME", "coordinator", "picks no pod"),
        set("Service/llink-coordinator", "/spec/ports/0/targetPort", "grcp", "no port of"),
        set(
            "PodDisruptionBudget/llink-worker",
            "/spec/selector/matchLabels",
            json!({ "app.kubernetes.io/name": "llink-coordinator" }),
            "blocks the drain",
        ),
        set("PodDisruptionBudget/llink-worker", "/spec/maxUnavailable", 0, "blocks drains"),
        set("ConfigMap/llink-settings", "/metadata/namespace", "default", "another namespace"),
        // Faults that a real control plane showed.
        removed(WORKER, "POD/topologySpreadConstraints/0/matchLabelKeys", "pods of the last rollout"),
        set(COORDINATOR, "CONTAINER/env/0/value", "0.0.0.0:7070", "only [::] serves"),
        set(WORKER, "CONTAINER/env/5/value", "0.0.0.0:7071", "only [::] serves"),
        set(WORKER, "CONTAINER/env/7/name", "HF_HOMES", "HF_HOME is not set"),
        removed("ConfigMap/llink-settings", "/metadata/annotations", "keep the old values"),
        set("ServiceAccount/llink-worker", "/kind", "Namespace", "deletes the state"),
        // Network.
        set("NetworkPolicy/clients", "/spec/egress/0/to/0/LABELS/NAME", "llink-worker", "nothing lets them out"),
        set("NetworkPolicy/names", "/spec/egress/0/to/0/LABELS/k8s-app", "coredns", "no pod may ask kube-dns"),
        set(
            "NetworkPolicy/names",
            "/spec/egress/0/to/1/LABELS/k8s-app",
            "nodelocaldns",
            "the pods of NodeLocal DNSCache",
        ),
        set("NetworkPolicy/names", "/spec/egress/0/to/2/ipBlock/cidr", "169.254.20.0/32", "NodeLocal DNSCache at"),
        set("NetworkPolicy/names", "/spec/egress/1/ports/0/port", 53, "OpenShift"),
        set("NetworkPolicy/default-deny", "/spec/LABELS", json!({ "a": "b" }), "denies all traffic"),
        set("NetworkPolicy/coordinator", "/spec/LABELS/NAME", "coordinator", "picks no pod"),
        set("NetworkPolicy/coordinator", "/spec/ingress/0/ports/0/port", "grcp", "not a port of the called pods"),
        removed("NetworkPolicy/coordinator", "/spec/ingress/1/from", "opens to everybody"),
        set("NetworkPolicy/workers", "/spec/policyTypes", json!(["Ingress"]), "not the type Egress"),
        set(
            "NetworkPolicy/workers",
            "/spec/egress/1/to/0/LABELS/NAME",
            "llink-coordinators",
            "may not call the coordinator",
        ),
        set("NetworkPolicy/workers", "/spec/ingress/0/ports/0/port", 7000, "on every port"),
    ]
}

#[test]
fn each_planted_fault_is_named() {
    for (named, path, value, word) in planted() {
        let mut set = base();
        let (kind, name) = named.split_once('/').unwrap();
        let path = SHORT.iter().fold(path.to_owned(), |path, (short, long)| path.replace(short, long));
        let (at, key) = path.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/");
        let place = object(&mut set, kind, name).pointer_mut(at).unwrap_or_else(|| panic!("{named} has no {at}"));
        match (place, value.clone()) {
            (Value::Object(fields), Some(value)) => drop(fields.insert(key, value)),
            (Value::Object(fields), None) => assert!(fields.remove(&key).is_some(), "{named}{at} has no {key}"),
            (Value::Array(items), Some(value)) => items[key.parse::<usize>().unwrap()] = value,
            (other, _) => panic!("{named}{at} is {other}"),
        }
        let found = faults(&set);
        assert!(
            found.iter().any(|fault| fault.contains(word)),
            "{named}{path} = {value:?}: expected a fault with {word:?}, found {found:#?}"
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
