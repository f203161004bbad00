//! The object store as the scheduler sees it: what is committed, and who has which claim.

use super::*;

/// The object store, as far as stages go.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) committed: BTreeMap<String, Manifest>,
    /// The attempt that has the claim to a key.
    pub(super) claims: BTreeMap<String, String>,
    attempts: u32,
    /// Files that somebody removed.
    pub(super) removed: BTreeSet<String>,
}

impl Shelf {
    pub(super) fn look_up(&mut self, work: &Work, held: Option<Claim>, kept: BTreeMap<String, u64>) -> LookedUp {
        if let Some(manifest) = self.committed.get(&work.key) {
            return LookedUp::Whole(Box::new(manifest.clone()));
        }
        let holder = self.claims.get(&work.key);
        if holder.is_some() && holder != held.as_ref().map(|held| &held.attempt) {
            return LookedUp::Elsewhere { who: "another".into() };
        }
        self.attempts += 1;
        let claim = held.unwrap_or(Claim { attempt: format!("attempt{}", self.attempts), apart: false });
        self.claims.insert(work.key.clone(), claim.attempt.clone());
        LookedUp::Claimed {
            claim,
            lost: kept.into_keys().filter(|path| self.removed.contains(path)).collect(),
            damage: None,
        }
    }

    pub(super) fn commit(&mut self, work: &Work, claim: &Claim, manifest: Manifest) -> Manifest {
        let committed = self.committed.entry(work.key.clone()).or_insert_with(|| {
            assert_eq!(self.claims.get(&work.key), Some(&claim.attempt), "who commits has the claim");
            manifest
        });
        self.claims.remove(&work.key);
        committed.clone()
    }

    pub(super) fn release(&mut self, work: &Work, claim: &Claim) {
        if self.claims.get(&work.key) == Some(&claim.attempt) {
            self.claims.remove(&work.key);
        }
    }
}
