//! The teacher queue on a device, and the hard negatives in it.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::llink::teacher_queue::TeacherQueue;

/// Rows that are sorted at once: more do not fit into what a block of a GPU shares.
const SORTED_AT_ONCE: usize = 4_096;
/// Of so many times the wanted negatives, chosen by cosines in f16, the best by cosines in f32 are taken.
const CANDIDATES: usize = 2;

/// Ring buffer of normalized teacher vectors in f16 on the device; which pair each is of is known on the host.
pub(super) struct DeviceQueue {
    vectors: Tensor, // [capacity, d] f16
    ids: Vec<u64>,
    /// Where the vectors of each pair stand.
    places: HashMap<u64, Vec<usize>>,
    capacity: usize,
    width: usize,
    next: usize,
}

impl DeviceQueue {
    /// A queue on the host, put on a device.
    pub(super) fn new(queue: &TeacherQueue, device: &Device) -> Result<Self> {
        let (capacity, width) = (queue.capacity(), queue.width());
        let vectors = Tensor::zeros((capacity.max(1), width), DType::F16, device)?;
        if !queue.is_empty() {
            let filled = Tensor::from_slice(queue.vectors(), (queue.len(), width), device)?;
            vectors.slice_set(&filled, 0, 0)?;
        }
        let mut places: HashMap<u64, Vec<usize>> = HashMap::new();
        for (place, id) in queue.ids().iter().enumerate() {
            places.entry(*id).or_default().push(place);
        }
        Ok(Self {
            vectors,
            ids: queue.ids().to_vec(),
            places,
            capacity,
            width,
            next: queue.next(),
        })
    }

    /// The queue on the host.
    pub(super) fn to_host(&self) -> Result<TeacherQueue> {
        let filled = match self.ids.len() {
            0 => Vec::new(),
            count => self.vectors.narrow(0, 0, count)?.flatten_all()?.to_vec1()?,
        };
        TeacherQueue::restore(self.capacity, self.width, filled, self.ids.clone(), self.next)
    }

    /// Puts normalized rows [n, d] in, over the oldest once the queue is full.
    pub(super) fn push(&mut self, normalized: &Tensor, ids: &[u64]) -> Result<()> {
        if self.capacity == 0 {
            return Ok(());
        }
        let rows = normalized.to_dtype(DType::F16)?;
        let mut from = 0;
        while from < ids.len() {
            let count = (ids.len() - from).min(self.capacity - self.next);
            self.vectors
                .slice_set(&rows.narrow(0, from, count)?.contiguous()?, 0, self.next)?;
            for (place, id) in (self.next..).zip(&ids[from..from + count]) {
                self.note(place, *id);
            }
            self.next = (self.next + count) % self.capacity;
            from += count;
        }
        Ok(())
    }

    fn note(&mut self, place: usize, id: u64) {
        if place < self.ids.len() {
            let old = std::mem::replace(&mut self.ids[place], id);
            if let Some(places) = self.places.get_mut(&old) {
                places.retain(|known| *known != place);
                if places.is_empty() {
                    self.places.remove(&old);
                }
            }
        } else {
            self.ids.push(id);
        }
        self.places.entry(id).or_default().push(place);
    }

    /// The n vectors with the highest mean cosine to `students` [B, d] (normalized), best first, in f32: [at most n, d]; none when
    /// there are none. Those of the batch's own pairs are left out.
    pub(super) fn hardest(&self, students: &Tensor, batch_ids: &[u64], n: usize) -> Result<Option<Tensor>> {
        let filled = self.ids.len();
        let mut own: Vec<usize> = batch_ids
            .iter()
            .filter_map(|id| self.places.get(id))
            .flatten()
            .copied()
            .collect();
        own.sort_unstable();
        own.dedup();
        let n = n.min(filled - own.len());
        if n == 0 {
            return Ok(None);
        }
        let direction = students.mean(0)?;
        let vectors = self.vectors.narrow(0, 0, filled)?;
        // Of length 1, so that halves resolve the cosines as well as they can; it does not change their order.
        let length = direction.sqr()?.sum_all()?.sqrt()?;
        let coarse = direction.broadcast_div(&length.maximum(1e-30)?)?.to_dtype(DType::F16)?;
        let mut scores = vectors
            .matmul(&coarse.unsqueeze(1)?)?
            .squeeze(1)?
            .to_dtype(DType::F32)?;
        if !own.is_empty() {
            let mut mask = vec![0f32; filled];
            own.iter().for_each(|place| mask[*place] = f32::NEG_INFINITY);
            scores = (scores + Tensor::from_vec(mask, filled, students.device())?)?;
        }
        let candidates = top(&scores, (CANDIDATES * n).min(filled - own.len()))?;
        // In the order of their places, so that of equals the older place comes first.
        let (candidates, _) = candidates.sort_last_dim(true)?;
        let rows = vectors.index_select(&candidates, 0)?.to_dtype(DType::F32)?;
        let fine = rows.matmul(&direction.unsqueeze(1)?)?.squeeze(1)?;
        Ok(Some(rows.index_select(&top(&fine, n)?, 0)?))
    }
}

/// Where the k largest of `scores` [m] stand, the largest first: u32 [k].
fn top(scores: &Tensor, k: usize) -> Result<Tensor> {
    let count = scores.dim(0)?;
    if count <= SORTED_AT_ONCE {
        let order = scores.unsqueeze(0)?.arg_sort_last_dim(false)?;
        return Ok(order.squeeze(0)?.narrow(0, 0, k)?.contiguous()?);
    }
    if k > SORTED_AT_ONCE / 2 {
        // So many that rounds would not make them fewer.
        let values: Vec<f32> = scores.to_vec1()?;
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by(|a, b| values[*b as usize].total_cmp(&values[*a as usize]));
        return Ok(Tensor::new(&order[..k], scores.device())?);
    }
    let rows = count.div_ceil(SORTED_AT_ONCE);
    let missing = rows * SORTED_AT_ONCE - count;
    let scores = match missing {
        0 => scores.clone(),
        _ => {
            let rest = Tensor::full(f32::NEG_INFINITY, missing, scores.device())?;
            Tensor::cat(&[scores, &rest], 0)?
        }
    };
    let apart = scores.reshape((rows, SORTED_AT_ONCE))?;
    let order = apart.arg_sort_last_dim(false)?.narrow(1, 0, k)?.contiguous()?;
    let best = apart.gather(&order, 1)?.flatten_all()?;
    let starts: Vec<u32> = (0..rows as u32).map(|row| row * SORTED_AT_ONCE as u32).collect();
    let places = order.broadcast_add(&Tensor::from_vec(starts, (rows, 1), scores.device())?)?;
    Ok(places.flatten_all()?.index_select(&top(&best, k)?, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llink::hard_negatives::mine;
    use crate::llink::kernels::normalize;
    use crate::train::bench::noise;

    fn unit_rows(seed: u64, count: usize, width: usize) -> Vec<f32> {
        let raw = noise(seed, count * width);
        let mut rows = raw.clone();
        for (row, raw) in rows.chunks_exact_mut(width).zip(raw.chunks_exact(width)) {
            normalize(raw, row);
        }
        rows
    }

    #[test]
    fn what_is_pushed_and_mined_is_what_the_host_pushes_and_mines() {
        let (capacity, width, batch) = (9_000, 24, 50);
        let mut host = TeacherQueue::new(capacity, width);
        let mut device = DeviceQueue::new(&host, &Device::Cpu).unwrap();
        for step in 0..11u64 {
            let rows = unit_rows(step, 1_000, width);
            let ids: Vec<u64> = (0..1_000).map(|i| (step * 700 + i) % 5_000).collect();
            let students = unit_rows(100 + step, batch, width);
            let tensor = Tensor::from_slice(&students, (batch, width), &Device::Cpu).unwrap();
            let mut direction = vec![0f32; width];
            for row in students.chunks_exact(width) {
                direction.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            let expected = mine(&host, 0..host.len(), &direction, &ids[..batch], 32);
            let found = device.hardest(&tensor, &ids[..batch], 32).unwrap();
            match found {
                None => assert!(expected.is_empty()),
                Some(found) => {
                    let found: Vec<Vec<f32>> = found.to_vec2().unwrap();
                    assert_eq!(found.len(), expected.len());
                    for (found, expected) in found.iter().zip(&expected) {
                        let mut row = vec![0f32; width];
                        host.read(expected.position, &mut row);
                        assert_eq!(*found, row, "step {step}, position {}", expected.position);
                    }
                }
            }
            host.push(&rows, &ids);
            device
                .push(&Tensor::from_slice(&rows, (1_000, width), &Device::Cpu).unwrap(), &ids)
                .unwrap();
            assert_eq!(device.to_host().unwrap(), host);
        }
        let again = DeviceQueue::new(&host, &Device::Cpu).unwrap();
        assert_eq!(again.to_host().unwrap(), host);
    }

    #[test]
    fn the_largest_are_found_among_more_than_fit_at_once() {
        let scores = noise(5, 20_000);
        let mut order: Vec<u32> = (0..20_000).collect();
        order.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
        let tensor = Tensor::new(scores.as_slice(), &Device::Cpu).unwrap();
        for k in [1, 256, 2_000, 7_000] {
            assert_eq!(top(&tensor, k).unwrap().to_vec1::<u32>().unwrap(), order[..k]);
        }
    }
}
