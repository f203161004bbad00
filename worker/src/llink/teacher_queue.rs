//! The teacher queue, which holds the last teacher vectors of the training. Hard negatives are drawn from it.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use half::f16;

use super::hard_negatives::hardest;
use crate::ops::Backend;
use crate::ops::to_halves;
use crate::{Error, Result};

/// A queue in a checkpoint: L2-normalized teacher vectors in f16, each with the id of its pair.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredQueue {
    capacity: usize,
    width: usize,
    /// The vectors by position, `[filled, width]`.
    vectors: Vec<f16>,
    ids: Vec<u64>,
    /// The position of the next vector.
    next: usize,
}

impl StoredQueue {
    /// Returns an empty queue for `capacity` vectors of `width` numbers.
    pub const fn new(capacity: usize, width: usize) -> Self {
        Self { capacity, width, vectors: Vec::new(), ids: Vec::new(), next: 0 }
    }

    /// Restores a queue from its [`StoredQueue::vectors`], [`StoredQueue::ids`] and [`StoredQueue::next`].
    ///
    /// # Errors
    /// [`Error::Input`] when these do not match.
    pub fn restore(capacity: usize, width: usize, vectors: Vec<f16>, ids: Vec<u64>, next: usize) -> Result<Self> {
        let full = ids.len() == capacity;
        let cursor_fits = if full { next < capacity.max(1) } else { next == ids.len() };
        if vectors.len() != ids.len() * width || ids.len() > capacity || !cursor_fits {
            return Err(Error::Input(format!(
                "a teacher queue for {capacity} vectors of {width} can't hold {} numbers and {} ids with the cursor at {next}",
                vectors.len(),
                ids.len()
            )));
        }
        Ok(Self { capacity, width, vectors, ids, next })
    }

    /// Returns the number of vectors in the queue.
    pub const fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether the queue is empty.
    pub const fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Returns the width of a vector.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Returns the vectors by position, `[len, width]`.
    pub fn vectors(&self) -> &[f16] {
        &self.vectors
    }

    /// Returns the pair ids by position.
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// Returns the position of the next vector.
    pub const fn next(&self) -> usize {
        self.next
    }
}

/// A ring buffer of L2-normalized teacher vectors in f16 on a device. The host knows the pair of each vector.
pub(crate) struct TeacherQueue {
    vectors: Tensor, // [capacity, d] f16
    ids: Vec<u64>,
    /// The positions of the vectors of each pair.
    positions: HashMap<u64, Vec<usize>>,
    capacity: usize,
    width: usize,
    next: usize,
}

impl TeacherQueue {
    pub(crate) fn new(stored: &StoredQueue, backend: &Backend) -> Result<Self> {
        let (capacity, width, device) = (stored.capacity, stored.width, backend.device());
        let vectors = Tensor::zeros((capacity.max(1), width), DType::F16, device)?;
        if !stored.is_empty() {
            let filled = Tensor::from_slice(&stored.vectors, (stored.len(), width), device)?;
            vectors.slice_set(&filled, 0, 0)?;
        }
        let mut positions: HashMap<u64, Vec<usize>> = HashMap::new();
        for (position, id) in stored.ids.iter().enumerate() {
            positions.entry(*id).or_default().push(position);
        }
        Ok(Self { vectors, ids: stored.ids.clone(), positions, capacity, width, next: stored.next })
    }

    pub(crate) fn store(&self) -> Result<StoredQueue> {
        let vectors = match self.ids.len() {
            0 => Vec::new(),
            count => self.vectors.narrow(0, 0, count)?.flatten_all()?.to_vec1()?,
        };
        StoredQueue::restore(self.capacity, self.width, vectors, self.ids.clone(), self.next)
    }

    /// Adds normalized rows `[n, d]`. A full queue drops its oldest rows.
    pub(crate) fn push(&mut self, normalized: &Tensor, ids: &[u64]) -> Result<()> {
        if self.capacity == 0 {
            return Ok(());
        }
        let rows = to_halves(normalized)?;
        let mut from = 0;
        while from < ids.len() {
            let count = (ids.len() - from).min(self.capacity - self.next);
            self.vectors.slice_set(&rows.narrow(0, from, count)?, 0, self.next)?;
            for (position, id) in (self.next..).zip(&ids[from..from + count]) {
                self.note(position, *id);
            }
            self.next = (self.next + count) % self.capacity;
            from += count;
        }
        Ok(())
    }

    fn note(&mut self, position: usize, id: u64) {
        if position < self.ids.len() {
            let old = std::mem::replace(&mut self.ids[position], id);
            if let Some(positions) = self.positions.get_mut(&old) {
                positions.retain(|known| *known != position);
                if positions.is_empty() {
                    self.positions.remove(&old);
                }
            }
        } else {
            self.ids.push(id);
        }
        self.positions.entry(id).or_default().push(position);
    }

    /// Returns the n vectors with the highest mean cosine to the normalized `students` `[B, d]`, best first, in f32:
    /// `[at most n, d]`. Vectors of the batch's own pairs are left out. Returns `None` when no vector is left.
    pub(crate) fn hardest(&self, students: &Tensor, batch_ids: &[u64], n: usize) -> Result<Option<Tensor>> {
        let mut own: Vec<usize> = batch_ids.iter().filter_map(|id| self.positions.get(id)).flatten().copied().collect();
        own.sort_unstable();
        own.dedup();
        let n = n.min(self.ids.len() - own.len());
        if n == 0 {
            return Ok(None);
        }
        let vectors = self.vectors.narrow(0, 0, self.ids.len())?;
        hardest(&vectors, students, &own, n)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn queue(capacity: usize) -> TeacherQueue {
        TeacherQueue::new(&StoredQueue::new(capacity, 2), &Backend::new(&Device::Cpu, DType::F32)).unwrap()
    }

    fn push(queue: &mut TeacherQueue, rows: &[[f32; 2]], ids: &[u64]) {
        let rows = Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap();
        queue.push(&rows, ids).unwrap();
    }

    #[test]
    fn wraps_over_the_oldest() {
        let mut queue = queue(3);
        push(&mut queue, &[[1.0, 0.0], [0.0, 1.0]], &[10, 11]);
        let stored = queue.store().unwrap();
        assert_eq!((stored.len(), stored.next(), stored.ids()), (2, 2, &[10, 11][..]));
        push(&mut queue, &[[0.6, 0.8], [-1.0, 0.0]], &[12, 13]);
        let stored = queue.store().unwrap();
        assert_eq!((stored.len(), stored.next(), stored.ids()), (3, 1, &[13, 11, 12][..]));
        let halves = [-1.0, 0.0, 0.0, 1.0, 0.6, 0.8].map(f16::from_f32);
        assert_eq!(stored.vectors(), halves);
    }

    #[test]
    fn restores_what_it_was_and_refuses_what_does_not_fit() {
        let mut queue = queue(3);
        push(&mut queue, &[[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, 0.6]], &[1, 2, 3, 4]);
        let stored = queue.store().unwrap();
        let again = TeacherQueue::new(&stored, &Backend::new(&Device::Cpu, DType::F32)).unwrap();
        assert_eq!(again.store().unwrap(), stored);
        let (vectors, ids) = (stored.vectors().to_vec(), stored.ids().to_vec());
        let restore = |capacity, width| StoredQueue::restore(capacity, width, vectors.clone(), ids.clone(), 1);
        assert_eq!(restore(3, 2).unwrap(), stored);
        assert!(restore(2, 2).is_err() && restore(4, 2).is_err() && restore(3, 1).is_err());
    }

    #[test]
    fn a_queue_without_room_stays_empty() {
        let mut queue = queue(0);
        push(&mut queue, &[[1.0, 0.0]], &[1]);
        assert!(queue.store().unwrap().is_empty());
        let students = Tensor::new(&[[1.0_f32, 0.0]], &Device::Cpu).unwrap();
        assert!(queue.hardest(&students, &[2], 3).unwrap().is_none());
    }
}
