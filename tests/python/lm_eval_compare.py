"""Compares `halfbyte eval --tasks` with PyPI `lm-eval` on the same rows: every choice, every log-probability, and the time.

    pip install -r tests/python/requirements-lm-eval.txt
    python tests/python/lm_eval_compare.py MODEL_DIR TASK_DIR --limit 200 [--tasks piqa,boolq] [--batch-size 1] \\
        [--binary target/release/halfbyte] [--threads 2] [--json FILE]

MODEL_DIR is a Hugging Face folder, TASK_DIR has NAME.jsonl. No network is used: lm-eval's own task definitions (its YAML
files and their functions) are given the local files instead of the hub's data sets. Prompts, choices, requests, scoring and
metrics are lm-eval's code throughout (`--tasks lambada` for LAMBADA, whose rows are {"text": ...}); the model is transformers in float32 on the CPU. BoolQ's rows get the field names
of SuperGLUE, which is where lm-eval takes it from (the questions are the same).

Exits with 1 unless, in every task, the log-probabilities differ by at most --tolerance (default 1e-3) and the choice is the
same in every row but at most one, which is printed with its margin. Then times are printed, by the clock and in processor
seconds: lm-eval's evaluation after the model is loaded, and the whole run of halfbyte, model loading included.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

TASKS = ["boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"]


class Clock:
    """Seconds from its making, by the clock and of the processor."""

    def __init__(self, who):
        self.who, self.start = who, self.now(who)

    @staticmethod
    def now(who):
        used = resource.getrusage(who)
        return time.perf_counter(), used.ru_utime + used.ru_stime

    def read(self):
        return [b - a for a, b in zip(self.start, self.now(self.who))]


def rows_of(task, path, limit):
    """The first rows, with the field names that lm-eval's task expects."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()][:limit]
    if task == "boolq":
        return [{"passage": r["passage"], "question": r["question"], "label": int(r["answer"])} for r in rows]
    if task == "openbookqa":
        return [{"question_stem": r.get("question_stem", r.get("question")), "choices": r["choices"],
                 "answerKey": r["answerKey"]} for r in rows]
    return rows


# Where lm-eval keeps the definition of each task.
DEFINITIONS = {
    "boolq": "super_glue/boolq/default.yaml", "piqa": "piqa/piqa.yaml", "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml", "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml", "openbookqa": "openbookqa/openbookqa.yaml",
    "lambada": "lambada/lambada_openai.yaml",
}


def local_task(name, path, limit, scratch):
    """lm-eval's task `name` with all of its own functions, reading a local file."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml
    file = pathlib.Path(scratch) / f"{name}.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows_of(name, path, limit)) + "\n")
    config = load_yaml(pathlib.Path(lm_eval.tasks.__file__).parent / DEFINITIONS[name])
    for key in ("dataset_name", "training_split", "test_split", "tag"):
        config.pop(key, None)
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": {"validation": str(file)}},
               "validation_split": "validation"}
    return ConfigurableTask(config=config)


def harness(model_dir, tasks, batch_size, threads):
    """Rows of lm-eval: task -> [(gold, [log-probabilities])], its metrics, and the seconds it took."""
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    torch.set_num_threads(threads)
    model = HFLM(pretrained=str(model_dir), dtype="float32", device="cpu", batch_size=batch_size)
    clock = Clock(resource.RUSAGE_SELF)
    out = lm_eval.evaluate(lm=model, task_dict={"tasks": tasks, "groups": {}}, log_samples=True, bootstrap_iters=0)
    seconds = clock.read()
    rows = {}
    for name, samples in out["samples"].items():
        samples = sorted(samples, key=lambda s: s["doc_id"])
        task = tasks[name]
        if task.OUTPUT_TYPE == "loglikelihood":
            # LAMBADA: one continuation, right if it is what greedy decoding gives; a wrong one counts as another choice.
            rows[name] = [(0, [float(s["filtered_resps"][0][0])], bool(s["filtered_resps"][0][1])) for s in samples]
            continue
        gold = task.doc_to_text if task.multiple_input else task.doc_to_target
        # filtered_resps holds (log-probability, greedy) of every choice.
        rows[name] = [(int(gold(s["doc"])), [float(r[0]) for r in s["filtered_resps"]]) for s in samples]
    return rows, out["results"], seconds


def ours(binary, model_dir, task_dir, tasks, limit, threads):
    with tempfile.TemporaryDirectory() as scratch:
        scores = pathlib.Path(scratch) / "scores.json"
        command = [binary, "eval", model_dir, "--tasks", ",".join(tasks), "--task-dir", task_dir, "--limit", limit,
                   "--save-scores", scores, "--no-cache", "--threads", threads, "--json"]
        clock = Clock(resource.RUSAGE_CHILDREN)
        out = subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds = clock.read()
        return json.loads(scores.read_text())["tasks"], json.loads(out)["tasks"], seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("task_dir", type=pathlib.Path)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=1, help="lm-eval's, 1 by default as in its own program")
    parser.add_argument("--binary", default="target/release/halfbyte")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--json", type=pathlib.Path, help="write what was found to this file too")
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    names = args.tasks.split(",")
    # Ours first: a mistake in the command line shows before minutes of lm-eval.
    mine, figures, our_seconds = ours(args.binary, args.model, args.task_dir, names, args.limit, args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_DATASETS_CACHE"] = scratch
        tasks = {n: local_task(n, args.task_dir / f"{n}.jsonl", args.limit, scratch) for n in names}
        theirs, metrics, their_seconds = harness(args.model, tasks, args.batch_size, args.threads)

    failed, report = False, {}
    print("| task | rows | largest difference | other choice | acc ours | lm-eval | acc_norm ours | lm-eval |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        rows, expected = mine[name]["rows"], theirs[name]
        assert len(rows) == len(expected), f"{name}: {len(rows)} rows, lm-eval has {len(expected)}"
        worst, other = 0.0, []
        for row, (gold, lls, *greedy) in zip(rows, expected):
            got = row["log_probabilities"]
            if greedy and greedy[0] != row["correct"]:
                other.append({"line": row["row"], "margin": 0.0})
            assert row["gold"] == gold and len(got) == len(lls), f"{name}, line {row['row']}: another question"
            worst = max(worst, max(abs(a - b) for a, b in zip(got, lls)))
            best = max(range(len(lls)), key=lambda i: lls[i])
            if not greedy and best != row["choice"]:
                other.append({"line": row["row"], "margin": lls[best] - lls[row["choice"]]})
        acc, norm = metrics[name]["acc,none"], metrics[name].get("acc_norm,none")
        f = figures[name]
        show = lambda v: "–" if v is None else f"{v:.4f}"
        print(f"| {name} | {len(rows)} | {worst:.1e} | {len(other)} | {show(f['acc'])} | {show(acc)} "
              f"| {show(f.get('acc_norm'))} | {show(norm)} |")
        for o in other:
            print(f"# {name}, line {o['line']}: the two best choices are {o['margin']:.1e} apart", file=sys.stderr)
        failed |= worst > args.tolerance or len(other) > 1
        # Where no choice differs the figures must be the same; acc_norm has ties of its own, so it may differ by one row.
        failed |= abs(f["acc"] - acc) > (len(other) + 1e-9) / len(rows)
        if name == "lambada":
            failed |= abs(f["perplexity"] / metrics[name]["perplexity,none"] - 1) > args.tolerance
            print(f"# lambada: perplexity {f['perplexity']:.4f}, lm-eval {metrics[name]['perplexity,none']:.4f}")
        failed |= norm is not None and abs(f["acc_norm"] - norm) > 1.0 / len(rows) + 1e-9
        report[name] = {"rows": len(rows), "largest_difference": worst, "other_choice": other, "acc": f["acc"],
                        "lm_eval_acc": acc, "acc_norm": f.get("acc_norm"), "lm_eval_acc_norm": norm}
    for what, theirs, mine in zip(["by the clock", "of the processor"], their_seconds, our_seconds):
        print(f"\n{args.threads} threads, seconds {what}: lm-eval {theirs:.1f} (batch size {args.batch_size}, model already "
              f"loaded), halfbyte {mine:.1f} in all, {theirs / mine:.2f} times as fast")
    if args.json:
        found = {"tasks": report, "lm_eval_seconds": their_seconds[0], "lm_eval_cpu_seconds": their_seconds[1],
                 "halfbyte_seconds": our_seconds[0], "halfbyte_cpu_seconds": our_seconds[1],
                 "threads": args.threads, "batch_size": args.batch_size, "limit": args.limit}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    if failed:
        raise SystemExit("they disagree")


if __name__ == "__main__":
    main()
