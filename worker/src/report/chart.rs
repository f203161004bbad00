//! Draws curves as SVG.

use std::fmt::Display;

use plotters::prelude::*;

use super::Curve;
use crate::{Error, Result};

/// Width and height. The width is that of the page, so that labels keep their size.
const SIZE: (u32, u32) = (1024, 300);
/// Curves with fewer points show each point, because a single point is not a line.
const DOTTED_BELOW: usize = 40;
/// The width of the legend to the right of several curves, as a share of theirs, so that it does not cover them.
const LEGEND: f64 = 0.17;
/// The approximate number of labels on an axis.
const LABELS: usize = 7;
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

/// Draws curves over the steps.
pub fn chart(title: &str, curves: &[Curve]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, title, curves).map_err(|reason| Error::Input(format!("drawing {title}: {reason}")))?;
    // The page decides the size, and the view box keeps the proportions.
    let (width, height) = SIZE;
    Ok(svg.replacen(&format!("width=\"{width}\" height=\"{height}\" "), "", 1))
}

fn draw(svg: &mut String, title: &str, curves: &[Curve]) -> std::result::Result<(), String> {
    fn said(error: impl Display) -> String {
        error.to_string()
    }
    let points = || curves.iter().flat_map(|curve| &curve.points).filter(|(_, y)| y.is_finite());
    let (x, y) = (range(points().map(|p| p.0)), range(points().map(|p| p.1)));
    let last = x.end;
    let x = match curves.len() {
        0 | 1 => x,
        _ => x.start..x.end + LEGEND * (x.end - x.start),
    };
    let (steps, span) = (x.end - x.start, y.end - y.start);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 15))
        .margin(6)
        .x_label_area_size(26)
        .y_label_area_size(58)
        .build_cartesian_2d(x, y)
        .map_err(said)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        // Steps are whole numbers, so there are no more labels than steps.
        .x_labels((steps as usize + 1).min(LABELS))
        .y_labels(LABELS)
        .label_style(("sans-serif", 13))
        .x_label_formatter(&|step| if *step > last { String::new() } else { format!("{step:.0}") })
        .y_label_formatter(&|value| label(*value, span))
        .draw()
        .map_err(said)?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let points = curve.points.iter().copied().filter(|(_, y)| y.is_finite());
        if curve.points.len() < DOTTED_BELOW {
            let dot = |point| Circle::new(point, 3, colour.filled());
            chart.draw_series(points.clone().map(dot)).map_err(said)?;
        }
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))
            .map_err(said)?
            .label(curve.name.as_str())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], colour.stroke_width(2)));
    }
    if curves.len() > 1 {
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()
            .map_err(said)?;
    }
    area.present().map_err(said)
}

/// Returns the range from the least to the greatest value with some margin; it is never empty.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low > high {
        return 0.0..1.0;
    }
    let room = match high - low {
        0.0 => low.abs().max(1.0) * 0.05,
        span => span * 0.03,
    };
    low - room..high + room
}

/// Formats a value on an axis of this span, with enough digits to distinguish it from the next label.
fn label(value: f64, span: f64) -> String {
    let step = span / LABELS as f64;
    // Ticks are sums of steps, so a rounding error beside zero is shown as zero.
    if value.abs() < step * 1e-3 {
        return "0".into();
    }
    let digits = (-step.log10()).ceil().max(0.0);
    match value.abs() {
        size if size >= 1e6 || digits > 5.0 => format!("{value:.1e}"),
        _ => format!("{value:.*}", digits as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_curve_is_drawn_and_named() {
        let curve = |name: &str, slope: f64| Curve {
            name: name.into(),
            points: (0..50).map(|step| (f64::from(step), slope * f64::from(step))).collect(),
        };
        let svg = chart("loss & more", &[curve("loss", -0.1), curve("held out", 0.0)]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.matches("<polyline").count() >= 2, "{svg}");
        assert!(svg.contains("held out") && svg.contains("loss &amp; more"), "{svg}");
    }

    #[test]
    fn a_chart_takes_the_pages_width() {
        let svg = chart("x", &[curve_of(vec![(0.0, 1.0), (1.0, 2.0)])]).unwrap();
        let root = svg.lines().next().unwrap();
        let root = &root[..root.find('>').unwrap()];
        assert!(root.contains("viewBox=\"0 0 1024 300\""), "{root}");
        assert!(!root.contains("width=") && !root.contains("height="), "{root}");
    }

    #[test]
    fn a_single_point_is_seen() {
        let svg = chart("x", &[curve_of(vec![(60.0, 0.25)])]).unwrap();
        assert_eq!(svg.matches("<circle").count(), 1, "{svg}");
        let long = curve_of((0..200).map(|step| (f64::from(step), 1.0)).collect());
        assert!(!chart("x", &[long]).unwrap().contains("<circle"));
    }

    #[test]
    fn labels_beside_zero_are_zero_and_neighbours_differ() {
        assert_eq!(label(1.4e-20, 3e-3), "0");
        assert_eq!(label(-2e-19, 1e-5), "0");
        assert_eq!((label(10.0, 3.0), label(10.5, 3.0)), ("10.0".into(), "10.5".into()));
        assert_eq!((label(5e-4, 3e-3), label(1e-3, 3e-3)), ("0.0005".into(), "0.0010".into()));
        assert_eq!((label(2e-6, 1e-5), label(4e-6, 1e-5)), ("2.0e-6".into(), "4.0e-6".into()));
        assert_eq!((label(100.0, 900.0), label(200.0, 900.0)), ("100".into(), "200".into()));
        // The learning rate warms up from zero and decays to it.
        let rate = |step: u32| 3e-3 * f64::from(step.min(100 - step)) / 50.0;
        let svg = chart("learning rate", &[curve_of((0..=100).map(|s| (f64::from(s), rate(s))).collect())]).unwrap();
        let tiny = svg.lines().find(|line| line.contains("e-1") || line.contains("e-2"));
        assert_eq!(tiny, None, "{svg}");
    }

    fn curve_of(points: Vec<(f64, f64)>) -> Curve {
        Curve { name: "x".into(), points }
    }

    #[test]
    fn a_flat_an_empty_and_a_broken_curve_are_no_fault() {
        for points in [vec![(0.0, 2.0), (1.0, 2.0)], vec![], vec![(0.0, 1.0), (1.0, f64::NAN)]] {
            assert!(chart("x", &[curve_of(points)]).is_ok());
        }
    }
}
