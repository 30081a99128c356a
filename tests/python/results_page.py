"""What the scripts that write docs/results.md share: the page's parts, the options of a measurement, running the binary."""
import argparse
import hashlib
import json
import os
import pathlib
import subprocess

ASSETS = pathlib.Path(os.environ.get("HALFBYTE_ASSETS", "../shared"))
# The page is results_md.py's above this line; what is below stays.
NOTES = "<!-- notes -->"
TASKS = "boolq,piqa,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa"


def run(*command):
    """What a command prints."""
    command = [str(c) for c in command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"failed with exit code {done.returncode}: {' '.join(command)}")
    return done.stdout


def run_json(*command):
    return json.loads(run(*command, "--json"))


def parser(description, work, limit, tasks=TASKS):
    """The options that the scripts have in common; `work`, `limit` and `tasks` are defaults."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=pathlib.Path, default=pathlib.Path("target/smollm2"))
    options.add_argument("--name", help="the model's name in the page [default: that of its folder]")
    options.add_argument("--work", type=pathlib.Path, default=pathlib.Path(work))
    options.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/results.md"))
    options.add_argument("--binary", default="target/release/halfbyte")
    options.add_argument("--calibration", type=pathlib.Path, default=ASSETS / "data/calibration/coqa_stories.txt")
    options.add_argument("--calibration-windows", type=int, default=32)
    options.add_argument("--text", type=pathlib.Path, default=ASSETS / "data/wikitext2-test.txt")
    options.add_argument("--window", type=int, default=2048)
    options.add_argument("--windows", type=int, default=16)
    options.add_argument("--task-dir", type=pathlib.Path, default=ASSETS / "data/tasks")
    options.add_argument("--tasks", default=tasks, help="separated by commas; empty for none")
    options.add_argument("--limit", type=int, default=limit)
    options.add_argument("--products", choices=["f32", "bf16"], default="bf16", help="of the evaluation")
    return options


def model_name(args):
    return args.name or args.model.name


def calibration(args):
    """The binary's options for calibrating."""
    return ["--calibration", args.calibration, "--calibration-windows", args.calibration_windows]


def measurement(args):
    """The binary's options for measuring."""
    options = ["--perplexity", args.text, "--window", args.window, "--windows", args.windows,
               "--cache", args.work / "cache", "--products", args.products]
    if args.tasks:
        options += ["--tasks", args.tasks, "--task-dir", args.task_dir, "--limit", args.limit]
    return options


def digest(text):
    """Of a recipe's settings; what is said about them in the file may change."""
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def protocol(args):
    """All that figures depend on beside the model and the recipe."""
    return {"calibration": args.calibration.name, "calibration_windows": args.calibration_windows, "text": args.text.name,
            "window": args.window, "windows": args.windows, "tasks": [t for t in args.tasks.split(",") if t],
            "limit": args.limit, "products": args.products}


def replace(path, text):
    """Writes a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.replace(path)
