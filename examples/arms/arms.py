#!/usr/bin/env python3
"""Trains the arms of a job file one after the other, each with the same budget, and prints a table of their answers.

    python3 arms.py sample.toml --seeds 7 8 9

An arm is the job file with further keys in `[instruct]`. All arms of a seed share the stages before Stage B. The table has the
mean over the seeds, and the largest difference from it. A second table has the retrieval of the first arm.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

ARMS = {
    "slots": "",
    "slots + numbers": "numbers = true\n",
    "windows": "windows = 8\n",
    "windows + numbers": "windows = 8\nnumbers = true\n",
    "sentences": "sentences = 3\n",
    "direct": 'mode = "direct"\n',
    "no usage contrast": "usage_every = 0\n",
}
USUAL = [arm for arm in ARMS if arm not in ("sentences", "no usage contrast")]
COLUMNS = ["exact", "numbers right", "names kept", "chrF", "held-out loss"]
RETRIEVAL = {"R@1": "r1", "R@10": "r10", "MRR": "mrr", "mean rank": "mean_rank"}
TITLES = {"direct": "direct fine-tuning", "base": "the base decoder"}


def names(text):
    """Words with a capital letter that do not begin a sentence."""
    return set(re.findall(r"(?<=[a-z,;:] )[A-Z][a-z]+", text))


def names_kept(answers, arm):
    """The share of the references' names that the answers have."""
    wanted = [(names(row["expected"]), row["answers"][arm]) for row in answers]
    total = sum(len(found) for found, _ in wanted)
    return sum(name in answer for found, answer in wanted for name in found) / total if total else None


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(llink, base, arm, seed):
    """Runs one arm. Returns a row for each way to answer that it has, its retrieval, and the decoder's tokens of a sentence."""
    text, count = re.subn(r"(?m)^seed = .*$", f"seed = {seed}", base.read_text(encoding="utf-8"))
    text, sections = re.subn(r"(?m)^\[instruct\]$", f"[instruct]\n{ARMS[arm]}", text)
    if (count, sections) != (1, 1):
        sys.exit(f"{base}: it must have one line `seed = …` and one `[instruct]`")
    job = base.with_name(f".{base.stem}-{seed}-{arm.replace(' ', '')}.toml")
    job.write_text(text, encoding="utf-8")
    try:
        subprocess.run([llink, "submit", job], check=True, stdout=sys.stderr)
    finally:
        job.unlink()
    output = base.parent / re.search(r'(?m)^output = "(.*)"$', text)[1]
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    folders = {stage["stage"]: output / stage["directory"] for stage in report["stages"]}
    answers = lines(folders["evaluate"] / "answers.jsonl")
    manifest = json.loads((folders["instruct"] / "manifest.json").read_text(encoding="utf-8"))
    metrics = next(artifact["path"] for artifact in manifest["artifacts"] if artifact["role"] == "metrics")
    validated = [line["validation"] for line in lines(output / metrics) if "validation" in line][-1]
    losses = {"zeroed": validated["sft"] + validated.get("usage_gap", 0.0), "base": None}
    rows = {}
    for way in answers[0]["answers"]:
        figures = {name: report["figures"]["evaluate"][f"answers.{way}.{name}"] for name in ("exact", "numbers", "chrf")}
        loss = losses.get(way, validated["sft"])
        row = [figures["exact"], figures["numbers"], names_kept(answers, way), figures["chrf"], loss]
        rows[f"{arm}, zeroed" if way == "zeroed" else TITLES.get(way, arm)] = row
    print(f"seed {seed}: {rows}", file=sys.stderr)
    evaluated = json.loads((folders["evaluate"] / "report.json").read_text(encoding="utf-8"))
    return rows, evaluated["retrieval"], [evaluated["figures"][f"decoder_tokens.{side}"] for side in ("english", "foreign")]


def cell(values):
    if None in values:
        return ""
    mean = statistics.fmean(values)
    spread = f" ± {max(abs(value - mean) for value in values):.3f}" if len(values) > 1 else ""
    return f"{mean:.3f}{spread}"


def table(title, columns, found):
    """Prints rows of a value for each column and seed."""
    print(f"\n| {title} | {' | '.join(columns)} |\n|{' --- |' * (title.count('|') + 1 + len(columns))}")
    for name, rows in found.items():
        print(f"| {name} | {' | '.join(cell(column) for column in zip(*rows.values()))} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("job", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=USUAL)
    parser.add_argument("--llink", default="llink-coord")
    options = parser.parse_args()
    found, retrieval, tokens = {}, {}, []
    for seed in options.seeds:
        for arm in options.arms:
            rows, ranked, spent = run(options.llink, options.job, arm, seed)
            for name, row in rows.items():
                found.setdefault(name, {})[seed] = row  # all arms of a seed have the same base decoder
            if arm == options.arms[0]:
                tokens.append(spent)
                for row in ranked:
                    values = [row[column] for column in RETRIEVAL.values()]
                    retrieval.setdefault(" | ".join([row["retriever"].replace("_", " "), row["metric"]]), {})[seed] = values
    seeds = f"seeds {', '.join(map(str, options.seeds))}"
    table(seeds, COLUMNS, found)
    table(f"{seeds}: retrieval | metric", list(RETRIEVAL), retrieval)
    english, foreign = map(statistics.fmean, zip(*tokens))
    print(f"\nThe decoder's tokenizer spends {foreign:.1f} tokens on a foreign sentence and {english:.1f} on its English translation.")


main()
