//! The check of network policies: all traffic is denied, and each exception names existing pods and ports.

use serde_json::Value;

use crate::set::{Set, list, name};

/// The labels of clients in the namespace, which people run.
const FROM_OUTSIDE: [&str; 1] = ["llink/client"];

pub(crate) fn check(set: &Set) -> Vec<String> {
    let mut faults = Vec::new();
    if set.pods().is_empty() {
        return faults;
    }
    let denies = |p: &&Value| {
        let open = ["ingress", "egress"].iter().any(|key| p["spec"].get(key).is_some());
        p["spec"]["podSelector"] == serde_json::json!({})
            && !open
            && p["spec"]["policyTypes"].as_array().map_or(0, Vec::len) == 2
    };
    if set.of_kind("NetworkPolicy").find(denies).is_none() {
        faults.push("no NetworkPolicy denies all traffic of the namespace".into());
    }
    for policy in set.of_kind("NetworkPolicy") {
        let mut tell = |text: String| faults.push(format!("{}: {text}", name(policy)));
        let own = set.selected(&policy["spec"]["podSelector"]["matchLabels"]);
        let from_outside = |labels: &Value| {
            let labels = labels.as_object();
            labels.is_some_and(|l| !l.is_empty() && l.keys().all(|k| FROM_OUTSIDE.contains(&k.as_str())))
        };
        if own.is_empty() && !from_outside(&policy["spec"]["podSelector"]["matchLabels"]) {
            tell("its selector picks no pod".into());
        }
        for (rules, peers, direction) in [("ingress", "from", "Ingress"), ("egress", "to", "Egress")] {
            if policy["spec"].get(rules).is_some() && !list(&policy["spec"]["policyTypes"]).any(|t| t == direction) {
                tell(format!("has {rules} rules and not the type {direction}"));
            }
            for rule in list(&policy["spec"][rules]) {
                if list(&rule[peers]).next().is_none() {
                    tell(format!("an {rules} rule names no peer: it opens to everybody"));
                }
                let mut far = Vec::new();
                for peer in list(&rule[peers]).filter(|p| p.get("namespaceSelector").is_none()) {
                    let Some(labels) = peer["podSelector"].get("matchLabels") else {
                        continue;
                    };
                    let picked = set.selected(labels);
                    if picked.is_empty() && !from_outside(labels) {
                        tell(format!("an {rules} rule picks no pod: {labels}"));
                    }
                    far.extend(picked);
                }
                // The name of a port belongs to the called pods.
                let called = if rules == "ingress" { &own } else { &far };
                for port in list(&rule["ports"]).filter_map(|p| p["port"].as_str()) {
                    if !called.iter().all(|pod| pod.port_names().contains(&port)) {
                        tell(format!("port {port:?} is not a port of the called pods"));
                    }
                }
            }
        }
    }
    reachable(set, &mut faults);
    ways_out(set, &mut faults);
    faults
}

/// Checks that workers reach the coordinator and each other on all ports.
fn reachable(set: &Set, faults: &mut Vec<String>) {
    let worker = serde_json::json!({ "app.kubernetes.io/name": "llink-worker" });
    let coordinator = serde_json::json!({ "app.kubernetes.io/name": "llink-coordinator" });
    let all_ports = |rule: &Value| list(&rule["ports"]).any(|p| p["protocol"] == "TCP" && p.get("port").is_none());
    let grpc = |rule: &Value| list(&rule["ports"]).any(|p| p["port"] == "grpc" || p["port"] == 7070);
    let opens = |own: &Value, rules: &str, peers: &str, far: &Value, ports: &dyn Fn(&Value) -> bool| {
        set.of_kind("NetworkPolicy").filter(|p| p["spec"]["podSelector"]["matchLabels"] == *own).any(|policy| {
            list(&policy["spec"][rules])
                .any(|rule| ports(rule) && list(&rule[peers]).any(|p| p["podSelector"]["matchLabels"] == *far))
        })
    };
    let wanted = [
        (opens(&worker, "egress", "to", &coordinator, &grpc), "workers may not call the coordinator"),
        (opens(&coordinator, "ingress", "from", &worker, &grpc), "the coordinator may not be called by workers"),
        (opens(&worker, "egress", "to", &worker, &all_ports), "workers may not call each other on every port"),
        (
            opens(&worker, "ingress", "from", &worker, &all_ports),
            "workers may not be called by each other on every port",
        ),
    ];
    faults.extend(wanted.into_iter().filter(|(open, _)| !open).map(|(_, text)| text.to_owned()));
}

/// Checks that pods with a client's label may also call the coordinator, and that all pods may ask the DNS.
fn ways_out(set: &Set, faults: &mut Vec<String>) {
    let coordinator = serde_json::json!({ "app.kubernetes.io/name": "llink-coordinator" });
    for label in FROM_OUTSIDE {
        let admits = |rule: &Value| list(&rule["from"]).any(|p| p["podSelector"]["matchLabels"].get(label).is_some());
        let let_in = set.of_kind("NetworkPolicy").any(|p| list(&p["spec"]["ingress"]).any(admits));
        let calls = |policy: &&Value| {
            let selector = &policy["spec"]["podSelector"]["matchLabels"];
            let grpc = |rule: &Value| list(&rule["ports"]).any(|p| p["port"] == "grpc" || p["port"] == 7070);
            selector.get(label).is_some()
                && list(&policy["spec"]["egress"])
                    .any(|rule| grpc(rule) && list(&rule["to"]).any(|p| p["podSelector"]["matchLabels"] == coordinator))
        };
        if let_in && set.of_kind("NetworkPolicy").find(calls).is_none() {
            faults.push(format!("pods with the label {label} may not call the coordinator: nothing lets them out"));
        }
    }
    let for_all = |p: &&Value| p["spec"]["podSelector"] == serde_json::json!({});
    let rules: Vec<&Value> =
        set.of_kind("NetworkPolicy").filter(for_all).flat_map(|p| list(&p["spec"]["egress"])).collect();
    let opens = |port: u16, is: &dyn Fn(&Value) -> bool| {
        let both = |rule: &Value| {
            let named = |protocol: &str| list(&rule["ports"]).any(|p| p["port"] == port && p["protocol"] == protocol);
            named("UDP") && named("TCP")
        };
        rules.iter().any(|rule| both(rule) && list(&rule["to"]).any(is))
    };
    let namespace =
        |peer: &Value, name: &str| peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == name;
    let wanted = [
        (
            opens(53, &|p| namespace(p, "kube-system") && p["podSelector"]["matchLabels"]["k8s-app"] == "kube-dns"),
            "no pod may ask kube-dns",
        ),
        (
            opens(53, &|p| p["ipBlock"]["cidr"] == "169.254.20.10/32"),
            "no pod may ask NodeLocal DNSCache at 169.254.20.10",
        ),
        (
            opens(53, &|p| {
                namespace(p, "kube-system") && p["podSelector"]["matchLabels"]["k8s-app"] == "node-local-dns"
            }),
            "no pod may ask the pods of NodeLocal DNSCache",
        ),
        (opens(5353, &|p| namespace(p, "openshift-dns")), "no pod may ask OpenShift's DNS on port 5353"),
    ];
    faults.extend(wanted.into_iter().filter(|(open, _)| !open).map(|(_, text)| text.to_owned()));
}
