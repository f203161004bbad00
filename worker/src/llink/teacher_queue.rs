//! The teacher queue: the last teacher vectors that training has seen, from which hard negatives are drawn.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::{Error, Result};

/// Ring buffer of L2-normalized teacher vectors in f16, each with the id of the pair it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct TeacherQueue {
    capacity: usize,
    width: usize,
    /// `[filled, width]`.
    vectors: Vec<f16>,
    ids: Vec<u64>,
    /// The position that the next vector goes to.
    next: usize,
}

impl TeacherQueue {
    /// An empty queue for `capacity` vectors of `width` numbers.
    #[must_use]
    pub const fn new(capacity: usize, width: usize) -> Self {
        Self {
            capacity,
            width,
            vectors: Vec::new(),
            ids: Vec::new(),
            next: 0,
        }
    }

    /// A queue as [`TeacherQueue::vectors`], [`TeacherQueue::ids`] and [`TeacherQueue::next`] described it.
    ///
    /// # Errors
    /// [`Error::Input`] when they do not fit each other.
    pub fn restore(capacity: usize, width: usize, vectors: Vec<f16>, ids: Vec<u64>, next: usize) -> Result<Self> {
        let full = ids.len() == capacity;
        let cursor_fits = if full {
            next < capacity.max(1)
        } else {
            next == ids.len()
        };
        if vectors.len() != ids.len() * width || ids.len() > capacity || !cursor_fits {
            return Err(Error::Input(format!(
                "a teacher queue for {capacity} vectors of {width} can't hold {} numbers and {} ids with the cursor at {next}",
                vectors.len(),
                ids.len()
            )));
        }
        Ok(Self {
            capacity,
            width,
            vectors,
            ids,
            next,
        })
    }

    /// Puts normalized rows `[n, width]` in, over the oldest once the queue is full.
    pub fn push(&mut self, normalized: &[f32], ids: &[u64]) {
        if self.capacity == 0 {
            return;
        }
        for (row, id) in normalized.chunks_exact(self.width).zip(ids) {
            if self.ids.len() < self.capacity {
                self.ids.push(*id);
                self.vectors.resize(self.ids.len() * self.width, f16::ZERO);
            } else {
                self.ids[self.next] = *id;
            }
            self.vectors[self.next * self.width..][..self.width].convert_from_f32_slice(row);
            self.next = (self.next + 1) % self.capacity;
        }
    }

    /// How many vectors it can hold.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many vectors it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Numbers in a vector.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// The vectors by position, `[len, width]`.
    #[must_use]
    pub fn vectors(&self) -> &[f16] {
        &self.vectors
    }

    /// The pair ids by position.
    #[must_use]
    pub fn ids(&self) -> &[u64] {
        &self.ids
    }

    /// The position that the next vector goes to.
    #[must_use]
    pub const fn next(&self) -> usize {
        self.next
    }

    /// Writes the vector at `position` to `row`.
    pub fn read(&self, position: usize, row: &mut [f32]) {
        self.vectors[position * self.width..][..self.width].convert_to_f32_slice(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_over_the_oldest() {
        let mut queue = TeacherQueue::new(3, 2);
        queue.push(&[1.0, 0.0, 0.0, 1.0], &[10, 11]);
        assert_eq!((queue.len(), queue.next(), queue.ids()), (2, 2, &[10, 11][..]));
        queue.push(&[0.6, 0.8, -1.0, 0.0], &[12, 13]);
        assert_eq!((queue.len(), queue.next(), queue.ids()), (3, 1, &[13, 11, 12][..]));
        let mut row = [0.0; 2];
        queue.read(0, &mut row);
        assert_eq!(row, [-1.0, 0.0]);
        queue.read(2, &mut row);
        assert_eq!(row, [f16::from_f32(0.6).to_f32(), f16::from_f32(0.8).to_f32()]);
    }

    #[test]
    fn restores_what_it_was_and_refuses_what_does_not_fit() {
        let mut queue = TeacherQueue::new(3, 2);
        queue.push(&[1.0, 0.0, 0.0, 1.0, 0.6, 0.8, 0.8, 0.6], &[1, 2, 3, 4]);
        let (vectors, ids) = (queue.vectors().to_vec(), queue.ids().to_vec());
        let restored = TeacherQueue::restore(3, 2, vectors.clone(), ids.clone(), queue.next()).unwrap();
        assert_eq!(restored, queue);
        assert!(TeacherQueue::restore(2, 2, vectors.clone(), ids.clone(), 1).is_err());
        assert!(TeacherQueue::restore(4, 2, vectors.clone(), ids.clone(), 1).is_err());
        assert!(TeacherQueue::restore(3, 1, vectors, ids, 1).is_err());
    }

    #[test]
    fn a_queue_without_room_stays_empty() {
        let mut queue = TeacherQueue::new(0, 2);
        queue.push(&[1.0, 0.0], &[1]);
        assert!(queue.is_empty());
    }
}
