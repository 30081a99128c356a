//! Random checkpoints in the shape of known models, for trying time and memory on a machine before the real download.

use crate::architectures::describe;
use crate::{Architecture, ModelError, StemSpec};
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
    /// Its config.json.
    config: fn() -> Value,
    /// The key in it that says how many blocks there are.
    layers: &'static str,
}

/// The config of a decoder in LLaMA's terms: hidden size, width of the MLP, blocks, heads, key heads, vocabulary, context.
fn llama_like(
    family: &str,
    [hidden, width, layers, heads, key_heads, vocabulary, context]: [usize; 7],
    rope_theta: f64,
    tied: bool,
) -> Value {
    json!({
        "architectures": [match family {
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "LlamaForCausalLM",
        }],
        "model_type": family,
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "rope_theta": rope_theta,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
    })
}

/// BERT with a classifier of two classes.
fn bert(hidden: usize, layers: usize, heads: usize) -> Value {
    json!({
        "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": hidden,
        "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "vocab_size": 30_522, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "hidden_act": "gelu", "pad_token_id": 0, "id2label": {"0": "negative", "1": "positive"},
    })
}

/// ViT for ImageNet, patches of 16 pixels; DeiT as published without distillation is one too.
fn vit(hidden: usize, heads: usize) -> Value {
    let labels: Map<String, Value> =
        (0..1000).map(|i| (i.to_string(), format!("class {i}").into())).collect();
    json!({
        "architectures": ["ViTForImageClassification"], "model_type": "vit", "hidden_size": hidden,
        "intermediate_size": 4 * hidden, "num_hidden_layers": 12, "num_attention_heads": heads, "image_size": 224,
        "patch_size": 16, "num_channels": 3, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "qkv_bias": true,
        "id2label": labels,
    })
}

fn gpt2() -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_positions": 1024, "n_ctx": 1024, "vocab_size": 50_257, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
    })
}

fn opt() -> Value {
    json!({
        "architectures": ["OPTForCausalLM"], "model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192,
        "num_hidden_layers": 24, "num_attention_heads": 32, "max_position_embeddings": 2048,
        "vocab_size": 50_272, "word_embed_proj_dim": 2048, "do_layer_norm_before": true,
        "activation_function": "relu",
    })
}

fn pythia() -> Value {
    json!({
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16, "rotary_pct": 0.25,
        "max_position_embeddings": 2048, "vocab_size": 50_304, "use_parallel_residual": true,
        "hidden_act": "gelu", "layer_norm_eps": 1e-5, "tie_word_embeddings": false,
    })
}

fn bloom() -> Value {
    json!({
        "architectures": ["BloomForCausalLM"], "model_type": "bloom", "hidden_size": 1024, "n_layer": 24,
        "n_head": 16, "vocab_size": 250_880, "layer_norm_epsilon": 1e-5,
    })
}

fn gemma2() -> Value {
    json!({
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 2304,
        "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "head_dim": 256, "query_pre_attn_scalar": 256, "vocab_size": 256_000, "max_position_embeddings": 8192,
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6, "rope_theta": 1e4, "hidden_activation": "gelu_pytorch_tanh",
    })
}

fn phi3() -> Value {
    json!({
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072,
        "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32_064, "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "sliding_window": 2047, "rms_norm_eps": 1e-5,
        "rope_theta": 1e4, "rope_scaling": null, "hidden_act": "silu", "tie_word_embeddings": false,
    })
}

const fn shape(name: &'static str, config: fn() -> Value) -> Shape {
    Shape { name, config, layers: "num_hidden_layers" }
}

/// The shapes, from the models' own config.json.
pub const SHAPES: [Shape; 17] = [
    shape("smollm2-135m", || llama_like("llama", [576, 1536, 30, 9, 3, 49_152, 8192], 1e5, true)),
    shape("tinyllama-1.1b", || llama_like("llama", [2048, 5632, 22, 32, 4, 32_000, 2048], 1e4, false)),
    shape("llama-7b", || llama_like("llama", [4096, 11_008, 32, 32, 32, 32_000, 2048], 1e4, false)),
    shape("llama-13b", || llama_like("llama", [5120, 13_824, 40, 40, 40, 32_000, 2048], 1e4, false)),
    shape("mistral-7b", || llama_like("mistral", [4096, 14_336, 32, 32, 8, 32_000, 32_768], 1e4, false)),
    shape("llama3-8b", || llama_like("llama", [4096, 14_336, 32, 32, 8, 128_256, 8192], 5e5, false)),
    shape("qwen2-7b", || llama_like("qwen2", [3584, 18_944, 28, 28, 4, 152_064, 32_768], 1e6, false)),
    shape("gemma2-2b", gemma2),
    shape("phi3-mini", phi3),
    Shape { layers: "n_layer", ..shape("gpt2", gpt2) },
    shape("opt-1.3b", opt),
    shape("pythia-1.4b", pythia),
    Shape { layers: "n_layer", ..shape("bloom-560m", bloom) },
    shape("bert-base", || bert(768, 12, 12)),
    shape("bert-large", || bert(1024, 24, 16)),
    shape("vit-b", || vit(768, 12)),
    shape("deit-s", || vit(384, 6)),
];

impl Shape {
    /// The config.json of this shape with so many blocks (its own number if `None`).
    fn config(&self, layers: Option<usize>) -> Value {
        let mut config = (self.config)();
        if let Some(layers) = layers {
            config[self.layers] = layers.into();
        }
        config
    }
}

/// Writes a checkpoint of random bf16 weights into the existing folder `dir`, with a tokenizer of single bytes or the
/// settings of an image processor: a shape of [`SHAPES`] with so many blocks (its own number if `None`). The same seed gives
/// the same bytes. `progress` is told the bytes written and those in all.
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
    match architecture.stem {
        StemSpec::Text(_) => write_json(&dir.join("tokenizer.json"), &byte_tokenizer())?,
        StemSpec::Image(_) => write_json(&dir.join("preprocessor_config.json"), &processor(&config))?,
    }
    // The config makes the folder a model, so it comes last.
    write_json(&dir.join("config.json"), &config)?;
    Ok(architecture)
}

/// Values written at a time.
const CHUNK: usize = 1 << 22;

fn write_json(path: &Path, value: &Value) -> Result<(), WriteError> {
    write_atomic(path, format!("{value:#}\n").as_bytes())
}

/// The preprocessor_config.json of a ViT that takes images of the config's size.
fn processor(config: &Value) -> Value {
    json!({
        "image_processor_type": "ViTImageProcessor", "do_resize": true, "resample": 2,
        "size": {"height": config["image_size"], "width": config["image_size"]},
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    })
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

    const TINY: Shape = shape("tiny", || llama_like("qwen2", [128, 192, 9, 4, 2, 300, 64], 1e4, false));

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

    /// Numbers of parameters as the models' cards or `transformers` have them, classifiers included.
    #[test]
    fn every_shape_has_the_parameters_of_its_model() {
        let known = [
            ("smollm2-135m", 134_515_008),
            ("tinyllama-1.1b", 1_100_048_384),
            ("llama-7b", 6_738_415_616),
            ("llama-13b", 13_015_864_320),
            ("mistral-7b", 7_241_732_096),
            ("llama3-8b", 8_030_261_248),
            ("qwen2-7b", 7_615_616_512),
            ("gemma2-2b", 2_614_341_888),
            ("phi3-mini", 3_821_079_552),
            ("gpt2", 124_439_808),
            ("opt-1.3b", 1_315_758_080),
            ("pythia-1.4b", 1_414_647_808),
            ("bloom-560m", 559_214_592),
            ("bert-base", 109_483_778),
            ("bert-large", 335_143_938),
            ("vit-b", 86_567_656),
            ("deit-s", 22_050_664),
        ];
        assert_eq!(known.len(), SHAPES.len());
        for (shape, (name, parameters)) in SHAPES.iter().zip(known) {
            let tensors = describe(&shape.config(None)).unwrap().tensors();
            let sum: usize = tensors.iter().map(|(_, s)| s.iter().product::<usize>()).sum();
            assert_eq!((shape.name, sum), (name, parameters));
            assert_eq!(describe(&shape.config(Some(3))).unwrap().blocks.len(), 3);
        }
    }
}
