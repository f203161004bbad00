//! Builds an HTML page from tables, charts and examples.

use llink_datasets::measured::Section;
use llink_datasets::page::{self, STYLE};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    title: String,
    body: Vec<Markup>,
}

impl Page {
    /// Makes a page with this title.
    pub fn new(title: &str) -> Self {
        Self { title: title.into(), body: Vec::new() }
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) {
        self.body.push(html! { h2 { (title) } });
    }

    /// Adds a part of the measurements.
    pub fn measured(&mut self, section: &Section) {
        self.section(&section.title);
        self.body.push(page::measured(section));
    }

    /// Adds a paragraph.
    pub fn note(&mut self, text: &str) {
        self.body.push(html! { p { (text) } });
    }

    /// Adds a table of texts with these columns.
    pub fn table(&mut self, columns: &[&str], rows: impl Iterator<Item = Vec<String>>) {
        let long = |text: &String| html! { span.long { (text) } };
        let rows = rows.map(|row| row.iter().map(long).collect());
        self.body.push(page::table("", columns, rows));
    }

    /// Adds a chart unchanged.
    pub fn svg(&mut self, svg: &str) {
        self.body.push(html! { figure { (PreEscaped(svg)) } });
    }

    /// Returns the whole page.
    pub fn html(self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        h1 { (self.title) }
                        @for part in self.body { (part) }
                    }
                }
            }
        };
        page.into_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_else_and_shows_texts_as_they_are() {
        let mut page = Page::new("a <job> & \"more\"");
        page.section("answers");
        let row = ["<script>x</script>", "- a\n- b"].map(str::to_owned).to_vec();
        page.table(&["said", "meant"], [row].into_iter());
        page.measured(&Section {
            title: "R@1 < 1".into(),
            table: Some(llink_datasets::measured::Table {
                words: vec![""],
                numbers: vec!["R@1"],
                rows: vec![vec!["chance".into(), "0.0010".into()]],
            }),
            notes: vec!["a & b".into()],
        });
        page.svg("<svg></svg>");
        let html = page.html();
        assert!(html.contains("a &lt;job&gt; &amp; &quot;more&quot;"), "{html}");
        assert!(html.contains("chance</th><td role=\"cell\" data-head=\"R@1\">0.0010</td>"), "{html}");
        assert!(html.contains("R@1 &lt; 1") && html.contains("a &amp; b"), "{html}");
        assert!(!html.contains("<script") && html.contains("- a\n- b"), "{html}");
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside} leads out of the page: {html}");
        }
    }
}
