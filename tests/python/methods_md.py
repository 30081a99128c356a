"""Measures methods alone and stacked on one model, with several calibration seeds, and writes their tables into docs/results.md.

    python3 tests/python/methods_md.py --model target/smollm2 --work target/methods --group nvfp4

Writes a recipe file for every method of the group, runs `halfbyte ablate` over them (what is finished is not done again) and puts
its table between the group's marks below the line "<!-- notes -->" of the page, which results_md.py keeps; figures are in a file
_GROUP.json beside it. Linear layers alone are quantized. Each method is alone on the group's format with scales of the largest
magnitude, which is the first row; the last rows are stacks. Needs the assets (HALFBYTE_ASSETS, default ../shared) and nothing
beyond the standard library. A group on SmolLM2 takes more than an hour on two cores.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess

ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", "../shared"))
NOTES = "<!-- notes -->"
TASKS = "boolq,piqa,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa"

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


def run(*command):
    command = [str(c) for c in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"failed with exit code {done.returncode}: {' '.join(command)}")
    return done.stdout


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
    base = {"weight_scheme": weight, "input_scheme": inputs, "scales": "absmax", "products": "bf16", "keep": ["lm_head", "embedding"]}
    wanted = [(f"{args.group}-{name}", written(plain, base | settings), seeded) for name, settings, seeded in METHODS]
    for name in STACKS[args.group]:
        text = written(run(args.binary, "recipes", name), {"keep": ["lm_head", "embedding"]})
        wanted.append((name, text, True))
    chosen = []
    for name, text, seeded in wanted:
        if args.methods and name.removeprefix(args.group + "-") not in args.methods.split(","):
            continue
        path = folder / f"{name}.toml"
        path.write_text(written(text, {"name": name}))
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


def table(group, original, found):
    mean = lambda runs: sum(r["perplexity"] for r in runs) / len(runs)
    gap = mean(found[0]["runs"]) - original["perplexity"]
    lines = ["| method | seeds | bits | perplexity | of the first row's loss | KLD | same top-1, % | task mean, % | seconds |",
             "|---" * 9 + "|",
             f"| full precision | | | {original['perplexity']:.2f} | | | | {spread([original], lambda r: r['accuracy'], 100, 1)} | |"]
    for recipe in found:
        runs = recipe["runs"]
        less = 100 * (mean(found[0]["runs"]) - mean(runs)) / gap
        left = "" if recipe is found[0] else f"{abs(less):.0f} % {'less' if less >= 0 else 'more'}"
        cells = [recipe["recipe"].removeprefix(group + "-") if recipe["recipe"].removeprefix(group + "-") in dict((m[0], 0) for m in METHODS)
                 else f"`{recipe['recipe']}`", str(len(runs)), f"{runs[0]['bits_per_weight']:.2f}",
                 spread(runs, lambda r: r["perplexity"], 1, 2), left, spread(runs, lambda r: r["divergence"], 1, 3),
                 spread(runs, lambda r: r["same_top1"], 100, 1), spread(runs, lambda r: r["accuracy"], 100, 1),
                 spread(runs, lambda r: r["seconds"], 1, 0)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=pathlib.Path("target/smollm2"))
    parser.add_argument("--name", help="the model's name in the page [default: that of its folder]")
    parser.add_argument("--group", choices=GROUPS, required=True)
    parser.add_argument("--methods", help="separated by commas [default: all of the group]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/methods"))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results.md"))
    parser.add_argument("--binary", default="target/release/halfbyte")
    parser.add_argument("--calibration", type=pathlib.Path, default=ASSETS / "data/calibration/coqa_stories.txt")
    parser.add_argument("--calibration-windows", type=int, default=32)
    parser.add_argument("--text", type=pathlib.Path, default=ASSETS / "data/wikitext2-test.txt")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--task-dir", type=pathlib.Path, default=ASSETS / "data/tasks")
    parser.add_argument("--tasks", default=TASKS, help="separated by commas; empty for none")
    parser.add_argument("--limit", type=int, default=100)
    args = parser.parse_args()
    found = []
    for path, seeded in recipes(args):
        # One recipe after the other, so that the page grows.
        seeds = args.seeds if seeded else 1
        command = [args.binary, "ablate", args.model, "--recipes", path, "--seeds", seeds, "--out", args.work / args.group / path.stem,
                   "--calibration", args.calibration, "--calibration-windows", args.calibration_windows, "--perplexity", args.text,
                   "--window", args.window, "--windows", args.windows, "--cache", args.work / "cache", "--products", "bf16", "--json"]
        if args.tasks:
            command += ["--tasks", args.tasks, "--task-dir", args.task_dir, "--limit", args.limit]
        done = json.loads(run(*command))
        found.append(done["recipes"][0])
        write(args, done["original"], found)


def write(args, original, found):
    name = args.name or args.model.name
    tasks = len(args.tasks.split(",")) if args.tasks else 0
    text = [f"## {name}, methods alone and stacked: {GROUPS[args.group][0]}", "",
            f"Made by `python3 tests/python/methods_md.py --group {args.group}`. Linear layers; {args.calibration_windows} windows of 512 "
            f"tokens of {args.calibration.name}, others for each seed; perplexity and mean KL divergence over {args.windows} windows of "
            f"{args.window} tokens of {args.text.name}"
            + (f"; mean accuracy of {tasks} tasks, {args.limit} rows each" if tasks else "")
            + "; bf16 products; ± the standard deviation of a seed. Seconds of the quantization, on a machine that did other work too.",
            "", *table(args.group, original, found)]
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
