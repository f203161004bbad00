//! Curves as an SVG.

use std::fmt::Display;

use plotters::prelude::*;

use super::Curve;
use crate::{Error, Result};

const SIZE: (u32, u32) = (620, 280);
const COLOURS: [RGBColor; 4] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
];

/// A chart of curves over the steps.
///
/// # Errors
/// None that a finite curve gives: the drawing library's, which would be a fault of this code.
pub fn chart(title: &str, curves: &[Curve]) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg, title, curves).map_err(|reason| Error::Input(format!("drawing {title}: {reason}")))?;
    Ok(svg)
}

fn draw(svg: &mut String, title: &str, curves: &[Curve]) -> std::result::Result<(), String> {
    fn said(error: impl Display) -> String {
        error.to_string()
    }
    let points = || {
        curves
            .iter()
            .flat_map(|curve| &curve.points)
            .filter(|(_, y)| y.is_finite())
    };
    let (x, y) = (range(points().map(|p| p.0)), range(points().map(|p| p.1)));
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
        .x_labels(7)
        .y_labels(6)
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| number(*value))
        .draw()
        .map_err(said)?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        let points = curve.points.iter().copied().filter(|(_, y)| y.is_finite());
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

/// From the least to the most, with a little room; never empty.
fn range(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| {
        (low.min(x), high.max(x))
    });
    if low > high {
        return 0.0..1.0;
    }
    let room = match high - low {
        0.0 => low.abs().max(1.0) * 0.05,
        span => span * 0.03,
    };
    low - room..high + room
}

/// Few digits, whatever the size: learning rates are small.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 1e-3 => format!("{value:.1e}"),
        size if size < 10.0 => format!("{value:.3}"),
        _ => format!("{value:.0}"),
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
    fn a_flat_an_empty_and_a_broken_curve_are_no_fault() {
        for points in [vec![(0.0, 2.0), (1.0, 2.0)], vec![], vec![(0.0, 1.0), (1.0, f64::NAN)]] {
            let curve = Curve {
                name: "x".into(),
                points,
            };
            assert!(chart("x", &[curve]).is_ok());
        }
    }
}
