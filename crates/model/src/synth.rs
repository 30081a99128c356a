//! Random checkpoints in the shape of known models, for trying time and memory on a machine before the real download.

use crate::architectures::describe;
use crate::{Architecture, ModelError};
use halfbyte_checkpoint::{
    CheckpointWriter, Dtype, SHARD_BYTES, TensorSpec, WriteError, require_space, write_atomic,
};
use halfbyte_tensor::mix;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The published shape of a model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its name for [`synthesize`].
    pub name: &'static str,
    family: &'static str,
    hidden: usize,
    width: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocabulary: usize,
    context: usize,
    rope_theta: f64,
    tied: bool,
}

/// The shapes, from the models' own config.json.
pub const SHAPES: [Shape; 7] = [
    Shape {
        name: "smollm2-135m",
        family: "llama",
        hidden: 576,
        width: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        vocabulary: 49_152,
        context: 8192,
        rope_theta: 1e5,
        tied: true,
    },
    Shape {
        name: "tinyllama-1.1b",
        family: "llama",
        hidden: 2048,
        width: 5632,
        layers: 22,
        heads: 32,
        kv_heads: 4,
        vocabulary: 32_000,
        context: 2048,
        rope_theta: 1e4,
        tied: false,
    },
    Shape {
        name: "llama-7b",
        family: "llama",
        hidden: 4096,
        width: 11_008,
        layers: 32,
        heads: 32,
        kv_heads: 32,
        vocabulary: 32_000,
        context: 2048,
        rope_theta: 1e4,
        tied: false,
    },
    Shape {
        name: "llama-13b",
        family: "llama",
        hidden: 5120,
        width: 13_824,
        layers: 40,
        heads: 40,
        kv_heads: 40,
        vocabulary: 32_000,
        context: 2048,
        rope_theta: 1e4,
        tied: false,
    },
    Shape {
        name: "mistral-7b",
        family: "mistral",
        hidden: 4096,
        width: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        vocabulary: 32_000,
        context: 32_768,
        rope_theta: 1e4,
        tied: false,
    },
    Shape {
        name: "llama3-8b",
        family: "llama",
        hidden: 4096,
        width: 14_336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        vocabulary: 128_256,
        context: 8192,
        rope_theta: 5e5,
        tied: false,
    },
    Shape {
        name: "qwen2-7b",
        family: "qwen2",
        hidden: 3584,
        width: 18_944,
        layers: 28,
        heads: 28,
        kv_heads: 4,
        vocabulary: 152_064,
        context: 32_768,
        rope_theta: 1e6,
        tied: false,
    },
];

impl Shape {
    /// The config.json of this shape with so many blocks (its own number if `None`).
    fn config(&self, layers: Option<usize>) -> Value {
        json!({
            "architectures": [match self.family {
                "mistral" => "MistralForCausalLM",
                "qwen2" => "Qwen2ForCausalLM",
                _ => "LlamaForCausalLM",
            }],
            "model_type": self.family,
            "hidden_size": self.hidden,
            "intermediate_size": self.width,
            "num_hidden_layers": layers.unwrap_or(self.layers),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
        })
    }
}

/// Writes a checkpoint of random bf16 weights into the existing folder `dir`, with a tokenizer of single bytes: a shape of
/// [`SHAPES`] with so many blocks (its own number if `None`). The same seed gives the same bytes. `progress` is told the
/// bytes written and those in all.
///
/// Weights are about normal with a standard deviation of 0.02, as at the start of a training. One channel in 64 of every
/// norm is eight times the others: real networks have such channels, and searches must meet them.
///
/// # Errors
/// [`ModelError::Config`] for a number of blocks beyond what is supported; a full disk, or a folder that has weights.
pub fn synthesize(
    shape: &Shape,
    layers: Option<usize>,
    seed: u64,
    dir: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Architecture, ModelError> {
    let config = shape.config(layers);
    let architecture = describe(&config)?;
    let tensors = architecture.tensors();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, shape)| TensorSpec::new(name.clone(), Dtype::BF16, shape.clone()))
        .collect();
    let total: u64 = specs.iter().filter_map(|s| s.dtype.byte_len(&s.shape)).sum();
    require_space(dir, total)?;
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let mut writer = CheckpointWriter::create(dir, &specs, &metadata, SHARD_BYTES)?;
    let mut written = 0;
    for (t, (name, shape)) in tensors.iter().enumerate() {
        let count: usize = shape.iter().product();
        for from in (0..count).step_by(CHUNK) {
            let n = CHUNK.min(count - from);
            let stream = mix(seed ^ mix(t as u64));
            let values: Vec<u16> = (from..from + n)
                .into_par_iter()
                .map(|i| {
                    let value = match shape.len() {
                        1 if i % 64 == 63 => 8.0,
                        1 => 1.0,
                        _ => 0.02 * normal(stream ^ i as u64),
                    };
                    half::bf16::from_f32(value).to_bits().to_le()
                })
                .collect();
            writer.write(name, bytemuck::cast_slice(&values))?;
            written += 2 * n as u64;
            progress(written, total);
        }
    }
    writer.finish()?;
    write_json(&dir.join("tokenizer.json"), &byte_tokenizer())?;
    // The config makes the folder a model, so it comes last.
    write_json(&dir.join("config.json"), &config)?;
    Ok(architecture)
}

/// Values written at a time.
const CHUNK: usize = 1 << 22;

fn write_json(path: &Path, value: &Value) -> Result<(), WriteError> {
    write_atomic(path, format!("{value:#}\n").as_bytes())
}

/// About a standard normal number: the sum of eight uniform bytes, centred and scaled.
fn normal(i: u64) -> f32 {
    let sum: i32 = mix(i).to_le_bytes().iter().map(|&b| i32::from(b)).sum();
    // Eight times the variance of a byte, (256² − 1) / 12.
    (sum as f32 - 1020.0) / 209.02
}

/// A tokenizer.json whose tokens are the 256 bytes, in the characters that byte-level tokenizers stand them for.
fn byte_tokenizer() -> Value {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut moved = 0..;
    let mut vocabulary = Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { 256 + moved.next().unwrap_or(0) };
        let character = char::from_u32(code).unwrap_or('?');
        vocabulary.insert(character.to_string(), byte.into());
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": [],
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Input, Model};

    const TINY: Shape = Shape {
        name: "tiny",
        family: "qwen2",
        hidden: 128,
        width: 192,
        layers: 9,
        heads: 4,
        kv_heads: 2,
        vocabulary: 300,
        context: 64,
        rope_theta: 1e4,
        tied: false,
    };

    #[test]
    fn a_random_model_opens_and_computes() {
        let dir = tempfile::tempdir().unwrap();
        let architecture = synthesize(&TINY, Some(2), 1, dir.path(), &mut |_, _| {}).unwrap();
        assert_eq!(architecture.blocks.len(), 2);
        let model = Model::open(dir.path()).unwrap();
        let tokens = model.tokenizer().unwrap().encode("Grüße \n\u{0}").unwrap();
        assert_eq!(tokens, "Grüße \n\u{0}".bytes().map(u32::from).collect::<Vec<_>>());
        let (_, _, logits) = model.trace(&[Input::Tokens(tokens)]).unwrap();
        assert!(logits.data.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn the_seed_decides_every_byte() {
        let read = |seed| {
            let dir = tempfile::tempdir().unwrap();
            synthesize(&TINY, Some(1), seed, dir.path(), &mut |_, _| {}).unwrap();
            std::fs::read(dir.path().join("model.safetensors")).unwrap()
        };
        assert_eq!(read(5), read(5));
        assert_ne!(read(5), read(6));
    }

    #[test]
    fn weights_are_about_normal() {
        let values: Vec<f64> = (0..100_000).map(|i| f64::from(normal(i))).collect();
        let moment = |p: i32| values.iter().map(|v| v.powi(p)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 2.85).abs() < 0.1);
    }

    #[test]
    fn every_shape_is_one_that_halfbyte_reads() {
        for shape in SHAPES {
            let architecture = describe(&shape.config(None)).unwrap();
            assert_eq!(architecture.blocks.len(), shape.layers);
        }
        let seven = SHAPES.iter().find(|s| s.name == "llama-7b").unwrap();
        let tensors = describe(&seven.config(None)).unwrap().tensors();
        // The published number of parameters.
        assert_eq!(tensors.iter().map(|(_, s)| s.iter().product::<usize>()).sum::<usize>(), 6_738_415_616);
    }
}
