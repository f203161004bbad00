//! The schedules of temperature and learning rate.

/// Returns Stage A's temperature at `step` of `total`: linear from `start` to `end`, and `end` from the last step on.
pub fn temperature(step: u64, total: u64, start: f64, end: f64) -> f64 {
    start + (end - start) * (step as f64 / total.max(1) as f64).min(1.0)
}

/// Returns a linear warm-up from 0, then half a cosine down to `floor`. `step` counts from 0. Training passes
/// `step + 1` of `total + 1`, so that the first step has a positive learning rate.
pub fn cosine_lr(step: u64, total: u64, warmup: u64, base: f64, floor: f64) -> f64 {
    if step < warmup {
        return base * step as f64 / warmup as f64;
    }
    let x = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    floor + 0.5 * (1.0 + (std::f64::consts::PI * x.min(1.0)).cos()) * (base - floor)
}

/// Returns the factor of Stage B's learning rate at `step` of `total`: a linear warm-up over `warmup_share` of the
/// steps, then a linear decay to 0. No step gets 0.
pub fn linear_lr(step: u64, total: u64, warmup_share: f64) -> f64 {
    let (step, total) = (step as f64, total.max(1) as f64);
    let warmup = (warmup_share * total).ceil();
    if step < warmup {
        return (step + 1.0) / (warmup + 1.0);
    }
    ((total - step) / (total - warmup).max(1.0)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linear_rate_rises_over_the_warm_up_and_falls_to_the_end() {
        let at = |step| linear_lr(step, 100, 0.15);
        assert!((at(0) - 1.0 / 16.0).abs() < 1e-12 && at(14) < 1.0);
        assert_eq!(at(15), 1.0);
        assert!((at(99) - 1.0 / 85.0).abs() < 1e-12 && at(100) == 0.0);
        assert!((1..15).all(|step| at(step) > at(step - 1)) && (16..100).all(|step| at(step) < at(step - 1)));
        assert_eq!(linear_lr(0, 1, 0.0), 1.0);
    }

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
