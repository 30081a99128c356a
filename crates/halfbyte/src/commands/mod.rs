//! One file a command.

pub(crate) mod ablate;
mod calibration;
pub(crate) mod compare;
pub(crate) mod demo;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod inspect;
mod labelled;
mod measure;
pub(crate) mod plan;
pub(crate) mod quantize;
pub(crate) mod recipes;
pub(crate) mod report;
pub(crate) mod synth;
pub(crate) mod transform;
mod working;
