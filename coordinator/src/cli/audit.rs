//! The `audit` command shows who did what, from the log that `serve` writes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Exit, Failed, of_file};
use crate::ui::output::say_json;

#[derive(Debug, clap::Args)]
pub(super) struct Audit {
    /// Directory of the state store, which holds audit.jsonl.
    #[arg(long, env = "LLINK_STATE", value_name = "DIR", default_value = ".llink")]
    state: PathBuf,
    /// The log file, if it is not in the state directory.
    #[arg(long, env = "LLINK_AUDIT", value_name = "FILE")]
    file: Option<PathBuf>,
    /// Show refused calls only.
    #[arg(long)]
    denied: bool,
    /// Show only the calls of this person or worker.
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// Show only the calls about this job or worker.
    #[arg(long, value_name = "ID")]
    about: Option<String>,
    /// How many of the last entries to show.
    #[arg(long, value_name = "N", default_value_t = 100)]
    last: usize,
}

impl Audit {
    pub(super) fn run(&self) -> Result<(), Failed> {
        let file = self.file.clone().unwrap_or_else(|| self.state.join("audit.jsonl"));
        if !file.exists() {
            let text = format!("{}: no such file; `serve` writes it once callers identify themselves", file.display());
            return Err(Exit::Usage.because(text));
        }
        let mut aside = file.clone().into_os_string();
        aside.push(".1");
        let mut found = VecDeque::new();
        for file in [Path::new(&aside), &file] {
            if file.exists() {
                self.read(file, &mut found).map_err(|e| of_file(file, &e))?;
            }
        }
        found.iter().for_each(|line| say_json(line));
        Ok(())
    }

    fn read(&self, file: &Path, found: &mut VecDeque<String>) -> std::io::Result<()> {
        for line in BufReader::new(File::open(file)?).lines() {
            let line = line?;
            // An entry that a full disk cut off is not valid JSON and is skipped.
            if serde_json::from_str(&line).is_ok_and(|entry| self.asked_for(&entry)) {
                found.push_back(line);
                if found.len() > self.last {
                    found.pop_front();
                }
            }
        }
        Ok(())
    }

    fn asked_for(&self, entry: &Value) -> bool {
        let is =
            |key: &str, wanted: &Option<String>| wanted.as_ref().is_none_or(|wanted| entry[key] == wanted.as_str());
        (!self.denied || entry["outcome"] == "denied") && is("who", &self.who) && is("about", &self.about)
    }
}
