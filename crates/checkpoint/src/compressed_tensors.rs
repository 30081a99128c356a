//! compressed-tensors: what llm-compressor writes and vLLM serves.
//!
//! | scheme | format | tensors of a layer `X`, weight `[N, K]` |
//! |---|---|---|
//! | NVFP4 | `nvfp4-pack-quantized` | `weight_packed` U8 `[N, K/2]`, `weight_scale` F8_E4M3 `[N, K/16]`, `weight_global_scale` and, for quantized inputs, `input_global_scale` F32 `[1]`, both divisors |
//! | MXFP4 | `mxfp4-pack-quantized` | `weight_packed`, `weight_scale` U8 `[N, K/32]` (E8M0) |
//! | FP8 | `float-quantized` | `weight` F8_E4M3, `weight_scale` F32 `[N, 1]` or `[1]`, `input_scale` F32 `[1]` for static inputs |
//! | INT8, inputs too | `int-quantized` | `weight` I8, `weight_scale` |
//! | INT4, INT8, weights alone | `pack-quantized` | `weight_packed` I32 `[N, K·bits/32]` (offset binary), `weight_scale` F32, `weight_shape` I64 `[2]` |
//!
//! The low nibble of a byte is the first of its two values, as in our own packing.

use crate::halfbyte::scale_bytes;
use crate::layout::{block_scales, scale_shape, with_dtype};
use crate::{Checkpoint, CheckpointError, Dtype, LayerScheme, StoredLayer, TensorSpec};
use halfbyte_formats::{Element, Granularity, InputQuantizer, QuantizedMatrix, ScaleFormat, Scheme};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The formats that are read and written.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Nvfp4,
    Mxfp4,
    Fp8,
    Int8,
    Packed(u8),
}

impl Form {
    fn of(scheme: &LayerScheme) -> Result<Self, String> {
        let weight = scheme.weight.ok_or("its weight is not quantized")?;
        let plain = weight.scale == ScaleFormat::F32;
        let form = match weight.element {
            _ if weight == Scheme::NVFP4 => Self::Nvfp4,
            _ if weight == Scheme::MXFP4 => Self::Mxfp4,
            Element::E4M3Fn if plain && !matches!(weight.granularity, Granularity::Group(_)) => Self::Fp8,
            Element::INT8 if plain && scheme.input.is_some() => Self::Int8,
            Element::Int { bits: bits @ (4 | 8) } if plain && scheme.input.is_none() => Self::Packed(bits),
            _ => return Err(format!("compressed-tensors has no format for weights stored as {weight}")),
        };
        if let Some(input) = scheme.input {
            let dynamic = |scheme| Scheme { dynamic: true, ..scheme };
            let token = dynamic(Scheme::new(weight.element, Granularity::Channel));
            let fits = match form {
                Self::Nvfp4 => input == dynamic(Scheme::NVFP4),
                Self::Mxfp4 => input == dynamic(Scheme::MXFP4),
                Self::Fp8 | Self::Int8 => {
                    input == token || input == Scheme::new(weight.element, Granularity::Tensor)
                }
                Self::Packed(_) => false,
            };
            if !fits {
                return Err(format!("weights stored as {weight} do not go with inputs quantized as {input}"));
            }
        }
        Ok(form)
    }

    /// The value of `format`.
    fn name(self) -> &'static str {
        match self {
            Self::Nvfp4 => "nvfp4-pack-quantized",
            Self::Mxfp4 => "mxfp4-pack-quantized",
            Self::Fp8 => "float-quantized",
            Self::Int8 => "int-quantized",
            Self::Packed(_) => "pack-quantized",
        }
    }
}

/// `quantization_config` for layers of these schemes, each with the names of its layers, and those left alone in `ignore`.
/// A single scheme is that of all other linear layers.
///
/// # Errors
/// A message that says what compressed-tensors cannot hold.
pub fn config(schemes: &[(LayerScheme, Vec<String>)], ignore: &[String]) -> Result<Value, String> {
    let arguments = |s: Scheme, input: bool| {
        let (strategy, size) = match s.granularity {
            Granularity::Tensor => ("tensor", None),
            Granularity::Channel => (if input { "token" } else { "channel" }, None),
            Granularity::Group(n) if s.scale == ScaleFormat::E4M3 => ("tensor_group", Some(n)),
            Granularity::Group(n) => ("group", Some(n)),
        };
        let dynamic = match (s.dynamic, s.scale) {
            (true, ScaleFormat::E4M3) => json!("local"),
            (dynamic, _) => json!(dynamic),
        };
        let scale_dtype = match s.scale {
            ScaleFormat::F32 => Value::Null,
            ScaleFormat::E4M3 => json!("torch.float8_e4m3fn"),
            ScaleFormat::E8M0 => json!("torch.uint8"),
        };
        let observer = match (s.dynamic, input, s.scale) {
            (true, _, ScaleFormat::E4M3) => json!("static_minmax"),
            (true, ..) => Value::Null,
            (false, true, _) => json!("static_minmax"),
            (false, false, _) => json!("memoryless_minmax"),
        };
        json!({
            "num_bits": s.element.bits(),
            "type": if s.element.fields().is_some() { "float" } else { "int" },
            "strategy": strategy,
            "group_size": size,
            "symmetric": true,
            "dynamic": dynamic,
            "scale_dtype": scale_dtype,
            "zp_dtype": null,
            "observer": observer,
            "observer_kwargs": {},
            "actorder": null,
            "block_structure": null,
        })
    };
    let mut groups = Map::new();
    let mut format = MIXED;
    for (i, (scheme, names)) in schemes.iter().enumerate() {
        let form = Form::of(scheme)?;
        let single = schemes.len() == 1;
        if single {
            format = form.name();
        }
        let group = json!({
            "format": form.name(),
            "targets": if single { json!(["Linear"]) } else { json!(names) },
            "weights": scheme.weight.map(|s| arguments(s, false)),
            "input_activations": scheme.input.map(|s| arguments(s, true)),
            "output_activations": null,
        });
        groups.insert(format!("group_{i}"), group);
    }
    Ok(json!({
        "quant_method": "compressed-tensors",
        "format": format,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
        "sparsity_config": {},
        "transform_config": {},
        "version": VERSION,
    }))
}

/// `format` of folders with several.
const MIXED: &str = "mixed-precision";

/// The version of compressed-tensors whose form this is.
const VERSION: &str = "0.20.0";

/// Words of 32 bits that a packed row takes.
fn words(bits: u8, cols: usize) -> usize {
    (cols * usize::from(bits)).div_ceil(32)
}

/// The tensors of a layer.
pub(crate) fn tensors(
    scheme: &LayerScheme,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<Vec<TensorSpec>, String> {
    let form = Form::of(scheme)?;
    scheme.check_schemes(name, rows, cols)?;
    let weight = scheme.weight.ok_or("its weight is not quantized")?;
    let mut out = Vec::new();
    let mut add = |suffix: &str, dtype, shape: &[usize]| {
        out.push(TensorSpec::new(format!("{name}.{suffix}"), dtype, shape));
    };
    let scales = match weight.granularity {
        Granularity::Channel => vec![rows, 1],
        _ => scale_shape(&weight, rows, cols),
    };
    match form {
        Form::Nvfp4 => {
            add("weight_packed", Dtype::U8, &[rows, cols / 2]);
            add("weight_scale", Dtype::F8E4M3, &scales);
            add("weight_global_scale", Dtype::F32, &[1]);
            if scheme.input.is_some() {
                add("input_global_scale", Dtype::F32, &[1]);
            }
        }
        Form::Mxfp4 => {
            add("weight_packed", Dtype::U8, &[rows, cols / 2]);
            add("weight_scale", Dtype::U8, &scales);
        }
        Form::Fp8 | Form::Int8 => {
            add("weight", if form == Form::Fp8 { Dtype::F8E4M3 } else { Dtype::I8 }, &[rows, cols]);
            add("weight_scale", Dtype::F32, &scales);
            if scheme.input.is_some_and(InputQuantizer::has_scale) {
                add("input_scale", Dtype::F32, &[1]);
            }
        }
        Form::Packed(bits) => {
            add("weight_packed", Dtype::I32, &[rows, words(bits, cols)]);
            add("weight_scale", Dtype::F32, &scales);
            add("weight_shape", Dtype::I64, &[2]);
        }
    }
    Ok(out)
}

/// A layer's tensors and their bytes.
pub(crate) fn store(stored: &StoredLayer, name: &str) -> Result<Vec<(TensorSpec, Vec<u8>)>, String> {
    let scheme = stored.scheme();
    let form = Form::of(&scheme)?;
    let w = stored.weight.as_ref().ok_or("its weight is not quantized")?;
    let input = stored.input.as_ref().map_or(1.0, InputQuantizer::scale);
    let bytes = |suffix: &str| match suffix {
        "weight_packed" => match form {
            Form::Packed(bits) => offset_binary(&w.codes, bits, w.row_bytes(), words(bits, w.cols)),
            _ => w.codes.clone(),
        },
        "weight" => w.codes.clone(),
        "weight_scale" => scale_bytes(w.scheme.scale, &w.scales),
        "weight_global_scale" => (1.0 / w.tensor_scale).to_le_bytes().to_vec(),
        "input_global_scale" => (1.0 / input).to_le_bytes().to_vec(),
        "input_scale" => input.to_le_bytes().to_vec(),
        _ => [w.rows, w.cols].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect(),
    };
    let specs = tensors(&scheme, name, w.rows, w.cols)?;
    Ok(specs
        .into_iter()
        .map(|spec| {
            let data = bytes(&spec.name[name.len() + 1..]);
            (spec, data)
        })
        .collect())
}

/// Rows of two's-complement codes as rows of 32-bit words with offset-binary ones, and back: the same step either way,
/// since both differ by the sign bit of every code.
fn offset_binary(codes: &[u8], bits: u8, row: usize, words: usize) -> Vec<u8> {
    let flip = if bits == 4 { 0x88 } else { 0x80 };
    let mut out = vec![0; codes.len() / row.max(1) * words * 4];
    for (out, codes) in out.chunks_exact_mut((words * 4).max(1)).zip(codes.chunks_exact(row.max(1))) {
        out.iter_mut().zip(codes).for_each(|(o, c)| *o = c ^ flip);
    }
    out
}

/// The layers of a folder with this `quantization_config`.
pub(crate) fn layers(
    checkpoint: &Checkpoint,
    config: &Value,
) -> Result<BTreeMap<String, LayerScheme>, String> {
    let groups = config.get("config_groups").and_then(Value::as_object).ok_or("config_groups is missing")?;
    let mut schemes: Vec<(Vec<&str>, LayerScheme)> = Vec::new();
    for (key, group) in groups {
        let targets =
            group.get("targets").and_then(Value::as_array).ok_or(format!("{key} has no targets"))?;
        let targets: Vec<&str> = targets.iter().filter_map(Value::as_str).collect();
        let weight = group.get("weights").filter(|w| !w.is_null()).ok_or(format!("{key} has no weights"))?;
        let input = group.get("input_activations").filter(|v| !v.is_null());
        let scheme = LayerScheme {
            weight: Some(parse(weight, false).map_err(|e| format!("{key}.weights: {e}"))?),
            input: input
                .map(|v| parse(v, true))
                .transpose()
                .map_err(|e| format!("{key}.input_activations: {e}"))?,
            low_rank: None,
        };
        Form::of(&scheme).map_err(|e| format!("{key}: {e}"))?;
        schemes.push((targets, scheme));
    }
    let mut layers = BTreeMap::new();
    let scaled = checkpoint.names().filter_map(|n| n.strip_suffix(".weight_scale"));
    for name in scaled {
        // Exact names go before the class, as in compressed-tensors. Patterns are told apart only where need be. A checkpoint may
        // leave out the front of the modules' names (BLOOM).
        let exact = schemes.iter().find(|(targets, _)| targets.contains(&name)).or_else(|| {
            let ends = |t: &&str| t.strip_suffix(name).is_some_and(|front| front.ends_with('.'));
            schemes.iter().find(|(targets, _)| targets.iter().any(&ends))
        });
        let class = || schemes.iter().find(|(targets, _)| targets.contains(&"Linear"));
        let only = || if schemes.len() == 1 { schemes.first() } else { None };
        let (_, scheme) = exact.or_else(class).or_else(only).ok_or(format!(
            "no config group names layer {name}; targets other than \"Linear\" and names of layers are not read"
        ))?;
        layers.insert(name.to_owned(), *scheme);
    }
    if layers.is_empty() {
        return Err("the folder has no tensor X.weight_scale, so that no layer is quantized".into());
    }
    Ok(layers)
}

/// A scheme from its arguments.
fn parse(arguments: &Value, input: bool) -> Result<Scheme, String> {
    let text = |key: &str| arguments.get(key).and_then(Value::as_str).unwrap_or_default();
    let number = |key: &str| arguments.get(key).and_then(Value::as_u64);
    let refuse = |what: &str| Err(format!("{what} is not supported: {arguments}"));
    if arguments.get("symmetric") == Some(&Value::Bool(false)) {
        return refuse("an asymmetric scheme");
    }
    if !text("actorder").is_empty() {
        return refuse("actorder, which stores a permutation of the columns,");
    }
    let element = match (text("type"), number("num_bits")) {
        ("float", Some(4)) => Element::E2M1,
        ("float", Some(8)) => Element::E4M3Fn,
        ("int", Some(4)) => Element::INT4,
        ("int", Some(8)) => Element::INT8,
        _ => return refuse("the number type"),
    };
    let group = || number("group_size").map(|n| n as usize).filter(|n| (1..=1 << 20).contains(n));
    let (granularity, scale) = match (text("strategy"), group()) {
        ("tensor", _) => (Granularity::Tensor, ScaleFormat::F32),
        ("channel", _) if !input => (Granularity::Channel, ScaleFormat::F32),
        ("token", _) if input => (Granularity::Channel, ScaleFormat::F32),
        ("tensor_group", Some(16)) => (Granularity::Group(16), ScaleFormat::E4M3),
        ("group", Some(32)) if element == Element::E2M1 => (Granularity::Group(32), ScaleFormat::E8M0),
        ("group", Some(n)) => (Granularity::Group(n), ScaleFormat::F32),
        _ => return refuse("the strategy"),
    };
    let dynamic = match arguments.get("dynamic") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(Value::String(s)) if s == "local" => true,
        _ => return refuse("the value of dynamic"),
    };
    Ok(Scheme { dynamic, ..Scheme::new(element, granularity).with_scale(scale) })
}

/// Scales of these types are read.
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// The shape in which the folder has scales that we would write as `spec`; other tools drop dimensions of 1.
fn found_shape(checkpoint: &Checkpoint, spec: &TensorSpec) -> Result<Vec<usize>, CheckpointError> {
    let info = checkpoint.find(&spec.name)?;
    let real = |shape: &[usize]| shape.iter().copied().filter(|&n| n != 1).collect::<Vec<_>>();
    let same = real(&info.shape) == real(&spec.shape);
    Ok(if same { info.shape.clone() } else { spec.shape.clone() })
}

pub(crate) fn check(
    layer: &LayerScheme,
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<(), CheckpointError> {
    let specs = tensors(layer, name, rows, cols).map_err(|message| CheckpointError::Config {
        file: checkpoint.dir().join("config.json"),
        message: format!("quantization_config, layer {name}: {message}"),
    })?;
    for spec in specs {
        let info = checkpoint.require(&spec.name, &found_shape(checkpoint, &spec)?)?;
        match spec.dtype {
            Dtype::F32 => with_dtype(info, &FLOATS)?,
            Dtype::U8 => with_dtype(info, &[Dtype::U8, Dtype::F8E8M0])?,
            Dtype::I64 => with_dtype(info, &[Dtype::I64, Dtype::I32])?,
            dtype => with_dtype(info, &[dtype])?,
        };
    }
    Ok(())
}

pub(crate) fn read(
    layer: &LayerScheme,
    checkpoint: &Checkpoint,
    name: &str,
    rows: usize,
    cols: usize,
) -> Result<StoredLayer, CheckpointError> {
    let damaged = |suffix: &str, message: String| CheckpointError::Damaged {
        tensor: format!("{name}.{suffix}"),
        message,
    };
    let refuse = |message: String| damaged("weight_scale", message);
    let specs = tensors(layer, name, rows, cols).map_err(refuse)?;
    let form = Form::of(layer).map_err(refuse)?;
    let scheme = layer.weight.ok_or_else(|| refuse("its weight is not quantized".into()))?;
    let floats = |suffix: &str| {
        let wanted = format!("{name}.{suffix}");
        let spec = specs.iter().find(|s| s.name == wanted);
        let spec = spec.ok_or_else(|| damaged(suffix, "is not a part of the scheme".into()))?;
        checkpoint.read_f32(&wanted, &found_shape(checkpoint, spec)?)
    };
    let bytes = |suffix: &str| checkpoint.read_bytes(&format!("{name}.{suffix}"));
    let divisor = |suffix: &str| {
        let g = floats(suffix)?.first().copied().unwrap_or(0.0);
        let scale = 1.0 / g;
        if scale.is_normal() && scale > 0.0 {
            Ok(scale)
        } else {
            Err(damaged(suffix, format!("{g} is no divisor")))
        }
    };
    let (mut tensor_scale, mut input_scale) = (1.0, 1.0);
    let (codes, scales) = match form {
        Form::Nvfp4 | Form::Mxfp4 => {
            let mut codes = bytes("weight_packed")?;
            let scales =
                block_scales(scheme, &bytes("weight_scale")?, &mut codes, &format!("{name}.weight_scale"))?;
            if form == Form::Nvfp4 {
                tensor_scale = divisor("weight_global_scale")?;
                if layer.input.is_some() {
                    input_scale = divisor("input_global_scale")?;
                }
            }
            (codes, scales)
        }
        Form::Fp8 | Form::Int8 => {
            if layer.input.is_some_and(InputQuantizer::has_scale) {
                input_scale = floats("input_scale")?[0];
            }
            (bytes("weight")?, floats("weight_scale")?)
        }
        Form::Packed(bits) => {
            let packed = bytes("weight_packed")?;
            let row = cols * usize::from(bits) / 8;
            if !(cols * usize::from(bits)).is_multiple_of(8) {
                return Err(damaged(
                    "weight_packed",
                    format!("{cols} codes of {bits} bits do not fill bytes"),
                ));
            }
            let mut codes = vec![0; rows * row];
            let flip = if bits == 4 { 0x88 } else { 0x80 };
            for (codes, packed) in codes.chunks_exact_mut(row).zip(packed.chunks_exact(4 * words(bits, cols)))
            {
                codes.iter_mut().zip(packed).for_each(|(c, p)| *c = p ^ flip);
            }
            (codes, floats("weight_scale")?)
        }
    };
    let weight = QuantizedMatrix::from_parts(name, scheme, rows, cols, codes, scales, tensor_scale);
    let weight = weight.map_err(|e| damaged("weight_scale", e.to_string()))?;
    let input = layer.input_quantizer(input_scale, Vec::new(), cols);
    Ok(StoredLayer {
        weight: Some(weight),
        input: input.map_err(|e| damaged("input_scale", e))?,
        low_rank: None,
    })
}
