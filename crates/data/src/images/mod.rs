//! Images from a folder for each class, prepared as a model folder's `preprocessor_config.json` says.

mod decode;
mod folder;
mod orientation;
mod processor;
mod resize;
mod rgb;

pub use decode::decode;
pub use folder::ImageFolder;
pub use processor::Processor;
pub use rgb::Rgb;
