//! Web addresses with a part that authenticates the reader. They are kept in memory and never in the state.
//!
//! A job is planned and saved with each such address as [`llink_datasets::shown::withheld`] writes it. The address
//! itself is put into a task when it is sent to a worker. After a restart of the coordinator the address is unknown. A
//! task that still needs it fails and says that the job must be submitted again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use llink_datasets::shown::withheld;
use llink_proto::task::Kind;
use llink_proto::{Source, Task};

use crate::job::JobFile;

/// The addresses by their substitute names.
pub(super) type Addresses = BTreeMap<String, String>;

/// Replaces a job's addresses that must not be saved by names, and returns them.
pub(super) fn keep_back(file: &mut JobFile) -> Addresses {
    let mut addresses = Addresses::new();
    let mut keep = |url: &str| {
        let Some(name) = withheld(url) else {
            return url.to_owned();
        };
        // Two addresses that differ only in an apparent signature may still be two files.
        let mut unique = name.clone();
        let mut number = 1;
        while addresses.get(&unique).is_some_and(|other| other != url) {
            number += 1;
            unique = format!("{name}-{number}");
        }
        addresses.insert(unique.clone(), url.to_owned());
        unique
    };
    file.change_files(&mut keep);
    addresses
}

fn files(source: &mut Source) -> impl Iterator<Item = &mut String> {
    std::iter::once(&mut source.url).chain(&mut source.foreign_url)
}

/// The addresses of the jobs that were submitted since the coordinator started.
#[derive(Default)]
pub(super) struct Withheld {
    of_jobs: HashMap<String, Addresses>,
}

impl fmt::Debug for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Withheld({} jobs)", self.of_jobs.len())
    }
}

impl Withheld {
    /// Keeps a job's addresses in place of its earlier ones.
    pub(super) fn keep(&mut self, job: &str, addresses: Addresses) {
        if addresses.is_empty() {
            self.of_jobs.remove(job);
        } else {
            self.of_jobs.insert(job.to_owned(), addresses);
        }
    }

    /// Puts a job's addresses into one of its tasks. A name without an address stays, and the worker refuses it with an
    /// error.
    pub(super) fn fill(&self, job: &str, task: &mut Task) {
        let Some(addresses) = self.of_jobs.get(job) else { return };
        let urls: Vec<&mut String> = match &mut task.kind {
            Some(Kind::CleanSource(task)) => task.source.iter_mut().flat_map(files).collect(),
            Some(Kind::Evaluate(task)) => {
                let judge = task.judge.iter_mut().flat_map(|judge| &mut judge.direct_answers);
                let sets = task.answers.iter_mut().flat_map(|answers| &mut answers.set);
                sets.flat_map(|set| set.sources.iter_mut().flat_map(files)).chain(judge).collect()
            }
            _ => Vec::new(),
        };
        for url in urls {
            if let Some(address) = addresses.get(url) {
                url.clone_from(address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use llink_datasets::shown::is_withheld;

    use super::*;

    const JOB: &str = "[corpus]\nsource = [\"https://host/a.tsv?sig=5ecret\", \"https://host/a.tsv?sig=other\", \
        { english = \"https://me:5ecret@host/b.en\", foreign = \"/data/b.km\" }]\n\
        [instructions]\nsource = \"s3://bucket/i?x.jsonl\"\n";

    #[test]
    fn what_is_saved_holds_no_secret_and_what_is_sent_holds_the_address() {
        let mut file = crate::job::parse("job.toml", JOB).unwrap();
        let addresses = keep_back(&mut file);
        let saved = serde_json::to_string(&file).unwrap();
        assert!(!saved.contains("5ecret") && !saved.contains("other"), "{saved}");
        assert!(saved.contains("s3://bucket/i?x.jsonl") && saved.contains("/data/b.km"), "{saved}");
        assert_eq!(addresses.len(), 3);

        let mut vault = Withheld::default();
        vault.keep("job-1", addresses);
        assert!(!format!("{vault:?}").contains("5ecret"));
        let sources = file.corpus.source.as_slice();
        let task = |url: &str, foreign_url: &str| Task {
            output_url: String::new(),
            kind: Some(Kind::CleanSource(llink_proto::CleanSource {
                source: Some(Source {
                    url: url.to_owned(),
                    foreign_url: Some(foreign_url.to_owned()),
                    ..Default::default()
                }),
                ..Default::default()
            })),
        };
        let filled = |job: &str, url: &str| {
            let mut task = task(url, "/data/b.km");
            vault.fill(job, &mut task);
            let Some(Kind::CleanSource(task)) = task.kind else {
                return None;
            };
            task.source.and_then(|source| Some((source.url, source.foreign_url?)))
        };
        let of = |url: &str| Some((url.to_owned(), "/data/b.km".to_owned()));
        assert_eq!(filled("job-1", sources[0].name()), of("https://host/a.tsv?sig=5ecret"));
        assert_eq!(filled("job-1", sources[1].name()), of("https://host/a.tsv?sig=other"));
        assert_eq!(filled("job-1", sources[2].name()), of("https://me:5ecret@host/b.en"));
        // A task of another job gets no address, whatever it names.
        assert!(is_withheld(&filled("job-2", sources[0].name()).unwrap().0));
    }
}
