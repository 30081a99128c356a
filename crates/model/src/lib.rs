//! Transformer architectures as data, and the one generic block that computes them.
