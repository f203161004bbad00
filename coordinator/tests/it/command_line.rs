//! What commands print, whole. After a wanted change, a run with `INSTA_UPDATE=always` writes the snapshots again.

use crate::common::{Place, SMALL, text};

/// Runs the commands in turn, and returns each with what it printed and its exit code.
fn session(commands: &[impl AsRef<str>]) -> String {
    let place = Place::new(SMALL);
    place.write("faulty.toml", SMALL.replace("steps", "step"));
    let run = |line: &str| {
        let args: Vec<&str> = line.split_whitespace().collect();
        // Help pages show the values of variables, and are as wide as one of them says.
        let output = place.command(&args).env_clear().output().unwrap();
        let code = output.status.code().unwrap();
        format!("$ llink-coord {line}\n{}exit code {code}\n", text(&output))
    };
    let printed: Vec<String> = commands.iter().map(|line| run(line.as_ref())).collect();
    let folder = place.dir.path().canonicalize().unwrap();
    printed.join("\n").replace(folder.to_str().unwrap(), "FOLDER")
}

#[test]
fn every_command_has_a_help_page() {
    let pages = crate::common::commands().into_iter().map(|command| format!("{command} --help"));
    let pages: Vec<String> = std::iter::once("--help".to_owned()).chain(pages).collect();
    insta::assert_snapshot!(session(&pages));
}

#[test]
fn what_cannot_be_done_is_refused_with_what_to_do() {
    insta::assert_snapshot!(session(&[
        "sumbit job.toml",
        "submit",
        "submit none.toml",
        "submit faulty.toml",
        "submit job.toml --coordinator here",
        "submit job.toml --coordinator http://127.0.0.1:1",
        "list",
        "get small",
        "serve --listen here",
        "serve --listen 0.0.0.0:0",
        "serve --listen 127.0.0.1:0 --tls-cert none.crt --tls-key none.key",
        "worker",
        "generate --bundle none Hello",
        "verify none",
        "backup saved.db",
        "restore none.db",
        "certs certs --user ada:root",
        "token tokens.toml --name ada --role submit --once",
        "audit",
        "health here",
        "completions fsh",
    ]));
}
