"""Checks that `halfbyte eval` classifies texts and images as `transformers` does: every prediction, and the accuracy.

    pip install -r tests/python/requirements.txt pillow
    python tests/python/encoders_compare.py --binary target/debug/halfbyte

MiniLM-L6-sst2 on the 436 rows of SST-2 and ViT-S14-cifar10 on 500 images of CIFAR-10, from the assets (HALFBYTE_ASSETS,
default ../shared), in full precision. `transformers` takes each text or image alone, in f32, images with its processor
that uses Pillow. Prints how far the logits are apart; exits with 1 if a prediction differs or logits by more than 1e-4 of
their largest magnitude.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

import numpy as np
import torch
import transformers
from transformers.image_utils import load_image

ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", "../shared"))


def ours(binary, model, *options):
    """The JSON of `eval`, and what it saved of every row."""
    with tempfile.TemporaryDirectory() as scratch:
        scores = pathlib.Path(scratch) / "scores.json"
        command = [binary, "eval", model, *options, "--no-cache", "--json", "--save-scores", scores]
        done = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout)["classification"], json.loads(scores.read_text())["classification"]["rows"]


def texts(model, data):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(model).eval()
    logits, gold = [], []
    for line in data.read_text().splitlines():
        row = json.loads(line)
        logits.append(network(**tokenizer(row["sentence"], truncation=True, return_tensors="pt")).logits[0].numpy())
        gold.append(row["label"])
    return logits, gold


def images(model, paths):
    processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    network = transformers.AutoModelForImageClassification.from_pretrained(model).eval()
    logits, gold = [], []
    for path in paths:
        pixels = processor(load_image(str(path)), return_tensors="pt")
        logits.append(network(**pixels).logits[0].numpy())
        gold.append(network.config.label2id[path.parent.name])
    return logits, gold


def compare(name, result, rows, logits, gold):
    logits, gold, got = np.array(logits), np.array(gold), np.array([r["logits"] for r in rows])
    assert got.shape == logits.shape, (got.shape, logits.shape)
    said, wanted = got.argmax(1), logits.argmax(1)
    apart = np.abs(got - logits).max() / np.abs(logits).max()
    different = int((said != wanted).sum())
    accuracy = float((wanted == gold).mean())
    golds = [int(r["gold"]) for r in rows] == gold.tolist()
    print(f"{name}: {len(rows)} rows, accuracy {result['acc']:.4f} and {accuracy:.4f} by transformers, {different} predictions "
          f"differ, logits by up to {apart:.1e} of the largest")
    return different == 0 and golds and apart < 1e-4 and result["n"] == len(gold) and abs(result["acc"] - accuracy) < 1e-12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/debug/halfbyte")
    args = parser.parse_args()
    model, data = ASSETS / "models/MiniLM-L6-sst2", ASSETS / "data/tasks/sst2.jsonl"
    result, rows = ours(args.binary, model, "--classify", data)
    with torch.no_grad():
        good = compare("MiniLM-L6-sst2", result, rows, *texts(model, data))
        model = ASSETS / "models/ViT-S14-cifar10"
        result, rows = ours(args.binary, model, "--images", ASSETS / "data/cifar10/test")
        good &= compare("ViT-S14-cifar10", result, rows, *images(model, [pathlib.Path(r["place"]) for r in rows]))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
