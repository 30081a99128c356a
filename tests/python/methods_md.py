"""Measures methods alone and stacked on one model, with several calibration seeds, and writes their tables into docs/results.md.

    python3 tests/python/methods_md.py --name SmolLM2-135M --model target/smollm2 --group nvfp4

Writes a recipe file for every method of the group, runs `halfbyte ablate` over each (what is finished is not done again) and puts
a table between the group's marks below the line "<!-- notes -->" of the page, which results_md.py keeps. Figures are kept in a
file _GROUP.json beside it, and what is there in the same protocol, with as many seeds and for a recipe of the same text, is not
measured again. Linear layers alone are quantized. Each method is alone on the group's format with scales of the largest
magnitude, which is the first row; the last rows are stacks. The tasks are those on which a model of this size is well above
chance. Methods named in one call go through the evaluation beside one pass of the original, and their rows appear together at
the end. Needs the assets (HALFBYTE_ASSETS, default ../shared) and nothing beyond the standard library. A run of a method takes
about five minutes on two cores, of learned rounding about twenty; two processes of one thread each take less for two groups
than one after the other with two.
"""
import json
import re

from results_page import NOTES, calibration, digest, measurement, model_name, parser, protocol, replace, run, run_json

# Of every group: what it is, and the schemes of weights and inputs.
GROUPS = {
    "nvfp4": ("NVFP4 W4A4", "e2m1/group16/e4m3", "e2m1/group16/e4m3/dynamic"),
    "mxfp4": ("MXFP4 W4A4", "e2m1/group32/e8m0", "e2m1/group32/e8m0/dynamic"),
    "tensor": ("W4A4, a scale for each output channel and one for all inputs of a layer", "e2m1/channel", "e2m1/tensor"),
}
FEEDBACK = {"feedback": True, "calibration": "sequential"}
SEARCHED = ["smooth-quant:alpha=search:taps=all"]
# Name, settings beside those of the first row, whether a seed changes anything, and what they are in words.
METHODS = [
    ("absmax", {}, False, "scales of the largest magnitude, of weights and of inputs; the others change this one thing of it"),
    ("clip-search", {"scales": "weighted"}, True, "the weights' scales of least error, weighted by the inputs' mean squares"),
    ("gptq", FEEDBACK, True, "error feedback for inputs as the quantized layers before give them, damped by 0.3 of each channel's "
     "second moment"),
    ("gptq-corrected", FEEDBACK | {"correct": True}, True, "error feedback (as gptq) after the weights are corrected for "
     "the rounding of the inputs"),
    ("smooth-quant", {"transforms": SEARCHED}, True, "factors of SmoothQuant at every place that takes them, α searched"),
    ("os-plus", {"transforms": ["os-plus:steps=20:taps=all"]}, True, "those of Outlier Suppression+, thresholds searched"),
    ("awq", {"transforms": ["awq"]}, True, "those of AWQ, β searched"),
    ("pow2", {"transforms": ["pow2"]}, True, "powers of two, searched"),
    ("rotations", {"transforms": ["rotate", "hadamard-heads"]}, True, "Hadamard matrices on the residual stream and on the values of a "
     "head; a seed draws other signs"),
    ("low-rank-16", {"low_rank": 16}, True, "a part of rank 16 in bf16 beside the codes"),
    ("learned", {"rounding": "learned", "rounding_steps": 60}, True, "the codes of a block learned in 60 steps of 2,048 tokens"),
]
# Whole recipes.
STACKS = {
    "nvfp4": ["nvfp4-gptq-w4a4", "nvfp4-pow2-gptq-w4a4"],
    "mxfp4": ["mxfp4-gptq-w4a4", "mxfp4-pow2-gptq-w4a4"],
    "tensor": ["fpq-published-w4a4", "fpq-w4a4"],
}


def written(text, settings):
    """The recipe file with these settings; one that it does not have goes before the first table."""
    for key, value in settings.items():
        line = f"{key} = {json.dumps(value)}"
        text, found = re.subn(rf"^{key} = .*$", lambda _: line, text, flags=re.M)
        if not found:
            text = text.replace("\n[", f"\n{line}\n\n[", 1)
    return text


def recipes(args):
    """Of every recipe of the group its name, its file, what tells its text from others, and whether a seed changes anything."""
    _, weight, inputs = GROUPS[args.group]
    folder = args.work / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    plain = run(args.binary, "recipes", "nvfp4-w4a4")
    base = {"weight_scheme": weight, "input_scheme": inputs, "scales": "absmax", "products": "bf16"}
    every = [(name, plain, base | settings, seeded) for name, settings, seeded, _ in METHODS]
    every += [(name, run(args.binary, "recipes", name), {}, True) for name in STACKS[args.group]]
    for name, text, settings, seeded in every:
        path = folder / f"{args.group}-{name}.toml"
        text = written(text, settings | {"name": name, "keep": ["lm_head", "embedding"]})
        path.write_text(text)
        yield name, path, digest(text), seeded


def spread(runs, value, scale, digits):
    values = [value(r) for r in runs if value(r) is not None]
    if not values:
        return "–"
    mean = sum(values) / len(values)
    text = f"{scale * mean:,.{digits}f}"
    if len(values) > 1:
        text += f" ± {scale * (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5:,.{digits}f}"
    return text


def table(original, found):
    mean = lambda runs: sum(r["perplexity"] for r in runs) / len(runs)
    gap = mean(found[0]["runs"]) - original["perplexity"]
    alone = [name for name, *_ in METHODS]
    lines = ["| method | seeds | bits | perplexity | of the first row's loss | KLD | same top-1, % | task mean, % |",
             "|---" * 8 + "|",
             f"| full precision | | | {original['perplexity']:.2f} | | | | {spread([original], lambda r: r['accuracy'], 100, 1)} |"]
    for recipe in found:
        runs = recipe["runs"]
        less = 100 * (mean(found[0]["runs"]) - mean(runs)) / gap
        left = "" if recipe is found[0] else f"{abs(less):.0f} % {'less' if less >= 0 else 'more'}"
        name = recipe["recipe"]
        cells = [name if name in alone else f"`{name}`", str(len(runs)), f"{runs[0]['bits_per_weight']:.2f}",
                 spread(runs, lambda r: r["perplexity"], 1, 2), left, spread(runs, lambda r: r["divergence"], 1, 3),
                 spread(runs, lambda r: r["same_top1"], 100, 1), spread(runs, lambda r: r["accuracy"], 100, 1)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main():
    options = parser(__doc__, work="target/methods", tasks="piqa,hellaswag,arc_easy", limit=100)
    options.add_argument("--group", choices=GROUPS, required=True)
    options.add_argument("--methods", help="which to measure, separated by commas [default: all of the group]")
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    kept = args.out.with_name(f"{args.out.stem}_{args.group}.json")
    old = json.loads(kept.read_text()) if kept.exists() else {}
    if (old.get("model"), old.get("protocol")) != (model_name(args), protocol(args)):
        old = {"original": None, "recipes": []}
    every = list(recipes(args))
    texts = {name: text for name, _, text, _ in every}
    known = {r["recipe"]: r for r in old["recipes"] if texts.get(r["recipe"]) == r["recipe_sha256"]}
    original = old["original"]
    names = args.methods.split(",") if args.methods else list(texts)
    # A seed that changes nothing is one seed, which is an option of its own run.
    for seeds in sorted({args.seeds, 1}):
        todo = {name: path for name, path, _, seeded in every if name in names and seeds == (args.seeds if seeded else 1)
                and len(known.get(name, {"runs": []})["runs"]) < seeds}
        if not todo:
            continue
        done = run_json(args.binary, "ablate", args.model, "--recipes", ",".join(map(str, todo.values())), "--seeds", seeds,
                        "--out", args.work / args.group, *calibration(args), *measurement(args))
        original = done["original"]
        for recipe in done["recipes"]:
            runs = [{k: v for k, v in r.items() if k != "folder"} for r in recipe["runs"]]
            known[recipe["recipe"]] = {"recipe": recipe["recipe"], "recipe_sha256": texts[recipe["recipe"]], "runs": runs}
    if known:
        write(args, kept, original, [known[n] for n in texts if n in known])


def write(args, kept, original, found):
    name = model_name(args)
    tasks = protocol(args)["tasks"]
    text = [f"## {name}, methods alone and stacked: {GROUPS[args.group][0]}", "",
            f"Made by `python3 tests/python/methods_md.py --name {name} --group {args.group}`. Linear layers; {args.calibration_windows} windows of 512 "
            f"tokens of {args.calibration.name}, others for each seed, and a quarter as many drawn "
            f"from the vocabulary; perplexity and mean KL divergence over {args.windows} windows of "
            f"{args.window} tokens of {args.text.name}"
            + (f"; mean accuracy of {', '.join(tasks)}, {args.limit} rows each" if tasks else "")
            + f"; {args.products} products; ± the standard deviation of a seed.",
            "", *table(original, found), "",
            "; ".join(f"{name}: {what}" for name, _, _, what in METHODS if any(r["recipe"] == name for r in found))
            + ". The others are built-in recipes, with all that these have. What each costs is in docs/performance.md."]
    begin, end = f"<!-- methods {args.group} -->", f"<!-- end of methods {args.group} -->"
    section = "\n".join([begin, "", *text, "", end])
    page = args.out.read_text() if args.out.exists() else ""
    if NOTES not in page:
        page = page.rstrip("\n") + f"\n\n{NOTES}\n"
    if begin in page:
        head, rest = page.split(begin, 1)
        page = head + section + rest.split(end, 1)[1]
    else:
        page = page.rstrip("\n") + "\n\n" + section + "\n"
    lines = {"model": name, "protocol": protocol(args), "original": original, "recipes": found}
    replace(kept, json.dumps(lines, indent=1) + "\n")
    replace(args.out, page)
    print(f"wrote {args.out} with {len(found)} of {len(METHODS) + len(STACKS[args.group])} methods", flush=True)


if __name__ == "__main__":
    main()
