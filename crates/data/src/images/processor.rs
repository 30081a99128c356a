//! preprocessor_config.json: what is done to an image before a network sees it.

use super::Rgb;
use super::decode::MOST_PIXELS;
use super::resize::{Filter, resize};
use crate::DataError;
use crate::labels::read_json;
use halfbyte_model::Input;
use serde_json::{Map, Value};
use std::path::Path;

/// Prepares images as the processor of a model folder does in `transformers`, in its form that uses Pillow.
#[derive(Clone, Debug, PartialEq)]
pub struct Processor {
    resize: Option<(Size, Filter)>,
    /// Width and height.
    crop: Option<(usize, usize)>,
    rescale: Option<f64>,
    /// Mean and standard deviation of every colour.
    normalize: Option<([f32; 3], [f32; 3])>,
}

/// Where resizing leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Exact {
        width: usize,
        height: usize,
    },
    /// The shorter side gets this length, the other one follows.
    Shortest(usize),
}

/// A kind of processor, by its defaults for what the file does not say.
struct Kind {
    names: &'static [&'static str],
    /// `model_type` of config.json that goes with it, where the file names no processor.
    model_types: &'static [&'static str],
    filter: Filter,
    size: Size,
    crop: bool,
    mean: [f64; 3],
    std: [f64; 3],
}

const HALF: [f64; 3] = [0.5; 3];
/// Side of a crop, and of the size where no processor says otherwise.
const SIDE: usize = 224;

const KINDS: [Kind; 3] = [
    Kind {
        names: &["ViTImageProcessor", "ViTImageProcessorFast", "ViTImageProcessorPil", "ViTFeatureExtractor"],
        model_types: &["vit"],
        filter: Filter::Bilinear,
        size: Size::Exact { width: SIDE, height: SIDE },
        crop: false,
        mean: HALF,
        std: HALF,
    },
    Kind {
        names: &[
            "DeiTImageProcessor",
            "DeiTImageProcessorFast",
            "DeiTImageProcessorPil",
            "DeiTFeatureExtractor",
        ],
        model_types: &["deit"],
        filter: Filter::Bicubic,
        size: Size::Exact { width: 256, height: 256 },
        crop: true,
        mean: HALF,
        std: HALF,
    },
    Kind {
        names: &["BitImageProcessor", "BitImageProcessorFast", "BitImageProcessorPil"],
        model_types: &["dinov2", "dinov2_with_registers"],
        filter: Filter::Bicubic,
        size: Size::Shortest(SIDE),
        crop: true,
        // Those of CLIP.
        mean: [0.48145466, 0.4578275, 0.40821073],
        std: [0.26862954, 0.26130258, 0.27577711],
    },
];

/// Keys that are read.
const KNOWN: [&str; 10] = [
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
];

/// Keys that change nothing here: images always come in three colours and one by one.
const IDLE: [&str; 14] = [
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "data_format",
    "input_data_format",
    "device",
    "return_tensors",
    "disable_grouping",
    "image_seq_length",
    "default_to_square",
    "use_fast",
    "_valid_processor_keys",
    "pad_size",
];

impl Processor {
    /// Reads `preprocessor_config.json` of `dir`.
    ///
    /// # Errors
    /// [`DataError::File`] when it is missing, names a processor or asks for something that is not done here, by its key.
    pub fn open(dir: &Path) -> Result<Self, DataError> {
        let path = dir.join("preprocessor_config.json");
        if !path.is_file() {
            let message =
                "not found; it says how images are resized and normalised: copy it from the original model";
            return Err(DataError::file(&path, message));
        }
        let config = read_json(&path)?;
        let kind = match name(&config) {
            Some(name) => kind_of(name),
            None => kind_by_model(dir)?,
        };
        let kind = kind.map_err(|message| DataError::file(&path, message))?;
        read(&config, kind).map_err(|message| DataError::file(&path, message))
    }

    /// Prepares an image: `[3, height, width]`.
    ///
    /// # Errors
    /// For an image so long and narrow that it would become too large.
    pub fn apply(&self, image: &Rgb) -> Result<Input, String> {
        let mut now = match self.resize {
            Some((size, filter)) => {
                let (width, height) = size.of(image);
                if width as u64 * height as u64 > MOST_PIXELS {
                    return Err(format!(
                        "{} times {} pixels would become {width} times {height}; cut the image",
                        image.width, image.height
                    ));
                }
                resize(image, width, height, filter)
            }
            None => image.clone(),
        };
        if let Some((width, height)) = self.crop {
            now = now.center_crop(width, height);
        }
        // In double precision up to the rescaled value and single from there on, as numpy computes it.
        let rescaled: [f32; 256] =
            std::array::from_fn(|v| self.rescale.map_or(v as f32, |factor| (v as f64 * factor) as f32));
        let mut values = Vec::with_capacity(now.data.len());
        for c in 0..3 {
            let table = match self.normalize {
                Some((mean, std)) => rescaled.map(|v| (v - mean[c]) / std[c]),
                None => rescaled,
            };
            values.extend(now.data.iter().skip(c).step_by(3).map(|&v| table[usize::from(v)]));
        }
        Ok(Input::Pixels { channels: 3, height: now.height, width: now.width, values })
    }

    /// Everything that it does, in a form that is the same for the same work.
    pub(crate) fn describe(&self) -> String {
        format!("{self:?}")
    }
}

impl Size {
    /// Width and height for an image.
    fn of(self, image: &Rgb) -> (usize, usize) {
        match self {
            Self::Exact { width, height } => (width, height),
            Self::Shortest(short) => {
                // Rounded down, as transformers' get_resize_output_image_size does.
                let long = |long: usize, side: usize| (short as f64 * long as f64 / side as f64) as usize;
                match image.width <= image.height {
                    true => (short, long(image.height, image.width)),
                    false => (long(image.width, image.height), short),
                }
            }
        }
    }
}

/// The processor that the file names.
fn name(config: &Map<String, Value>) -> Option<&str> {
    ["image_processor_type", "feature_extractor_type"].iter().find_map(|key| config.get(*key)?.as_str())
}

fn kind_of(name: &str) -> Result<&'static Kind, String> {
    KINDS.iter().find(|k| k.names.contains(&name)).ok_or_else(|| {
        let known = KINDS.map(|k| k.names[0]).join(", ");
        format!("image_processor_type {name:?} is not supported; supported are {known} and their fast forms")
    })
}

fn kind_by_model(dir: &Path) -> Result<Result<&'static Kind, String>, DataError> {
    let config = read_json(&dir.join("config.json"))?;
    let model = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    let kind = KINDS.iter().find(|k| k.model_types.contains(&model));
    Ok(kind.ok_or_else(|| {
        format!("no image_processor_type, and none goes with the model_type {model:?} of config.json; add it")
    }))
}

fn read(config: &Map<String, Value>, kind: &Kind) -> Result<Processor, String> {
    for (key, value) in config {
        let off = matches!(value, Value::Null | Value::Bool(false));
        if !off && !KNOWN.contains(&key.as_str()) && !IDLE.contains(&key.as_str()) {
            return Err(format!(
                "{key} = {value} is not implemented; refusing rather than computing something else"
            ));
        }
    }
    // transformers puts its default in the place of null too.
    let get = |key: &str| config.get(key).filter(|v| !v.is_null());
    let flag = |key: &str, default: bool| match get(key) {
        None => Ok(default),
        Some(v) => v.as_bool().ok_or_else(|| format!("{key} is {v}, not true or false")),
    };
    let resize = if flag("do_resize", true)? {
        let filter = match get("resample") {
            None => kind.filter,
            Some(v) => v.as_u64().and_then(Filter::of).ok_or_else(|| {
                format!("resample is {v}, not one of 0 (nearest), 1 (lanczos), 2 (bilinear), 3 (bicubic), 4 (box) and 5 (hamming)")
            })?,
        };
        let square = flag("default_to_square", matches!(kind.size, Size::Exact { .. }))?;
        Some((get("size").map_or(Ok(kind.size), |v| size(v, square))?, filter))
    } else {
        None
    };
    let crop = if flag("do_center_crop", kind.crop)? {
        match get("crop_size").map_or(Ok(Size::Exact { width: SIDE, height: SIDE }), |v| size(v, true)) {
            Ok(Size::Exact { width, height }) => Some((width, height)),
            _ => return Err("crop_size is not a number of pixels or an object with height and width".into()),
        }
    } else {
        None
    };
    let rescale = match (flag("do_rescale", true)?, get("rescale_factor")) {
        (false, _) => None,
        (true, None) => Some(1.0 / 255.0),
        (true, Some(v)) => {
            let factor = v.as_f64().filter(|f| f.is_finite() && *f > 0.0);
            Some(factor.ok_or_else(|| format!("rescale_factor is {v}, not a number above 0"))?)
        }
    };
    let normalize = if flag("do_normalize", true)? {
        let colours = |key: &str, default: [f64; 3]| match get(key) {
            None => Ok(default.map(|v| v as f32)),
            Some(v) => {
                three(v).ok_or_else(|| format!("{key} is {v}, not three numbers, one for each colour"))
            }
        };
        let std = colours("image_std", kind.std)?;
        if std.iter().any(|&s| s <= 0.0) {
            return Err(format!("image_std is {std:?}; a standard deviation is above 0"));
        }
        Some((colours("image_mean", kind.mean)?, std))
    } else {
        None
    };
    Ok(Processor { resize, crop, rescale, normalize })
}

/// Pixels of a side.
fn side(value: &Value) -> Option<usize> {
    value.as_u64().filter(|n| (1..=1 << 14).contains(n)).map(|n| n as usize)
}

/// A size: one number, two, or an object.
fn size(value: &Value, square: bool) -> Result<Size, String> {
    let wrong = || {
        format!(
            "size {value} is not implemented; a number of pixels is, or an object with height and width, or with shortest_edge"
        )
    };
    let keys: Vec<&str> = match value {
        Value::Object(map) => map.iter().filter(|(_, v)| !v.is_null()).map(|(k, _)| k.as_str()).collect(),
        _ => Vec::new(),
    };
    let read = match value {
        Value::Array(pair) if pair.len() == 2 => {
            side(&pair[1]).zip(side(&pair[0])).map(|(width, height)| Size::Exact { width, height })
        }
        Value::Object(map) if keys == ["height", "width"] || keys == ["width", "height"] => {
            side(&map["width"]).zip(side(&map["height"])).map(|(width, height)| Size::Exact { width, height })
        }
        Value::Object(map) if keys == ["shortest_edge"] => side(&map["shortest_edge"]).map(Size::Shortest),
        Value::Number(_) if square => side(value).map(|n| Size::Exact { width: n, height: n }),
        Value::Number(_) => side(value).map(Size::Shortest),
        _ => None,
    };
    read.ok_or_else(wrong)
}

fn three(value: &Value) -> Option<[f32; 3]> {
    if let Some(all) = value.as_f64() {
        return Some([all as f32; 3]);
    }
    let list = value.as_array().filter(|l| l.len() == 3)?;
    let numbers: Option<Vec<f32>> = list.iter().map(|v| v.as_f64().map(|v| v as f32)).collect();
    numbers.filter(|l| l.iter().all(|v| v.is_finite())).and_then(|l| l.try_into().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(config: &str, model: &str) -> Result<Processor, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("preprocessor_config.json"), config).unwrap();
        fs::write(dir.path().join("config.json"), format!("{{\"model_type\": {model:?}}}")).unwrap();
        Processor::open(dir.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_not_said_is_the_processors_own() {
        let vit = open(r#"{"image_processor_type": "ViTImageProcessorFast"}"#, "x").unwrap();
        assert_eq!(vit.resize, Some((Size::Exact { width: 224, height: 224 }, Filter::Bilinear)));
        assert_eq!(
            (vit.crop, vit.rescale, vit.normalize),
            (None, Some(1.0 / 255.0), Some(([0.5; 3], [0.5; 3])))
        );
        let deit = open(r#"{"feature_extractor_type": "DeiTFeatureExtractor"}"#, "x").unwrap();
        assert_eq!((deit.resize.unwrap().1, deit.crop), (Filter::Bicubic, Some((224, 224))));
        let dino = open("{\"size\": 98, \"do_rescale\": null, \"image_std\": 2}", "dinov2").unwrap();
        assert_eq!(dino.resize.unwrap().0, Size::Shortest(98));
        assert_eq!(dino.normalize.unwrap().1, [2.0; 3]);
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (config, needle) in [
            (r#"{"image_processor_type": "CLIPImageProcessor"}"#, "\"CLIPImageProcessor\" is not supported"),
            ("{}", "model_type \"x\""),
            (
                r#"{"image_processor_type": "ViTImageProcessor", "do_pad": true}"#,
                "do_pad = true is not implemented",
            ),
            (r#"{"image_processor_type": "ViTImageProcessor", "apply_ocr": 1}"#, "apply_ocr = 1"),
            (r#"{"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 5}}"#, "longest_edge"),
            (r#"{"image_processor_type": "ViTImageProcessor", "size": {"height": 5}}"#, "not implemented"),
            (r#"{"image_processor_type": "ViTImageProcessor", "size": 0}"#, "size 0"),
            (r#"{"image_processor_type": "ViTImageProcessor", "resample": 6}"#, "resample is 6"),
            (r#"{"image_processor_type": "ViTImageProcessor", "do_resize": "yes"}"#, "do_resize is \"yes\""),
            (r#"{"image_processor_type": "ViTImageProcessor", "image_std": [1, 1]}"#, "image_std is [1,1]"),
            (r#"{"image_processor_type": "ViTImageProcessor", "image_std": [1, 1, 0]}"#, "above 0"),
            (r#"{"image_processor_type": "ViTImageProcessor", "rescale_factor": "a"}"#, "rescale_factor"),
            (
                r#"{"image_processor_type": "BitImageProcessor", "crop_size": {"shortest_edge": 4}}"#,
                "crop_size is not",
            ),
        ] {
            let error = open(config, "x").unwrap_err();
            assert!(
                error.contains(needle) && error.contains("preprocessor_config.json"),
                "{config}: {error}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(Processor::open(dir.path()).unwrap_err().to_string().contains("not found"));
    }
}
