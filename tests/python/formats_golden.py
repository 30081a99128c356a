"""Golden values of the element formats, from the independent implementation in ml_dtypes.

Writes crates/formats/tests/golden/ml_dtypes.csv, which the test `golden` of halfbyte-formats reads.

    pip install ml_dtypes==0.6.0 numpy==2.4.6
    python tests/python/formats_golden.py            # write the file
    python tests/python/formats_golden.py --check    # compute it again and compare

Lines: `code,<element>,<hex code>,<hex bits of its f32 value>` for every finite code of a format, and
`round,<element>,<hex bits of an f32>,<hex bits of its nearest value>` for values to be rounded: midpoints, their
neighbours, and seeded random values, all within the range that both implementations define. `e8m0` lines hold the
powers of two of float8_e8m0fnu. Not compared: Inf and NaN codes, the range beyond the largest finite value of
ml_dtypes, and the sign of zero, which halfbyte always makes +0.
"""
import argparse
import pathlib
import sys

import ml_dtypes
import numpy as np

FORMATS = {
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
PATH = pathlib.Path(__file__).parents[2] / "crates" / "formats" / "tests" / "golden" / "ml_dtypes.csv"


def bits(x):
    return f"{np.float32(x).view(np.uint32):08x}"


def lines():
    rng = np.random.default_rng(20240817)
    for name, dtype in FORMATS.items():
        width = 1 + int(name[1]) + int(name[3])
        codes = np.arange(2**width, dtype=np.uint8)
        values = codes.view(dtype).astype(np.float32)
        for code, value in zip(codes, values):
            if np.isfinite(value):
                yield f"code,{name},{code:02x},{bits(value)}"

        table = np.unique(np.abs(values[np.isfinite(values)]))
        middle = (table[1:] + table[:-1]) / np.float32(2)
        up, down = np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(0))
        random = rng.uniform(0, table[-1], 30).astype(np.float32)
        # Near enough evenly spread over the exponents. numpy's exp2 would give other last bits with AVX-512 than without.
        low, high = np.array([table[1] / 4, table[-1]], np.float32).view(np.uint32)
        small = rng.integers(low, high, 30, dtype=np.uint32).view(np.float32)
        x = np.concatenate([middle, up, down, random, small])
        x = np.where(np.arange(len(x)) % 2 == 0, x, -x).astype(np.float32)
        for a, q in zip(x, x.astype(dtype).astype(np.float32)):
            # Adding 0 turns -0 into +0.
            yield f"round,{name},{bits(a)},{bits(q + np.float32(0))}"

    # 2^-127 is left out: as an f32 it is subnormal, and halfbyte does not use it as a scale.
    for code in range(1, 255):
        value = np.array([code], np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)[0]
        yield f"code,e8m0,{code:02x},{bits(value)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file instead of writing it")
    text = "".join(line + "\n" for line in lines())
    if parser.parse_args().check:
        if PATH.read_text() != text:
            sys.exit(f"{PATH.name} differs from what ml_dtypes {ml_dtypes.__version__} gives")
        print(f"{PATH.name}: {text.count(chr(10))} lines agree with ml_dtypes {ml_dtypes.__version__}")
    else:
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(text)
        print(f"{PATH.name}: {len(text)} bytes")


if __name__ == "__main__":
    main()
