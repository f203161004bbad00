//! Builds an HTML page from tables, charts and examples.

use std::fmt::Write;

use llink_datasets::measured::Section;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#222;--soft:#666;--line:#ddd;--paper:#fff}\
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#999;--line:#444;--paper:#1a1a1a}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:var(--ink);background:var(--paper)}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;margin:.6rem 0}\
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}\
th.n,td.n{text-align:right;font-variant-numeric:tabular-nums}p.note{color:var(--soft)}div{overflow-x:auto}\
figure{margin:1rem 0}svg{display:block;width:100%;height:auto}svg text{fill:var(--ink)}\
svg [stroke=\"#000000\"]{stroke:var(--ink)}svg [stroke=\"#FFFFFF\"]{stroke:var(--paper)}svg rect[fill=\"#FFFFFF\"]{fill:var(--paper)}";

/// A page under construction.
#[derive(Debug, Default)]
pub struct Page {
    title: String,
    body: String,
}

/// A table under construction.
#[derive(Debug)]
pub struct Table {
    rows: String,
}

impl Table {
    /// Makes a table with these columns of words.
    #[must_use]
    pub fn new(columns: &[&str]) -> Self {
        Self::with_numbers(columns, &[])
    }

    /// Makes a table with columns of words, then columns of numbers.
    fn with_numbers(words: &[&str], numbers: &[&str]) -> Self {
        let heading = |class: &str, name: &&str| format!("<th{class}>{}</th>", escape(name));
        let words = words.iter().map(|name| heading("", name));
        let numbers = numbers.iter().map(|name| heading(" class=\"n\"", name));
        let cells: String = words.chain(numbers).collect();
        Self {
            rows: format!("<tr>{cells}</tr>\n"),
        }
    }

    /// Adds a row: words first, then numbers.
    fn numbers(&mut self, cells: &[String], words: usize) {
        let cell = |(column, text): (usize, &String)| match column < words {
            true => format!("<td>{}</td>", escape(text)),
            false => format!("<td class=\"n\">{}</td>", escape(text)),
        };
        let cells: String = cells.iter().enumerate().map(cell).collect();
        let _ = writeln!(self.rows, "<tr>{cells}</tr>");
    }

    /// Adds a row of texts.
    pub fn texts(&mut self, texts: &[&str]) {
        let cells: String = texts.iter().map(|text| format!("<td>{}</td>", lines(text))).collect();
        let _ = writeln!(self.rows, "<tr>{cells}</tr>");
    }
}

impl Page {
    /// Makes a page with this title.
    #[must_use]
    pub fn new(title: &str) -> Self {
        Self {
            title: title.into(),
            body: String::new(),
        }
    }

    /// Begins a section.
    pub fn section(&mut self, title: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(title));
    }

    /// Adds a part of the measurements.
    pub fn measured(&mut self, section: &Section) {
        self.section(&section.title);
        if let Some(numbers) = &section.table {
            let mut table = Table::with_numbers(&numbers.words, &numbers.numbers);
            for row in &numbers.rows {
                table.numbers(row, numbers.words.len());
            }
            self.table(table);
        }
        section.notes.iter().for_each(|note| self.note(note));
    }

    /// Adds a paragraph.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"note\">{}</p>", escape(text));
    }

    /// Adds a table.
    pub fn table(&mut self, table: Table) {
        let _ = writeln!(self.body, "<div><table>\n{}</table></div>", table.rows);
    }

    /// Adds a chart unchanged.
    pub fn svg(&mut self, svg: &str) {
        let _ = writeln!(self.body, "<figure>{svg}</figure>");
    }

    /// Returns the whole page.
    #[must_use]
    pub fn html(self) -> String {
        let (title, body) = (escape(&self.title), self.body);
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
             <body>\n<h1>{title}</h1>\n{body}</body>\n</html>\n"
        )
    }
}

/// Escapes a text, so that a browser shows it unchanged.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            c => safe.push(c),
        }
    }
    safe
}

fn lines(text: &str) -> String {
    escape(text).replace('\n', "<br>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_nothing_else_and_shows_texts_as_they_are() {
        let mut page = Page::new("a <job> & \"more\"");
        let mut table = Table::new(&["said", "meant"]);
        table.texts(&["<script>x</script>", "- a\n- b"]);
        page.section("answers");
        page.table(table);
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
        assert!(
            html.contains("<tr><td>chance</td><td class=\"n\">0.0010</td></tr>"),
            "{html}"
        );
        assert!(html.contains("R@1 &lt; 1") && html.contains("a &amp; b"), "{html}");
        assert!(!html.contains("<script") && html.contains("- a<br>- b"), "{html}");
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside} leads out of the page: {html}");
        }
    }
}
