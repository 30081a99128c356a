//! Number formats of halfbyte: elements, scales, schemes, packing, and the kernels that quantize and dequantize.
