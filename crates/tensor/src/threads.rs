//! Work on whole matrices side by side, where splitting each among all threads would cost more.
//!
//! A thread that shares a product packs all of the other factor for its few rows, and everything between two products has to wait
//! for the slowest. Whole matrices side by side need neither.

use rayon::prelude::*;
use std::cell::Cell;

thread_local! {
    /// Threads that a product started here may use.
    static SHARE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Threads among which to split a product.
pub(crate) fn share() -> usize {
    rayon::current_num_threads().min(SHARE.get())
}

/// What `f` makes of every item, in order. All run at once, each in its share of the threads; what they compute does not depend on
/// that.
pub fn side_by_side<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
    let own = share().div_ceil(items.len().max(1));
    let run = |item| {
        // A thread that waits inside may begin another item, so the share is put back where it was.
        let before = SHARE.replace(own);
        let result = f(item);
        SHARE.set(before);
        result
    };
    items.into_par_iter().with_max_len(1).map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Matrix, Rows, product};

    #[test]
    fn items_side_by_side_give_the_bits_of_one_after_the_other() {
        let matrix = |seed: usize| {
            Matrix::new(120, 90, (0..120 * 90).map(|i| ((i * 31 + seed) % 17) as f32 / 7.0).collect())
        };
        let square = |m: Matrix| product(&Rows::new(&m.data, 90), &Rows::new(&m.data, 90));
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (got, shares) = pool.install(|| {
                let got = side_by_side((0..4).map(matrix).collect(), square);
                (got, side_by_side(vec![(); 2], |()| share()))
            });
            assert_eq!(got, (0..4).map(|s| square(matrix(s))).collect::<Vec<_>>());
            assert_eq!(shares, [threads.div_ceil(2); 2]);
            assert_eq!(pool.install(share), threads);
        }
    }
}
