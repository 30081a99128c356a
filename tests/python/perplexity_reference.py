"""Perplexity by plain `transformers`, for `halfbyte eval` to be compared with.

    pip install -r tests/python/requirements.txt
    python tests/python/perplexity_reference.py MODEL_DIR TEXT_FILE --window 2048 --windows 4 [--stride T] [--skip-tokens S] [--keep-cr]

The text is tokenized whole, without special tokens; after --skip-tokens it is cut into windows that start --stride tokens
apart (by default they do not overlap). The first window is scored over all but its first token, each other one over the
tokens that no window before had, all but the first at most, in float32. CR LF is read as LF, as Python's text mode does, unless
--keep-cr is given: the TinyStories subset has both, and the two readings tokenize differently. Prints one JSON object:
{"value", "window", "stride", "windows", "tokens"}, where tokens counts the scored ones.
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
def window_nll(model, ids, scored):
    """Summed negative log-likelihood of the last `scored` of ids, each given all tokens before it."""
    logits = model(torch.tensor([ids])).logits[0, -scored - 1:-1].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[-scored:]), reduction="sum").item()


def perplexity(model_dir, text, window, windows, skip, stride):
    """The JSON object of the module's docstring."""
    ids = token_ids(model_dir, text)[skip:]
    if len(ids) < window + stride * (windows - 1):
        raise SystemExit(f"{len(ids)} tokens after skipping {skip}: too few for {windows} windows of {window}")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    scored = [window - 1] + [min(stride, window - 1)] * (windows - 1)
    nll = sum(window_nll(model, ids[i * stride:i * stride + window], n) for i, n in enumerate(scored))
    value = math.exp(nll / sum(scored))
    return {"value": value, "window": window, "stride": stride, "windows": windows, "tokens": sum(scored)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--window", type=int, required=True, metavar="N")
    parser.add_argument("--windows", type=int, required=True, metavar="K")
    parser.add_argument("--stride", type=int, metavar="T", help="by default the window's length")
    parser.add_argument("--skip-tokens", type=int, default=0, metavar="S")
    parser.add_argument("--keep-cr", action="store_true")
    args = parser.parse_args()
    with open(args.text, encoding="utf-8", newline="" if args.keep_cr else None) as file:
        text = file.read()
    print(json.dumps(perplexity(args.model, text, args.window, args.windows, args.skip_tokens,
                                args.stride or args.window)))
