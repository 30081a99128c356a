"""Perplexity by plain `transformers`, for `halfbyte evaluate` to be compared with.

    pip install -r tests/python/requirements.txt
    python tests/python/perplexity_reference.py MODEL_DIR TEXT_FILE --window 2048 --windows 4 [--skip-tokens S] [--keep-cr]

The text is tokenized whole, without special tokens; after --skip-tokens it is cut into non-overlapping windows, and each
window is scored over all but its first token, in float32. CR LF is read as LF, as Python's text mode does, unless
--keep-cr is given: the TinyStories subset has both, and the two readings tokenize differently. Prints one JSON object:
{"value", "window", "windows", "tokens"}, where tokens counts the scored ones.
"""
import argparse
import json
import math
import pathlib

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM


def token_ids(model_dir, text):
    """The ids that tokenizer.json gives for the text, without special tokens."""
    return Tokenizer.from_file(str(pathlib.Path(model_dir) / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@torch.no_grad()
def window_nll(model, ids):
    """Summed negative log-likelihood of ids[1:], each given all tokens before it."""
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()


def perplexity(model_dir, text, window, windows, skip):
    """The JSON object of the module's docstring."""
    ids = token_ids(model_dir, text)[skip:]
    if len(ids) < window * windows:
        raise SystemExit(f"{len(ids)} tokens after skipping {skip}: too few for {windows} windows of {window}")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    nll = sum(window_nll(model, ids[i * window:(i + 1) * window]) for i in range(windows))
    tokens = windows * (window - 1)
    return {"value": math.exp(nll / tokens), "window": window, "windows": windows, "tokens": tokens}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--window", type=int, required=True, metavar="N")
    parser.add_argument("--windows", type=int, required=True, metavar="K")
    parser.add_argument("--skip-tokens", type=int, default=0, metavar="S")
    parser.add_argument("--keep-cr", action="store_true")
    args = parser.parse_args()
    with open(args.text, encoding="utf-8", newline="" if args.keep_cr else None) as file:
        text = file.read()
    print(json.dumps(perplexity(args.model, text, args.window, args.windows, args.skip_tokens)))
