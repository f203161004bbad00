//! Reads the numbers of a training over its steps, thinned so that a chart stays small.

use serde_json::Value;

/// The most points of a curve; each is then the mean of several steps.
const POINTS: usize = 300;

/// One number over the steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// The name of the number.
    pub name: String,
    /// Step and value of each point, sorted by step.
    pub points: Vec<(f64, f64)>,
}

/// Reads the numbers with these names from `metrics.jsonl`. A number in a table is named `table/number`. Invalid lines
/// are skipped, and numbers that no line has are left out.
pub fn curves(lines: &str, names: &[&str]) -> Vec<Curve> {
    let mut found: Vec<Curve> =
        names.iter().map(|name| Curve { name: (*name).to_owned(), points: Vec::new() }).collect();
    for line in lines.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let Some(step) = line["step"].as_f64() else { continue };
        for curve in &mut found {
            let value = curve.name.split('/').fold(&line, |value, part| &value[part]);
            curve.points.extend(value.as_f64().map(|value| (step, value)));
        }
    }
    found.retain(|curve| !curve.points.is_empty());
    for curve in &mut found {
        thin(&mut curve.points);
    }
    found
}

fn thin(points: &mut Vec<(f64, f64)>) {
    if points.len() <= POINTS {
        return;
    }
    let together = points.len().div_ceil(POINTS);
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        let (steps, values) = points.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        (steps / count, values / count)
    };
    *points = points.chunks(together).map(mean).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_name_and_thinned_to_means() {
        let lines: String = (0..1000)
            .map(|step| format!("{{\"step\":{step},\"loss\":{},\"validation\":{{\"r1\":0.5}}}}\n", step % 2))
            .collect();
        let found = curves(&lines, &["loss", "validation/r1", "temperature"]);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].points.len(), 250);
        assert!(found[0].points.iter().all(|(_, loss)| (loss - 0.5).abs() < 1e-12));
        assert_eq!(found[0].points[0].0, 1.5);
        assert_eq!(found[1].points[249], (997.5, 0.5));
        assert_eq!(curves("oops\n{\"step\":1}\n", &["loss"]), []);
    }
}
