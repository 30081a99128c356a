//! A document as one HTML page that needs nothing else: no network, no script.
//!
//! It is written as XHTML would be, every element closed, so that any XML reader can take it apart too.

use crate::document::{Block, Document, Figure, Table};
use std::fmt::Write;

/// The style sheet: light, dark and paper, phone and desk.
const STYLE: &str = include_str!("style.css");

/// Text as it may stand in an element or an attribute. Characters that XML does not have become `�`.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The page.
pub fn html(document: &Document) -> String {
    let mut out = String::with_capacity(1 << 18);
    let title = escape(&document.title);
    // No source of anything is allowed but the page itself.
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#content\">Skip to the content</a>\n<header>\n<h1>{title}</h1>\n<p>{}</p>\n",
        prose(&document.lead)
    );
    out.push_str("<dl class=\"headline\">\n");
    for tile in &document.headline {
        let _ = write!(out, "<div><dt>{}</dt><dd>{}", escape(tile.label), escape(&tile.value));
        if !tile.remark.is_empty() {
            let _ = write!(out, " <small>{}</small>", escape(&tile.remark));
        }
        out.push_str("</dd></div>\n");
    }
    out.push_str("</dl>\n<nav aria-label=\"Sections\"><ul>\n");
    for section in &document.sections {
        let _ = writeln!(out, "<li><a href=\"#{}\">{}</a></li>", section.id, escape(section.title));
    }
    out.push_str("</ul></nav>\n</header>\n<main id=\"content\">\n");
    for section in &document.sections {
        let _ = writeln!(
            out,
            "<section id=\"{0}\" aria-labelledby=\"{0}-h\">\n<h2 id=\"{0}-h\">{1}</h2>",
            section.id,
            escape(section.title)
        );
        section.blocks.iter().for_each(|b| block(&mut out, b));
        out.push_str("</section>\n");
    }
    let _ = write!(out, "</main>\n<footer><p>{}</p></footer>\n</body>\n</html>\n", prose(&document.footer));
    out
}

fn block(out: &mut String, block: &Block) {
    match block {
        Block::Text(text) => {
            let _ = writeln!(out, "<p>{}</p>", prose(text));
        }
        Block::Table(t) => table(out, t),
        Block::Folded(t) => folded(out, &t.caption, t),
        Block::Figures(figures) => {
            out.push_str("<div class=\"figures\">\n");
            figures.iter().for_each(|f| figure(out, f));
            out.push_str("</div>\n");
        }
        Block::Code(title, text) => {
            let _ = writeln!(
                out,
                "<details><summary>{}</summary><pre tabindex=\"0\">{}</pre></details>",
                escape(title),
                escape(text)
            );
        }
    }
}

fn figure(out: &mut String, figure: &Figure) {
    let _ = writeln!(out, "<figure>\n<figcaption>{}</figcaption>\n{}", prose(&figure.caption), figure.svg);
    folded(out, "Data of this figure", &figure.table);
    out.push_str("</figure>\n");
}

fn folded(out: &mut String, title: &str, t: &Table) {
    let _ = write!(out, "<details><summary>{}</summary>", escape(title));
    table(out, t);
    out.push_str("</details>\n");
}

/// A table scrolls by itself where it is wider than the page.
fn table(out: &mut String, table: &Table) {
    let caption = escape(&table.caption);
    // A narrow screen would break long names at every letter.
    let named = table.rows.iter().any(|r| r[0].chars().count() > 12);
    let names = if named { " class=\"names\"" } else { "" };
    let _ = write!(
        out,
        "<div class=\"scroll\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\"><table{names}><caption>{caption}</caption><thead><tr>"
    );
    let numeric: Vec<bool> = (0..table.columns.len()).map(|c| table.numeric(c)).collect();
    let class = |c: usize| if numeric[c] { " class=\"n\"" } else { "" };
    for (c, column) in table.columns.iter().enumerate() {
        let _ = write!(out, "<th scope=\"col\"{}>{}</th>", class(c), escape(column));
    }
    out.push_str("</tr></thead><tbody>\n");
    for row in &table.rows {
        out.push_str("<tr>");
        for (c, cell) in row.iter().enumerate() {
            let _ = match c {
                0 => write!(out, "<th scope=\"row\">{}</th>", escape(cell)),
                _ => write!(out, "<td{}>{}</td>", class(c), escape(cell)),
            };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n");
}

/// Text with code between backticks.
fn prose(text: &str) -> String {
    let pieces = text.split('`').enumerate();
    pieces
        .map(|(i, piece)| match i % 2 {
            0 => escape(piece),
            _ => format!("<code>{}</code>", escape(piece)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_files_cannot_become_markup() {
        assert_eq!(escape("<a href='x'>&\u{1}"), "&lt;a href=&#39;x&#39;&gt;&amp;\u{fffd}");
        assert_eq!(prose("run `a <b>` now"), "run <code>a &lt;b&gt;</code> now");
    }
}
