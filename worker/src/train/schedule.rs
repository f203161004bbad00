//! How temperature and learning rate move with the step.

/// Stage A's temperature at `step` of `total`: linear from `start`, `end` from the last step on.
#[must_use]
pub fn temperature(step: u64, total: u64, start: f64, end: f64) -> f64 {
    start + (end - start) * (step as f64 / total.max(1) as f64).min(1.0)
}

/// Linear warm-up from 0, then half a cosine down to `floor`. `step` counts from 0. Training passes `step + 1` of `total + 1`,
/// so that the first step already moves.
#[must_use]
pub fn cosine_lr(step: u64, total: u64, warmup: u64, base: f64, floor: f64) -> f64 {
    if step < warmup {
        return base * step as f64 / warmup as f64;
    }
    let x = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    floor + 0.5 * (1.0 + (std::f64::consts::PI * x.min(1.0)).cos()) * (base - floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_falls_in_a_line_and_stays() {
        assert_eq!(temperature(0, 20_000, 0.17, 0.08), 0.17);
        assert!((temperature(10_000, 20_000, 0.17, 0.08) - 0.125).abs() < 1e-12);
        assert!((temperature(30_000, 20_000, 0.17, 0.08) - 0.08).abs() < 1e-12);
        assert!((temperature(5, 0, 0.17, 0.08) - 0.08).abs() < 1e-12);
    }

    #[test]
    fn learning_rate_warms_up_then_falls_to_the_floor() {
        let at = |step| cosine_lr(step, 13, 3, 1e-2, 1e-4);
        assert_eq!(at(0), 0.0);
        assert!((at(1) - 1e-2 / 3.0).abs() < 1e-15);
        assert_eq!(at(3), 1e-2);
        assert!((at(8) - 5.05e-3).abs() < 1e-15);
        assert!((at(13) - 1e-4).abs() < 1e-15 && (at(99) - 1e-4).abs() < 1e-15);
        assert_eq!(cosine_lr(0, 10, 0, 1.0, 0.0), 1.0);
    }
}
