//! The margin score of parallel sentences ([Artetxe and Schwenk](https://arxiv.org/abs/1811.01136)).

use super::retrieval::{compared, normalized};
use crate::{Error, Result};

/// The number of nearest neighbors of each sentence, as in the paper.
pub const NEIGHBORS: usize = 4;
/// The least mean similarity that divides.
const LEAST: f32 = 1e-6;

/// Returns the margin of each pair: the cosine of its two vectors over the mean cosine of both to their nearest neighbors on
/// the other side. Row `i` of both sides, `[n, width]`, is the same pair. A pair is among its own neighbors.
///
/// # Errors
/// [`Error::Input`] when the sides do not match, are empty, or hold NaN or infinity.
pub fn margins(foreign: &[f32], english: &[f32], width: usize) -> Result<Vec<f32>> {
    if foreign.is_empty() || foreign.len() != english.len() || !foreign.len().is_multiple_of(width) {
        let (foreign, english) = (foreign.len(), english.len());
        return Err(Error::Input(format!("margins of {foreign} and {english} numbers in rows of {width}")));
    }
    if let Some(at) = foreign.iter().chain(english).position(|x| !x.is_finite()) {
        let row = at % foreign.len() / width;
        return Err(Error::Input(format!("margins: row {row} holds NaN or infinity")));
    }
    let (foreign, english) = (normalized(foreign, width), normalized(english, width));
    let (own, of_foreign) = nearness(&foreign, &english, width);
    let (_, of_english) = nearness(&english, &foreign, width);
    let neighbors = of_foreign.iter().zip(of_english).map(|(one, other)| (one + other) / 2.0);
    Ok(own.iter().zip(neighbors).map(|(own, near)| own / near.max(LEAST)).collect())
}

/// Returns the cosine of each row to its own partner, and its mean cosine to its nearest neighbors among all `others`.
fn nearness(rows: &[f32], others: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let near = |own: f32, similarities: &mut [f32]| (own, mean_of_greatest(similarities));
    compared(rows, others, width, near).into_iter().unzip()
}

/// Returns the mean of the greatest [`NEIGHBORS`] values, whose order is changed.
fn mean_of_greatest(values: &mut [f32]) -> f32 {
    let count = NEIGHBORS.min(values.len());
    values.select_nth_unstable_by(count - 1, |one, other| other.total_cmp(one));
    values[..count].iter().sum::<f32>() / count as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numerics::random::noise;

    #[test]
    fn a_margin_is_what_the_paper_says() {
        // Two directions; the third English sentence is a copy of the second.
        let foreign = [1.0, 0.0, 0.0, 2.0, 0.6, 0.8];
        let english = [3.0, 0.0, 0.6, 0.8, 0.6, 0.8];
        // With fewer pairs than neighbors, every sentence of the other side is a neighbor.
        let (f0, f1, f2) = ((1.0 + 0.6 + 0.6) / 3.0, (0.0 + 0.8 + 0.8) / 3.0, (0.6 + 1.0 + 1.0) / 3.0);
        let (e0, e1) = ((1.0 + 0.0 + 0.6) / 3.0, (0.6 + 0.8 + 1.0) / 3.0);
        let expected = [2.0 / (f0 + e0), 1.6 / (f1 + e1), 2.0 / (f2 + e1)];
        for (found, expected) in margins(&foreign, &english, 2).unwrap().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn shuffled_pairs_have_the_lowest_margins() {
        let (n, width) = (600, 48);
        let english = noise(1, n * width);
        let mut foreign: Vec<f32> = english.iter().zip(noise(2, n * width)).map(|(x, e)| x + 0.7 * e + 0.5).collect();
        // A fifth of the pairs get the foreign side of another one.
        foreign[..n / 5 * width].rotate_left(width);
        let margins = margins(&foreign, &english, width).unwrap();
        let (shuffled, paired) = margins.split_at(n / 5);
        let greatest = shuffled.iter().copied().fold(0.0, f32::max);
        let kept = paired.iter().filter(|margin| **margin > greatest).count();
        assert!(kept == paired.len() && greatest < 1.0, "{kept} of {}, {greatest}", paired.len());
    }

    #[test]
    fn what_has_no_margin_is_refused() {
        assert!(margins(&[], &[], 2).is_err());
        assert!(margins(&[1.0, 2.0], &[1.0], 1).is_err());
        let text = margins(&[1.0, 1.0], &[1.0, f32::NAN], 1).unwrap_err().to_string();
        assert!(text.contains("row 1"), "{text}");
    }
}
