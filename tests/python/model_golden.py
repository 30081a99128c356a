"""Golden outputs of `transformers` for the tests of crates/model.

    pip install -r tests/python/requirements.txt
    python tests/python/model_golden.py            # writes crates/model/tests/golden/
    python tests/python/model_golden.py --check    # regenerates elsewhere and compares within 1e-5; exit 1 on a difference
    python tests/python/model_golden.py llama qwen3 SmolLM2    # only these

Kinds of output:

CASE/  a tiny random checkpoint (config.json, model.safetensors, as save_pretrained writes them, apart from what EDITS
       changes) and golden.safetensors, computed from the folder as transformers reads it back:
       input_ids I64 [2, 48]; logits F32 [2, 48, 96]; hidden_0 .. hidden_n F32 [48, 32], of the first sequence alone:
       the embedding, the output of each layer but the last, and the last layer's output after the final norm.
       Encoders have padded batches under an attention mask, of which the unpadded positions are written one after the
       other: lengths I64 [2]; input_ids and token_type_ids I64 [33], or pixel_values F32 [2, channels, height, width];
       hidden_0 .. hidden_n F32 [rows, 32], the embedding and the output of each layer; logits F32, a row a position or a
       row an input, or for a bare encoder the last hidden states.
stories260K.safetensors  input_ids I64 [1, 64], logits F32 [1, 64, 512], text_ids I64 (the text's first 2,000 characters).
SmolLM2.safetensors      input_ids I64 [1, 128]; positions I64 [7]; vocab_ids I64 (every 61st); logits F32 at those positions
       and ids; top5_ids I64 and top5_logits F32 [7, 5]; nll F32 [1], the mean of the 127 next-token losses in nats;
       text_ids I64 (the text's first 5,000 characters).
MiniLM-L6-sst2.safetensors   the first 8 sentences of sst2.jsonl in one padded batch: lengths I64 [8], input_ids and
       token_type_ids I64 [rows], first F32 [8, 384] (the last hidden state of each first token), logits F32 [8, 2].
ViT-S14-cifar10.safetensors  two images whose value i is ((7919 i + 104729 n) mod 1009) / 252.25 - 2 for image n: first
       F32 [2, 384] (the last block's output in the first row), logits F32 [2, 10].

The last four read models and texts from the folder in HALFBYTE_ASSETS (by default ../shared beside the repository).
Texts are tokenized exactly as stored, CR LF included, and without special tokens. All is computed in float32, with eager
attention, from the stored weights. Weights are random enough (linears N(0, 0.3), norms about 1) that attention is far
from uniform, so a wrong mask, rotary form or head order moves the logits by far more than rounding does (up to 2.3e-6 of
the largest logit, measured against float64); rms_norm_eps is 1e-3 for the same reason.
"""
import argparse
import copy
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (AutoModelForCausalLM, BloomConfig, Gemma2Config, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, LlamaConfig,
                          MistralConfig, OPTConfig, Phi3Config, Qwen2Config, Qwen3Config)

REPO = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = REPO / "crates/model/tests/golden"
ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", REPO.parent / "shared"))
SEED = 20231116
TOLERANCE = 1e-5
# One key, because safetensors writes several in an arbitrary order and the files would differ from run to run.
METADATA = {"made_by": json.dumps({"command": "python tests/python/model_golden.py", "seed": SEED, "torch": torch.__version__,
                                   "transformers": transformers.__version__})}

SIZE = dict(vocab_size=96, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-3, tie_word_embeddings=False)
WIDE = dict(head_dim=16)  # q_proj is [64, 32]; 8 rotary frequencies
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024}
YARN_MSCALE = YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}

# The families that call the sizes by other names; their configuration classes ignore the names that are not theirs.
GPT2 = dict(n_embd=32, n_head=4, n_layer=2, n_inner=40, n_positions=64, layer_norm_epsilon=1e-3)
OPT = dict(ffn_dim=40)
NEOX = dict(layer_norm_eps=1e-3)
BLOOM = dict(hidden_size=24, num_attention_heads=6, layer_norm_epsilon=1e-3, tie_word_embeddings=True)
GEMMA = dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=8, pad_token_id=0)
LOCAL = {"rope_type": "default", "rope_theta": 100.0}

# name: (configuration class, what differs from SIZE, stored dtype)
CASES = {
    "llama": (LlamaConfig, {}, "float32"),
    "llama_f16": (LlamaConfig, {}, "float16"),
    "llama_tied_bf16": (LlamaConfig, dict(tie_word_embeddings=True), "bfloat16"),
    "llama_bias": (LlamaConfig, dict(attention_bias=True, mlp_bias=True), "float32"),
    "llama_rope_linear": (LlamaConfig, dict(rope_parameters=LINEAR), "float32"),
    "llama_old_config": (LlamaConfig, dict(rope_parameters=LINEAR), "float32"),
    "llama_rope_llama3": (LlamaConfig, dict(rope_parameters=LLAMA3, max_position_embeddings=256, **WIDE), "bfloat16"),
    "llama_rope_yarn": (LlamaConfig, dict(rope_parameters=YARN, max_position_embeddings=4096, **WIDE), "bfloat16"),
    "llama_rope_yarn_mscale": (LlamaConfig, dict(rope_parameters=YARN_MSCALE, max_position_embeddings=4096, **WIDE), "bfloat16"),
    "mistral": (MistralConfig, dict(sliding_window=8), "float32"),
    "mistral_nowindow": (MistralConfig, dict(sliding_window=None), "float32"),
    "qwen2": (Qwen2Config, dict(use_sliding_window=False), "float32"),
    "qwen2_sliding": (Qwen2Config, dict(use_sliding_window=True, sliding_window=8, max_window_layers=1,
                                        num_hidden_layers=3), "bfloat16"),
    "qwen3": (Qwen3Config, WIDE, "bfloat16"),
    "gpt2": (GPT2Config, GPT2 | dict(tie_word_embeddings=True), "bfloat16"),
    "gpt2_by_layer": (GPT2Config, GPT2 | dict(scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False), "float16"),
    "opt": (OPTConfig, OPT | dict(tie_word_embeddings=True), "bfloat16"),
    "opt_post_norm": (OPTConfig, OPT | dict(do_layer_norm_before=False, enable_bias=False), "bfloat16"),
    "gpt_neox": (GPTNeoXConfig, NEOX, "bfloat16"),
    "gpt_neox_sequential": (GPTNeoXConfig, NEOX | dict(use_parallel_residual=False, attention_bias=False,
                            rope_parameters=LINEAR | {"partial_rotary_factor": 0.5}), "bfloat16"),
    "phi3": (Phi3Config, dict(sliding_window=8, pad_token_id=0), "bfloat16"),
    "phi3_partial": (Phi3Config, dict(pad_token_id=0, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                      "partial_rotary_factor": 0.75}), "bfloat16"),
    "bloom": (BloomConfig, BLOOM, "bfloat16"),
    "gemma2": (Gemma2Config, GEMMA | dict(attn_logit_softcapping=5.0, final_logit_softcapping=20.0, num_hidden_layers=3,
               tie_word_embeddings=True), "bfloat16"),
    "gemma3": (Gemma3TextConfig, GEMMA | dict(rope_parameters={"full_attention": LINEAR, "sliding_attention": LOCAL},
               num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"]), "bfloat16"),
    "gemma3_old_config": (Gemma3TextConfig, GEMMA | dict(rope_parameters={"full_attention": LINEAR, "sliding_attention": LOCAL},
                          num_hidden_layers=3, sliding_window_pattern=3, final_logit_softcapping=20.0), "bfloat16"),
}


BERT = dict(vocab_size=96, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=40, layer_norm_eps=1e-3, num_labels=3)
DISTILBERT = dict(vocab_size=96, dim=32, hidden_dim=40, n_layers=2, n_heads=4, max_position_embeddings=40, num_labels=3)
VIT = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
           layer_norm_eps=1e-3, num_labels=5)
DINO = {k: v for k, v in VIT.items() if k != "intermediate_size"} | dict(mlp_ratio=2)
ROBERTA = BERT | dict(type_vocab_size=1)
LENGTHS = (20, 13)

# name: (model class, settings, stored dtype)
ENCODERS = {
    "bert": ("BertForSequenceClassification", BERT, "float16"),
    "bert_masked_lm": ("BertForMaskedLM", BERT | dict(hidden_act="gelu_new"), "bfloat16"),
    "bert_encoder": ("BertModel", BERT, "bfloat16"),
    "roberta": ("RobertaForSequenceClassification", ROBERTA, "bfloat16"),
    "roberta_masked_lm": ("RobertaForMaskedLM", ROBERTA | dict(hidden_act="relu", pad_token_id=3), "bfloat16"),
    "distilbert": ("DistilBertForSequenceClassification", DISTILBERT, "bfloat16"),
    "distilbert_masked_lm": ("DistilBertForMaskedLM", DISTILBERT, "bfloat16"),
    "vit": ("ViTForImageClassification", VIT, "float16"),
    "vit_encoder": ("ViTModel", VIT | dict(image_size=[16, 24], patch_size=[4, 8], qkv_bias=False), "bfloat16"),
    "deit": ("DeiTForImageClassification", VIT, "bfloat16"),
    "dinov2": ("Dinov2ForImageClassification", DINO, "bfloat16"),
    "dinov2_gated": ("Dinov2ForImageClassification", DINO | dict(use_swiglu_ffn=True), "bfloat16"),
    "dinov2_registers": ("Dinov2WithRegistersForImageClassification", DINO | dict(num_register_tokens=3), "bfloat16"),
    "dinov2_resized": ("Dinov2ForImageClassification", DINO, "bfloat16"),
    "dinov2_registers_resized":
        ("Dinov2WithRegistersForImageClassification", DINO | dict(num_register_tokens=3), "bfloat16"),
}
# Pixels of the images of these, where they are not those of the config.
IMAGES = {"dinov2_resized": (27, 12), "dinov2_registers_resized": (12, 24)}


def old_layout(config):
    """The same configuration as transformers 4 wrote it before RoPE became one dictionary."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.40.0"
    del config["head_dim"]


def unused_window(config):
    """Published Qwen2 configurations carry a window that use_sliding_window switches off."""
    config["sliding_window"] = 8
    del config["layer_types"]


def old_pythia(config):
    """As published Pythia configurations say it."""
    rope = config.pop("rope_parameters")
    config["rotary_emb_base"] = int(rope["rope_theta"])
    config["rotary_pct"] = rope["partial_rotary_factor"]


def old_gemma3(config):
    """As transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    full = rope["full_attention"]
    config["rope_theta"] = full.pop("rope_theta")
    config["rope_scaling"] = full
    config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    del config["layer_types"]
    config.pop("_sliding_window_pattern", None)
    config["sliding_window_pattern"] = 3


EDITS = {"llama_old_config": old_layout, "qwen2": unused_window, "gpt_neox": old_pythia, "gemma3_old_config": old_gemma3}


def randomize(model):
    """Fills every parameter from the seed, in the order of their names."""
    rng = np.random.default_rng(SEED)
    for name, p in sorted(model.named_parameters()):
        factor = ("norm" in name.lower() and not name.endswith("bias")) or "lambda" in name or (".ln_" in name and name.endswith("weight"))
        mean, std = (1.0, 0.2) if factor else (0.0, 1.0 if "embed" in name else 0.3)
        p.data = torch.from_numpy(rng.normal(mean, std, tuple(p.shape)).astype(np.float32))


def load(folder):
    """The model of a folder, computing in float32 with eager attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def write_case(name, out):
    """One tiny checkpoint with its golden outputs."""
    kind, changes, dtype = CASES[name]
    model = AutoModelForCausalLM.from_config(kind(**copy.deepcopy(SIZE | changes)))
    randomize(model)
    model.to(getattr(torch, dtype)).save_pretrained(out / name)
    (out / name / "generation_config.json").unlink(missing_ok=True)
    if name == "gpt2":
        # As the published checkpoints, which were saved without the prefix.
        path = out / name / "model.safetensors"
        save({key.removeprefix("transformer."): t for key, t in load_file(path).items()}, path)
    if name in EDITS:
        path = out / name / "config.json"
        config = json.loads(path.read_text())
        EDITS[name](config)
        path.write_text(json.dumps(config, indent=2) + "\n")

    ids = torch.from_numpy(np.random.default_rng(SEED).integers(0, SIZE["vocab_size"], (2, 48)))
    result = load(out / name)(ids, output_hidden_states=True)
    tensors = {f"hidden_{i}": h[0] for i, h in enumerate(result.hidden_states)}
    save(tensors | {"input_ids": ids, "logits": result.logits}, out / name / "golden.safetensors")


def write_encoder(name, out):
    """One tiny encoder with its golden outputs for a padded batch."""
    kind, settings, dtype = ENCODERS[name]
    kind = getattr(transformers, kind)
    model = kind(kind.config_class(**copy.deepcopy(settings)))
    randomize(model)
    model.to(getattr(torch, dtype)).save_pretrained(out / name)
    model = kind.from_pretrained(out / name, dtype=torch.float32, attn_implementation="eager").eval()

    rng = np.random.default_rng(SEED)
    if model.main_input_name == "pixel_values":
        config = model.config
        size = config.image_size if isinstance(config.image_size, list) else [config.image_size] * 2
        size = IMAGES.get(name, size)
        pixels = torch.from_numpy(rng.normal(0, 1, (2, config.num_channels, *size)).astype(np.float32))
        tensors, inputs, seen = {"pixel_values": pixels}, {"pixel_values": pixels}, slice(None)
    else:
        mask = torch.tensor([[int(i < n) for i in range(max(LENGTHS))] for n in LENGTHS])
        ids = torch.from_numpy(rng.integers(5, settings["vocab_size"], mask.shape))
        types = torch.from_numpy(rng.integers(0, getattr(model.config, "type_vocab_size", 1), mask.shape))
        seen = mask.bool()
        inputs = {"input_ids": torch.where(seen, ids, model.config.pad_token_id), "attention_mask": mask}
        tensors = {"input_ids": ids[seen], "token_type_ids": types[seen], "lengths": torch.tensor(LENGTHS)}
        if hasattr(model.config, "type_vocab_size"):
            inputs["token_type_ids"] = types
    result = model(**inputs, output_hidden_states=True)
    tensors |= {f"hidden_{i}": h[seen].flatten(0, -2) for i, h in enumerate(result.hidden_states)}
    logits = result.logits if "logits" in result else result.last_hidden_state
    tensors["logits"] = logits if logits.dim() == 2 else logits[seen].flatten(0, -2)
    save(tensors, out / name / "golden.safetensors")


def stories(out):
    """The LLaMA of 260,032 parameters, on the start of TinyStories."""
    folder = ASSETS / "models/stories260K"
    text_ids = tokenize(folder, "tinystories_valid_subset.txt", 2000)
    ids = torch.tensor([text_ids[:64]])
    save({"input_ids": ids, "logits": load(folder)(ids).logits, "text_ids": torch.tensor(text_ids)},
         out / "stories260K.safetensors")


def smollm2(out):
    """SmolLM2-135M-Instruct, made from its GGUF, on the start of WikiText-2."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ASSETS / "tools/smollm2_to_hf.py", folder], check=True, stdout=subprocess.DEVNULL)
        text_ids = tokenize(pathlib.Path(folder), "wikitext2-test.txt", 5000)
        ids = torch.tensor([text_ids[:128]])
        logits = load(folder)(ids).logits[0]
    positions = torch.tensor([0, 1, 2, 7, 31, 63, 127])
    vocab_ids = torch.arange(0, logits.shape[1], 61)
    top = logits[positions].topk(5)
    nll = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:])
    save({"input_ids": ids, "positions": positions, "vocab_ids": vocab_ids, "logits": logits[positions][:, vocab_ids],
          "top5_ids": top.indices, "top5_logits": top.values, "nll": nll.float().reshape(1),
          "text_ids": torch.tensor(text_ids)}, out / "SmolLM2.safetensors")


def minilm(out):
    """The sentiment classifier, on sentences of different lengths."""
    folder = ASSETS / "models/MiniLM-L6-sst2"
    with open(ASSETS / "data/tasks/sst2.jsonl", encoding="utf-8") as f:
        sentences = [json.loads(line)["sentence"] for line, _ in zip(f, range(8))]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = [tokenizer.encode(s).ids for s in sentences]
    lengths = [len(r) for r in rows]
    ids = torch.tensor([r + [0] * (max(lengths) - len(r)) for r in rows])
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    model = transformers.BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    result = model.eval()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    ids = ids[mask.bool()]
    save({"lengths": torch.tensor(lengths), "input_ids": ids, "token_type_ids": torch.zeros_like(ids),
          "first": result.hidden_states[-1][:, 0], "logits": result.logits}, out / "MiniLM-L6-sst2.safetensors")


def vit(out):
    """The image classifier, on two patterns."""
    folder = ASSETS / "models/ViT-S14-cifar10"
    model = transformers.ViTForImageClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    i = np.arange(3 * 112 * 112)
    pixels = np.stack([((7919 * i + 104729 * n) % 1009).astype(np.float32) / np.float32(252.25) - 2 for n in range(2)])
    result = model.eval()(torch.from_numpy(pixels).reshape(2, 3, 112, 112), output_hidden_states=True)
    save({"first": result.hidden_states[-1][:, 0], "logits": result.logits}, out / "ViT-S14-cifar10.safetensors")


def tokenize(folder, file, characters):
    """Ids of the first characters of a text among the assets."""
    with open(ASSETS / "data" / file, encoding="utf-8", newline="") as f:
        text = f.read(characters)
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def save(tensors, path):
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, metadata=METADATA)


def differences(fresh, committed):
    """What differs between two output folders: one line each, for the files that `fresh` holds."""
    for path in sorted(p for p in fresh.rglob("*") if p.is_file()):
        name = path.relative_to(fresh)
        other = committed / name
        if not other.exists():
            yield f"{name}: not in {committed}"
        elif path.suffix == ".json":
            a, b = ({k: v for k, v in json.loads(p.read_text()).items() if k != "transformers_version"} for p in (path, other))
            if a != b:
                yield f"{name}: other settings"
        else:
            yield from (f"{name}: {d}" for d in tensor_differences(path, other))


def tensor_differences(path, other):
    a, b = load_file(path), load_file(other)
    if a.keys() != b.keys():
        yield f"tensors {sorted(a.keys() ^ b.keys())} are in one of the two alone"
    for key in sorted(a.keys() & b.keys()):
        x, y = a[key], b[key]
        if x.shape != y.shape or x.dtype != y.dtype:
            yield f"{key}: {x.dtype} {x.shape}, committed {y.dtype} {y.shape}"
        else:
            error = (x.double() - y.double()).abs().max() / y.double().abs().max().clamp(min=1)
            if not error <= (TOLERANCE if x.is_floating_point() else 0):
                yield f"{key}: differs by {error:.1e} of the largest value"


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="the cases to write (all of them when none is named)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    args = parser.parse_args()
    writers = {name: (lambda out, name=name: write_case(name, out)) for name in CASES}
    writers |= {name: (lambda out, name=name: write_encoder(name, out)) for name in ENCODERS}
    writers |= {"stories260K": stories, "SmolLM2": smollm2, "MiniLM-L6-sst2": minilm, "ViT-S14-cifar10": vit}
    if unknown := set(args.names) - writers.keys():
        parser.error(f"no case {sorted(unknown)}; there are {sorted(writers)}")
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        out = pathlib.Path(temporary) if args.check else GOLDEN
        out.mkdir(parents=True, exist_ok=True)
        for name in args.names or writers:
            writers[name](out)
            print(name, flush=True)
        found = list(differences(out, GOLDEN)) if args.check else []
    print("\n".join(found) or ("all equal" if args.check else f"written to {GOLDEN.relative_to(REPO)}"))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
