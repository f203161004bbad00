//! The connected workers, and the indexes that find free ones.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::sync::Arc;

use super::{Millis, Worker};

/// The connected workers by id. Only [`Workers::change`] changes them, which keeps the indexes consistent.
#[derive(Debug, Clone, Default)]
pub struct Workers {
    known: BTreeMap<String, Worker>,
    /// The workers that listen and hold no lease.
    idle: BTreeSet<String>,
    /// The workers that embed and take another shard ahead, by their loaded model.
    ahead: BTreeMap<Arc<str>, BTreeSet<String>>,
    listening: usize,
}

impl Deref for Workers {
    type Target = BTreeMap<String, Worker>;

    fn deref(&self) -> &Self::Target {
        &self.known
    }
}

impl Workers {
    pub(super) fn insert(&mut self, id: String, worker: Worker) {
        self.remove(&id);
        self.enter(&id, &worker);
        self.known.insert(id, worker);
    }

    pub(super) fn remove(&mut self, id: &str) -> Option<Worker> {
        let worker = self.known.remove(id)?;
        self.leave(id, &worker);
        Some(worker)
    }

    pub(super) fn change(&mut self, id: &str, f: impl FnOnce(&mut Worker)) {
        if let Some((id, mut worker)) = self.known.remove_entry(id) {
            self.leave(&id, &worker);
            f(&mut worker);
            self.enter(&id, &worker);
            self.known.insert(id, worker);
        }
    }

    /// Extends a worker's life to `deadline`. Returns its leases, if the worker is known.
    pub(super) fn beat(&mut self, id: &str, deadline: Millis) -> Option<&[(u64, u64)]> {
        let worker = self.known.get_mut(id)?;
        worker.deadline = deadline;
        Some(&worker.seats)
    }

    pub(super) fn forgive(&mut self, away: Millis) {
        self.known.values_mut().for_each(|worker| worker.deadline += away);
    }

    pub(super) fn idle(&self) -> &BTreeSet<String> {
        &self.idle
    }

    pub(super) fn anybody_takes_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    pub(super) fn ahead(&self, model: &str) -> impl Iterator<Item = &String> {
        self.ahead.get(model).into_iter().flatten()
    }

    pub(super) fn listening(&self) -> usize {
        self.listening
    }

    fn enter(&mut self, id: &str, worker: &Worker) {
        if !worker.listening {
            return;
        }
        self.listening += 1;
        if worker.seats.is_empty() {
            self.idle.insert(id.to_owned());
        } else if let Some(model) = worker.takes_ahead() {
            self.ahead.entry(model.clone()).or_default().insert(id.to_owned());
        }
    }

    fn leave(&mut self, id: &str, worker: &Worker) {
        if !worker.listening {
            return;
        }
        self.listening -= 1;
        self.idle.remove(id);
        if let Some(model) = worker.takes_ahead()
            && let Some(takers) = self.ahead.get_mut(model)
        {
            takers.remove(id);
            if takers.is_empty() {
                self.ahead.remove(model);
            }
        }
    }
}

impl Worker {
    /// Returns the model of which the worker takes another shard ahead.
    fn takes_ahead(&self) -> Option<&Arc<str>> {
        let has_room = (1..=self.info.leases_ahead as usize).contains(&self.seats.len());
        self.model.as_ref().filter(|_| has_room)
    }
}

#[cfg(test)]
impl Workers {
    /// Asserts that the indexes agree with the workers.
    pub(super) fn check(&self, told: &str) {
        let mut anew = Self::default();
        let workers = self.known.iter();
        workers.for_each(|(id, worker)| anew.insert(id.clone(), worker.clone()));
        let found = (&self.idle, &self.ahead, self.listening);
        assert_eq!(found, (&anew.idle, &anew.ahead, anew.listening), "{told}");
    }
}
