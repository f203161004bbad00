//! A job's figures reach MLflow and Trackio, as these read them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::common::{Place, SMALL, done, figure};
use serde_json::Value;

#[test]
fn mlflow_and_trackio_hold_one_run_of_a_job_that_was_submitted_twice() {
    let Some(python) = crate::skip::python_with(&["mlflow.server", "trackio"]) else {
        return;
    };
    let place = Place::new(SMALL);
    let mut servers = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/track.py"))
        .arg(place.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(servers.stdout.take().unwrap()).lines();
    let urls: Value = serde_json::from_str(&said.next().unwrap().unwrap()).unwrap();
    let track = format!(
        "[track]\nmlflow = {}\ntrackio = {}\ntrackio_token_env = \"TRACKIO_TOKEN\"\nexperiment = \"tracked\"\n",
        urls["mlflow"], urls["trackio"]
    );
    place.write("job.toml", format!("{SMALL}{track}"));
    place.write("token", "write me\n");
    assert!(place.fails(3, &["submit", "job.toml"]).contains("TRACKIO_TOKEN"), "a job without its token is refused");
    for _ in 0..2 {
        done(place.command(&["submit", "job.toml"]).env("TRACKIO_TOKEN_FILE", place.path("token")));
    }
    servers.stdin.take().unwrap().write_all(b"\n").unwrap();
    let found: Value = serde_json::from_str(&said.next().expect("the servers' complaint").unwrap()).unwrap();
    servers.wait().unwrap();

    let (mlflow, trackio) = (&found["mlflow"], &found["trackio"]);
    let name = "evaluate/retrieval.stage_a.cosine.r1";
    let r1 = figure(&place, "retrieval.stage_a.cosine.r1");
    assert_eq!(mlflow["metrics"][name], r1, "{found:#}");
    assert_eq!((&mlflow["status"], &mlflow["tags"]["llink.state"]), (&"FINISHED".into(), &"succeeded".into()));
    assert_eq!(mlflow["params"]["align.steps"], "60");
    let job = mlflow["name"].as_str().unwrap();
    assert!(job.starts_with("small-") && trackio["name"] == job, "{found:#}");
    assert_eq!(trackio["config"]["align"]["steps"], 60);
    let rows = trackio["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row[name] == r1), "{found:#}");
}
