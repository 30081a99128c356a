"""Holds the error feedback of `method = "scheme"` against a plain GPTQ in float64, written from arXiv 2210.17323.

    cargo build --release -p halfbyte-quantize --example layer_rounding
    python tests/python/gptq_compare.py --binary target/release/examples/layer_rounding [--layers DIR --limit 2]

The binary quantizes a layer by a recipe (BINARY IN.safetensors OUT.safetensors RECIPE.toml) and gives the values, the
scales of their groups, and the inputs as the layer sees them. GPTQ here gets the layer, scheme, scales and damping, and
computes codes of its own: H = 2 X^T X is damped and inverted, columns are rounded in order, and the error of each over its
pivot is spread over the later ones by the upper Cholesky factor of the inverse (algorithm 1 of the paper, one column at a
time). With `correct` the weight is first replaced by the ridge regression of the full-precision output on the seen inputs,
W' = W - W D (G + L)^-1, D = Xq^T Xq - X^T Xq. No line is taken from the Rust code, whose formulation is another (the
factor of H itself, never inverted; blocks of 64 columns).

The damping L that the recipe's figure d stands for is d (diag + 1e-4 mean diag). With act_order columns go by descending
diagonal of Xq^T Xq.

Our arithmetic is float32: where a value is next to the middle between two codes, the two may round differently, and a row
then goes its own way. So every code of ours is judged given our own codes before it: its distance beyond the middle to the
next code, as a share of the largest number of the grid, must be within --margin. Printed besides: codes that differ in runs of their
own, rows they are in, the relative output error of both, and that of rounding to nearest with the same scales.

The layers are seeded random ones, and with --layers up to --limit *.safetensors files {x, w} of a folder.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np  # noqa: E402 (after the number of threads is set)
from safetensors.numpy import load_file, save_file  # noqa: E402

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3 = np.array([m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)][:-1])
GRIDS = {
    "e2m1": np.unique(np.concatenate([-E2M1, E2M1])),
    "int4": np.arange(-7.0, 8),
    "int8": np.arange(-127.0, 128),
    "e4m3fn": np.unique(np.concatenate([-E4M3, E4M3])),
}
# Scheme of the weight, of the input, rule of the scales, damping, act order.
CASES = [
    ("e2m1/group16/e4m3", None, "sweep", 0.01, True),
    ("e2m1/group16/e4m3", None, "four-over-six", 0.01, False),
    ("e2m1/group16/e4m3", "e2m1/group16/e4m3/dynamic", "weighted", 0.1, True),
    ("e2m1/group32/e8m0", None, "absmax", 0.03, False),
    ("e2m1/group32/e8m0", "e2m1/group32/e8m0/dynamic", "weighted", 0.3, True),
    ("int4/group32", None, "absmax", 0.01, True),
    ("int8/channel", "int8/channel/dynamic", "absmax", 0.1, True),
    ("e4m3fn/channel", None, "absmax", 0.01, False),
    ("e4m3fn/tensor", None, "absmax", 0.1, True),
]


def random_layers(count=6):
    """Yields (name, x, w): correlated channels of different magnitudes, heavy tails, outliers."""
    for i in range(count):
        rng = np.random.default_rng(2000 + i)
        tokens, inputs, outputs = int(rng.integers(200, 500)), 32 * int(rng.integers(2, 6)), int(rng.integers(8, 48))
        mixing = rng.standard_normal((inputs, inputs)) / inputs**0.5 + np.eye(inputs)
        x = rng.standard_t(4, (tokens, inputs)) @ mixing * np.exp2(rng.normal(0, 1.5, inputs))
        x[:, rng.choice(inputs, i % 3, replace=False)] *= 20
        w = 0.05 * rng.standard_t(4, (outputs, inputs)) * np.exp2(rng.normal(0, 1, (outputs, 1)))
        yield f"random {i}", x.astype(np.float32), w.astype(np.float32)


def recipe(scheme, inputs, scales, damping, act_order):
    """A recipe file."""
    bits = {"e2m1": 4, "int4": 4, "int8": 8, "e4m3fn": 8}
    lines = ["method = 'scheme'", f"weight_scheme = '{scheme}'", f"weight_bits = {bits[scheme.split('/')[0]]}",
             f"activation_bits = {bits[inputs.split('/')[0]] if inputs else 16}", "embedding_bits = 16",
             f"scales = '{scales}'", f"damping = {damping}", f"act_order = {str(act_order).lower()}", "feedback = true",
             f"correct = {str(inputs is not None).lower()}", "products = 'f32'", "sample_tokens = 100000"]
    return "\n".join(lines + ([f"input_scheme = '{inputs}'"] if inputs else [])) + "\n"


def nearest(grid, u):
    """The grid's numbers nearest to u."""
    at = np.clip(np.searchsorted((grid[1:] + grid[:-1]) / 2, u), 0, len(grid) - 1)
    return grid[at]


def beyond(grid, u, code):
    """How far u lies beyond the middle between `code` and its neighbour on that side, as a share of the grid's largest; 0 if not."""
    at = np.searchsorted(grid, code)
    up, down = np.minimum(at + 1, len(grid) - 1), np.maximum(at - 1, 0)
    above, below = grid[up] - code, code - grid[down]
    over = np.where(above > 0, u - code - above / 2, 0)
    under = np.where(below > 0, code - u - below / 2, 0)
    return np.maximum(0, np.maximum(over, under)) / grid[-1]


def same(a, b, scales):
    """Whether float32 and float64 mean the same number of a grid."""
    return np.abs(a - b) <= 1e-6 * (np.abs(b) + scales)


def gptq(w, hessian, order, scales, grid, given=None):
    """(values, distances beyond the middle); rounds w [out, in], or follows the values `given` and judges them."""
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T  # inverse = upper^T upper
    w, scales = w[:, order].copy(), scales[:, order]
    q, distances = np.zeros_like(w), np.zeros_like(w)
    for i in range(w.shape[1]):
        u = w[:, i] / scales[:, i]
        code = nearest(grid, u) if given is None else nearest(grid, given[:, order[i]] / scales[:, i])
        q[:, i], distances[:, i] = code * scales[:, i], beyond(grid, u, code)
        error = (w[:, i] - q[:, i]) / upper[i, i]
        w[:, i:] -= np.outer(error, upper[i, i:])
    back = np.argsort(order)
    return q[:, back], distances[:, back]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--layers", metavar="DIR", help="a folder of further *.safetensors files {x, w}")
    parser.add_argument("--limit", type=int, default=2, help="at most so many of them (2)")
    parser.add_argument("--margin", type=float, default=1e-4, help="of a tie, as a share of the grid's largest (0.0001)")
    args = parser.parse_args()
    layers = list(random_layers())
    for path in sorted(pathlib.Path(args.layers).glob("*.safetensors"))[: args.limit] if args.layers else []:
        tensors = load_file(path)
        layers.append((path.stem.removeprefix("model.layers."), tensors["x"], tensors["w"]))

    print(f"{'layer':18} {'scheme':20} {'inputs':6} {'scales':13} {'damping':>7} {'nearest':>8} {'feedback':>8} "
          f"{'ours':>8} {'differ':>7} {'rows':>4} {'beyond':>7}")
    failed = codes = differing = ties = 0
    worst = 0.0
    for name, x, w in layers:
        for scheme, inputs, rule, damping, act_order in CASES:
            with tempfile.TemporaryDirectory() as folder:
                folder = pathlib.Path(folder)
                save_file({"x": np.ascontiguousarray(x), "w": np.ascontiguousarray(w)}, folder / "layer.safetensors")
                (folder / "recipe.toml").write_text(recipe(scheme, inputs, rule, damping, act_order))
                out = subprocess.run([args.binary, folder / "layer.safetensors", folder / "out.safetensors", folder / "recipe.toml"],
                                     check=True, stdout=subprocess.PIPE)
                printed = json.loads(out.stdout)
                ours = {key: value.astype(np.float64) for key, value in load_file(folder / "out.safetensors").items()}
            full, seen, weight = x.astype(np.float64), ours["seen"], w.astype(np.float64)
            grid = GRIDS[scheme.split("/")[0]]
            scales = np.repeat(ours["scales"], w.shape[1] // ours["scales"].shape[1], axis=1)
            gram = seen.T @ seen
            diagonal = gram.diagonal()
            damped = gram + np.diag(damping * (diagonal + 1e-4 * diagonal.mean()))
            order = np.argsort(-diagonal, kind="stable") if act_order else np.arange(len(diagonal))
            target = weight
            if inputs:
                target = weight - np.linalg.solve(damped, (gram - full.T @ seen).T @ weight.T).T
            theirs, _ = gptq(target, damped, order, scales, grid)
            followed, distances = gptq(target, damped, order, scales, grid, ours["q"])

            def error(q):
                return ((full @ weight.T - seen @ q.T) ** 2).mean() / ((full @ weight.T) ** 2).mean()

            different = ~same(theirs, ours["q"], scales)
            on_grid = same(followed, ours["q"], scales).all()
            told = abs(printed["error"] / printed["signal"] / error(ours["q"]) - 1) < 1e-3
            wrong = not on_grid or not told or distances.max() > args.margin
            failed, codes, differing = failed + wrong, codes + w.size, differing + int(different.sum())
            ties, worst = ties + int((distances > 0).sum()), max(worst, distances.max())
            print(f"{name:18} {scheme:20} {'same' if inputs else '16':6} {rule:13} {damping:7} "
                  f"{error(nearest(grid, weight / scales) * scales):8.5f} {error(theirs):8.5f} {error(ours['q']):8.5f} "
                  f"{different.sum():7} {different.any(axis=1).sum():4} {distances.max():7.0e}"
                  f"{'' if on_grid else ' NOT ON THE GRID'}{'' if told else ' ERROR MISREPORTED'}{' FAILED' if wrong else ''}", flush=True)
    print(f"{len(layers) * len(CASES)} comparisons, {failed} failed; {codes} codes, {ties} ties (at most {worst:.1e} of the range beyond the "
          f"middle), after which {differing} codes differ")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
