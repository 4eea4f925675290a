"""Measures how often a trained run answers correctly; the last line printed is JSON.

Tokens are the thoughts and the text after them, without <eos> and pauses [Hao24 Table 1]. A twin has the same facts and
another answer: ProsQA's asks about another person, ProntoQA's is negated. Guessing gets a quarter of the pairs right.
"""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from nanococonut import answers, config, data, graph, ontology, reading
from nanococonut.curriculum import METHODS


def permute(thoughts: torch.Tensor) -> torch.Tensor:
    """The thoughts of each problem in a random order."""
    order = torch.rand(thoughts.shape[:2], generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return thoughts.gather(1, order.to(thoughts.device)[:, :, None].expand_as(thoughts))


def noise(thoughts: torch.Tensor) -> torch.Tensor:
    """Random vectors with the same norms as the thoughts."""
    drawn = torch.randn(thoughts.shape, generator=torch.Generator().manual_seed(0)).to(thoughts)
    return drawn / drawn.norm(dim=-1, keepdim=True) * thoughts.norm(dim=-1, keepdim=True)


INTERVENTIONS = {  # thoughts (B, K, C) -> what the model is fed instead
    "none": None,  # the thoughts themselves
    "zero": torch.zeros_like,
    "mean": lambda thoughts: thoughts.mean(dim=0, keepdim=True).expand_as(thoughts),  # over the problems of the batch
    "swap": lambda thoughts: thoughts.roll(1, dims=0),  # the thoughts of another problem
    "permute": permute,
    "noise": noise,
}
CHOICES = {"split": data.SPLITS, "intervene": tuple(INTERVENTIONS)}
VERDICTS = "correct_path longer_path hallucination wrong_target correct_label incorrect_label".split()


@dataclass(frozen=True)
class EvaluateConfig:
    """python -m nanococonut.evaluate [RUN] [--option=value ...]: measures how often a run answers correctly."""

    run: str = ""  # name or path of the run; default: the newest
    split: str = "test"  # split of the data that the run was trained on
    data: str = ""  # file of problems to use instead of the run's own data
    latent: str = ""  # numbers of thoughts, like 0,3,6, or auto: until the answer begins; default: as in training
    intervene: str = "none"  # what the model is fed in place of its thoughts; none: the thoughts themselves
    device: str = "auto"  # device to run on; auto: cuda, else mps, else cpu


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of the proportion n_right / n [Wilson 1927]."""
    z, p = 1.959964, n_right / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def verdict(text: str, row: dict, hidden: bool) -> str:
    """Which of the six VERDICTS [Hao24 5.1] a text gets: its steps decide (graph.judge_chain), else its answer does.

    hidden  whether thoughts stand before the text. In place it may begin in the middle of a hidden step, and after
            more thoughts than the chain has steps it is the answer without its mark
    """
    chain, mark, _ = text.rpartition("###")
    if not mark:
        is_answer = hidden and "\n" not in text and text.startswith(graph.subject(row["idx_to_symbol"][row["root"]]))
        chain = "" if is_answer else text
    steps = chain.strip().split("\n")
    if hidden and not steps[0][:1].isupper():
        steps = steps[1:]
    if any(steps):
        return graph.judge_chain(steps, row, hidden)
    return "correct_label" if data.is_right(text, row) else "incorrect_label"


def matching_steps(text: str, row: dict) -> tuple[int, int]:
    """How many written steps are the row's, word for word, and how many are written, aligned at the answer.

    >>> row = {"steps": ["<<1+2=3>>", "<<3*2=6>>"], "answer": "6"}
    >>> matching_steps("<<1+1=2>>\\n<<3*2=6>>\\n### 6", row), matching_steps("### 6", row)
    ((1, 2), (0, 0))
    """
    written = text.rpartition("###")[0].split("\n")[:-1]
    pairs = zip(reversed(written), reversed(row["steps"]), strict=False)
    return sum(one == other for one, other in pairs), len(written)


def twins(rows: list[dict]) -> list[tuple[dict, dict]]:
    """Pairs of a row and its twin, for all rows that have one."""
    pairs = [(row, graph.twin(row) if graph.is_prosqa(row) else ontology.twin(row)) for row in rows]
    return [(row, other) for row, other in pairs if other]


def rules(asked: list[tuple[dict, ...]]) -> dict[str, float]:
    """How often chance and each rule get all of (problem,) or (problem, its twin) right.

    Problems whose words tell no graph are left out; {} if none remain, or if they are of several tasks.
    """
    points_of = [[(graph if graph.is_prosqa(row) else ontology).rule_points(row) for row in rows] for rows in asked]
    fit = [rows for rows in points_of if all(rows)]
    names = {tuple(points) for rows in fit for points in rows}
    if len(names) != 1:
        return {}
    n_right = {rule: sum(math.prod(points[rule] for points in rows) for rows in fit) for rule in names.pop()}
    return {"chance": 0.5 ** len(asked[0])} | {rule: n / len(fit) for rule, n in n_right.items()}


def summary(texts: list[str], n_tokens: list[int], rows: list[dict], n_thoughts: list[int], hidden: bool) -> dict:
    """Accuracy with confidence interval, mean number of tokens, [right, questions] per number of hops, and verdicts."""
    n_hops, n, verdicts = [len(row["steps"]) for row in rows], len(rows), {}
    won = [k for k, text, row in zip(n_hops, texts, rows, strict=True) if data.is_right(text, row)]
    hops = {str(k): [won.count(k), n_hops.count(k)] for k in sorted(set(n_hops))}
    judged = [(text, row) for text, row in zip(texts, rows, strict=True) if graph.is_prosqa(row)]
    if judged:
        found = [verdict(text, row, hidden) for text, row in judged]
        verdicts = {name: found.count(name) for name in VERDICTS}
    others = [matching_steps(text, row) for text, row in zip(texts, rows, strict=True) if not graph.is_prosqa(row)]
    steps = [sum(column) for column in zip(*others, strict=True)]  # that match, and that are written; [] for ProsQA
    (low, high), tokens = wilson(len(won), n), (sum(n_tokens) + sum(n_thoughts)) / n
    thoughts = {k: statistics.mean(t for t, its in zip(n_thoughts, n_hops, strict=True) if str(its) == k) for k in hops}
    found = dict(accuracy=len(won) / n, low=low, high=high, tokens=tokens, hops=hops, verdicts=verdicts, steps=steps)
    return found | (dict(thoughts=thoughts) if len(set(n_thoughts)) > 1 else {})


def measure(run: answers.Run, examples: data.Split, latent: str = "", intervene="none"):
    """Runs a split and its twins: returns the summary, and the texts written for the split.

    latent     how many thoughts, see Run.plans_for
    intervene  what is fed in their place
    """
    change = INTERVENTIONS[intervene]

    def written(split: data.Split):
        asked = list(map(split.example, range(len(split))))
        plans = run.plans_for(asked, latent)
        return run.answer_each(asked, plans, change), plans

    ids, plans = written(examples)
    texts = run.encoding.decode_batch(ids)
    is_thinking = METHODS[run.config["method"]].filler == "thought"
    hidden = plans[0].n_thoughts > 0 if is_thinking else plans[0].n_removed != 0
    n_thoughts = [plan.n_thoughts for plan in plans]
    result = summary(texts, list(map(len, ids)), examples.rows, n_thoughts, hidden)
    pairs = [(text, *pair) for text, row in zip(texts, examples.rows, strict=True) for pair in twins([row])]
    if pairs:
        others = data.Split(run.encoding, [twin for _, _, twin in pairs])
        twin_right = list(map(data.is_right, run.encoding.decode_batch(written(others)[0]), others.rows))
        right = [data.is_right(text, row) for text, row, _ in pairs]
        n, n_both = len(pairs), list(zip(right, twin_right, strict=True)).count((True, True))
        low, high = wilson(n_both, n)
        result |= dict(twins=n, twin=sum(twin_right) / n, both=n_both / n, both_low=low, both_high=high)
    return result, texts


def main(c: EvaluateConfig) -> None:
    if "auto" in c.latent and c.intervene != "none":  # most would meet only thoughts of equally long chains
        raise config.UserError("--latent=auto goes with the thoughts themselves: leave --intervene out")
    run = answers.Run(c.run, c.device)
    examples = data.Split(run.encoding, data.read_rows(Path(c.data))) if c.data else run.split(c.split)
    name, results = c.data or str(examples.path), []
    rows, pairs = examples.rows, twins(examples.rows)
    n_told = sum(graph.is_prosqa(row) or ontology.read(row) is not None for row in rows)
    unread = reading.unread(rows)
    if unread:
        print(f"{name}: not read: {', '.join(unread)}")
    run.say_what_is_new([row["question"] for row in rows])
    without, without_both = rules([(row,) for row in rows]), rules(pairs)
    asked = [latent.strip() for latent in c.latent.split(",")]
    # If the most thoughts do not fit, nothing is printed.
    most_first = sorted(asked, key=lambda latent: int(latent) if latent.isdecimal() else math.inf, reverse=True)
    measured = {latent: measure(run, examples, latent, c.intervene) for latent in most_first}
    print(f"{run.folder.name} ({run.config['method']}, stage {run.stage}) on {name}, {len(rows)} questions")
    if n_told < len(rows) and (n_told or run.data["task"] == "prosqa"):
        first = next(row for row in rows if not graph.is_prosqa(row) and not ontology.read(row))
        why = f"; the first: {graph.why_untold(first)}" if run.data["task"] == "prosqa" else ""
        about = f"{len(rows) - n_told} of {len(rows)} tell no graph in words that are known"
        print(f"  {about}: no rules, verdicts and twins of them{why}")
    for rule, share in without.items():
        both = f"question and twin both right {without_both[rule]:.1%}, accuracy " if pairs else ""
        print(f"  without a model, {rule}: {both}{share:.1%}")
    for latent in asked:
        result, texts = measured[latent]
        n_thoughts = int(latent or run.plan.n_thoughts) if latent != "auto" else latent
        about = "" if n_thoughts == run.plan.n_thoughts else f" instead of the {run.plan.n_thoughts} of training"
        about += f", {c.intervene}" if c.intervene != "none" else ""
        shown = "question and twin both right {both:.1%} ({both_low:.1%} to {both_high:.1%}); "
        both = shown.format(**result) if pairs else ""
        right = f"accuracy {result['accuracy']:.1%} (95 % interval {result['low']:.1%} to {result['high']:.1%})"
        hops = ", ".join(f"{k}: {n_right}/{n}" for k, (n_right, n) in result["hops"].items())
        print(f"{n_thoughts} thoughts{about}: {both}{right}, {result['tokens']:.1f} tokens; right by hops: {hops}")
        if "thoughts" in result:
            print("  thoughts by hops:", ", ".join(f"{k}: {n:.2f}" for k, n in result["thoughts"].items()))
        if any(result["steps"]):
            print("  steps written that match the chain: {} of {}".format(*result["steps"]))
        verdicts = [f"{name.replace('_', ' ')} {n}" for name, n in result["verdicts"].items() if n]
        if verdicts:
            print(f"  verdicts: {', '.join(verdicts)}")
        results.append({"latent": n_thoughts, "intervene": c.intervene, **result})
    for i in [i for i, row in enumerate(rows) if not data.is_right(texts[i], row)][:5]:
        print(f"wrong, {i}: {rows[i]['question'][-60:]}  expected: {rows[i]['answer']}  written: {texts[i]!r}")
    line = {"run": run.folder.name, "data": name, "n": len(rows), "chance": without.pop("chance", None)}
    line |= {"chance_both": without_both.pop("chance", None), "shortcuts": without, "shortcuts_both": without_both}
    print(json.dumps(line | {"results": results}))


if __name__ == "__main__":
    config.run(main, EvaluateConfig, choices=CHOICES)
