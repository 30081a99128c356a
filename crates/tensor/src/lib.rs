//! The few f32 operations every model here runs on: products, norms, rotary embedding, softmax, reductions.
