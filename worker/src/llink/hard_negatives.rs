//! Hard negatives: the teachers in the queue that the batch is nearest to.
//!
//! The mean cosine of a queue row to the batch is its product with the mean of the batch's normalized rows, so mining is
//! one matrix-vector product over the queue. Ranks score a part of the queue each and merge their best.

use std::ops::Range;

use rayon::prelude::*;

use super::kernels::{dot_rows_f16, rows_per_task};
use super::teacher_queue::TeacherQueue;
use crate::train::random::mix;

/// A queue row that may be used as a negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Mean cosine to the batch, up to a factor common to all rows.
    pub score: f32,
    /// Its position in the queue.
    pub position: usize,
}

/// The `n` rows among `positions` that score highest against `direction`, the sum or mean of the batch's normalized rows;
/// best first, ties to the lower position. Rows of the batch's own pairs and rows without a finite score are left out, so
/// there may be fewer.
#[must_use]
pub fn mine(
    queue: &TeacherQueue,
    positions: Range<usize>,
    direction: &[f32],
    batch_ids: &[u64],
    n: usize,
) -> Vec<Candidate> {
    let width = queue.width();
    let vectors = &queue.vectors()[positions.start * width..positions.end * width];
    let mut scores = vec![0.0; positions.len()];
    let block = rows_per_task(positions.len(), width);
    let blocks = vectors.par_chunks(block * width).zip(scores.par_chunks_mut(block));
    blocks.for_each(|(rows, scores)| dot_rows_f16(rows, direction, scores));
    let batch = IdSet::new(batch_ids);
    let candidates = positions.clone().zip(scores).zip(&queue.ids()[positions]);
    let usable = candidates.filter(|((_, score), id)| score.is_finite() && !batch.contains(**id));
    best(
        usable
            .map(|((position, score), _)| Candidate { score, position })
            .collect(),
        n,
    )
}

/// The best `n` candidates in order.
#[must_use]
pub fn best(mut candidates: Vec<Candidate>, n: usize) -> Vec<Candidate> {
    let order = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score).then(a.position.cmp(&b.position));
    if n == 0 {
        return Vec::new();
    }
    if candidates.len() > n {
        candidates.select_nth_unstable_by(n - 1, order);
        candidates.truncate(n);
    }
    candidates.sort_unstable_by(order);
    candidates
}

/// A set of ids that says no quickly: nearly every row of the queue is not of the batch.
struct IdSet {
    /// Bit `mix(id) % bits` is set for each id.
    bits: Vec<u64>,
    sorted: Vec<u64>,
}

impl IdSet {
    fn new(ids: &[u64]) -> Self {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        let mut set = Self {
            bits: vec![0; (ids.len() / 2).next_power_of_two().max(1)],
            sorted,
        };
        for id in ids {
            let (word, bit) = set.place(*id);
            set.bits[word] |= bit;
        }
        set
    }

    const fn place(&self, id: u64) -> (usize, u64) {
        let hash = mix(id);
        ((hash >> 6) as usize & (self.bits.len() - 1), 1 << (hash & 63))
    }

    fn contains(&self, id: u64) -> bool {
        let (word, bit) = self.place(id);
        self.bits[word] & bit != 0 && self.sorted.binary_search(&id).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(rows: &[[f32; 2]], ids: &[u64]) -> TeacherQueue {
        let mut queue = TeacherQueue::new(rows.len(), 2);
        queue.push(rows.as_flattened(), ids);
        queue
    }

    fn positions(found: &[Candidate]) -> Vec<usize> {
        found.iter().map(|candidate| candidate.position).collect()
    }

    #[test]
    fn the_best_come_first_and_ties_go_to_the_lower_position() {
        let queue = queue(
            &[[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.6, 0.8], [0.8, 0.6]],
            &[0, 1, 2, 3, 4],
        );
        assert_eq!(positions(&mine(&queue, 0..5, &[1.0, 0.0], &[], 3)), [2, 4, 1]);
        assert_eq!(positions(&mine(&queue, 0..5, &[1.0, 0.0], &[], 4)), [2, 4, 1, 3]);
        assert!(mine(&queue, 0..5, &[1.0, 0.0], &[], 0).is_empty());
    }

    #[test]
    fn pairs_of_the_batch_are_left_out_and_fewer_usable_give_fewer() {
        let queue = queue(&[[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [0.8, 0.6]], &[7, 8, 9, 8]);
        assert_eq!(positions(&mine(&queue, 0..4, &[1.0, 0.0], &[9, 8], 3)), [0]);
        assert!(mine(&TeacherQueue::new(4, 2), 0..0, &[1.0, 0.0], &[1], 3).is_empty());
        assert!(mine(&queue, 0..4, &[f32::NAN, 0.0], &[], 3).is_empty());
    }

    #[test]
    fn parts_of_the_queue_merge_into_what_the_whole_gives() {
        let rows: Vec<[f32; 2]> = (0..500).map(|i| [((i * 37) % 101) as f32 / 101.0, 0.3]).collect();
        let ids: Vec<u64> = (0..500).map(|i| i % 60).collect();
        let queue = queue(&rows, &ids);
        let whole = mine(&queue, 0..500, &[1.0, 0.5], &[3, 44, 59], 32);
        let parts = [0..123, 123..123, 123..500]
            .map(|part| mine(&queue, part, &[1.0, 0.5], &[3, 44, 59], 32))
            .concat();
        assert_eq!(best(parts, 32), whole);
        assert!(
            whole
                .iter()
                .all(|found| ![3, 44, 59].contains(&queue.ids()[found.position]))
        );
    }

    #[test]
    fn a_set_of_ids_holds_what_was_put_in() {
        let ids: Vec<u64> = (0..1000).map(|i| i * i).collect();
        let set = IdSet::new(&ids);
        for id in 0..5000 {
            assert_eq!(set.contains(id), ids.contains(&id), "{id}");
        }
    }
}
