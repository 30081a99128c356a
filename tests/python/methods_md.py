"""Measures methods alone and stacked on one model, with several calibration seeds, and writes their tables into docs/results.md.

    python3 tests/python/methods_md.py --model target/smollm2 --work target/methods --group nvfp4

Writes a recipe file for every method of the group, runs `halfbyte ablate` over them (what is finished is not done again) and puts
its table between the group's marks below the line "<!-- notes -->" of the page, which results_md.py keeps; figures are in a file
_GROUP.json beside it. Linear layers alone are quantized. Each method is alone on the group's format with scales of the largest
magnitude, which is the first row; the last rows are stacks. Needs the assets (HALFBYTE_ASSETS, default ../shared) and nothing
beyond the standard library. A group on SmolLM2 takes more than an hour on two cores.
"""
import json
import re

from results_page import NOTES, calibration, measurement, model_name, parser, run, run_json

# Of every group: what it is, and the schemes of weights and inputs.
GROUPS = {
    "nvfp4": ("NVFP4 W4A4", "e2m1/group16/e4m3", "e2m1/group16/e4m3/dynamic"),
    "mxfp4": ("MXFP4 W4A4", "e2m1/group32/e8m0", "e2m1/group32/e8m0/dynamic"),
    "tensor": ("W4A4, a scale for each output channel and one for all inputs of a layer", "e2m1/channel", "e2m1/tensor"),
}
FEEDBACK = {"correct": True, "feedback": True, "calibration": "sequential"}
WEIGHTED = {"scales": "weighted"}
SEARCHED = ["smooth-quant:alpha=search:taps=all"]
# Name, settings beside those of the first row, whether a seed changes anything.
METHODS = [
    ("absmax", {}, False),
    ("clip-search", WEIGHTED, True),
    ("gptq", FEEDBACK, True),
    ("smooth-quant", {"transforms": SEARCHED}, True),
    ("os-plus", {"transforms": ["os-plus:steps=20:taps=all"]}, True),
    ("awq", {"transforms": ["awq"]}, True),
    ("pow2", {"transforms": ["pow2"]}, True),
    ("rotations", {"transforms": ["rotate", "hadamard-heads"]}, True),
    ("low-rank-16", {"low_rank": 16}, True),
    ("learned", {"rounding": "learned"}, True),
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
    """Recipe files of the group, and for each whether a seed changes anything."""
    _, weight, inputs = GROUPS[args.group]
    folder = args.work / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    plain = run(args.binary, "recipes", "nvfp4-w4a4")
    base = {"weight_scheme": weight, "input_scheme": inputs, "scales": "absmax", "products": "bf16"}
    wanted = [(name, plain, base | settings, seeded) for name, settings, seeded in METHODS]
    wanted += [(name, run(args.binary, "recipes", name), {}, True) for name in STACKS[args.group]]
    chosen = []
    for name, text, settings, seeded in wanted:
        if args.methods and name not in args.methods.split(","):
            continue
        path = folder / f"{args.group}-{name}.toml"
        path.write_text(written(text, settings | {"name": name, "keep": ["lm_head", "embedding"]}))
        chosen.append((path, seeded))
    return chosen


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
    alone = [name for name, _, _ in METHODS]
    lines = ["| method | seeds | bits | perplexity | of the first row's loss | KLD | same top-1, % | task mean, % | seconds |",
             "|---" * 9 + "|",
             f"| full precision | | | {original['perplexity']:.2f} | | | | {spread([original], lambda r: r['accuracy'], 100, 1)} | |"]
    for recipe in found:
        runs = recipe["runs"]
        less = 100 * (mean(found[0]["runs"]) - mean(runs)) / gap
        left = "" if recipe is found[0] else f"{abs(less):.0f} % {'less' if less >= 0 else 'more'}"
        name = recipe["recipe"]
        cells = [name if name in alone else f"`{name}`", str(len(runs)), f"{runs[0]['bits_per_weight']:.2f}",
                 spread(runs, lambda r: r["perplexity"], 1, 2), left, spread(runs, lambda r: r["divergence"], 1, 3),
                 spread(runs, lambda r: r["same_top1"], 100, 1), spread(runs, lambda r: r["accuracy"], 100, 1),
                 spread(runs, lambda r: r["seconds"], 1, 0)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main():
    options = parser(__doc__, work="target/methods", limit=100)
    options.add_argument("--group", choices=GROUPS, required=True)
    options.add_argument("--methods", help="separated by commas [default: all of the group]")
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    found = []
    for path, seeded in recipes(args):
        # One recipe after the other, so that the page grows.
        done = run_json(args.binary, "ablate", args.model, "--recipes", path, "--seeds", args.seeds if seeded else 1,
                        "--out", args.work / path.stem, *calibration(args), *measurement(args))
        found.append(done["recipes"][0])
        write(args, done["original"], found)


def write(args, original, found):
    name = model_name(args)
    tasks = len(args.tasks.split(",")) if args.tasks else 0
    text = [f"## {name}, methods alone and stacked: {GROUPS[args.group][0]}", "",
            f"Made by `python3 tests/python/methods_md.py --group {args.group}`. Linear layers; {args.calibration_windows} windows of 512 "
            f"tokens of {args.calibration.name}, others for each seed; perplexity and mean KL divergence over {args.windows} windows of "
            f"{args.window} tokens of {args.text.name}"
            + (f"; mean accuracy of {tasks} tasks, {args.limit} rows each" if tasks else "")
            + f"; {args.products} products; ± the standard deviation of a seed. Seconds of the quantization, on a machine that did other work too.",
            "", *table(original, found)]
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
    args.out.write_text(page)
    for recipe in found:
        recipe["runs"] = [{k: v for k, v in r.items() if k != "folder"} for r in recipe["runs"]]
    lines = json.dumps({"model": name, "original": original, "recipes": found}, indent=1)
    args.out.with_name(f"{args.out.stem}_{args.group}.json").write_text(lines + "\n")
    print(f"wrote {args.out} with {len(found)} methods", flush=True)


if __name__ == "__main__":
    main()
