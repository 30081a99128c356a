"""Measures every method on a BERT and a ViT and writes docs/results_encoders.json and, as Markdown, docs/results_encoders.md.

    cargo build --release -p halfbyte
    python3 tests/python/results_encoders.py --binary target/release/halfbyte

MiniLM-L6-sst2 is calibrated on 128 of 512 training rows of SST-2 and measured on 436 others, ViT-S14-cifar10 on 128 of 130
training images of CIFAR-10 and measured on 500 others, each with attention's own products left alone and quantized to as
many bits as activations. Needs the assets (HALFBYTE_ASSETS, default ../shared) and nothing beyond the standard library.
Every cell is kept in the JSON file as soon as it is there; run it again to go on after an interruption, or with --only to
measure some cells. Text of the Markdown file below a line "<!-- notes -->" is kept.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

NOTES = "<!-- notes -->"
ROOT = pathlib.Path(__file__).parents[2]
ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", "../shared"))
# Rows of the table: name, recipe without its bits.
METHODS = [("MinMax INT", "minmax-int"), ("MinMax FP", "minmax-fp"), ("FPQ baseline", "fpq-baseline"), ("FPQ (`fpq`)", "fpq")]
# With --published: its search takes ten times as long as `fpq`.
PUBLISHED = ("FPQ published", "fpq-published")
# Columns: bits of embedding / weights / activations.
WIDTHS = [(8, 8, 8), (6, 6, 6), (4, 4, 8), (4, 4, 4)]
MODELS = {
    "MiniLM-L6-sst2": dict(calibration="data/calibration/sst2_train_512.tsv", measure=["--classify", "data/tasks/sst2.jsonl"],
                           what="SST-2, 436 rows"),
    "ViT-S14-cifar10": dict(calibration="data/cifar10/calibration", measure=["--images", "data/cifar10/test"],
                            what="CIFAR-10, 500 images"),
}


def run(*command):
    command = [str(c) for c in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"failed with exit code {done.returncode}: {' '.join(command)}")
    return json.loads(done.stdout)


def cell(args, model, recipe, width, attention, scratch):
    """One quantized model beside the original, over the same rows."""
    how, original = MODELS[model], ASSETS / "models" / model
    embedding, weights, activations = width
    out = pathlib.Path(scratch) / f"{model}-{recipe}-{'-'.join(map(str, width))}-{attention}"
    made = run(args.binary, "quantize", original, "--recipe", f"{recipe}-w{weights}a{activations}", "--embedding-bits", embedding,
               "--attention-bits", attention, "--calibration", ASSETS / how["calibration"], "--out", out, "--json")
    option, data = how["measure"]
    found = run(args.binary, "compare", original, out, option, ASSETS / data, "--cache", pathlib.Path(scratch) / "rows", "--json")
    full, own = (m["classification"] for m in found["models"])
    inside = run(args.binary, "inspect", out, "--json")
    layers = sorted(inside["layers"], key=lambda l: -l["relative_error"])
    products = [a["relative_error"] for a in inside["attention"]]
    shutil.rmtree(out)
    return {
        "acc": own["acc"], "stderr": own["stderr"], "n": own["n"], "full_precision": full["acc"],
        "full_precision_stderr": full["stderr"], "paired": own["paired"], "seconds": made["seconds"],
        "peak_rss_bytes": made["peak_rss_bytes"], "bits_per_weight": made["bits_per_weight"],
        "mean_relative_error": made["mean_relative_error"],
        "worst_layers": [[l["name"], round(l["relative_error"], 4)] for l in layers[:5]],
        "attention_relative_error": sum(products) / len(products) if products else None,
    }


def markdown(state):
    lines = [
        "# Encoders", "",
        "Accuracy in % of models whose embedding, linear layers and classifier are all quantized, by the bits of embedding / weights /",
        "activations (E/W/A), with attention's own products `q·kᵀ` and `probabilities·v` left alone and with their operands quantized",
        "to as many bits as activations (`--attention-bits`). An asterisk: McNemar's exact test finds the answers different from full",
        "precision's at 5 %. Made by `python3 tests/python/results_encoders.py --published --binary target/release/halfbyte`, which keeps in",
        "`docs/results_encoders.json` what else was measured; the calibration rows and images are none of those measured.", "",
    ]
    for model, how in MODELS.items():
        cells = [v for k, v in state.items() if k.startswith(model)]
        if not cells:
            continue
        full = f"{100 * cells[0]['full_precision']:.1f} ± {100 * cells[0]['full_precision_stderr']:.1f}"
        names = ["/".join(map(str, w)) for w in WIDTHS]
        lines += [f"## {model}, {how['what']}", "", f"Full precision: {full}. On the right attention's products are quantized too.", "",
                  "| method | " + " | ".join(names + [f"{n}, attention {w[2]}" for n, w in zip(names, WIDTHS)]) + " |",
                  "|---|" + "---|" * (2 * len(WIDTHS))]
        for name, recipe in METHODS:
            row = [state.get(key(model, recipe, w, a)) for quantized in (False, True) for w in WIDTHS
                   for a in [w[2] if quantized else 16]]
            star = lambda c: "\\*" if c["paired"]["p_value"] < 0.05 else ""
            lines.append(f"| {name} | " + " | ".join(f"{100 * c['acc']:.1f}{star(c)}" if c else "–" for c in row) + " |")
        lines.append("")
    return "\n".join(lines)


def key(model, recipe, width, attention):
    return f"{model} {recipe} {'/'.join(map(str, width))} attention {attention}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/halfbyte")
    parser.add_argument("--state", default=ROOT / "docs/results_encoders.json", type=pathlib.Path)
    parser.add_argument("--out", default=ROOT / "docs/results_encoders.md", type=pathlib.Path)
    parser.add_argument("--only", default="", help="measure only cells whose name has this in it")
    parser.add_argument("--published", action="store_true", help="the published search too, which takes hours")
    args = parser.parse_args()
    if args.published:
        METHODS.insert(-1, PUBLISHED)
    state = json.loads(args.state.read_text()) if args.state.exists() else {}
    # The cells that matter most first, those that take longest last.
    cells = [(model, recipe, width, attention) for width in reversed(WIDTHS) for attention in (width[2], 16)
             for _, recipe in reversed(METHODS) for model in MODELS]
    cells.sort(key=lambda c: (c[1] == "fpq-published", c[1] == "fpq-baseline"))
    with tempfile.TemporaryDirectory() as scratch:
        for cell_of in cells:
            name = key(*cell_of)
            if name in state or args.only not in name:
                continue
            state[name] = cell(args, *cell_of, scratch)
            args.state.write_text(json.dumps(dict(sorted(state.items())), indent=1) + "\n")
            print(name, f"{state[name]['acc']:.4f} of {state[name]['full_precision']:.4f},",
                  f"{state[name]['seconds']:.1f} s", flush=True)
    notes = args.out.read_text().partition(NOTES)[2] if args.out.exists() else ""
    args.out.write_text(markdown(state) + (NOTES + notes if notes else ""))


if __name__ == "__main__":
    main()
