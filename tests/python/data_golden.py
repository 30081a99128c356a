"""Golden values of crates/data and of the metrics in crates/evaluate, from independent implementations.

    pip install -r tests/python/requirements-data.txt
    python tests/python/data_golden.py ../shared

Writes
- crates/data/tests/golden/images: drawn images in many forms, and in images.safetensors what `transformers` makes of them
  with its processors that use Pillow (`load_image`, then `...ImageProcessorPil`) for the configurations of cases.json;
- cifar10.json beside it: a few values of CIFAR-10 images under the folder given, prepared for ViT-S14-cifar10;
- encodings.json: tokens of texts and pairs by the tokenizer of MiniLM-L6-sst2 in that folder;
- glue.parquet and glue.jsonl: the same rows as the hub's data sets have them;
- crates/evaluate/tests/golden/metrics.json: figures of scikit-learn and scipy for seeded random predictions.

Prints as well how far the processors that use torchvision are from those that use Pillow.
"""
import json
import pathlib
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.stats
import sklearn.metrics
import torch
import transformers
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from transformers.image_utils import load_image

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "crates" / "data" / "tests" / "golden"
IMAGES = GOLDEN / "images"
ASSETS = pathlib.Path(sys.argv[1])


def drawing(width, height, seed):
    """Gradients, a disc with a sharp edge, noise: what tells filters apart."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / width, 255 * y / height, 127 + 127 * np.sin(x * y / 40)], -1)
    rgb[(x - width / 3) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2] = [250, 5, 128]
    return Image.fromarray(np.clip(rgb + rng.normal(0, 20, rgb.shape), 0, 255).astype(np.uint8))


def write_images():
    IMAGES.mkdir(parents=True, exist_ok=True)
    for old in IMAGES.iterdir():
        old.unlink()
    small, wide = drawing(13, 11, 1), drawing(38, 26, 2)
    alpha = Image.fromarray((np.arange(13 * 11) * 9 % 256).astype(np.uint8).reshape(11, 13))
    rgba = small.copy()
    rgba.putalpha(alpha)
    grey_alpha = small.convert("L")
    grey_alpha.putalpha(alpha)
    exif = Image.Exif()
    save = lambda image, name, **options: image.save(IMAGES / name, **options)
    save(small, "rgb.png")
    save(wide, "wide.png")
    save(wide.transpose(Image.Transpose.ROTATE_90), "tall.png")
    save(rgba, "rgba.png")
    save(grey_alpha, "grey_alpha.png")
    save(small.convert("L"), "grey.png")
    save(small.convert("1"), "one_bit.png")
    save(small.quantize(16), "palette.png", bits=4)
    save(small.quantize(200), "palette_transparent.png", transparency=3)
    save(small, "transparent_colour.png", transparency=small.getpixel((0, 0)))
    Image.fromarray((np.arange(35, dtype=np.uint16) * 1800).reshape(5, 7)).save(IMAGES / "grey_16.png")
    # Pillow does not write 16 bits a colour.
    write_png(IMAGES / "rgb_16.png", 9, 5, 16, 2, np.random.default_rng(3).integers(0, 256, (5, 9 * 6), np.uint8))
    write_png(IMAGES / "grey_2.png", 8, 5, 2, 0, np.random.default_rng(4).integers(0, 256, (5, 2), np.uint8))
    for orientation in [2, 5, 6, 7, 8]:
        exif[0x0112] = orientation
        save(small, f"turned_{orientation}.png", exif=exif)
    info = PngImagePlugin.PngInfo()
    exif[0x0112] = 6
    data = exif.tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    save(small, "turned_raw_profile.png", pnginfo=info)
    save(wide, "turned.jpg", exif=exif, quality=80)
    save(wide, "420.jpg", quality=75, subsampling="4:2:0")
    save(wide, "422_progressive.jpg", quality=60, subsampling="4:2:2", progressive=True)
    save(wide, "444.jpg", quality=90, subsampling="4:4:4")
    save(wide.convert("L"), "grey.jpg", quality=75)
    save(wide.convert("CMYK"), "cmyk.jpg", quality=75)


def write_png(path, width, height, depth, colour, rows):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    path.write_bytes(png)


def cases():
    vit = {"image_processor_type": "ViTImageProcessor", "size": {"height": 12, "width": 10}}
    plain = {"image_processor_type": "ViTImageProcessorFast", "do_resize": False, "do_normalize": False}
    # How every form is decoded: as it is, only rescaled.
    for image in sorted(IMAGES.iterdir()):
        if image.name != "grey_16.png":
            yield image.name, plain
    for resample in range(6):
        yield "wide.png", {**vit, "resample": resample}
        yield "rgb.png", {**vit, "size": {"height": 17, "width": 19}, "resample": resample}
    yield "wide.png", {**vit, "size": 14, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    yield "tall.png", {**vit, "do_rescale": False}
    yield "tall.png", {**vit, "rescale_factor": 0.01, "do_normalize": False}
    deit = {"image_processor_type": "DeiTImageProcessor", "size": {"height": 20, "width": 20}}
    yield "420.jpg", {**deit, "crop_size": {"height": 14, "width": 14}}
    yield "wide.png", {**deit, "crop_size": 15}
    bit = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 13}}
    yield "wide.png", {**bit, "crop_size": {"height": 12, "width": 12}}
    yield "tall.png", {**bit, "crop_size": {"height": 11, "width": 14}, "resample": 1}
    yield "turned.jpg", {**bit, "do_center_crop": False, "size": 16}
    yield "rgb.png", {**bit, "do_resize": False, "crop_size": {"height": 20, "width": 26}}
    yield "wide.png", {**bit, "do_resize": False, "crop_size": {"height": 33, "width": 9}}


def processor(config, backend):
    name = config["image_processor_type"].removesuffix("Fast")
    options = {k: v for k, v in config.items() if k != "image_processor_type"}
    return getattr(transformers, name + backend)(**options)


def images():
    write_images()
    listed, tensors, worst = [], {}, {}
    for i, (image, config) in enumerate(cases()):
        loaded = load_image(str(IMAGES / image))
        pil = processor(config, "Pil")(loaded, return_tensors="pt")["pixel_values"][0]
        # What is only decoded takes less room as the bytes that it is.
        plain = not config.get("do_resize", True) and not config.get("do_normalize", True)
        tensors[str(i)] = (pil * 255).round().to(torch.uint8) if plain else pil.to(torch.float32).contiguous()
        if config.get("resample", 0) < 4:
            fast = processor(config, "")(loaded, return_tensors="pt")["pixel_values"][0]
        else:
            fast = pil  # torchvision has neither box nor hamming
        listed.append({"image": image, "config": config})
        if pil.shape != fast.shape:
            print(f"{image}: torchvision makes {tuple(fast.shape)}, Pillow {tuple(pil.shape)}")
        elif config.get("do_rescale", True) and "rescale_factor" not in config:
            std = torch.tensor(processor(config, "Pil").image_std or 1) if config.get("do_normalize", True) else 1
            levels = ((pil - fast).permute(1, 2, 0) * std * 255).abs().max().item()
            key = config.get("resample", "default") if config.get("do_resize", True) else "none"
            worst[key] = max(worst.get(key, 0), levels)
    print("largest difference of torchvision from Pillow in levels of 255, by resample:", worst)
    (IMAGES / "cases.json").write_text(json.dumps(listed, indent=1) + "\n")
    save_file(tensors, IMAGES / "images.safetensors")


def cifar10():
    model = ASSETS / "models" / "ViT-S14-cifar10"
    pil = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    fast = transformers.AutoImageProcessor.from_pretrained(model, backend="torchvision")
    found, worst, total, count = [], 0.0, 0.0, 0
    std = torch.tensor(pil.image_std)
    for i, path in enumerate(sorted((ASSETS / "data" / "cifar10" / "test").glob("*/*.jpg"))):
        loaded = load_image(str(path))
        values = pil(loaded, return_tensors="pt")["pixel_values"][0]
        other = fast(loaded, return_tensors="pt")["pixel_values"][0]
        levels = ((values - other).permute(1, 2, 0) * std * 255).abs()
        worst, total, count = max(worst, levels.max().item()), total + levels.sum().item(), count + levels.numel()
        if i % 25 == 0:
            flat = values.flatten()
            at = [int(x) for x in np.random.default_rng(i).integers(0, len(flat), 24)]
            found.append({
                "image": f"{path.parent.name}/{path.name}",
                "at": at,
                "values": [float(flat[j]) for j in at],
                "sum": float(flat.double().sum()),
            })
    print(f"cifar10: torchvision differs from Pillow by {worst:.3f} levels at most, {total / count:.4f} on average")
    (GOLDEN / "cifar10.json").write_text(json.dumps(found, indent=1) + "\n")


ROWS = [
    {"sentence1": "Rain fell all night.", "sentence2": "It rained.", "label": 0, "idx": 0},
    {"sentence1": "She reads “books” every day 🙂", "sentence2": "Nobody reads here , does she ?", "label": 1, "idx": 1},
    {"sentence1": "naïve café — déjà vu", "sentence2": "12,345 unbelievablyfoobar words\twith a tab", "label": 1, "idx": 2},
]


def texts():
    schema = pa.schema([("sentence1", pa.string()), ("sentence2", pa.string()), ("label", pa.int64()), ("idx", pa.int32())])
    pq.write_table(pa.Table.from_pylist(ROWS, schema), GOLDEN / "glue.parquet", compression="snappy")
    (GOLDEN / "glue.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    tokenizer = transformers.AutoTokenizer.from_pretrained(ASSETS / "models" / "MiniLM-L6-sst2")
    long = " ".join(f"word{i} and" for i in range(300))
    pairs = [(row["sentence1"], second) for row in ROWS for second in (None, row["sentence2"])]
    pairs += [("", None), (long, None), (long, "short"), ("short", long), (long, long)]
    found = []
    for limit in [512, 16, 7]:
        for first, second in pairs:
            encoded = tokenizer(first, second, truncation=True, max_length=limit)
            entry = {"limit": limit, "first": first, "second": second}
            entry |= {"ids": encoded["input_ids"], "types": encoded["token_type_ids"]}
            # Long ones by their length and the number of tokens of the second text.
            if len(first) > 1000 or len(second or "") > 1000:
                entry["first"], entry["second"] = (t if t != long else "LONG" for t in (first, second))
                if limit == 512:
                    entry["ids"], entry["types"] = len(entry["ids"]), sum(entry["types"])
            found.append(entry)
    (GOLDEN / "encodings.json").write_text(json.dumps(found, ensure_ascii=False) + "\n")


def metrics():
    rng = np.random.default_rng(11)
    classes, scores = [], []
    for n, k, skill in [(20, 2, 0.6), (50, 2, 0.9), (40, 3, 0.5), (15, 2, 0.0), (9, 4, 1.0), (6, 2, None)]:
        gold = rng.integers(0, k, n)
        # The last has one class alone, said and right: figures that are not defined.
        found = np.where(rng.random(n) < skill, gold, rng.integers(0, k, n)) if skill is not None else np.zeros(n, int)
        average = "binary" if k == 2 else "macro"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Classes that do not occur count as well, with an F1 of 0.
            f1 = sklearn.metrics.f1_score(gold, found, average=average, labels=None if k == 2 else range(k), zero_division=0)
        classes.append({
            "classes": k, "gold": gold.tolist(), "found": found.tolist(),
            "accuracy": sklearn.metrics.accuracy_score(gold, found),
            "f1": float(f1), "matthews": float(sklearn.metrics.matthews_corrcoef(gold, found)),
        })
    for n, step in [(30, None), (40, 0.5), (7, 1.0)]:
        gold = rng.uniform(0, 5, n)
        found = gold + rng.normal(0, 1, n)
        if step:
            gold, found = np.round(gold / step) * step, np.round(found / step) * step
        scores.append({
            "gold": gold.tolist(), "found": found.tolist(),
            "pearson": scipy.stats.pearsonr(gold, found).statistic,
            "spearman": scipy.stats.spearmanr(gold, found).statistic,
        })
    path = ROOT / "crates" / "evaluate" / "tests" / "golden" / "metrics.json"
    path.write_text(json.dumps({"classes": classes, "scores": scores}) + "\n")


if __name__ == "__main__":
    images()
    cifar10()
    texts()
    metrics()
