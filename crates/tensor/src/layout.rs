//! How the rows of a matrix of activations form sequences.

use std::ops::Range;

/// Sequences that lie one after another in the rows of a matrix. Each is a trunk and any number of branches that go on
/// from its end without seeing one another: the choices of a question, whose common beginning is computed once.
///
/// A row of a branch has the position, and sees the keys, that it would have in a sequence of its own made of the trunk
/// and that branch. Results are the same bits as for such sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    trees: Vec<Tree>,
    rows: usize,
}

/// One trunk with its branches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    /// First row.
    pub(crate) start: usize,
    /// Rows of the trunk.
    pub(crate) trunk: usize,
    /// Rows of each branch.
    pub(crate) branches: Vec<usize>,
}

/// Consecutive rows of one tree within its trunk or within one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The rows.
    pub(crate) rows: Range<usize>,
    /// Position of the first of them.
    pub(crate) position: usize,
    /// First row of the branch; `None` in the trunk.
    pub(crate) branch: Option<usize>,
}

impl Layout {
    /// One plain sequence.
    pub fn sequence(tokens: usize) -> Self {
        let mut layout = Self::default();
        layout.push(tokens, &[]);
        layout
    }

    /// Appends a trunk and its branches, which take the next rows in this order. The trunk may be empty.
    pub fn push(&mut self, trunk: usize, branches: &[usize]) {
        self.trees.push(Tree { start: self.rows, trunk, branches: branches.to_vec() });
        self.rows += trunk + branches.iter().sum::<usize>();
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The position of every row in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.trees
            .iter()
            .flat_map(Tree::runs)
            .flat_map(|run| (0..run.rows.len()).map(move |i| run.position + i))
    }

    /// The rows of every trunk, its branches included, in order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.trees.iter().map(|t| t.start..t.start + t.rows())
    }

    /// Every tree.
    pub(crate) fn trees(&self) -> &[Tree] {
        &self.trees
    }
}

impl Tree {
    /// Rows in all.
    pub(crate) fn rows(&self) -> usize {
        self.trunk + self.branches.iter().sum::<usize>()
    }

    /// The trunk, then every branch.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let first = self.start + self.trunk;
        let trunk = Run { rows: self.start..first, position: 0, branch: None };
        let branches = self.branches.iter().scan(first, |start, &rows| {
            let run = Run { rows: *start..*start + rows, position: self.trunk, branch: Some(*start) };
            *start += rows;
            Some(run)
        });
        std::iter::once(trunk).chain(branches)
    }

    /// The parts of its runs within the rows `from..to`.
    pub(crate) fn runs_within(&self, from: usize, to: usize) -> Vec<Run> {
        let cut = |run: Run| {
            let rows = run.rows.start.max(from)..run.rows.end.min(to);
            (rows.start < rows.end).then(|| Run {
                position: run.position + rows.start - run.rows.start,
                rows,
                branch: run.branch,
            })
        };
        self.runs().filter_map(cut).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_go_on_from_the_trunk() {
        let mut layout = Layout::sequence(2);
        layout.push(3, &[2, 0, 1]);
        layout.push(0, &[1, 1]);
        assert_eq!(layout.positions().collect::<Vec<_>>(), [0, 1, 0, 1, 2, 3, 4, 3, 0, 0]);
        assert_eq!(layout.rows(), 10);
        assert_eq!(layout.ranges().collect::<Vec<_>>(), [0..2, 2..8, 8..10]);
    }
}
