//! How llink treats its environment variables, both empty ones and those that are meant for a cluster.

use crate::common::{BINARY, Place, SMALL, done, free_address, says_all, text};

/// Returns every variable that sets some option of this program, according to its help pages.
fn variables() -> Vec<String> {
    let help = |args: &[&str]| text(&std::process::Command::new(BINARY).args(args).output().unwrap());
    let mut found = Vec::new();
    for command in crate::common::commands() {
        let page = help(&[&command, "--help"]);
        let mentioned = page.split("[env:").skip(1);
        found.extend(mentioned.filter_map(|rest| Some(rest.trim_start().split_once('=')?.0.to_owned())));
    }
    found.sort();
    found.dedup();
    for known in ["LLINK_STATE", "LLINK_TLS_CA", "LLINK_HEALTH", "LLINK_THREADS", "LLINK_LEASE_S"] {
        assert!(found.iter().any(|name| name == known), "{known}: {found:?}");
    }
    found.push("LLINK_LOG".into());
    found
}

#[test]
fn an_empty_variable_is_as_one_that_is_not_set() {
    let place = Place::new(SMALL);
    let with_empty = |args: &[&str]| {
        let mut command = place.command(args);
        command.envs(variables().into_iter().map(|name| (name, "")));
        command
    };
    done(&mut with_empty(&["submit", "job.toml", "--workers", "2"]));
    assert!(place.path(".llink/state.db").exists(), "the default counts");
    says_all(&text(&done(&mut with_empty(&["list"]))), &["succeeded"]);
    let said = text(&with_empty(&["worker"]).output().unwrap());
    assert!(said.contains("--coordinator"), "what is needed is asked for: {said}");
}

#[test]
fn what_is_meant_for_a_cluster_does_not_reach_the_workers_of_submit() {
    let place = Place::new(SMALL);
    let health = free_address();
    place.write("ca.crt", "no certificate");
    done(place.command(&["submit", "job.toml", "--workers", "2"]).envs([
        ("LLINK_TLS_CA", "ca.crt"),
        ("LLINK_TLS_CERT", "worker.crt"),
        ("LLINK_TLS_KEY", "worker.key"),
        ("LLINK_TLS_SERVER_NAME", "head"),
        ("LLINK_TOKEN_FILE", "/var/run/no-token"),
        ("LLINK_ALLOW_ROOT", "s3://bucket/llink"),
        ("LLINK_HEALTH", &health),
        ("LLINK_IDLE_EXIT_S", "1"),
        ("LLINK_CONNECT_TIMEOUT_S", "soon"),
        ("LLINK_GRACE_S", "-1"),
        ("LLINK_THREADS", "many"),
        ("LLINK_WORKER_NAME", "node-7"),
        ("LLINK_OF_A_LATER_VERSION", "1"),
    ]));
}

#[test]
fn the_device_that_a_person_chose_and_the_log_level_reach_the_workers_of_submit() {
    let place = Place::new(SMALL);
    let chosen = [("LLINK_DEVICE", "cpu"), ("LLINK_LOG", "debug")];
    done(place.command(&["submit", "job.toml", "--workers", "1"]).envs(chosen));
    says_all(&place.read(".llink/logs/worker-0.log"), &["DEBUG"]);
    let mut command = place.command(&["submit", "job.toml", "--state", "other", "--workers", "1"]);
    std::fs::remove_dir_all(place.path("out")).unwrap();
    let output = command.env("LLINK_DEVICE", "cuda:77").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    says_all(&text(&output), &["ended 11 times in a row"]);
}

#[test]
fn certificates_of_a_cluster_in_the_environment_do_not_hide_the_coordinator_that_runs_here() {
    let place = Place::new(SMALL);
    let (_serve, url) = place.serve(&[]);
    let id = &*place.submit_to(&url);
    let cancelled = place.command(&["cancel", id]).env("LLINK_TLS_CA", "ca.crt").output().unwrap();
    says_all(&text(&cancelled), &["cancelled"]);
}
