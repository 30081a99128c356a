//! Honest evaluation of full-precision and quantized models.
