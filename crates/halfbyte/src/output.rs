//! What goes to standard output: either text for people or one JSON object.

use anyhow::Context;
pub(crate) use halfbyte_report::numbers::{bytes, duration, thousands};
use serde_json::Value;
use std::io::{self, ErrorKind, Write};

/// Writes to standard output. A reader that has gone, such as `head`, is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(e).context("cannot write to standard output"),
        _ => Ok(()),
    }
}

/// Prints one JSON object, indented.
pub(crate) fn print_json(value: &Value) -> anyhow::Result<()> {
    print(&format!("{value:#}\n"))
}

/// Rows of cells under a header, in aligned columns; cells that are numbers to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column titles.
    pub(crate) fn new<T: Into<String>>(header: impl IntoIterator<Item = T>) -> Self {
        Self { rows: vec![header.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row, as many cells as the header has.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &Vec<String>, c: usize| row.get(c).cloned().unwrap_or_default();
        let width = |c: usize| self.rows.iter().map(|r| cell(r, c).chars().count()).max().unwrap_or(0);
        // With a unit at most: `1.5 kB`, `0.3 %`, `64 x 64`, and `-` for none.
        let number = |s: &str| {
            s.chars().filter(|c| c.is_alphabetic()).count() <= 2 && !s.starts_with(char::is_alphabetic)
        };
        let numeric = |c: usize| self.rows.iter().skip(1).all(|r| number(&cell(r, c)));
        let shape: Vec<(usize, bool)> = (0..columns).map(|c| (width(c), numeric(c))).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (c, &(width, right)) in shape.iter().enumerate() {
                let text = cell(row, c);
                let padded = if right { format!("{text:>width$}") } else { format!("{text:<width$}") };
                line = line + if c == 0 { "" } else { "  " } + &padded;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(["name", "n"]);
        table.row(["a".into(), "10".into()]);
        table.row(["long".into(), "5".into()]);
        assert_eq!(table.to_string(), "name   n\na     10\nlong   5\n");
    }
}
