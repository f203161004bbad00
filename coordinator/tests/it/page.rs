//! The page in a real browser.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::common::{Place, SMALL, signal, workers_of};

/// Returns Debian's browser, where it is installed.
fn chromium() -> Option<&'static str> {
    let found = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];
    let found = found.into_iter().find(|path| std::path::Path::new(path).exists());
    if found.is_none() {
        crate::skip::skip("chromium");
    }
    found
}

#[test]
fn a_job_is_watched_from_its_start_to_its_report_while_a_worker_is_killed() {
    let Some(python) = crate::skip::python_with(&["playwright", "axe_playwright_python"]) else {
        return;
    };
    let Some(chromium) = chromium() else { return };
    let job = SMALL
        .replace("name = \"small\"", "name = \"watched\"")
        .replace("output = \"out\"", "output = \"out <img src=x onerror=alert(1)>\"")
        .replace("steps = 60", "steps = 10_000")
        .replace("checkpoint_every = 20", "checkpoint_every = 100\nvalidate_every = 100");
    let place = Place::new(&job);
    let mut submit = place.start(&["submit", "job.toml"]);
    let url = submit.says("watch it in a browser: ");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page.py");
    let mut browser = Command::new(python).args([script, &url, chromium]).stdout(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(browser.stdout.take().unwrap()).lines().next();
    assert_eq!(said.map(Result::unwrap).as_deref(), Some("at work"), "{}", submit.log());
    // One of them alone may hold no task.
    workers_of(submit.child.id()).into_iter().for_each(|worker| signal(worker, "-KILL"));
    assert!(submit.child.wait().unwrap().success(), "{}", submit.log());
    assert!(browser.wait().unwrap().success(), "the browser's complaint stands above");
}
