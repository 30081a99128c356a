"""Measures every method on stories260K and SmolLM2 and prints the tables of the README as Markdown.

    python3 tests/python/results_table.py --binary target/release/halfbyte --smollm2 target/smollm2 [--state FILE]

Needs the assets (HALFBYTE_ASSETS, default ../shared) and nothing beyond the standard library. Takes one to two hours on
two cores. Every figure is kept in --state as soon as it is there; run it again to go on after an interruption.
"""
import argparse, json, os, pathlib, subprocess, tempfile

ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", "../shared"))
METHODS = ["fpq", "fpq-published", "fpq-baseline", "minmax-fp", "minmax-int"]
MODES = ["sequential", "full-precision"]
MODELS = {
    "stories260K": dict(
        calibration="data/tinystories_valid_subset.txt", window=128, windows=16,
        text="data/tinystories_valid_subset.txt", evaluate=["--window", "128", "--windows", "60", "--skip-tokens", "7768"],
        options=["--coverage", "0"], widths=["linear layers", "4/4/4", "16/4/4"]),
    "SmolLM2": dict(
        calibration="data/calibration/coqa_stories.txt", window=512, windows=16,
        text="data/wikitext2-test.txt", evaluate=["--window", "2048", "--windows", "16"],
        options=[], widths=["4/4/4", "16/4/4"]),
}
# Columns of the tables and their options of `halfbyte quantize`; a/b/c are the bits of embedding, weights and inputs.
WIDTHS = {"linear layers": ["--keep", "lm_head,embedding"], "16/4/4": ["--keep", "embedding"], "4/4/4": []}


def run(*command):
    out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/halfbyte")
    parser.add_argument("--smollm2", default="target/smollm2", help="the folder that smollm2_to_hf.py writes")
    parser.add_argument("--state", default="docs/results.json", type=pathlib.Path)
    parser.add_argument("--only", help="one model")
    parser.add_argument("--cells", nargs=3, action="append", metavar=("METHOD", "MODE", "WIDTH"),
                        help="measure only these cells now (may be repeated); others show what --state has")
    args = parser.parse_args()
    folders = {"stories260K": ASSETS / "models/stories260K", "SmolLM2": pathlib.Path(args.smollm2)}
    state = json.loads(args.state.read_text()) if args.state.exists() else {}

    def figure(key, measure, wanted=True):
        if key not in state and wanted:
            state[key] = measure()
            args.state.write_text(json.dumps(state, indent=1))
            print("#", key, state[key], flush=True)
        return state.get(key)

    for model, how in MODELS.items():
        if args.only not in (None, model):
            continue
        evaluate = lambda folder: run(
            args.binary, "eval", folder, "--perplexity", ASSETS / how["text"], *how["evaluate"], "--json"
        )["perplexity"]["value"]

        def quantized(method, mode, options):
            with tempfile.TemporaryDirectory() as scratch:
                out = pathlib.Path(scratch) / "out"
                cost = run(args.binary, "quantize", folders[model], "--recipe", f"{method}-w4a4", "--calibration",
                           ASSETS / how["calibration"], "--calibration-window", how["window"], "--calibration-windows",
                           how["windows"], "--calibrate", mode, "--out", out, *options, "--json")
                keys = ["seconds", "peak_rss_bytes", "peak_memory_predicted_bytes", "bits_per_weight", "mean_relative_error"]
                return {"perplexity": evaluate(out)} | {k: cost[k] for k in keys}

        full = figure(f"{model} full precision", lambda: evaluate(folders[model]))
        found = {}
        for width in how["widths"]:
            for mode in MODES:
                options = WIDTHS[width] + how["options"]
                for method in METHODS:
                    wanted = args.cells is None or [method, mode, width] in args.cells
                    found[method, mode, width] = figure(
                        f"{model} {method} {mode} {width}", lambda: quantized(method, mode, options), wanted)
        print(f"\n{model}, full precision {full:.3f}\n")
        print("| method | calibrated on | " + " | ".join(how["widths"]) + " |")
        print("|---|---|" + "---|" * len(how["widths"]))
        for method in METHODS:
            for mode in MODES:
                cells = [found[method, mode, w] for w in how["widths"]]
                print(f"| {method} | {mode} | " + " | ".join(f"{c['perplexity']:,.2f}" if c else "–" for c in cells) + " |")


if __name__ == "__main__":
    main()
