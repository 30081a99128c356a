//! The few f32 operations every model here runs on: products, norms, rotary embedding, softmax, reductions.
//!
//! Two promises hold for every function of this crate, because quantized files must not depend on the machine that
//! wrote them: the result is the same for any number of threads, and the same on every instruction set. Each element
//! of a product is one chain of fused multiply-adds in index order; each reduction has a fixed number of lanes that
//! are added in a fixed order; nothing else uses fused operations.

mod activation;
mod attention;
mod attention_backward;
mod cholesky;
mod layout;
mod matrix;
mod microkernel;
mod operand;
mod ops;
mod product;
mod random;
mod threads;

pub use activation::{
    gelu, gelu_slope, gelu_tanh, gelu_tanh_slope, relu, relu_slope, silu, silu_slope, tanh, tanh_slope,
};
pub use attention::{AttentionShape, OnProbabilities, attention, attention_through};
pub use attention_backward::attention_backward;
pub use cholesky::{NotPositiveDefinite, cholesky_in_place, solve_lower, solve_lower_transposed};
pub use layout::Layout;
pub use matrix::Matrix;
pub use microkernel::{Isa, isa};
pub use operand::{Columns, Operand, Rows, Stored};
pub use ops::{
    Rotary, add_assign, dot, index_of_largest, kl_divergence, layer_norm, layer_norm_backward, log_sum_exp,
    rms_norm, rms_norm_backward, scale_columns, softmax, sum_of_squares,
};
pub use product::{Precision, gram, mirror, product, product_into};
pub use random::mix;
pub use threads::side_by_side;
