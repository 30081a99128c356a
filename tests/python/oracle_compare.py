"""Compares the layer search of crates/quantize with the independent oracle `fpq_oracle.py`.

    cargo build --release -p halfbyte-quantize --example BINARY
    python tests/python/oracle_compare.py --binary target/release/examples/BINARY [--layers DIR --limit 2]

The oracle (numpy alone, direct products, float32) is looked for in the folder `oracle` of HALFBYTE_ASSETS (by default
../shared beside the repository); without it the script prints SKIPPED and exits 0, or 1 where CI is set.

The layers are the seeded random ones of `random_layers`, and, with --layers, up to --limit *.safetensors files of a folder
({x [tokens, in], w [out, in]} in float32, at 4 bits; the oracle needs up to half a minute for each of those and method).
For each layer and method the binary is run as

    BINARY --input layer.safetensors --method fpq --bits 4 4 --rounds 3 --search gram

and prints one JSON object: w_format and a_format [E, M], w_bias (a row each), rho, shift (a column each; only fpq's is
read), mse, signal. A layer passes when
- both formats are the oracle's;
- rho and every w_bias are within 1e-4, or are ties: the oracle's own objective of that row or of rho, all else being what
  the oracle had at that step, is within 1e-5 of its best (two candidates can be that close, and rounding picks one);
- the shifts are what the method's formula gives for that rho (the oracle prints int((s + rho) - rho), which float32 can
  leave one too low, so they are computed anew and rounded);
- signal is within 1e-4; mse is at most 0.5 % above the oracle's, and within 0.5 % of what the oracle's functions compute
  for the printed formats and biases.
(All bounds are relative.) Some layers have a bias vector, which the oracle alone is given: it moves y and nothing else.
"""
import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np  # noqa: E402 (after the number of threads is set)
from safetensors.numpy import load_file, save_file  # noqa: E402

REPO = pathlib.Path(__file__).resolve().parents[2]
ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", REPO.parent / "shared"))
METHODS = ("minmax", "fpq_baseline", "fpq")
SAME, TIE, MSE = 1e-4, 1e-5, 5e-3
F = np.float32


def load_oracle():
    """The module fpq_oracle, or None where there is no such file."""
    path = ASSETS / "oracle/fpq_oracle.py"
    if not path.exists():
        return None
    spec = importlib.util.spec_from_file_location("fpq_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_layers(count=24):
    """Yields (name, x, w, bias or None, bits) with channels that differ as those of transformers do."""
    widths = {3: (6, 6), 7: (8, 8), 11: (4, 8), 15: (6, 6), 19: (8, 8), 21: (4, 8)}
    for i in range(count):
        rng = np.random.default_rng(1000 + i)
        tokens, inputs, outputs = (int(n) for n in rng.integers((64, 32, 24), (257, 97, 81)))
        heavy, powers, outliers, bias = i % 4 == 1, i % 2 == 0, i % 3, i % 3 == 0
        x = rng.standard_t(3, (tokens, inputs)) if heavy else rng.standard_normal((tokens, inputs))
        x *= np.exp2(rng.integers(-3, 4, inputs)) if powers else np.exp2(rng.normal(0, 1.5, inputs))
        x[:, rng.choice(inputs, outliers, replace=False)] *= rng.uniform(20, 60)
        if i == 5:
            x[:, 0] = 0  # a dead channel
        w = rng.standard_t(2, (outputs, inputs)) if heavy else rng.standard_normal((outputs, inputs))
        w *= 0.05 * np.exp2(rng.normal(0, 1, (outputs, 1)))
        name = f"{i:02}" + "".join(f" {n}" for n, on in [("heavy", heavy), ("pow2", powers), (f"{outliers} out", outliers),
                                                         ("bias", bias)] if on)
        yield name, x.astype(F), w.astype(F), rng.standard_normal(outputs).astype(F) if bias else None, widths.get(i, (4, 4))


def real_layers(folder, limit):
    """Yields up to limit captured layers, in the order of their names, at 4 bits."""
    for path in sorted(pathlib.Path(folder).glob("*.safetensors"))[:limit]:
        tensors = load_file(path)
        yield path.stem, tensors["x"].astype(F), tensors["w"].astype(F), None, (4, 4)


def run_binary(args, x, w, method, bits):
    """What the binary prints for one layer."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "layer.safetensors"
        save_file({"x": np.ascontiguousarray(x), "w": np.ascontiguousarray(w)}, path)
        command = [args.binary, "--input", path, "--method", method, "--bits", *bits, "--rounds", args.rounds,
                   "--search", args.search]
        return json.loads(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout)


def close(a, b, bound):
    """Elementwise: a is within the relative bound of b."""
    return np.abs(np.asarray(a) - b) <= bound * np.abs(b) + 1e-9


class Layer:
    """One layer under one method, evaluated with the oracle's functions."""

    def __init__(self, oracle, x, w, method):
        self.oracle, self.x, self.w, self.fpq = oracle, x, w, method == "fpq"
        self.y = x @ w.T

    def channel_bias(self, fmt, rho):
        """The activation's exponent bias: a column each for fpq, one for all otherwise."""
        if not self.fpq:
            return F(rho)
        largest = np.maximum(np.abs(self.x).max(0, keepdims=True), np.finfo(F).tiny)
        return self.oracle.channel_bias(self.oracle.bias_from_max(largest, *fmt), F(rho), fmt[0])

    def row_errors(self, a_format, rho, w_format, w_bias):
        """Mean squared output error of each row of the weight."""
        xq = self.oracle.minifloat(self.x, *a_format, self.channel_bias(a_format, rho))
        wq = self.oracle.minifloat(self.w, *w_format, np.asarray(w_bias, F)[:, None])
        return ((xq @ wq.T - self.y) ** 2).mean(0, dtype=np.float64)


def judge(layer, ours, theirs, before):
    """(what is wrong, number of ties). `before()` gives the oracle's state one round earlier: its last w_bias saw that rho."""
    wrong, ties = [], 0
    for key in ("w_format", "a_format"):
        if list(ours[key]) != theirs[key]:
            wrong.append(f"{key} {ours[key]}, oracle {theirs[key]}")
    if wrong or len(ours["w_bias"]) != len(theirs["w_bias"]):
        return wrong or [f"{len(ours['w_bias'])} rows in w_bias"], ties

    w_format, a_format = theirs["w_format"], theirs["a_format"]
    rows = np.flatnonzero(~close(ours["w_bias"], theirs["w_bias"], SAME))
    if rows.size:
        state = before()
        best, got = (layer.row_errors(state["a_format"], state["rho"], w_format, r["w_bias"])[rows] for r in (theirs, ours))
        tied = close(got, best, TIE)
        ties += int(tied.sum())
        wrong += [f"w_bias[{r}] {ours['w_bias'][r]:.6g}, oracle {theirs['w_bias'][r]:.6g}, error {g / b - 1:+.1e}"
                  for r, g, b in zip(rows[~tied], got[~tied], best[~tied])]
    if not close(ours["rho"], theirs["rho"], SAME):
        best, got = (layer.row_errors(a_format, r["rho"], w_format, theirs["w_bias"]).mean() for r in (theirs, ours))
        if close(got, best, TIE):
            ties += 1
        else:
            wrong.append(f"rho {ours['rho']:.6g}, oracle {theirs['rho']:.6g}, error {got / best - 1:+.1e}")

    if layer.fpq:
        expected = (layer.channel_bias(a_format, ours["rho"]) - F(ours["rho"]))[0].round().astype(int).tolist()
        if ours["shift"] != expected:
            wrong.append(f"shift differs in {sum(a != b for a, b in zip(ours['shift'], expected))} of {len(expected)} columns")
    signal = (layer.y ** 2).mean(dtype=np.float64)
    if not close(ours["signal"], signal, SAME):
        wrong.append(f"signal {ours['signal']:.6g}, oracle {signal:.6g}")
    if not ours["mse"] <= theirs["mse"] * (1 + MSE):
        wrong.append(f"mse {ours['mse']:.6g}, oracle {theirs['mse']:.6g}")
    recomputed = layer.row_errors(a_format, ours["rho"], w_format, ours["w_bias"]).mean()
    if not close(ours["mse"], recomputed, MSE):
        wrong.append(f"mse {ours['mse']:.6g}, but its own result has {recomputed:.6g}")
    return wrong, ties


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--layers", metavar="DIR", help="a folder of further *.safetensors files {x, w}")
    parser.add_argument("--limit", type=int, default=2, help="at most so many of them (2)")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--search", default="gram", help="passed to the binary (gram)")
    args = parser.parse_args()
    oracle = load_oracle()
    if oracle is None:
        print(f"SKIPPED: no oracle in {ASSETS / 'oracle'} (set HALFBYTE_ASSETS)")
        sys.exit(1 if os.environ.get("CI") else 0)

    if not pathlib.Path(args.binary).is_file():
        parser.error(f"there is no {args.binary}: build it first")

    layers = [*random_layers(), *(real_layers(args.layers, args.limit) if args.layers else [])]
    print(f"{'layer':24} {'T x K x N':>14} {'bits':>4} {'method':12} {'W':4} {'A':4} {'mse/signal':>10} {'vs oracle':>9} ties")
    failures = ties = rows = 0
    seconds = 0.0
    for name, x, w, bias, bits in layers:
        for method in args.methods:
            def search(rounds):
                return oracle.search_linear(x, w, bias, *bits, method, rounds)

            start = time.perf_counter()
            theirs = search(args.rounds)
            seconds += time.perf_counter() - start
            ours = run_binary(args, x, w, method, bits)
            wrong, tied = judge(Layer(oracle, x, w, method), ours, theirs, lambda: search(max(args.rounds - 1, 0)))
            failures, ties, rows = failures + bool(wrong), ties + tied, rows + len(w) + 1
            formats = ["E%dM%d" % tuple(ours[key]) for key in ("w_format", "a_format")]
            size = f"{x.shape[0]}x{x.shape[1]}x{w.shape[0]}"
            print(f"{name:24} {size:>14} {bits[0]:>2},{bits[1]} {method:12} {formats[0]:4} {formats[1]:4} "
                  f"{ours['mse'] / ours['signal']:10.6f} {ours['mse'] / theirs['mse'] - 1:+9.0e} {tied or '':>4}", flush=True)
            for line in wrong:
                print(f"    FAILED: {line}")
    print(f"{len(layers) * len(args.methods)} comparisons, {failures} failed; {ties} ties among {rows} biases; "
          f"oracle {seconds:.0f} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
