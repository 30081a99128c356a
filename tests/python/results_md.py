"""Measures one model quantized with every recipe and writes the table, by default docs/results.md.

    python3 tests/python/results_md.py --name SmolLM2-135M --model target/smollm2 --work target/results

Quantizes to --work/RECIPE (what is finished there is not done again), then runs `halfbyte compare` of the original and a few
recipes at a time. Figures are kept in a file _recipes.jsonl beside the page, a line for a model, and what is there in the same
protocol, under the same --name and for a recipe of the same text, is not measured again: a recipe takes about eight minutes on
two cores. --again measures it all the same, --recipes says which recipes and in which order; the page has all that are known, in
the order of `halfbyte recipes`. Needs the assets (HALFBYTE_ASSETS, default ../shared) and nothing beyond the standard library. Stopped at any moment, the
same command goes on where it was. Text of the page below a line "<!-- notes -->" is kept.
"""
import json

from results_page import NOTES, calibration, digest, measurement, model_name, parser, protocol, replace, run, run_json


def cell(value, form):
    return "–" if value is None else format(value, form)


def task_cell(task):
    """Accuracy, and where it differs from the original's beyond chance a star."""
    paired = task.get("paired")
    star = "\\*" if paired and paired["p_value"] < 0.05 else ""
    return f"{100 * task['acc']:.1f}{star}"


def table(models, names, tasks):
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
    options.add_argument("--group", type=int, default=4, help="recipes that are compared together, after which the page is written")
    options.add_argument("--again", action="store_true", help="measure what is known too")
    args = options.parse_args()
    built_in = [r["recipe"] for r in run_json(args.binary, "recipes")["recipes"]]
    wanted = args.recipes.split(",") if args.recipes else built_in
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.out.with_name(args.out.stem + "_recipes.jsonl")
    lines = kept.read_text().splitlines() if kept.exists() else []
    texts = {None: None} | {r: digest(run(args.binary, "recipes", r)) for r in {*built_in, *wanted}}
    same = lambda row: (row["model"] == model_name(args) and row["protocol"] == protocol(args)
                        and row["recipe_sha256"] == texts.get(row["quantized"]))
    rows = list(map(json.loads, lines))
    known = {row["quantized"]: row for row in rows if same(row)}
    others = [row for row in rows if not same(row)]
    missing = [r for r in wanted if args.again or r not in known]
    print(f"# {len(wanted) - len(missing)} of {len(wanted)} recipes are known", flush=True)
    for start in range(0, len(missing), args.group):
        group = missing[start:start + args.group]
        for recipe in group:
            cost = run_json(args.binary, "quantize", args.model, "--recipe", recipe, *calibration(args),
                            "--out", args.work / recipe)
            print("#", recipe, "was finished" if cost["was_finished"] else f"{cost['seconds']:.0f} s", flush=True)
        found = run_json(args.binary, "compare", args.model, *[args.work / r for r in group], *measurement(args))
        for name, model in zip([None, *group], found["models"]):
            # A layer's errors are in the quantized folder; a page of all recipes has no use for them.
            model.pop("layers", None)
            known[name] = model | {"model": model_name(args), "quantized": name, "recipe_sha256": texts[name],
                                   "protocol": protocol(args)}
        write(args, kept, known, others, built_in)
    if known:
        write(args, kept, known, others, built_in)


def write(args, kept, known, others, built_in):
    names = [None, *[r for r in built_in if r in known], *[r for r in known if r and r not in built_in]]
    rows, tasks = [known[n] for n in names], protocol(args)["tasks"]
    # A row of another text of the recipe, as another binary has it, stays until this one's is known.
    others = [r for r in others if (r["model"], r["protocol"]) != (model_name(args), protocol(args)) or r["quantized"] not in known]
    replace(kept, "".join(json.dumps(row) + "\n" for row in rows + others))
    scored = rows[0]["perplexity"]
    page = [f"# {model_name(args)} with every recipe", "",
            f"Made by `python3 tests/python/results_md.py --name {model_name(args)}`, which says what it needs.", "",
            *table(rows, ["original", *names[1:]], tasks), "",
            f"Calibrated on {args.calibration_windows} windows of 512 tokens of {args.calibration.name}, and for recipes with "
            f"`coverage` some drawn from the vocabulary. Perplexity and KL divergence (nats, "
            f"mean and 99th percentile) over {scored['windows']} windows of {scored['window']} tokens of {args.text.name}, "
            f"{scored['tokens']:,} tokens scored. All models, the original included, were computed with {args.products} "
            "products (`--products`)."]
    if tasks:
        page += ["", "Tasks: accuracy in % as lm-evaluation-harness counts `acc`, zero-shot, the first "
                 + ", ".join(f"{rows[0]['tasks'][t]['n']} rows of {t}" for t in tasks)
                 + ". \\* differs from the original with p < 0.05 in McNemar's exact test."]
    left_out = [r for r in built_in if r not in known]
    if left_out:
        page += ["", "Not measured: " + ", ".join(left_out) + "."]
    notes = args.out.read_text().partition(NOTES)[2] if args.out.exists() else ""
    replace(args.out, "\n".join(page) + "\n" + ("\n" + NOTES + notes if notes else ""))
    print(f"wrote {args.out} with {len(names) - 1} recipes", flush=True)


if __name__ == "__main__":
    main()
