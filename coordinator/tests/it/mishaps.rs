//! Mishaps of users: a connection that breaks, a job that was corrected, a damaged database, files that others could
//! read.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{Place, SMALL, done, text};

#[test]
fn when_the_connection_breaks_the_job_goes_on_and_the_advice_follows_it() {
    let place = Place::new(SMALL);
    let (coordinator, url) = place.serve(&[]);
    let submit = place.command(&["submit", "job.toml", "--coordinator", &url]).spawn().unwrap();
    place.lists("running", &["--coordinator", &url]);
    // The coordinator is killed while it has no worker, so the job can't have ended.
    drop(coordinator);
    let output = submit.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(said.contains("the connection to the coordinator broke"), "{said}");
    assert!(followed_advice(&place, &url, &said).contains("succeeded in"));
}

#[test]
fn when_the_connection_breaks_before_a_job_is_accepted_the_advice_submits_it() {
    let place = Place::new(SMALL);
    let breaks = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", breaks.local_addr().unwrap());
    let submit = place.command(&["submit", "job.toml", "--coordinator", &url]).spawn().unwrap();
    let (mut caller, _) = breaks.accept().unwrap();
    std::io::Read::read(&mut caller, &mut [0; 64]).unwrap();
    drop((caller, breaks));
    let output = submit.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(6), "{said}");
    assert!(followed_advice(&place, &url, &said).contains("succeeded in"));
}

/// Starts a coordinator and a worker at `url`, and returns what the command prints that a client's last words name.
fn followed_advice(place: &Place, url: &str, said: &str) -> String {
    let advice = said.split("`llink-coord ").nth(1).and_then(|rest| rest.split('`').next());
    let advice = advice.unwrap_or_else(|| panic!("no command is named: {said}"));
    let (_coordinator, _) = place.serve_at(url.trim_start_matches("http://"), &[]);
    let _worker = place.start(&["worker", "--coordinator", url, "--threads", "1"]);
    place.ok(&advice.split(' ').collect::<Vec<_>>())
}

#[test]
fn a_corrected_job_does_not_begin_with_the_errors_of_before() {
    let own = SMALL.replacen("source = \"sample\"", "source = \"rows.tsv\"", 1);
    let place = Place::new(&own);
    place.write("rows.tsv", "no second column\n");
    place.refuses(3, &["submit", "job.toml"], &["rows.tsv"]);
    place.ok(&["sample", "made", "--pairs", "2500", "--instructions", "1", "--seed", "3"]);
    std::fs::copy(place.path("made/pairs.tsv"), place.path("rows.tsv")).unwrap();
    let said = text(&done(&mut place.command(&["submit", "job.toml"])));
    assert!(!said.contains(" error ") && !said.contains("no second column"), "{said}");
    let list = place.ok(&["list"]);
    let id = list.split_whitespace().next().unwrap();
    assert!(place.ok(&["logs", id]).contains(" error "), "the log has all of it");
}

#[test]
fn a_damaged_database_is_named_at_start_and_what_is_advised_helps() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    place.ok(&["backup", "saved.db"]);
    let damage = || {
        let mut pages = std::fs::read(place.path("saved.db")).unwrap();
        let second_half = pages.len() / 8192 * 4096;
        pages[second_half..].fill(0x5a);
        for beside in ["state.db-wal", "state.db-shm"] {
            let _ = std::fs::remove_file(place.path(".llink").join(beside));
        }
        place.write(".llink/state.db", pages);
    };
    damage();
    for command in [&["submit", "job.toml"][..], &["serve", "--listen", "127.0.0.1:0"]] {
        place.refuses(4, command, &[".llink/state.db is damaged", "`llink-coord restore FILE --replace`"]);
    }
    place.ok(&["restore", "saved.db", "--replace"]);
    assert!(place.ok(&["submit", "job.toml"]).contains("nothing to do"));
    damage();
    std::fs::rename(place.path(".llink/state.db"), place.path("away.db")).unwrap();
    assert!(place.ok(&["submit", "job.toml"]).contains("nothing to do"), "stages are found by their keys");
    damage();
    place.write(".llink/state.db", "this is no database, though it is long enough to be taken for one\n".repeat(100));
    assert!(place.fails(4, &["submit", "job.toml"]).contains("is damaged"));
}

#[test]
fn the_state_is_for_its_owner_alone() {
    let place = Place::new(SMALL);
    place.ok(&["submit", "job.toml"]);
    let (_coordinator, _) = place.serve(&[]);
    place.ok(&["backup", "saved.db"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let state = place.path(".llink");
    for name in ["state.db", "state.db-wal", "state.db-shm", "coordinator.lock", "logs/worker-0.log"] {
        assert_eq!(mode(&state.join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&place.path("saved.db")), 0o600);
    for directory in [state.clone(), state.join("logs")] {
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
    }
}

#[test]
fn while_local_workers_start_nobody_is_told_that_there_are_none() {
    let place = Place::new(SMALL);
    let said = text(&place.run(&["submit", "job.toml", "--json"]));
    assert!(!said.contains("no worker is connected"), "{said}");
}
