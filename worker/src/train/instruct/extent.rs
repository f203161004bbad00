//! The size of a run of examples, in the units that its memory grows with.

/// The size of a run. Activations grow with tokens, attention weights with places.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    tokens: usize,
    /// The number of examples times the square of the longest length, because attention pads to it.
    places: usize,
}

impl Extent {
    /// Returns the size of sequences that begin at `offsets`. The last offset is the end.
    pub(super) fn of(offsets: &[usize]) -> Self {
        let longest = offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        Self {
            tokens: offsets.last().copied().unwrap_or(0),
            places: offsets.len().saturating_sub(1) * longest * longest,
        }
    }

    fn holds(self, other: Self) -> bool {
        other.tokens <= self.tokens && other.places <= self.places
    }
}

/// The sizes of runs that have fitted, without those that a larger one covers.
#[derive(Debug, Default)]
pub(super) struct Proven(Vec<Extent>);

impl Proven {
    /// Returns whether a run is known to fit, because one that was at least as large in both units has fitted.
    pub(super) fn holds(&self, run: Extent) -> bool {
        self.0.iter().any(|fitted| fitted.holds(run))
    }

    pub(super) fn add(&mut self, run: Extent) {
        if !self.holds(run) {
            self.0.retain(|fitted| !run.holds(*fitted));
            self.0.push(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_fits_where_one_that_was_larger_in_both_respects_has() {
        let mut proven = Proven::default();
        let (short, long) = (Extent::of(&[0, 10, 20, 30, 40]), Extent::of(&[0, 35]));
        assert!(!proven.holds(short));
        proven.add(short);
        assert!(proven.holds(short) && proven.holds(Extent::of(&[0, 10, 15])) && proven.holds(Extent::of(&[0])));
        assert!(!proven.holds(long), "fewer tokens, but more for attention");
        proven.add(long);
        assert!(proven.holds(long) && proven.holds(short));
        // The most tokens of one run and the longest example of another may be too large together.
        let both = Extent::of(&[0, 35, 40]);
        assert!(!proven.holds(both));
        proven.add(both);
        assert_eq!(proven.0, [both], "it covers the others");
    }
}
