//! The check of Jobs, so that a queue may stop them and a drain may move their pods.

use serde_json::Value;

use crate::set::{Set, list, name};

const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// The exit code of `llink-worker` that was told to stop while a job runs.
const WORK_LEFT: u64 = 75;

pub(crate) fn check(set: &Set) -> Vec<String> {
    let mut faults = Vec::new();
    for job in set.of_kind("Job") {
        let mut tell = |text: &str| faults.push(format!("{}: {text}", name(job)));
        if job["metadata"]["labels"].get(QUEUE).is_some() && job["spec"].get("suspend").is_some() {
            tell("sets suspend beside a queue's name: applied again, it stops what the queue has admitted");
        }
        let ignores = |is: &dyn Fn(&Value) -> bool| {
            list(&job["spec"]["podFailurePolicy"]["rules"]).any(|rule| rule["action"] == "Ignore" && is(rule))
        };
        if !ignores(&|rule| {
            list(&rule["onPodConditions"]).any(|c| c["type"] == "DisruptionTarget" && c["status"] == "True")
        }) {
            tell("its podFailurePolicy does not ignore disruptions: drains count as failures");
        }
        if !ignores(&|rule| {
            let codes = &rule["onExitCodes"];
            codes["operator"] == "In" && list(&codes["values"]).any(|code| *code == WORK_LEFT)
        }) {
            tell("its podFailurePolicy does not ignore exit code 75, by which a worker says that work is left");
        }
        if job["spec"]["podReplacementPolicy"] != "Failed" {
            tell("podReplacementPolicy must be Failed: the next pod needs the GPU that the last one still has");
        }
    }
    faults
}
