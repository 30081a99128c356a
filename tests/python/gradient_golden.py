"""Gradients of PyTorch's autograd for the tests of crates/model.

    pip install -r tests/python/requirements.txt
    python tests/python/gradient_golden.py            # writes crates/model/tests/golden/gemma2_gradients.safetensors
    python tests/python/gradient_golden.py --check    # compares with the file within 1e-6; exit 1 on a difference

The first block of the random Gemma 2 beside it (norms before and after, capped scores, a sliding window, grouped heads, a
gated MLP), for `(wanted * block(hidden)).sum()`: hidden and wanted F32 [24, 32], which are drawn, the gradient of hidden
as `input`, and that of every linear weight by the layer's name. In float64, written as F32.
"""
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "crates/model/tests/golden"
FILE = GOLDEN / "gemma2_gradients.safetensors"


def gradients():
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "gemma2", attn_implementation="eager", dtype=torch.float64)
    block = model.model.layers[0]
    rng = np.random.default_rng(20231116)
    draw = lambda: torch.tensor(rng.standard_normal((24, 32)).astype(np.float32)).double()
    hidden, wanted = draw().requires_grad_(), draw()
    seen = {}

    def enter(_, args, kwargs):
        return (hidden[None], *args[1:]), kwargs

    def leave(_, args, out):
        seen["out"] = out if isinstance(out, torch.Tensor) else out[0]

    block.register_forward_pre_hook(enter, with_kwargs=True)
    block.register_forward_hook(leave)
    model(torch.zeros((1, 24), dtype=torch.long), use_cache=False)
    (wanted * seen["out"][0]).sum().backward()
    found = {"hidden": hidden.detach(), "wanted": wanted, "input": hidden.grad}
    for name, module in block.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[f"model.layers.0.{name}"] = module.weight.grad
    return {name: value.float().contiguous() for name, value in found.items()}


def main():
    found = gradients()
    if "--check" not in sys.argv:
        save_file(found, FILE, metadata={"made_by": "python tests/python/gradient_golden.py"})
        return
    for name, expected in load_file(FILE).items():
        error = (found[name] - expected).abs().max() / expected.abs().max()
        if error > 1e-6:
            sys.exit(f"{name} is off by {error:.1e}")
    print("the same gradients")


main()
