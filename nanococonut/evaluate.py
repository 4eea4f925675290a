"""Measures how often a trained run answers correctly; the last line printed is JSON.

Tokens are the thoughts and the text after them, without <eos> and pauses [Hao24 Table 1]. A twin
has the same facts and another answer: ProsQA's asks about another person, ProntoQA's is negated.
Guessing gets a quarter of the pairs right.
"""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nanococonut import cli, data, files, prontoqa, prosqa, runs, scoring
from nanococonut.curriculum import METHODS, Plan


def mean(thoughts: Tensor) -> Tensor:
    """The mean of each thought over the problems of the batch."""
    return thoughts.mean(dim=0, keepdim=True).expand_as(thoughts)


def swap(thoughts: Tensor) -> Tensor:
    """The thoughts of another problem."""
    return thoughts.roll(1, dims=0)


def permute(thoughts: Tensor) -> Tensor:
    """The thoughts of each problem in a random order."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(thoughts.shape[:2], generator=generator).argsort(dim=1)  # (B, K)
    order = order.to(thoughts.device)[:, :, None].expand_as(thoughts)  # (B, K, C)
    return thoughts.gather(1, order)


def noise(thoughts: Tensor) -> Tensor:
    """Random vectors with the same norms as the thoughts."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(thoughts.shape, generator=generator).to(thoughts)
    return drawn / drawn.norm(dim=-1, keepdim=True) * thoughts.norm(dim=-1, keepdim=True)


INTERVENTIONS = {  # thoughts (B, K, C) -> what the model is fed instead
    "none": None,  # the thoughts themselves
    "zero": torch.zeros_like,
    "mean": mean,
    "swap": swap,
    "permute": permute,
    "noise": noise,
}
CHOICES = {"split": data.SPLITS, "intervene": tuple(INTERVENTIONS)}


@dataclass(frozen=True)
class EvaluateConfig:
    """python -m nanococonut.evaluate [RUN] [--option=value ...]: measures a run's accuracy."""

    # name or path of the run; default: the newest
    run: str = ""
    # split of the data that the run was trained on
    split: str = "test"
    # file of problems to use instead of the run's own data
    data: str = ""
    # numbers of thoughts, like 0,3,6, or auto: until the answer begins; default: as in training
    latent: str = ""
    # what the model is fed in place of its thoughts; none: the thoughts themselves
    intervene: str = "none"
    # device to run on; auto: cuda, else mps, else cpu
    device: str = "auto"


def task_of(row: dict):
    """The module that reads the graph of a row, if its words tell one."""
    return prosqa if prosqa.is_prosqa(row) else prontoqa


def twins(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Pairs of a row and its twin, for all rows that have one."""
    pairs = []
    for row in rows:
        twin = task_of(row).twin(row)
        if twin:
            pairs.append((row, twin))
    return pairs


def rules(asked: list[tuple[dict, ...]]) -> dict[str, float]:
    """How often chance and each rule get all of (problem,) or (problem, its twin) right.

    Problems whose words tell no graph are left out; {} if none remain, or if they are of several
    tasks.
    """
    points_of = []  # for each entry of asked, the points of its problems: {rule: probability}
    names = set()
    for rows in asked:
        points = [task_of(row).rule_points(row) for row in rows]
        if all(points):
            points_of.append(points)
            names.update(tuple(of_problem) for of_problem in points)
    if len(names) != 1:
        return {}
    shares = {"chance": 0.5 ** len(asked[0])}
    for rule in names.pop():
        n_right = 0
        for points in points_of:
            n_right += math.prod(of_problem[rule] for of_problem in points)
        shares[rule] = n_right / len(points_of)
    return shares


def summary(
    texts: list[str], n_tokens: list[int], rows: list[dict], n_thoughts: list[int], hidden: bool
) -> dict:
    """What is said about the texts that a run wrote for rows.

    accuracy, low, high   the share of right answers, and its 95 % interval
    tokens                mean number, with the thoughts
    hops                  {number of hops: [right, questions]}
    verdicts              {verdict: number}, of problems whose words tell a graph
    steps                 [written that match, written] of the other problems; [] without these
    thoughts              {number of hops: mean number of thoughts}, if that differs
    hidden                whether the first steps of a chain are not written, see prosqa.verdict
    """
    n = len(rows)
    n_hops = [len(row["steps"]) for row in rows]
    right = [scoring.is_right(text, row) for text, row in zip(texts, rows, strict=True)]
    n_hops_of_right = [hops for hops, is_right in zip(n_hops, right, strict=True) if is_right]
    low, high = scoring.wilson(len(n_hops_of_right), n)
    found = {
        "accuracy": len(n_hops_of_right) / n,
        "low": low,
        "high": high,
        "tokens": (sum(n_tokens) + sum(n_thoughts)) / n,
        "hops": {str(k): [n_hops_of_right.count(k), n_hops.count(k)] for k in sorted(set(n_hops))},
        "verdicts": count_verdicts(texts, rows, hidden),
        "steps": count_steps(texts, rows, hidden),
    }
    if len(set(n_thoughts)) > 1:
        found["thoughts"] = mean_thoughts(n_thoughts, n_hops)
    return found


def count_verdicts(texts: list[str], rows: list[dict], hidden: bool) -> dict[str, int]:
    """How often each verdict is given, on problems whose words tell a graph; {} without these."""
    verdicts = []
    for text, row in zip(texts, rows, strict=True):
        if prosqa.is_prosqa(row):
            verdicts.append(prosqa.verdict(text, row, hidden))
    if not verdicts:
        return {}
    return {name: verdicts.count(name) for name in prosqa.VERDICTS}


def count_steps(texts: list[str], rows: list[dict], hidden: bool) -> list[int]:
    """How many steps match the chain, and how many are written, where no verdict is given."""
    counts = []
    for text, row in zip(texts, rows, strict=True):
        if not prosqa.is_prosqa(row):
            counts.append(scoring.matching_steps(text, row, hidden))
    return [sum(column) for column in zip(*counts, strict=True)]


def mean_thoughts(n_thoughts: list[int], n_hops: list[int]) -> dict[str, float]:
    """The mean number of thoughts for each number of hops.

    >>> mean_thoughts([2, 4, 5], n_hops=[3, 3, 4])
    {'3': 3, '4': 5}
    """
    means = {}
    for hops in sorted(set(n_hops)):
        counts = [n for n, its_hops in zip(n_thoughts, n_hops, strict=True) if its_hops == hops]
        means[str(hops)] = statistics.mean(counts)
    return means


def measure(run: runs.Run, examples: data.Split, latent: str = "", intervene: str = "none"):
    """Runs a split and its twins: returns the summary, and the texts written for the split.

    latent     how many thoughts, see Run.plans_for
    intervene  what is fed in their place
    """
    ids, plans = answer_all(run, examples, latent, intervene)
    texts = run.encoding.decode_batch(ids)
    if METHODS[run.config["method"]].filler == "thought":
        hidden = plans[0].n_thoughts > 0
    else:
        hidden = plans[0].n_removed != 0
    n_thoughts = [plan.n_thoughts for plan in plans]
    result = summary(texts, list(map(len, ids)), examples.rows, n_thoughts, hidden)
    result |= measure_twins(run, examples.rows, texts, latent, intervene)
    return result, texts


def answer_all(
    run: runs.Run, split: data.Split, latent: str, intervene: str
) -> tuple[list[list[int]], list[Plan]]:
    """The ids that a run writes for each example of a split, and the plans that it follows."""
    examples = [split.example(i) for i in range(len(split))]
    plans = run.plans_for(examples, latent)
    answers = run.answer_each(examples, plans, INTERVENTIONS[intervene])
    return [answer.ids for answer in answers], plans


def measure_twins(
    run: runs.Run, rows: list[dict], texts: list[str], latent: str, intervene: str
) -> dict:
    """How often the twins of rows are answered correctly, and how often both are; {} without twins.

    texts  what the run wrote for the rows
    """
    others, right = [], []  # the twins, and whether their rows were answered correctly
    for row, text in zip(rows, texts, strict=True):
        twin = task_of(row).twin(row)
        if twin:
            others.append(twin)
            right.append(scoring.is_right(text, row))
    if not others:
        return {}
    ids, _ = answer_all(run, data.Split(run.encoding, others), latent, intervene)
    n_twin = n_both = 0
    for twin, text, is_right in zip(others, run.encoding.decode_batch(ids), right, strict=True):
        if scoring.is_right(text, twin):
            n_twin += 1
            if is_right:
                n_both += 1
    n = len(others)
    low, high = scoring.wilson(n_both, n)
    return {
        "twins": n,
        "twin": n_twin / n,
        "both": n_both / n,
        "both_low": low,
        "both_high": high,
    }


def print_header(run: runs.Run, name: str, rows: list[dict]) -> None:
    """Prints what is measured, and how many rows tell no graph, if others do."""
    where = f"{run.folder.name} ({run.config['method']}, stage {run.stage})"
    print(f"{where} on {name}, {len(rows)} questions")
    untold = []
    for row in rows:
        if not prosqa.is_prosqa(row) and prontoqa.read(row) is None:
            untold.append(row)
    is_of_prosqa = run.data["task"] == "prosqa"
    if not untold or (len(untold) == len(rows) and not is_of_prosqa):
        return
    why = f"; the first: {prosqa.why_untold(untold[0])}" if is_of_prosqa else ""
    found = f"{len(untold)} of {len(rows)} tell no graph in words that are known"
    print(f"  {found}: no rules, verdicts and twins of them{why}")


def print_rules(alone: dict[str, float], both: dict[str, float], has_twins: bool) -> None:
    """Prints how often each rule is right without a model."""
    for rule, share in alone.items():
        pairs = ""
        if has_twins:
            pairs = f"question and twin both right {both[rule]:.1%}, accuracy "
        print(f"  without a model, {rule}: {pairs}{share:.1%}")


def print_result(title: str, result: dict) -> None:
    """Prints a summary in words."""
    pairs = ""
    if "both" in result:
        interval = f"{result['both_low']:.1%} to {result['both_high']:.1%}"
        pairs = f"question and twin both right {result['both']:.1%} ({interval}); "
    interval = f"95 % interval {result['low']:.1%} to {result['high']:.1%}"
    accuracy = f"accuracy {result['accuracy']:.1%} ({interval}), {result['tokens']:.1f} tokens"
    hops = ", ".join(f"{k}: {n_right}/{n}" for k, (n_right, n) in result["hops"].items())
    print(f"{title}: {pairs}{accuracy}; right by hops: {hops}")
    if "thoughts" in result:
        means = ", ".join(f"{k}: {n:.2f}" for k, n in result["thoughts"].items())
        print(f"  thoughts by hops: {means}")
    if any(result["steps"]):
        n_matching, n_written = result["steps"]
        print(f"  steps written that match the chain: {n_matching} of {n_written}")
    verdicts = [f"{name.replace('_', ' ')} {n}" for name, n in result["verdicts"].items() if n]
    if verdicts:
        print(f"  verdicts: {', '.join(verdicts)}")


def print_mistakes(rows: list[dict], texts: list[str]) -> None:
    """Prints the first five wrong answers."""
    wrong = [i for i, row in enumerate(rows) if not scoring.is_right(texts[i], row)]
    for i in wrong[:5]:
        question, answer = rows[i]["question"][-60:], rows[i]["answer"]
        print(f"wrong, {i}: {question}  expected: {answer}  written: {texts[i]!r}")


def title_of(n_thoughts: int | str, n_trained: int, intervene: str) -> str:
    """How a summary is headed.

    >>> title_of(6, 6, "none"), title_of(0, 6, "zero")
    ('6 thoughts', '0 thoughts instead of the 6 of training, zero')
    """
    title = f"{n_thoughts} thoughts"
    if n_thoughts != n_trained:
        title += f" instead of the {n_trained} of training"
    if intervene != "none":
        title += f", {intervene}"
    return title


def most_first(latents: list[str]) -> list[str]:
    """Numbers of thoughts from the largest to the smallest; what is no number comes first.

    >>> most_first(["0", "auto", "6"])
    ['auto', '6', '0']
    """

    def size(latent: str) -> float:
        return int(latent) if latent.isdecimal() else math.inf

    return sorted(latents, key=size, reverse=True)


def main(c: EvaluateConfig) -> None:
    """Prints what a run gets right, for each number of thoughts asked for."""
    if "auto" in c.latent and c.intervene != "none":
        # Most thoughts would meet only those of equally long chains.
        advice = "leave --intervene out"
        raise cli.UserError(f"--latent=auto goes with the thoughts themselves: {advice}")
    run = runs.Run(c.run, c.device)
    if c.data:
        examples = data.Split(run.encoding, data.read_rows(Path(c.data)))
    else:
        examples = run.split(c.split)
    name = c.data or str(examples.path)
    rows = examples.rows
    unread = files.unread(rows)
    if unread:
        print(f"{name}: not read: {', '.join(unread)}")
    run.say_what_is_new([row["question"] for row in rows])
    pairs = twins(rows)
    shares = rules([(row,) for row in rows])
    shares_both = rules(pairs)
    asked = [latent.strip() for latent in c.latent.split(",")]
    measured = {}
    for latent in most_first(asked):  # if the most thoughts do not fit, nothing is printed
        measured[latent] = measure(run, examples, latent, c.intervene)
    print_header(run, name, rows)
    print_rules(shares, shares_both, has_twins=len(pairs) > 0)
    results = []
    for latent in asked:
        result, texts = measured[latent]
        n_thoughts = latent if latent == "auto" else int(latent or run.plan.n_thoughts)
        print_result(title_of(n_thoughts, run.plan.n_thoughts, c.intervene), result)
        results.append({"latent": n_thoughts, "intervene": c.intervene, **result})
    print_mistakes(rows, texts)
    line = {
        "run": run.folder.name,
        "data": name,
        "n": len(rows),
        "chance": shares.pop("chance", None),
        "chance_both": shares_both.pop("chance", None),
        "shortcuts": shares,
        "shortcuts_both": shares_both,
        "results": results,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    cli.run(main, EvaluateConfig, choices=CHOICES)
