"""Exports of halfbyte against independent readers and writers.

    export_compare.py --binary target/release/halfbyte [--model FOLDER [--original GGUF]] [--compressed-tensors]

Without --model it builds a small random llama checkpoint (hidden 64, MLP 128) with the tokenizer of the embedded
stories260K, quantizes and exports it in every form, and checks:

- PyPI `gguf` reads the GGUF files: metadata, types, and values equal to those of halfbyte's own folder, which are decoded
  here from its documented form (docs/formats.md) by numpy alone. The values of the safetensors exports are decoded the
  same way, each from its own tensors.
- Its quantization of the embedding is that of `export --rest`, byte by byte.
- With --compressed-tensors (which needs torch): PyPI `compressed-tensors` decompresses the folders to exactly those
  values, and its own compression of the original weights with absmax scales gives exactly our bytes.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
STORIES = pathlib.Path(__file__).resolve().parents[2] / "crates/halfbyte/assets/stories260K"
HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


class Raw:
    """A safetensors file; float8 tensors as bytes."""

    def __init__(self, path):
        self.bytes = path.read_bytes()
        n = int.from_bytes(self.bytes[:8], "little")
        self.header = json.loads(self.bytes[8 : 8 + n])
        self.start = 8 + n

    def __contains__(self, name):
        return name in self.header

    def names(self):
        return [n for n in self.header if n != "__metadata__"]

    def __getitem__(self, name):
        info = self.header[name]
        kinds = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8, "I8": np.int8,
                 "I32": np.int32, "I64": np.int64, "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E8M0": np.uint8}
        begin, end = (self.start + o for o in info["data_offsets"])
        return np.frombuffer(self.bytes[begin:end], kinds[info["dtype"]]).reshape(info["shape"])


def nibbles(packed):
    return np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)


def e8m0(b):
    return np.ldexp(np.float32(1), b.astype(np.int32) - 127).astype(np.float32)


def spread(scales, cols):
    scales = scales.reshape(scales.shape[0], -1) if scales.ndim > 1 else scales.reshape(-1, 1)
    return np.repeat(scales, cols // scales.shape[1], 1)


def ours(folder):
    """Values of every quantized layer of a halfbyte folder."""
    raw = Raw(folder / "model.safetensors")
    layers = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"]
    out = {}
    for name, scheme in layers.items():
        codes, scale = raw[name + ".weight_codes"], raw[name + ".weight_scale"]
        element, kind = scheme["weight"]["element"], scheme["weight"].get("scale", "f32")
        if element == "e2m1":
            table = E2M1[nibbles(codes)]
        elif element == "e4m3fn":
            table = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        elif element == "int4":
            table = (((nibbles(codes).astype(np.int8) ^ 8) - 8)).astype(np.float32)
        else:
            table = codes.view(np.int8).astype(np.float32)
        scale = e8m0(scale) if kind == "e8m0" else scale.astype(np.float32)
        if kind == "e4m3":
            scale = scale * raw[name + ".weight_tensor_scale"]
        out[name] = table * spread(scale, table.shape[1])
    return out


def exported(folder, target):
    """Values of every quantized layer of an exported folder, from that format's own tensors."""
    raw = Raw(folder / "model.safetensors")
    out = {}
    for full in raw.names():
        if not full.endswith(".weight_scale"):
            continue
        name = full.removesuffix(".weight_scale")
        scale = raw[full]
        if target == "modelopt":
            table, scale = E2M1[nibbles(raw[name + ".weight"])], scale.astype(np.float32) * raw[name + ".weight_scale_2"]
        elif name + ".weight_global_scale" in raw:
            table = E2M1[nibbles(raw[name + ".weight_packed"])]
            scale = scale.astype(np.float32) / raw[name + ".weight_global_scale"]
        elif scale.dtype == np.uint8:
            table, scale = E2M1[nibbles(raw[name + ".weight_packed"])], e8m0(scale)
        elif target == "vllm-fp8" or name + ".weight" in raw:
            table = raw[name + ".weight"].astype(np.float32)
        else:
            words, shape = raw[name + ".weight_packed"], raw[name + ".weight_shape"]
            bits = int(words.shape[1] * 32 // shape[1])
            packed = words.view(np.uint8)
            codes = nibbles(packed) if bits == 4 else packed
            table = codes.astype(np.float32) - 2 ** (bits - 1)
        out[name] = table * spread(scale, table.shape[1])
    return out


def gguf_values(path, config):
    """Values of every block-quantized layer of a GGUF file, its rows in the order of Hugging Face; and its metadata."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    tensors = {t.name: t for t in reader.tensors}
    out, rest = {}, {}
    for name, t in tensors.items():
        parts = name.split(".")
        values = dequantize(t.data, t.tensor_type).astype(np.float32)
        if parts[0] == "blk" and parts[-1] == "weight" and parts[2] in HEADS:
            rows, cols = values.shape
            heads = config[HEADS[parts[2]]]
            values = values.reshape(heads, rows // heads // 2, 2, cols).swapaxes(1, 2).reshape(rows, cols)
        if t.tensor_type.name in ("NVFP4", "MXFP4"):
            key = f"model.layers.{parts[1]}.{NAMES[parts[2]]}"
            sidecar = tensors.get(name.replace(".weight", ".scale"))
            # `.scale` multiplies each block scale, as llama.cpp's conversion of ModelOpt means it.
            out[key] = (values, np.float32(1) if sidecar is None else np.float32(sidecar.data[0]))
        else:
            rest[name] = (t.tensor_type.name, values)
    return out, rest, {k: f.contents() for k, f in reader.fields.items()}


def same(what, wanted, found):
    if wanted.keys() != found.keys():
        sys.exit(f"{what}: layers differ: {sorted(wanted.keys() ^ found.keys())[:4]}")
    for name in wanted:
        if not np.array_equal(wanted[name], found[name]):
            bad = np.argwhere(wanted[name] != found[name])
            sys.exit(f"{what}: {name} differs at {bad[0]} and {len(bad) - 1} more places")
    print(f"  {what}: {len(wanted)} layers equal")


def check_gguf(folder, source, values, original):
    config = json.loads((source / "config.json").read_text())
    found, rest, meta = gguf_values(next(folder.glob("*.gguf")), config)
    # The reader multiplies E2M1 by the block scale first, we the two scales: one rounding apart.
    for name, (table, scale) in found.items():
        np.testing.assert_allclose(table * scale, values[name], rtol=3e-7, atol=0, err_msg=name)
    if found.keys() != values.keys():
        sys.exit(f"GGUF: layers differ: {sorted(found.keys() ^ values.keys())[:4]}")
    raw = Raw(source / "model.safetensors")
    kind, table = rest["token_embd.weight"]
    assert np.array_equal(table, raw["model.embed_tokens.weight"].astype(np.float32)), "embedding"
    assert kind in ("F32", "F16", "BF16"), kind
    assert meta["general.architecture"] == "llama"
    for key, name in [("block_count", "num_hidden_layers"), ("embedding_length", "hidden_size"),
                      ("feed_forward_length", "intermediate_size"), ("attention.head_count", "num_attention_heads"),
                      ("attention.head_count_kv", "num_key_value_heads"), ("context_length", "max_position_embeddings"),
                      ("vocab_size", "vocab_size")]:
        assert meta[f"llama.{key}"] == config[name], key
    assert len(meta["tokenizer.ggml.tokens"]) == len(meta["tokenizer.ggml.token_type"]) == config["vocab_size"]
    if original:
        _, _, wanted = gguf_values(original, config)
        for key in [k for k in wanted if k.startswith("tokenizer.") or k.startswith("llama.")]:
            assert wanted[key] == meta.get(key), key
        print("  metadata equal to the original file's")
    print(f"  gguf: {len(found)} layers, {len(rest)} other tensors, {len(meta)} keys")


def check_rest(path, source, kind):
    """The embedding, rounded: bytes of PyPI `gguf`'s own quantization."""
    from gguf import GGMLQuantizationType, GGUFReader
    from gguf.quants import quantize

    table = Raw(source / "model.safetensors")["model.embed_tokens.weight"].astype(np.float32)
    found = {t.name: t for t in GGUFReader(path).tensors}["token_embd.weight"]
    assert found.tensor_type.name == kind, found.tensor_type
    wanted = quantize(table, GGMLQuantizationType[kind])
    assert np.array_equal(wanted.reshape(-1).view(np.uint8), found.data.reshape(-1).view(np.uint8)), kind
    print(f"  embedding in {kind}: the bytes of PyPI gguf")


def check_compressed_tensors(folder, values, original, recipe, scales):
    import torch
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import dequantize
    from compressed_tensors.quantization.utils import calculate_qparams

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    groups = QuantizationConfig.model_validate(config).config_groups
    scheme_of = {target: scheme for scheme in groups.values() for target in scheme.targets}
    found, compared = {}, 0
    with safe_open(folder / "model.safetensors", "pt") as f:
        keys = set(f.keys())
        for name in values:
            scheme = scheme_of.get(name) or scheme_of["Linear"]
            args = scheme.weights
            state = {k: f.get_tensor(f"{name}.{k}") for k in
                     ("weight", "weight_packed", "weight_scale", "weight_global_scale", "weight_shape") if f"{name}.{k}" in keys}
            scale, divisor = state["weight_scale"], state.get("weight_global_scale")
            if args.num_bits == 4 and args.type == "float":
                packed = state["weight_packed"]
                q = unpack_fp4_from_uint8(packed, packed.shape[0], 2 * packed.shape[1], torch.float32)
                compressor = NVFP4PackedCompressor if divisor is not None else MXFP4PackedCompressor
                scale = compressor._decompress_scale(scale, torch.float32)
            elif args.type == "int" and "weight_packed" in state:
                q = unpack_from_int32(state["weight_packed"], args.num_bits, torch.Size(state["weight_shape"].tolist()))
                q = q.to(torch.float32)
            else:
                q = state["weight"].to(torch.float32)
            got = dequantize(q, scale.float(), args=args, dtype=torch.float32, global_scale=divisor)
            found[name] = got.numpy()
            if scales == "absmax" and args.num_bits == 4 and args.type == "float":
                w = torch.from_numpy(np.array(original[name + ".weight"], np.float32))
                size = args.group_size
                blocks = w.reshape(w.shape[0], -1, size)
                theirs, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=divisor)
                compressor = NVFP4PackedCompressor if divisor is not None else MXFP4PackedCompressor
                made = {"weight": w, "weight_scale": theirs}
                if divisor is not None:
                    made["weight_global_scale"] = divisor
                made = compressor.compress(made, scheme)
                # A block of zeros, or one whose scale rounds to zero, may have any scale.
                live = blocks.abs().amax(-1) > 0
                their_bytes, our_bytes = (t.view(torch.uint8)[live] for t in (made["weight_scale"], state["weight_scale"]))
                assert torch.equal(their_bytes, our_bytes), f"{name}: scales of compressed-tensors differ"
                a, b = (t.numpy() for t in (made["weight_packed"], state["weight_packed"]))
                # It keeps the sign of a zero, which has no meaning; we have one zero.
                a, b = (np.where(nibbles(t) == 8, 0, nibbles(t)) for t in (a, b))
                assert np.array_equal(a, b), f"{name}: {np.count_nonzero(a != b)} codes of compressed-tensors differ"
                compared += 1
    same("compressed-tensors", values, found)
    if compared:
        print(f"  compressed-tensors makes the same codes and scales of {compared} layers")


def random_model(folder):
    folder.mkdir()
    config = json.loads((STORIES / "config.json").read_text())
    config.update(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    config.pop("head_dim", None)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, folder)
    rng = np.random.default_rng(7)
    shapes = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
              "self_attn.o_proj": (64, 64), "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128)}
    tensors = {"model.embed_tokens.weight": (config["vocab_size"], 64)}
    for layer in range(2):
        tensors |= {f"model.layers.{layer}.{k}.weight": s for k, s in shapes.items()}
    tensors = {k: rng.normal(0, 0.05, s).astype(ml_dtypes.bfloat16) for k, s in tensors.items()}
    norms = ["model.norm"] + [f"model.layers.{i}.{n}" for i in range(2) for n in ("input_layernorm", "post_attention_layernorm")]
    tensors |= {n + ".weight": rng.uniform(0.5, 1.5, 64).astype(ml_dtypes.bfloat16) for n in norms}
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = rng.normal(0, 0.05, (config["vocab_size"], 64)).astype(ml_dtypes.bfloat16)
    save_file(tensors, folder / "model.safetensors")


CASES = [  # recipe, scales, targets
    ("nvfp4-w4a16", "absmax", ["vllm-nvfp4", "modelopt", "gguf-nvfp4"]),
    ("nvfp4-w4a16", "sweep", ["vllm-nvfp4", "gguf-nvfp4"]),
    ("nvfp4-w4a4", "sweep", ["vllm-nvfp4", "modelopt", "gguf-nvfp4"]),
    ("mxfp4-w4a16", "round-up", ["vllm-mxfp4", "gguf-mxfp4"]),
    ("mxfp4-w4a4", "sweep", ["vllm-mxfp4", "gguf-mxfp4"]),
    ("fp8-w8a8", "absmax", ["vllm-fp8"]),
    ("int4-g32-w4a16", "absmax", ["vllm-int"]),
    ("int8-w8a8", "absmax", ["vllm-int"]),
    ("mixed", "sweep", ["vllm-mixed", "gguf-mixed"]),
]
# Layers that choose between MXFP4 and NVFP4.
MIXED = """method = "scheme"
weight_bits = 4
activation_bits = 16
embedding_bits = 16
weight_scheme = "e2m1/group32/e8m0"
alternatives = ["e2m1/group16/e4m3"]
max_bits = 4.375
keep = ["lm_head"]
"""


RESTS = ["q8_0", "f16", "bf16", "f32"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--original", help="a published GGUF of --model, whose metadata ours must repeat")
    parser.add_argument("--compressed-tensors", action="store_true")
    parser.add_argument("--recipes", help="only recipes that begin with this")
    args = parser.parse_args()
    run = lambda *a: subprocess.run([args.binary, *a], check=True, stdout=subprocess.DEVNULL)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        model = args.model or scratch / "model"
        if not args.model:
            random_model(model)
        original = Raw(model / "model.safetensors")
        text = STORIES.parent / "tinystories.txt"
        for i, (recipe, scales, targets) in enumerate(CASES):
            if args.recipes and not recipe.startswith(args.recipes):
                continue
            print(f"{recipe}, {scales}")
            folder = scratch / f"q{i}"
            if recipe == "mixed":
                (scratch / "mixed.toml").write_text(MIXED)
            named = scratch / "mixed.toml" if recipe == "mixed" else recipe
            run("quantize", model, "--recipe", named, "--scales", scales, "--out", folder, "--calibration", text,
                "--calibration-windows", "4", "--calibration-window", "128")
            values = ours(folder)
            for target in targets:
                out = scratch / f"e{i}-{target}"
                run("export", folder, "--out", out, "--to", target)
                if target.startswith("gguf"):
                    check_gguf(out, model, values, args.original)
                    for rest in RESTS if recipe == "mxfp4-w4a16" else []:
                        rounded = scratch / f"r{i}-{rest}"
                        run("export", folder, "--out", rounded, "--to", target, "--rest", rest)
                        check_rest(next(rounded.glob("*.gguf")), model, rest.upper())
                    continue
                same(target, values, exported(out, target))
                if args.compressed_tensors and target.startswith("vllm"):
                    byte_exact = "absmax" if scales in ("absmax", "round-up") else scales
                    check_compressed_tensors(out, values, original, recipe, byte_exact)
    print("all equal")


if __name__ == "__main__":
    main()
