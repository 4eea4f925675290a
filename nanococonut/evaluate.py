"""Batched, cached, greedy answers of a trained run, and how many of them are right.

Scoring is the paper's: what stands after the last "#", commas removed, must equal the answer word for word [ref
run.py]. Tokens are those written after the thoughts, <eos> not counted, plus the thoughts; pauses are not counted
[Hao24 Table 1].
The last line on stdout is JSON.
"""

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from nanococonut import coconut, config, data, runs, tokenizer
from nanococonut.config import UserError
from nanococonut.curriculum import METHODS, Example, Plan, pad, plan, split
from nanococonut.model import GPT, GPTConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """python -m nanococonut.evaluate [RUN] [--option=value ...]: how often a run is right."""

    run: str = ""  # name or path of a run; default: the newest
    split: str = "test"  # split of the run's own data
    data: str = ""  # a JSON file of problems, instead of the run's own data
    latent: tuple[int, ...] = ()  # numbers of thoughts to try; default: as many as in training
    checkpoint: str = "best"  # which checkpoint of the run
    batch_size: int = 250  # questions answered at once
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu


class Run:
    """A trained run, ready to answer."""

    def __init__(self, name: str, checkpoint: str = "best", device: str = "auto"):
        self.folder = runs.find_run(name)
        path = self.folder / ("best.pt" if checkpoint == "best" else "ckpt.pt")
        if not path.exists():
            raise UserError(f"{path} not found: the run has saved nothing yet")
        state = runs.load_state(path)
        self.config, self.stage, self.data = state["config"], state["stage"], state["data"]
        self.model = GPT(GPTConfig(**state["model_config"]))
        self.model.load_state_dict(state["model"])
        self.device = runs.pick_device(device)
        self.model.to(self.device).eval()
        self.encoding = tokenizer.load(self.data["tokenizer"], self.data["vocabulary"])
        self.special = tokenizer.special_ids(self.encoding)
        self.plan = plan(self.config["method"], self.stage, self.max_stage, self.config["c_thought"])

    @property
    def max_stage(self) -> int:
        return len(self.config["stage_steps"]) - 1

    def plan_for(self, n_thoughts: int | None) -> Plan:
        """The run's own plan, or the same with another number of thoughts, which must fit. Raises UserError."""
        if n_thoughts is None or n_thoughts == self.plan.n_thoughts:
            return self.plan
        if METHODS[self.config["method"]].filler != "thought":
            raise UserError(f"{self.folder.name} was trained with method {self.config['method']}: it has no thoughts")
        if n_thoughts < 0:
            raise UserError(f"{n_thoughts} thoughts: expected 0 or more")
        return self.plan._replace(n_thoughts=n_thoughts)


def prompts(examples: list[Example], p: Plan, special: dict[str, int]) -> tuple[list[list[int]], int | None]:
    """What stands before the thoughts, and the id that ends them: split() without what is to be generated."""
    if p.markers:
        return [split(example, p, special)[0] for example in examples], special["eot"]
    return [example.question for example in examples], None


def answer(model: GPT, examples: list[Example], p: Plan, special, max_new_tokens: int, batch_size=250, progress=False):
    """What the model writes after the thoughts, ids without eos, one list an example, in the order given."""
    rows, eot = prompts(examples, p, special)
    longest, after = max(map(len, rows)), p.n_thoughts + p.markers + max_new_tokens
    if longest + after > model.config.block_size:
        raise UserError(
            f"a question of {longest} tokens, {p.n_thoughts} thoughts and an answer do not fit into the model's "
            f"{model.config.block_size} positions; train with --block_size={longest + after} or more"
        )
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # rows of like length together: little padding
    answers = [None] * len(rows)
    training = model.training
    model.eval()
    for start in tqdm(range(0, len(rows), batch_size), desc="answers", unit="batch", disable=not progress, leave=False):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[i]) for i in chosen], device=device)
        prompt = pad([rows[i] for i in chosen], special["eos"]).to(device)
        written = coconut.generate(model, prompt, lengths, p.n_thoughts, eot, special["eos"], max_new_tokens)
        for i, ids in zip(chosen, written, strict=True):
            answers[i] = ids
    model.train(training)
    return answers


def final_answer(text: str) -> str:
    """
    >>> final_answer("Tom is a lempus.\\n### Tom is a rempus."), final_answer("<<2*3=6>>\\n### 1,200")
    ('Tom is a rempus.', '1200')
    """
    return text.rpartition("#")[2].replace(",", "").strip()


def is_right(text: str, row: dict) -> bool:
    return final_answer(text) == row["answer"].replace(",", "").strip()


def starts_with_fact(text: str, row: dict) -> bool:
    """Whether the first step written is a fact of the question: what a model can do once it looks edges up."""
    first = text.partition("\n")[0]
    return first.endswith(".") and f" {first} " in f" {row['question']} "


def wilson(n_right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share [Wilson 1927].

    >>> [round(x, 3) for x in wilson(97, 100)]
    [0.915, 0.99]
    """
    z, p = 1.959964, n_right / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


def chance(rows: list[dict]) -> float | None:
    """What guessing gets: 0.5 where each question offers two answers, unknown elsewhere."""
    return 0.5 if all(data.has_graph(row) or row["answer"] in ("True", "False") for row in rows) else None


def summary(texts: list[str], n_tokens: list[int], rows: list[dict], n_thoughts: int) -> dict:
    """Accuracy with its interval, mean number of tokens, and [right, questions] for each number of hops."""
    right = [is_right(text, row) for text, row in zip(texts, rows, strict=True)]
    hops = defaultdict(lambda: [0, 0])
    for ok, row in zip(right, rows, strict=True):
        hops[len(row["steps"])][0] += ok
        hops[len(row["steps"])][1] += 1
    low, high = wilson(sum(right), len(right))
    return {
        "accuracy": sum(right) / len(right),
        "low": low,
        "high": high,
        "tokens": sum(n_tokens) / len(n_tokens) + n_thoughts,
        "hops": {str(k): hops[k] for k in sorted(hops)},
    }


def main(c: EvaluateConfig) -> None:
    run = Run(c.run, c.checkpoint, c.device)
    if c.data:
        rows = data.read_rows(Path(c.data))
        examples = data.Split(run.encoding, rows)
    else:
        examples = data.Dataset(run.config["task"]).split(c.split)
        rows = examples.rows
    if c.batch_size < 1:
        raise UserError(f"--batch_size={c.batch_size} should be at least 1")
    name = c.data or f"data/{run.config['task']}/{c.split}.json"
    print(f"{run.folder.name} ({run.config['method']}, stage {run.stage}) on {name}, {len(rows)} questions")
    if chance(rows) is not None:
        print(f"chance {chance(rows):.1%}")
    results = []
    for n_thoughts in c.latent or (None,):
        p = run.plan_for(n_thoughts)
        if p is not run.plan:
            print(f"{p.n_thoughts} thoughts instead of the {run.plan.n_thoughts} of training (--latent)")
        todo = [examples.example(i) for i in range(len(rows))]
        ids = answer(run.model, todo, p, run.special, run.data["max_new_tokens"], c.batch_size, progress=True)
        texts = run.encoding.decode_batch(ids)
        result = summary(texts, list(map(len, ids)), rows, p.n_thoughts)
        print(
            f"{p.n_thoughts} thoughts: accuracy {result['accuracy']:.1%} (95 % interval {result['low']:.1%} to "
            f"{result['high']:.1%}), {result['tokens']:.1f} tokens; right by hops: "
            + ", ".join(f"{k}: {a}/{b}" for k, (a, b) in result["hops"].items())
        )
        results.append({"latent": p.n_thoughts, "intervene": "none", **result})
    line = {"run": run.folder.name, "data": name, "n": len(rows), "chance": chance(rows), "results": results}
    print(json.dumps(line))


if __name__ == "__main__":
    config.run(main, EvaluateConfig, choices={"split": data.SPLITS, "checkpoint": ("best", "last")})
