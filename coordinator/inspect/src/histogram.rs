//! How many values lie where, as bars in a terminal.

use llink_datasets::measured::thousands;

/// Bars, and how wide the longest is.
const BINS: usize = 12;
const BAR: usize = 40;

#[derive(Debug, Default)]
pub(crate) struct Histogram {
    values: Vec<f32>,
}

impl Histogram {
    pub(crate) fn extend(&mut self, values: impl IntoIterator<Item = f64>) {
        self.values.extend(values.into_iter().map(|value| value as f32));
    }

    /// The title with the least, the greatest and the mean value, then the bars.
    pub(crate) fn lines(&self, title: &str) -> Vec<String> {
        let finite = || self.values.iter().filter(|value| value.is_finite()).map(|v| f64::from(*v));
        let odd = self.values.len() - finite().count();
        let (least, most) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        if least > most {
            return vec![format!("  {title}: no value that is a number")];
        }
        let whole = finite().all(|value| value.fract() == 0.0);
        let written = |value: f64| {
            if whole { format!("{value:.0}") } else { format!("{value:.3}") }
        };
        let mean = finite().sum::<f64>() / finite().count() as f64;
        let mut lines = vec![format!("  {title}: {} to {}, mean {mean:.1}", written(least), written(most))];
        if odd > 0 {
            lines.push(format!("    {} values are no numbers", thousands(odd as u64)));
        }
        if least == most {
            return lines;
        }
        // Of whole numbers each bar stands for as many.
        let width = match (most - least) / BINS as f64 {
            width if whole => ((most - least + 1.0) / BINS as f64).ceil().max(width.ceil()).max(1.0),
            width => width,
        };
        let mut bins = [0_u64; BINS];
        for value in finite() {
            bins[(((value - least) / width) as usize).min(BINS - 1)] += 1;
        }
        let used = ((most - least) / width) as usize;
        let highest = bins.iter().copied().max().unwrap_or(1).max(1);
        for (bin, count) in bins.iter().enumerate().take(used.min(BINS - 1) + 1) {
            let bar = "█".repeat((*count as usize * BAR).div_ceil(highest as usize));
            let from = written(least + bin as f64 * width);
            lines.push(format!("    {from:>10} {:>11} {bar}", thousands(*count)).trim_end().to_owned());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_have_bars_of_whole_numbers() {
        let mut lengths = Histogram::default();
        lengths.extend([1.0, 1.0, 2.0, 3.0]);
        let lines = lengths.lines("characters");
        assert_eq!(lines[0], "  characters: 1 to 3, mean 1.8");
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines[1].trim_start().starts_with("1 ") && lines[1].matches('█').count() == BAR, "{lines:?}");
        assert_eq!(lines[3].matches('█').count(), BAR / 2);
    }

    #[test]
    fn every_value_is_under_a_bar() {
        let mut norms = Histogram::default();
        norms.extend((0..1_000).map(|n| f64::from(n) / 7.0));
        norms.extend([f64::NAN]);
        let lines = norms.lines("norm");
        assert!(lines[1].contains("1 values are no numbers"), "{lines:?}");
        let count = |line: &String| line.split_whitespace().nth(1).unwrap().replace(',', "").parse::<u64>().unwrap();
        assert_eq!(lines[2..].iter().map(count).sum::<u64>(), 1_000);
        assert_eq!(lines.len(), 2 + BINS);
    }
}
