//! The scripts of `examples/launchers` run a job on two nodes, whose workers join by tokens that admit one process.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::common::{BINARY, Place, SMALL};

const LAUNCHERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/launchers");

#[test]
fn two_nodes_run_a_job_and_end_with_it() {
    let place = Place::new(&SMALL.replace("[align]", "[align]\nmin_ranks = 2"));
    let programs = place.path("bin");
    std::fs::create_dir(&programs).unwrap();
    symlink(BINARY, programs.join("llink-coord")).unwrap();
    let worker = programs.join("llink-worker");
    std::fs::write(&worker, "#!/bin/sh\nexec llink-coord worker \"$@\"\n").unwrap();
    std::fs::set_permissions(&worker, PermissionsExt::from_mode(0o755)).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let script = |name: &str, args: &[&str]| {
        let mut command = Command::new("bash");
        command
            .arg(Path::new(LAUNCHERS).join(name))
            .args(args)
            .current_dir(place.dir.path())
            .env("PATH", &path)
            .env("LLINK_ALLOW_ROOT", place.dir.path())
            .env("LLINK_PORT", port.to_string())
            // A worker that ends before `submit` has started, or after the coordinator, would fail.
            .env("LLINK_IDLE_EXIT_S", "12")
            .env("LLINK_LAST_S", "12");
        command
    };
    assert!(script("prepare.sh", &["join", "2"]).status().unwrap().success());
    let mut other = script("node.sh", &["job.toml", "1", "127.0.0.1", "0"]).spawn().unwrap();
    let first = script("node.sh", &["job.toml", "0", "127.0.0.1", "0"]).output().unwrap();
    let said = crate::common::text(&first);
    assert!(first.status.success() && said.contains("succeeded in"), "{said}");
    assert!(other.wait().unwrap().success(), "{said}");
}
