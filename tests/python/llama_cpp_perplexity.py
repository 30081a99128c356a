"""Perplexity of a GGUF file by llama.cpp, on the windows of `halfbyte eval`.

    pip install llama-cpp-python==0.3.36        # compiles llama.cpp: many minutes, so this is no part of .ci/run
    python3 llama_cpp_perplexity.py FILE.gguf TEXT [--window 2048] [--windows 4] [--tokenizer tokenizer.json]

The text is tokenised whole, without special tokens, cut into windows that do not overlap, and all tokens of a window but
the first are scored. With --tokenizer the ids come from the Hugging Face tokenizer and are compared with llama.cpp's own,
which proves the tokenizer's metadata.

llama.cpp's CPU kernels for NVFP4 and MXFP4 round the *inputs* of a product to Q8_0 (8-bit integers, a scale for every 32),
where `halfbyte eval` of a W4A16 folder keeps them in f32. Eight bits cost well below a per cent, so the figures are
comparable as they are.
"""
import argparse
import math
import sys

import numpy as np
from llama_cpp import Llama


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("text")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokenizer", help="tokenizer.json of the original model")
    args = parser.parse_args()
    with open(args.text, encoding="utf-8", newline="") as f:
        text = f.read().replace("\r\n", "\n")
    llama = Llama(args.file, n_ctx=args.window, n_batch=512, n_threads=args.threads, n_threads_batch=args.threads,
                  logits_all=True, verbose=False)
    tokens = llama.tokenize(text.encode(), add_bos=False, special=False)
    if args.tokenizer:
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(args.tokenizer).encode(text, add_special_tokens=False).ids
        same = sum(a == b for a, b in zip(ids, tokens))
        print(f"tokens: {len(ids)} by tokenizers, {len(tokens)} by llama.cpp, {same} equal in place")
        if ids != tokens:
            sys.exit("the two tokenizers disagree")
    total, count = 0.0, 0
    for w in range(args.windows):
        window = tokens[w * args.window : (w + 1) * args.window]
        if len(window) < args.window:
            break
        llama.reset()
        llama.eval(window)
        logits = llama.scores[: args.window - 1]
        for start in range(0, args.window - 1, 256):
            part = logits[start : start + 256].astype(np.float64)
            top = part.max(axis=1)
            norm = top + np.log(np.exp(part - top[:, None]).sum(axis=1))
            picked = part[np.arange(len(part)), window[start + 1 : start + 1 + len(part)]]
            total += float((norm - picked).sum())
            count += len(part)
        print(f"window {w + 1}: perplexity so far {math.exp(total / count):.4f}", flush=True)
    print(f"perplexity {math.exp(total / count):.4f} over {count} tokens")


if __name__ == "__main__":
    main()
