"""Measures one model quantized with every recipe and writes the table, by default docs/results.md.

    python3 tests/python/results_md.py --model target/smollm2 --work target/results

Quantizes to --work/RECIPE (what is finished there is not done again), then runs `halfbyte compare` of the original and all
that there are: perplexity, divergence from the original, tasks with paired tests. The page is written after every --group
recipes. Needs the assets (HALFBYTE_ASSETS, default ../shared) and nothing beyond the standard library. All recipes on SmolLM2
with 500 rows of each task take hours on two cores; stopped at any moment, the same command goes on where it was. --recipes,
--limit and --windows make it smaller. Its figures are in a file _recipes.jsonl beside it. Text of the page below a line
"<!-- notes -->" is kept.
"""
import json

from results_page import NOTES, calibration, measurement, model_name, parser, run_json


def cell(value, form):
    return "–" if value is None else format(value, form)


def task_cell(task):
    """Accuracy, and where it differs from the original's beyond chance a star."""
    paired = task.get("paired")
    star = "\\*" if paired and paired["p_value"] < 0.05 else ""
    return f"{100 * task['acc']:.1f}{star}"


def table(found, names, tasks):
    models = found["models"]
    lines = ["| recipe | bits | size | perplexity | KLD | 99 % | same top-1 | "
             + " | ".join(tasks + (["mean"] if tasks else [])) + " |",
             "|---" * (7 + len(tasks) + bool(tasks)) + "|"]
    for name, model in zip(names, models):
        d = model.get("divergence") or {}
        mean = [f"{100 * sum(model['tasks'][t]['acc'] for t in tasks) / len(tasks):.1f}"] if tasks else []
        cells = [name, cell(model["bits_per_weight"], ".2f"), f"{model['size_bytes'] / 1e6:.1f} MB",
                 cell(model["perplexity"]["value"], ",.2f"), cell(d.get("mean"), ".4f"), cell(d.get("p99"), ".3f"),
                 "–" if not d else f"{100 * d['same_top1']:.1f} %", *[task_cell(model["tasks"][t]) for t in tasks], *mean]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main():
    options = parser(__doc__, work="target/results", limit=500)
    options.add_argument("--recipes", help="separated by commas [default: all built-in ones]")
    options.add_argument("--group", type=int, default=4, help="recipes between two writings of the page")
    args = options.parse_args()
    built_in = [r["recipe"] for r in run_json(args.binary, "recipes")["recipes"]]
    recipes = args.recipes.split(",") if args.recipes else built_in
    tasks = [t for t in args.tasks.split(",") if t]
    args.work.mkdir(parents=True, exist_ok=True)
    for end in [*range(args.group, len(recipes), args.group), len(recipes)]:
        for recipe in recipes[max(0, end - args.group):end]:
            cost = run_json(args.binary, "quantize", args.model, "--recipe", recipe, *calibration(args),
                            "--out", args.work / recipe)
            print("#", recipe, "was finished" if cost["was_finished"] else f"{cost['seconds']:.0f} s", flush=True)
        write(args, recipes[:end], tasks, [r for r in built_in if r not in recipes[:end]])


def write(args, recipes, tasks, left_out):
    found = run_json(args.binary, "compare", args.model, *[args.work / r for r in recipes], *measurement(args))
    scored = found["models"][0]["perplexity"]
    rows = {t: found["models"][0]["tasks"][t]["n"] for t in tasks}
    page = [f"# {model_name(args)} with every recipe", "",
            "Made by `python3 tests/python/results_md.py`, which says what it needs.", "",
            *table(found, ["original", *recipes], tasks), "",
            f"Calibrated on {args.calibration_windows} windows of {args.calibration.name}. Perplexity and KL divergence (nats, "
            f"mean and 99th percentile) over {scored['windows']} windows of {scored['window']} tokens of {args.text.name}, "
            f"{scored['tokens']:,} tokens scored. All models, the original included, were computed with {args.products} "
            "products (`--products`)."]
    if tasks:
        page += ["", "Tasks: accuracy in % as lm-evaluation-harness counts `acc`, zero-shot, the first "
                 + ", ".join(f"{n} rows of {t}" for t, n in rows.items())
                 + ". \\* differs from the original with p < 0.05 in McNemar's exact test."]
    if left_out:
        page += ["", "Not measured: " + ", ".join(left_out) + "."]
    notes = args.out.read_text().partition(NOTES)[2] if args.out.exists() else ""
    args.out.write_text("\n".join(page) + "\n" + ("\n" + NOTES + notes if notes else ""))
    lines = [json.dumps(model | {"model": model_name(args), "quantized": name})
             for name, model in zip([None, *recipes], found["models"])]
    args.out.with_name(args.out.stem + "_recipes.jsonl").write_text("\n".join(lines) + "\n")
    print(f"wrote {args.out} with {len(recipes)} recipes", flush=True)


if __name__ == "__main__":
    main()
