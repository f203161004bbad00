//! Tables, charts and examples as one HTML page.

use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#222}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;margin:.6rem 0}\
th,td{padding:.25rem .7rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}td.n{text-align:right;\
font-variant-numeric:tabular-nums}figure{display:inline-block;margin:.3rem}svg{max-width:100%;height:auto}\
p.note{color:#666}";

/// A page in the making.
#[derive(Debug, Default)]
pub struct Page {
    title: String,
    body: String,
}

/// A table in the making.
#[derive(Debug)]
pub struct Table {
    rows: String,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(columns: &[&str]) -> Self {
        let cells: String = columns
            .iter()
            .map(|name| format!("<th>{}</th>", escape(name)))
            .collect();
        Self {
            rows: format!("<tr>{cells}</tr>\n"),
        }
    }

    /// Adds a row: what it is, then numbers.
    pub fn numbers(&mut self, name: &str, numbers: &[String]) {
        let cells: String = numbers
            .iter()
            .map(|number| format!("<td class=\"n\">{}</td>", escape(number)))
            .collect();
        let _ = writeln!(self.rows, "<tr><td>{}</td>{cells}</tr>", escape(name));
    }

    /// Adds a row of texts.
    pub fn texts(&mut self, texts: &[&str]) {
        let cells: String = texts.iter().map(|text| format!("<td>{}</td>", lines(text))).collect();
        let _ = writeln!(self.rows, "<tr>{cells}</tr>");
    }
}

impl Page {
    /// A page of this title.
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

    /// Adds a paragraph.
    pub fn note(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p class=\"note\">{}</p>", escape(text));
    }

    /// Adds a table.
    pub fn table(&mut self, table: Table) {
        let _ = writeln!(self.body, "<table>\n{}</table>", table.rows);
    }

    /// Adds a chart, as it is.
    pub fn svg(&mut self, svg: &str) {
        let _ = writeln!(self.body, "<figure>{svg}</figure>");
    }

    /// The whole page.
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

/// Text that a browser shows as it is.
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
        table.numbers("loss", &["0.5".into()]);
        page.section("answers");
        page.table(table);
        page.svg("<svg></svg>");
        let html = page.html();
        assert!(html.contains("a &lt;job&gt; &amp; &quot;more&quot;"), "{html}");
        assert!(!html.contains("<script") && html.contains("- a<br>- b"), "{html}");
        for outside in ["http:", "https:", "src=", "href=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside} leads out of the page: {html}");
        }
    }
}
