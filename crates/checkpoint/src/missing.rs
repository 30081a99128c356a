//! The nearest name, for the message about one that is not there.

use crate::error::CheckpointError;
use std::path::Path;

/// The error for a name that is not there, with the nearest of the names that are.
pub(crate) fn missing<'a>(place: &Path, name: &str, names: impl Iterator<Item = &'a str>) -> CheckpointError {
    let nearest = nearest(name, names).map(str::to_owned);
    CheckpointError::TensorMissing { place: place.into(), tensor: name.to_owned(), nearest }
}

/// The candidate with the smallest edit distance, if that is at most a third of the name.
fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut best = None;
    let mut limit = name.len() / 3;
    // The distance takes the product of both lengths; a hostile header must not make us wait for a hint.
    for candidate in candidates.filter(|c| c.len() <= 256 && name.len() <= 256) {
        if candidate.len().abs_diff(name.len()) <= limit {
            let distance = edit_distance(name.as_bytes(), candidate.as_bytes());
            if distance < limit || (distance == limit && best.is_none()) {
                (best, limit) = (Some(candidate), distance);
            }
        }
    }
    best
}

/// Fewest insertions, deletions and replacements of bytes from one string to the other.
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances() {
        let distance = |a: &str, b: &str| edit_distance(a.as_bytes(), b.as_bytes());
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!((distance("", "abc"), distance("abc", ""), distance("same", "same")), (3, 3, 0));
    }
}
