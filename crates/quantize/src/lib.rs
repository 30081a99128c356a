//! Post-training quantization: plan, streamed calibration, methods, recipes, journal.
