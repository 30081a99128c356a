//! What evaluation and calibration want of any data.

use crate::DataError;
use halfbyte_model::Input;

/// The right answer to an example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gold {
    /// A class of the model.
    Class(usize),
    /// A number, for models whose only output is one.
    Score(f64),
}

/// Examples, prepared one by one when they are wanted, so that memory does not grow with their number.
pub trait Examples: Sync {
    /// What they are called: the name of their file or folder without its ending.
    fn name(&self) -> String;

    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The right answer, if they were read with their answers.
    fn gold(&self, i: usize) -> Option<Gold>;

    /// Where example `i` stands, in words: `sst2.jsonl, line 12`, or the path of an image.
    fn place(&self, i: usize) -> String;

    /// What the network reads.
    ///
    /// # Errors
    /// When it cannot be read or prepared.
    fn load(&self, i: usize) -> Result<Input, DataError>;

    /// Stands for what [`Examples::load`] gives: the same key, the same input. Without the cost of preparing it.
    ///
    /// # Errors
    /// When it cannot be read.
    fn key(&self, i: usize) -> Result<String, DataError>;
}
