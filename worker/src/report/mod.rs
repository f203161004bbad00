//! The report for people, as one HTML file without external parts.
//!
//! [`curves`] reads a training's numbers, [`chart`] draws them, and [`page`] combines tables, charts and answers.

pub mod chart;
pub mod curves;
pub mod page;

pub use chart::chart;
pub use curves::{Curve, curves};
pub use page::Page;
