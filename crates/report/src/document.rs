//! What a report says, before it is HTML or Markdown.

/// A cell without a figure.
pub(crate) const NONE: &str = "–";

/// A whole report.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its title.
    pub title: String,
    /// One sentence below the title.
    pub lead: String,
    /// The figures a reader looks for first.
    pub headline: Vec<Tile>,
    /// What follows.
    pub sections: Vec<Section>,
    /// The last line.
    pub footer: String,
}

/// A figure with a label above and a remark below.
#[derive(Clone, Debug)]
pub struct Tile {
    /// What it is.
    pub label: &'static str,
    /// The figure.
    pub value: String,
    /// What to hold it against; empty for none.
    pub remark: String,
}

/// A part with a heading.
#[derive(Clone, Debug)]
pub struct Section {
    /// Target of links.
    pub id: &'static str,
    /// Heading.
    pub title: &'static str,
    /// Contents.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Clone, Debug)]
pub enum Block {
    /// A paragraph; what is between backticks is code.
    Text(String),
    /// A table.
    Table(Table),
    /// A table that is long: shown when asked for.
    Folded(Table),
    /// Figures beside each other where there is room.
    Figures(Vec<Figure>),
    /// Lines of a file, with a title.
    Code(String, String),
}

/// A drawing with the same as a table.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Says what it shows.
    pub caption: String,
    /// The drawing, an `svg` element.
    pub svg: String,
    /// The data.
    pub table: Table,
}

/// Rows of text under column titles. The first cell of a row names it.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What the table is.
    pub caption: String,
    /// Titles of the columns.
    pub columns: Vec<String>,
    /// Rows, as many cells each as there are columns.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new<const N: usize>(caption: impl Into<String>, columns: [&str; N]) -> Self {
        Self { caption: caption.into(), columns: columns.map(String::from).to_vec(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.to_vec());
    }

    /// Whether column `c` holds numbers, alone or with a unit.
    pub fn numeric(&self, c: usize) -> bool {
        let number =
            |s: &str| s == NONE || s.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '±');
        c > 0 && self.rows.iter().all(|r| number(&r[c])) && self.rows.iter().any(|r| r[c] != NONE)
    }
}
