//! Claims: they decide which of several coordinators on one output computes a stage.
//!
//! A claim is an object `STAGE/KEY/claims/NNNNNN.json`, which only one of any number of writers can create. The highest
//! number counts. The object names its attempt and its end, and its owner renews it. A coordinator that finds it over
//! creates the next number, which again only one can. So a store needs only "create unless it is there", which local
//! disks and S3 both have. The commit removes the claims. From then on the manifest says whose result counts.

use std::sync::Arc;

use bytes::Bytes;
use llink_datasets::store::{Created, Store};
use llink_datasets::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::machine::{Machine, Process};
use crate::plan::{self, Claim};
use crate::schedule::{Millis, Work};

/// The time from the last renewal of a claim to its end. The clocks of two machines may differ by almost as much.
pub(super) const LASTS: Millis = 60_000;
/// The time after the end of a claim from which its owner is surely gone, not just held up.
const LONG_AGO: Millis = 10 * LASTS;
/// The rounds lost to other writers, after which the store counts as one that does not keep what is written.
const ROUNDS: u32 = 50;

/// The claims of one stage under its key.
#[derive(Debug, Clone)]
pub(super) struct Claims {
    machine: Arc<dyn Machine>,
    store: Store,
    folder: String,
    manifest: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    /// The claim is held until it is released or no longer renewed.
    Mine(Claim),
    /// Another attempt has a valid claim. The text names its owner.
    Theirs(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    attempt: String,
    apart: bool,
    process: Process,
    /// The end in milliseconds since the Unix epoch, or 0 after a release.
    ends_at: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Valid,
    /// The owner released the claim, or is surely gone.
    Over,
    /// The claim ended, but its owner may only have been held up and may write for a while.
    Stale,
}

impl Entry {
    fn standing(&self, is_gone: bool, now: Millis) -> Standing {
        if self.ends_at == 0 || is_gone || now > self.ends_at + LONG_AGO {
            Standing::Over
        } else if now > self.ends_at {
            Standing::Stale
        } else {
            Standing::Valid
        }
    }

    fn content(&self) -> Bytes {
        serde_json::to_vec(self).expect("a claim is plain data").into()
    }
}

impl Claims {
    pub(super) fn new(machine: &Arc<dyn Machine>, store: &Store, work: &Work) -> Self {
        Self {
            machine: machine.clone(),
            store: store.clone(),
            folder: format!("{}/claims", plan::directory(work.stage, &work.key)),
            manifest: plan::manifest_path(work.stage, &work.key),
        }
    }

    /// Takes the claim for an attempt, or returns its holder. `held` is the claim that the stage's tasks had before, and `own`
    /// is the name of this coordinator's attempts. A claim of that name is this coordinator's, even if the answer that said
    /// so was lost.
    pub(super) async fn take(&self, held: Option<&Claim>, own: &str, now: Millis) -> Result<Taken> {
        for _ in 0..ROUNDS {
            let newest = self.newest().await?;
            let (number, apart) = match &newest {
                None => (1, false),
                Some((number, entry))
                    if entry.attempt == own || held.is_some_and(|held| held.attempt == entry.attempt) =>
                {
                    self.write(*number, &entry.attempt, entry.apart, now).await?;
                    return Ok(Taken::Mine(Claim { attempt: entry.attempt.clone(), apart: entry.apart }));
                }
                Some((number, entry)) => match entry.standing(self.machine.is_gone(&entry.process), now) {
                    Standing::Valid => {
                        let Process { host, id, .. } = &entry.process;
                        return Ok(Taken::Theirs(format!("process {id} on {host}")));
                    }
                    Standing::Over => (number + 1, self.any_stale(*number, now).await?),
                    Standing::Stale => (number + 1, true),
                },
            };
            let claim = Claim { attempt: held.map_or(own, |held| held.attempt.as_str()).to_owned(), apart };
            if self.create(number, &claim, now).await? {
                return Ok(Taken::Mine(claim));
            }
        }
        Err(Error::Store {
            path: self.store.describe(&self.folder),
            source: "no claim can be made: what is written there is not kept".into(),
        })
    }

    /// Renews the attempt's claim. Returns false once another attempt has it, or the stage is committed.
    pub(super) async fn renew(&self, claim: &Claim, now: Millis) -> Result<bool> {
        match self.newest().await? {
            Some((number, entry)) if entry.attempt == claim.attempt => {
                self.write(number, &claim.attempt, claim.apart, now).await?;
                Ok(true)
            }
            Some(_) => Ok(false),
            None if self.store.head(&self.manifest).await?.is_some() => Ok(false),
            // The folder was removed.
            None => self.create(1, claim, now).await,
        }
    }

    /// Releases the attempt's claim, so that others need not wait for its end.
    pub(super) async fn release(&self, claim: &Claim) -> Result<()> {
        match self.newest().await? {
            Some((number, entry)) if entry.attempt == claim.attempt => {
                let over = Entry { ends_at: 0, ..entry };
                self.store.put(&self.path(number), over.content()).await
            }
            _ => Ok(()),
        }
    }

    /// Returns the attempts other than that of `claim` that may still be writing.
    pub(super) async fn others_at_work(&self, claim: &Claim, now: Millis) -> Result<Vec<String>> {
        let entries = self.all().await?.into_iter().map(|(_, entry)| entry);
        let may_write = |e: &Entry| {
            e.attempt != claim.attempt && e.standing(self.machine.is_gone(&e.process), now) != Standing::Over
        };
        Ok(entries.filter(may_write).map(|entry| entry.attempt).collect())
    }

    pub(super) async fn remove(&self) -> Result<()> {
        for object in self.store.list(&self.folder).await? {
            self.store.delete(&object.path).await?;
        }
        Ok(())
    }

    /// Returns whether an attempt before `number` may only have been held up.
    async fn any_stale(&self, number: u64, now: Millis) -> Result<bool> {
        let stale = |e: &Entry| e.standing(self.machine.is_gone(&e.process), now) == Standing::Stale;
        let before = self.all().await?;
        Ok(before.iter().any(|(of, entry)| *of < number && stale(entry)))
    }

    async fn newest(&self) -> Result<Option<(u64, Entry)>> {
        let number = self.numbers().await?.into_iter().max();
        match number {
            Some(number) => Ok(self.read(number).await?.map(|entry| (number, entry))),
            None => Ok(None),
        }
    }

    async fn all(&self) -> Result<Vec<(u64, Entry)>> {
        let mut found = Vec::new();
        for number in self.numbers().await? {
            found.extend(self.read(number).await?.map(|entry| (number, entry)));
        }
        Ok(found)
    }

    async fn numbers(&self) -> Result<Vec<u64>> {
        let objects = self.store.list(&self.folder).await?;
        let number = |path: &str| path.rsplit('/').next()?.strip_suffix(".json")?.parse().ok();
        Ok(objects.iter().filter_map(|object| number(&object.path)).collect())
    }

    async fn read(&self, number: u64) -> Result<Option<Entry>> {
        let path = self.path(number);
        match self.store.get(&path).await {
            Ok(content) => serde_json::from_slice(&content).map(Some).map_err(|e| Error::Content {
                path: self.store.describe(&path),
                reason: format!("is no claim: {e}; delete it to have the stage computed"),
            }),
            // The claim was removed in between, because the stage was committed.
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a claim and returns whether it counts. A store without "create unless it is there" is written and read
    /// back. Of two writers the later one counts, and the other learns of it when it renews.
    async fn create(&self, number: u64, claim: &Claim, now: Millis) -> Result<bool> {
        let path = self.path(number);
        let content = self.entry(&claim.attempt, claim.apart, now).content();
        match self.store.create(&path, content.clone()).await {
            Ok(Created::Written) => {}
            Ok(Created::AlreadyThere) => return Ok(false),
            Err(_) => self.store.put(&path, content).await?,
        }
        let newest = self.newest().await?;
        Ok(newest.is_some_and(|(newest, entry)| newest == number && entry.attempt == claim.attempt))
    }

    async fn write(&self, number: u64, attempt: &str, apart: bool, now: Millis) -> Result<()> {
        self.store.put(&self.path(number), self.entry(attempt, apart, now).content()).await
    }

    fn entry(&self, attempt: &str, apart: bool, now: Millis) -> Entry {
        Entry { attempt: attempt.to_owned(), apart, process: self.machine.process(), ends_at: now + LASTS }
    }

    fn path(&self, number: u64) -> String {
        format!("{}/{number:06}.json", self.folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::ThisMachine;

    fn work(output: &str) -> Work {
        Work { output: output.into(), stage: plan::StageName::Align, key: "k".into() }
    }

    fn claims(name: &str) -> Claims {
        at(&format!("memory://claims-{name}"))
    }

    fn at(output: &str) -> Claims {
        let machine: Arc<dyn Machine> = Arc::new(ThisMachine::new());
        Claims::new(&machine, &Store::open(output).unwrap(), &work(output))
    }

    fn mine(taken: Taken) -> Claim {
        match taken {
            Taken::Mine(claim) => claim,
            Taken::Theirs(who) => panic!("it is {who}'s"),
        }
    }

    #[tokio::test]
    async fn of_any_number_of_attempts_one_gets_the_claim_on_disk_and_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        for claims in [claims("race"), at(folder.path().to_str().unwrap())] {
            let tasks: Vec<_> = (0..8)
                .map(|i| {
                    let claims = claims.clone();
                    tokio::spawn(async move { claims.take(None, &format!("attempt{i}"), 1_000).await.unwrap() })
                })
                .collect();
            let mut winners = 0;
            for task in tasks {
                winners += usize::from(matches!(task.await.unwrap(), Taken::Mine(_)));
            }
            assert_eq!(winners, 1);
        }
    }

    #[tokio::test]
    async fn a_claim_lasts_while_it_is_renewed_and_is_taken_over_when_it_is_not() {
        let claims = claims("renewed");
        let first = mine(claims.take(None, "first", 1_000).await.unwrap());
        assert!(!first.apart);
        assert!(claims.renew(&first, 50_000).await.unwrap());
        assert!(matches!(claims.take(None, "second", 50_000 + LASTS).await.unwrap(), Taken::Theirs(_)));
        // The owner may only have been held up and still be writing, so the next attempt writes elsewhere.
        let second = mine(claims.take(None, "second", 50_001 + LASTS).await.unwrap());
        assert!(second.apart);
        assert!(!claims.renew(&first, 50_002 + LASTS).await.unwrap(), "it is told");
        assert_eq!(claims.others_at_work(&second, 50_002 + LASTS).await.unwrap(), ["first"]);
        assert!(claims.others_at_work(&second, 50_002 + LASTS + LONG_AGO).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_claim_that_was_released_is_free_at_once_and_an_own_one_is_found_again() {
        let claims = claims("released");
        let first = mine(claims.take(None, "first", 1_000).await.unwrap());
        // The same coordinator returns after a restart.
        assert_eq!(mine(claims.take(Some(&first), "fresh", 2_000).await.unwrap()), first);
        claims.release(&first).await.unwrap();
        let second = mine(claims.take(None, "second", 3_000).await.unwrap());
        assert!(!second.apart, "nobody writes there any more");
        claims.release(&first).await.unwrap();
        assert!(claims.renew(&second, 4_000).await.unwrap(), "what was another's releases nothing");
        claims.remove().await.unwrap();
        assert!(claims.numbers().await.unwrap().is_empty());
        // A folder that was removed meanwhile is claimed again.
        assert!(claims.renew(&second, 5_000).await.unwrap());
    }

    #[tokio::test]
    async fn a_claim_whose_answer_was_lost_is_the_coordinators_own_all_the_same() {
        let claims = claims("unheard");
        let first = mine(claims.take(None, "own", 1_000).await.unwrap());
        assert_eq!(mine(claims.take(None, "own", 2_000).await.unwrap()), first);
        assert!(matches!(claims.take(None, "other", 2_000).await.unwrap(), Taken::Theirs(_)));
    }

    #[tokio::test]
    async fn the_claim_of_a_process_of_this_machine_that_is_gone_is_over() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = child.id();
        child.wait().unwrap();
        let this = ThisMachine::new();
        let gone = Process { id, ..this.process() };
        if gone.space.is_empty() {
            return;
        }
        assert!(this.is_gone(&gone));
        let elsewhere = Process { space: "another machine".into(), ..gone };
        assert!(!this.is_gone(&elsewhere) && !this.is_gone(&this.process()));
    }
}
