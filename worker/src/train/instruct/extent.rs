//! How large a run of examples is, by what its memory grows with.

/// Memory of a run: tokens hold activations, pairs of places hold attention's weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Extent {
    tokens: usize,
    /// Examples times the longest one's square: attention pads to it.
    places: usize,
}

impl Extent {
    /// Of sequences that begin at `offsets`, one more than there are sequences.
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

/// Runs that have fitted, but for those that others say more than.
#[derive(Debug, Default)]
pub(super) struct Proven(Vec<Extent>);

impl Proven {
    /// Whether a run is known to fit: one that was larger in both respects has.
    pub(super) fn holds(&self, run: Extent) -> bool {
        self.0.iter().any(|fitted| fitted.holds(run))
    }

    /// This one has fitted.
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
        // The most tokens of one and the longest of another may be too much together.
        let both = Extent::of(&[0, 35, 40]);
        assert!(!proven.holds(both));
        proven.add(both);
        assert_eq!(proven.0, [both], "it says all that the others did");
    }
}
