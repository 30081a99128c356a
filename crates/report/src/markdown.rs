//! A document as Markdown: the tables stand for the figures.

use crate::document::{Block, Document, Table};
use std::fmt::Write;

/// The document as GitHub-flavoured Markdown.
pub fn markdown(document: &Document) -> String {
    let mut out = format!("# {}\n\n{}\n", escape(&document.title), prose(&document.lead));
    for section in &document.sections {
        let _ = write!(out, "\n## {}\n", section.title);
        for block in &section.blocks {
            match block {
                Block::Text(text) => {
                    let _ = write!(out, "\n{}\n", prose(text));
                }
                Block::Table(t) | Block::Folded(t) => table(&mut out, &t.caption, t),
                Block::Figures(figures) => figures.iter().for_each(|f| table(&mut out, &f.caption, &f.table)),
                Block::Code(title, text) => {
                    // A fence longer than any in the text.
                    let fence = "`".repeat(3.max(longest_run(text) + 1));
                    let _ = write!(out, "\n{}\n\n{fence}\n{}\n{fence}\n", escape(title), text.trim_end());
                }
            }
        }
    }
    let _ = write!(out, "\n{}\n", prose(&document.footer));
    out
}

fn table(out: &mut String, caption: &str, table: &Table) {
    let _ = write!(out, "\n**{}**\n\n", prose(caption));
    let mut line = |cells: Vec<String>| {
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    };
    line(table.columns.iter().map(|c| escape(c)).collect());
    line((0..table.columns.len()).map(|c| if table.numeric(c) { "---:" } else { "---" }.into()).collect());
    for row in &table.rows {
        line(row.iter().map(|c| escape(c)).collect());
    }
}

fn longest_run(text: &str) -> usize {
    let mut longest = 0;
    text.chars().fold(0, |run, c| {
        let run = if c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
        run
    });
    longest
}

/// Text without a meaning in Markdown or HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// The same but for code between backticks.
fn prose(text: &str) -> String {
    let pieces = text.split('`').enumerate();
    pieces
        .map(|(i, piece)| match i % 2 {
            0 => escape(piece),
            // A line break would end the code.
            _ => format!("`{}`", piece.replace(char::is_control, " ")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_cannot_break_their_table() {
        assert_eq!(escape("a|b\nc_d <x>"), "a\\|b c\\_d &lt;x>");
        assert_eq!(prose("use `a|b_c` and a_b"), "use `a|b_c` and a\\_b");
        assert_eq!(longest_run("a ``` b ` c"), 3);
    }
}
