//! Measures retrieval on held-out pairs: the rank of the right English sentence for each pair, by each retriever.

use std::collections::BTreeMap;

use half::slice::HalfFloatSliceExt;
use llink_datasets::measured::{COSINE, Retrieval, Retriever};
use llink_datasets::vectors::VectorTable;
use llink_proto::Evaluate;
use llink_proto::settings::Metric;
use serde_json::json;

use super::super::OpenContext;
use super::super::answers::Slots;
use super::super::statistics;
use super::super::training::read_first;
use crate::llink::projector::Projector;
use crate::llink::retrieval::{RetrievalMetrics, retrieval_ranks};
use crate::llink::whitening::Whitening;
use crate::{Error, Result};

/// The pairs, their vectors, and the results so far.
pub(super) struct Benchmark {
    ids: Vec<u64>,
    /// The encoder's vectors of the foreign sides, `[n, d_e]`.
    foreign: Vec<f32>,
    /// The same with the vectors of their sentences and windows, if Stage B's slots read them.
    windowed: VectorTable,
    /// The teacher's vectors of the English sides, `[n, width]`.
    taught: Vec<f32>,
    width: usize,
    /// The metric of Stage A, unless it is cosine.
    metric: Option<Whitening>,
    measured: Vec<Measured>,
}

/// One row of the table, with the rank of each pair.
struct Measured {
    retriever: Retriever,
    metric: String,
    ranks: Vec<usize>,
}

impl Benchmark {
    /// Reads the first held-out pairs. Shards are in the order of their texts' hash, so these pairs are a fixed, fair
    /// sample.
    pub(super) fn read(context: &OpenContext<'_>, task: &Evaluate) -> Result<Self> {
        let pairs = task.benchmark_pairs as usize;
        let encoder = read_first(context, &task.encoder_vectors, pairs)?;
        let teacher = read_first(context, &task.teacher_vectors, pairs)?;
        same_pairs("teacher", &encoder.ids, &teacher.ids)?;
        let foreign = encoder.values.to_f32_vec();
        let windowed = match task.window_vectors.is_empty() {
            true => encoder,
            false => read_first(context, &task.window_vectors, pairs)?,
        };
        let of_texts: Vec<u64> = windowed.texts().iter().map(|rows| windowed.ids[rows.start]).collect();
        same_pairs("windows'", &of_texts, &teacher.ids)?;
        Ok(Self {
            foreign,
            windowed,
            taught: teacher.values.to_f32_vec(),
            width: teacher.width,
            ids: teacher.ids,
            metric: statistics::read(context, task.statistics.as_ref())?.metric,
            measured: Vec::new(),
        })
    }

    pub(super) fn pairs(&self) -> usize {
        self.ids.len()
    }

    /// Adds the rows of the encoder's own vectors of both sides. The second row subtracts from each side its mean over
    /// training pairs, which are not part of the benchmark. The result is the number of these pairs.
    pub(super) fn encoder_alone(&mut self, context: &OpenContext<'_>, task: &Evaluate) -> Result<Option<usize>> {
        if task.english_vectors.is_empty() {
            return Ok(None);
        }
        let english = read_first(context, &task.english_vectors, self.pairs())?;
        same_pairs("English encoder", &self.ids, &english.ids)?;
        let (width, mut english) = (english.width, english.values.to_f32_vec());
        let ranks = retrieval_ranks(&self.foreign, &english, width)?;
        self.add(Retriever::Encoder, COSINE, ranks);
        let rows = task.center_english_vectors.iter().map(|a| a.rows as usize).sum();
        let centres = read_first(context, &task.center_english_vectors, rows)?;
        let of_foreign = read_first(context, &task.center_foreign_vectors, rows)?;
        same_pairs("training pairs' English encoder", &of_foreign.ids, &centres.ids)?;
        let mut foreign = self.foreign.clone();
        centre(&mut foreign, &mean(&of_foreign.values.to_f32_vec(), width));
        centre(&mut english, &mean(&centres.values.to_f32_vec(), width));
        let ranks = retrieval_ranks(&foreign, &english, width)?;
        self.add(Retriever::Encoder, Metric::Centered.name(), ranks);
        Ok(Some(rows))
    }

    /// Adds the row of Stage A's projector against the teacher.
    pub(super) fn projected(&mut self, projector: &Projector) -> Result<()> {
        let students = projector.project(&self.foreign)?;
        self.against_teacher(Retriever::StageA, &students)
    }

    /// Adds the row of the mean of Stage B's slots against the teacher.
    pub(super) fn by_mean_slot(&mut self, slots: &Slots) -> Result<()> {
        let students = slots.means(&self.windowed)?;
        self.against_teacher(Retriever::StageB, &students)
    }

    fn against_teacher(&mut self, retriever: Retriever, students: &[f32]) -> Result<()> {
        let ranks = retrieval_ranks(students, &self.taught, self.width)?;
        self.add(retriever, COSINE, ranks);
        if let Some(metric) = &self.metric {
            let (name, students, taught) =
                (metric.metric().name(), metric.apply(students)?, metric.apply(&self.taught)?);
            self.add(retriever, name, retrieval_ranks(&students, &taught, self.width)?);
        }
        Ok(())
    }

    fn add(&mut self, retriever: Retriever, metric: &str, ranks: Vec<usize>) {
        let metric = metric.to_owned();
        self.measured.push(Measured { retriever, metric, ranks });
    }

    /// Returns the rows of the table, chance first.
    pub(super) fn rows(&self) -> Vec<Retrieval> {
        let chance = row(Retriever::Chance, "", RetrievalMetrics::chance(self.pairs()));
        let measured = self.measured.iter();
        let measured = measured.map(|m| row(m.retriever, &m.metric, RetrievalMetrics::of_ranks(&m.ranks)));
        std::iter::once(chance).chain(measured).collect()
    }

    /// Returns a JSON line for each pair: its id, and the rank of its English sentence in each row of the table.
    pub(super) fn lines(&self) -> String {
        let names: Vec<String> = self.rows().iter().skip(1).map(Retrieval::name).collect();
        let mut lines = String::new();
        for (index, id) in self.ids.iter().enumerate() {
            let ranks = names.iter().zip(&self.measured);
            let ranks: BTreeMap<&String, usize> = ranks.map(|(name, m)| (name, m.ranks[index])).collect();
            lines.push_str(&format!("{}\n", json!({ "id": id, "ranks": ranks })));
        }
        lines
    }
}

fn row(retriever: Retriever, metric: &str, found: RetrievalMetrics) -> Retrieval {
    Retrieval {
        retriever,
        metric: metric.to_owned(),
        r1: found.r1,
        r5: found.r5,
        r10: found.r10,
        mrr: found.mrr,
        mean_rank: found.mean_rank,
    }
}

fn same_pairs(what: &str, ids: &[u64], others: &[u64]) -> Result<()> {
    match ids == others {
        true => Ok(()),
        false => Err(Error::Input(format!("the encoder's vectors and the {what} vectors are of different pairs"))),
    }
}

/// Returns the mean of rows `[n, width]`.
fn mean(rows: &[f32], width: usize) -> Vec<f64> {
    let mut sum = vec![0.0_f64; width];
    for row in rows.chunks_exact(width) {
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let count = (rows.len() / width.max(1)).max(1) as f64;
    sum.into_iter().map(|sum| sum / count).collect()
}

fn centre(rows: &mut [f32], mean: &[f64]) {
    for row in rows.chunks_exact_mut(mean.len()) {
        row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= *mean as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centring_finds_what_a_common_direction_hides() {
        // The two languages each have a large offset, so by cosine all rows look alike.
        let (n, width) = (40, 4);
        let sentence = |i: usize, c: usize| ((i * 7 + c * 3) as f32).sin();
        let side = |offset: &[f32; 4]| -> Vec<f32> {
            (0..n * width).map(|at| sentence(at / width, at % width) + offset[at % width]).collect()
        };
        let (mut foreign, mut english) = (side(&[50.0, 0.0, 0.0, 0.0]), side(&[0.0, 50.0, 0.0, 0.0]));
        let hidden = RetrievalMetrics::of_ranks(&retrieval_ranks(&foreign, &english, width).unwrap());
        let (of_foreign, of_english) = (mean(&foreign, width), mean(&english, width));
        centre(&mut foreign, &of_foreign);
        centre(&mut english, &of_english);
        let found = RetrievalMetrics::of_ranks(&retrieval_ranks(&foreign, &english, width).unwrap());
        assert!(hidden.r1 < 0.5 && found.r1 == 1.0, "{hidden:?} {found:?}");
    }
}
