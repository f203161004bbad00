//! The report as a page for people: one HTML file that needs no other.
//!
//! [`curves`] reads a training's numbers, [`chart`] draws them, [`page`] puts tables, charts and answers together.

pub mod chart;
pub mod curves;
pub mod page;

pub use chart::chart;
pub use curves::{Curve, curves};
pub use page::{Page, Table};
