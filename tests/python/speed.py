"""Measures what docs/performance.md says of whole models, and prints it as Markdown.

    python3 tests/python/speed.py model    --smollm2 target/smollm2    # total time beside a forward pass, by phases
    python3 tests/python/speed.py objective --smollm2 target/smollm2   # output errors, ranked against direct search
    python3 tests/python/speed.py oracle                               # one layer, against the numpy oracle
    python3 tests/python/speed.py scale --like llama-7b --layers 1 2 4 # time and peak memory of random models
    python3 tests/python/speed.py methods --layers 1 --windows 8 --recipes nvfp4-w4a4 fpq-w4a4 my.toml   # of one random block

Needs the release binary (and for `oracle` the release example layer_search, numpy and safetensors), and the assets
(HALFBYTE_ASSETS, default ../shared). Everything is a ratio within one run; run it on a quiet machine.
"""
import argparse, importlib.util, json, os, pathlib, resource, shutil, subprocess, sys, tempfile, time

REPO = pathlib.Path(__file__).resolve().parents[2]
ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", REPO.parent / "shared"))
TEXT = ASSETS / "data/calibration/coqa_stories.txt"
WIKITEXT = ASSETS / "data/wikitext2-test.txt"


def run(*command):
    return json.loads(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout)


def quantize(args, model, out, *options):
    return run(args.binary, "quantize", model, "--calibration", TEXT, "--out", out, *options, "--json")


def cpu_seconds():
    """Of all commands that have ended: unlike time on the clock it hardly depends on what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def costs(args, folder, scratch, *options, forward=None):
    """What each recipe, built-in or a file, costs on a model: a row a recipe, beside the seconds of a forward pass if they are given."""
    for i, recipe in enumerate(args.recipes):
        out, before = scratch / pathlib.Path(recipe).stem, cpu_seconds()
        cost = quantize(args, folder, out, "--recipe", recipe, "--calibration-windows", args.windows, *options)
        cpu = cpu_seconds() - before
        cells = {"recipe": out.name, "seconds": f"{cost['seconds']:.1f}", "CPU seconds": f"{cpu:.0f}"}
        if forward:
            cells["/ forward"] = f"{cost['seconds'] / forward:.2f}"
        cells |= {phase: f"{s:.1f}" for phase, s in cost["phases"].items()}
        cells |= {"peak MB": f"{cost['peak_rss_bytes'] / 1e6:.0f}", "predicted MB": f"{cost['peak_memory_predicted_bytes'] / 1e6:.0f}"}
        if i == 0:
            print("| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|")
        print("| " + " | ".join(cells.values()) + " |", flush=True)
        shutil.rmtree(out)


def model(args):
    with tempfile.TemporaryDirectory() as scratch:
        # A window of 512 over the same text: the forward pass over the same tokens, output layer included.
        start = time.time()
        run(args.binary, "eval", args.smollm2, "--perplexity", TEXT, "--window", 512, "--windows", args.windows,
            "--no-cache", "--json")
        forward = time.time() - start
        print(f"forward pass over {args.windows} x 512 tokens: {forward:.1f} s\n")
        costs(args, args.smollm2, pathlib.Path(scratch), forward=forward)


def objective(args):
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for search in ["ranked", "direct"]:
            out = pathlib.Path(scratch) / search
            cost = quantize(args, args.smollm2, out, "--recipe", "fpq-published", "--rounds", 1, "--search", search,
                            "--calibration-windows", args.windows, "--keep", "lm_head,embedding")
            layers = json.loads((out / "report.json").read_text())["layers"]
            value = run(args.binary, "eval", out, "--perplexity", WIKITEXT, "--window", 2048, "--windows", 2,
                        "--no-cache", "--json")["perplexity"]["value"]
            found[search] = layers, cost["seconds"], value
            print(f"{search}: {cost['seconds']:.1f} s, perplexity {value:.3f}", flush=True)
    def sums(key):
        return [sum(layer[key] for layer in found[s][0]) for s in ["ranked", "direct"]]
    for key in ["error", "relative_error"]:
        ranked, direct = sums(key)
        print(f"sum of {key} over {len(found['direct'][0])} layers: {ranked:.6g} / {direct:.6g} = {ranked / direct:.5f}")
    print(f"time: {found['direct'][1] / found['ranked'][1]:.1f} times less")


def oracle(args):
    import numpy as np
    from safetensors.numpy import save_file
    spec = importlib.util.spec_from_file_location("fpq_oracle", ASSETS / "oracle/fpq_oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    outputs, inputs, tokens = 576, 1536, 2048
    x = (rng.standard_normal((tokens, inputs)) * np.exp2(np.arange(inputs) * 5 % 7)).astype(np.float32)
    w = (0.02 * rng.standard_normal((outputs, inputs))).astype(np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        layer = pathlib.Path(scratch) / "layer.safetensors"
        save_file({"x": x, "w": w}, layer)
        ours = {s: run(args.example, "--input", layer, "--method", "fpq", "--rounds", 1, "--search", s)
                for s in ["ranked", "gram"]}
    start = time.time()
    found = module.search_linear(x, w, rounds=1)
    seconds = time.time() - start
    mse = found["mse"] if isinstance(found, dict) else found[-1]
    print(f"{outputs} x {inputs}, {tokens} tokens, one round: numpy oracle {seconds:.1f} s, error {mse:.6g}")
    for search, result in ours.items():
        print(f"{search}: {result['seconds']:.3f} s, {seconds / result['seconds']:.0f} times less, error {result['mse']:.6g}")


def scale(args):
    print("| blocks | seconds | CPU seconds | CPU seconds a block | peak MB | predicted MB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for layers in args.layers:
            folder, out = pathlib.Path(scratch) / f"model-{layers}", pathlib.Path(scratch) / f"out-{layers}"
            run(args.binary, "synth", "--like", args.like, "--layers", layers, "--out", folder, "--json")
            before = cpu_seconds()
            cost = quantize(args, folder, out, "--recipe", "fpq-w4a4", "--calibration-windows", 32, "--coverage", 0,
                            "--calibration-window", 1024, "--keep", "lm_head,embedding")
            cpu = cpu_seconds() - before
            print(f"| {layers} | {cost['seconds']:.0f} | {cpu:.0f} | {cpu / layers:.0f} | "
                  f"{cost['peak_rss_bytes'] / 1e6:.0f} | {cost['peak_memory_predicted_bytes'] / 1e6:.0f} |", flush=True)
            print("phases:", {k: round(v, 1) for k, v in cost["phases"].items()}, file=sys.stderr, flush=True)


def methods(args):
    """Of recipes on one random model; methods_md.py writes such files."""
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = pathlib.Path(scratch) / "model"
        run(args.binary, "synth", "--like", args.like, "--layers", args.layers[0], "--out", folder, "--json")
        costs(args, folder, pathlib.Path(scratch), "--coverage", 0, "--keep", "lm_head,embedding")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["model", "objective", "oracle", "scale", "methods"])
    parser.add_argument("--binary", default="target/release/halfbyte")
    parser.add_argument("--example", default="target/release/examples/layer_search")
    parser.add_argument("--smollm2", default="target/smollm2", help="the folder that smollm2_to_hf.py writes")
    parser.add_argument("--windows", type=int, default=32, help="calibration windows")
    parser.add_argument("--recipes", nargs="+", default=["fpq-w4a4"])
    parser.add_argument("--like", default="llama-7b")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--scratch", help="folder for random models (gigabytes)")
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__":
    main()
