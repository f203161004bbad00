//! What the coordinator's page and `report.html` share: the look, tables, and measurements. maud escapes every text.

use maud::{Markup, html};

use crate::measured::Section;

/// The style sheet of both.
pub const STYLE: &str = include_str!("page.css");

/// Returns a table. It names its roles, because a narrow screen shows each row as a block, and browsers then forget them.
#[must_use]
pub fn table(caption: &str, heads: &[&str], rows: impl IntoIterator<Item = Vec<Markup>>) -> Markup {
    html! {
        table role="table" {
            @if !caption.is_empty() { caption { (caption) } }
            thead role="rowgroup" { tr role="row" { @for head in heads { (heading(head)) } } }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (at, cell) in row.iter().enumerate() {
                            @if at == 0 {
                                th role="rowheader" scope="row" { (cell) }
                            } @else {
                                td role="cell" data-head=(heads.get(at).copied().unwrap_or_default()) { (cell) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A heading of a column. One without words heads no column for a screen reader.
fn heading(head: &str) -> Markup {
    match head {
        "" => html! { td role="cell" {} },
        head => html! { th role="columnheader" scope="col" { (head) } },
    }
}

/// Returns the table and the notes of a part of the measurements, without its title.
#[must_use]
pub fn measured(section: &Section) -> Markup {
    html! {
        @if let Some(numbers) = &section.table {
            @let heads: Vec<&str> = numbers.words.iter().chain(&numbers.numbers).copied().collect();
            (table("", &heads, numbers.rows.iter().map(|row| row.iter().map(|cell| html! { (cell) }).collect())))
        }
        @for note in &section.notes { p { (note) } }
    }
}
