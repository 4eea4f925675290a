"""Batched, cached, greedy answers of a trained run, and how many of them are right; the last line printed is JSON.

Scoring is the paper's: what stands after the last "#", commas removed, must equal the answer word for word [ref
run.py]. Tokens are those written after the thoughts, <eos> not counted, plus the thoughts; pauses are not counted
[Hao24 Table 1]. What is written before the answer to a ProsQA question gets one of six verdicts [Hao24 5.1], and beside
the accuracy stands what one gets without a model: chance, and shortcuts that look at the graph but not for a path.
"""

import json
import math
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanococonut import coconut, config, data, runs, tokenizer
from nanococonut.curriculum import METHODS, Example, Plan, pad, plan, split
from nanococonut.model import GPT, GPTConfig


def permute(thoughts: torch.Tensor) -> torch.Tensor:
    order = torch.rand(thoughts.shape[:2], generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return thoughts.gather(1, order.to(thoughts.device)[:, :, None].expand_as(thoughts))


def noise(thoughts: torch.Tensor) -> torch.Tensor:
    drawn = torch.randn(thoughts.shape, generator=torch.Generator().manual_seed(0)).to(thoughts)
    return drawn / drawn.norm(dim=-1, keepdim=True) * thoughts.norm(dim=-1, keepdim=True)


INTERVENTIONS = {  # thoughts (B, K, C) -> what is fed in their place
    "none": lambda thoughts: thoughts,
    "zero": torch.zeros_like,
    "mean": lambda thoughts: thoughts.mean(dim=0, keepdim=True).expand_as(thoughts),  # over the problems of the batch
    "swap": lambda thoughts: thoughts.roll(1, dims=0),  # another problem's
    "permute": permute,  # the problem's own in another order
    "noise": noise,  # random directions of the same length
}
CHOICES = {"split": data.SPLITS, "intervene": tuple(INTERVENTIONS)}


@dataclass(frozen=True)
class EvaluateConfig:
    """python -m nanococonut.evaluate [RUN] [--option=value ...]: how often a run is right."""

    run: str = ""  # name or path of a run; default: the newest
    split: str = "test"  # split of the run's own data
    data: str = ""  # a JSON file of problems, instead of the run's own data
    hard: bool = False  # ProsQA: with another false option, as far from every person as there is one
    latent: tuple[int, ...] = ()  # numbers of thoughts to try; default: as many as in training
    intervene: str = "none"  # what is fed in place of the thoughts
    batch_size: int = 250  # questions answered at once
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu


class Run:
    """A trained run, ready to answer."""

    def __init__(self, name: str, device: str = "auto"):
        self.folder = runs.find_run(name)
        state = runs.load_state(self.folder / "best.pt")
        self.stage, self.data = state["stage"], state["data"]
        self.config = c = asdict(config.TrainConfig()) | state["config"]  # an option that it lacks had its default
        self.device = runs.pick_device(device)
        self.model = GPT(GPTConfig(**state["model_config"])).to(self.device).eval()
        self.model.load_state_dict(state["model"])
        self.encoding = tokenizer.load(self.data["tokenizer"], self.data["vocabulary"])
        self.special = tokenizer.special_ids(self.encoding)
        last, extras = len(c["stage_steps"]) - 1, dict(extra=c["extra_stage"], aligned=c["aligned"])
        self.plan = plan(c["method"], self.stage, last, c["c_thought"], **extras)

    def split(self, name: str) -> data.Split:
        """A split of the data the run was trained on. Raises UserError where that has changed since."""
        dataset = data.Dataset(self.config["task"])
        dataset.demand_unchanged(f"runs/{self.folder.name}", self.data["sha256"])
        return dataset.split(name)

    def plan_for(self, n_thoughts: int | None) -> Plan:
        """The run's own plan, or the same with another number of thoughts. Raises UserError."""
        if n_thoughts in (None, self.plan.n_thoughts):
            return self.plan
        if n_thoughts < 0 or METHODS[self.config["method"]].filler != "thought":
            about = f"{self.folder.name} was trained with method {self.config['method']}"
            raise config.UserError(f"--latent={n_thoughts}: expected 0 or more, and a run with thoughts; {about}")
        return self.plan._replace(n_thoughts=n_thoughts)


def prompts(examples: list[Example], p: Plan, special: dict[str, int]) -> tuple[list[list[int]], int | None]:
    """What stands before the thoughts, and the id that ends them: split() without what is to be generated."""
    if p.markers:
        return [split(example, p, special)[0] for example in examples], special["eot"]
    return [example.question for example in examples], None


def answer(model: GPT, examples, p: Plan, special, max_new_tokens: int, batch_size=250, change=None) -> list[list[int]]:
    """What the model writes after the thoughts, ids without eos, one list an example, in the order given."""
    rows, eot = prompts(examples, p, special)
    room, need = model.config.block_size, max(map(len, rows)) + p.n_thoughts + p.markers + max_new_tokens
    if need > room:
        raise config.UserError(f"{need} tokens exceed the model's {room} positions; train with --block_size={need}")
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # rows of like length together: little padding
    answers, training, device = {}, model.training, model.wte.weight.device
    model.eval()
    for start in range(0, len(rows), batch_size):
        chosen = order[start : start + batch_size]
        lengths = torch.tensor([len(rows[i]) for i in chosen], device=device)
        prompt = pad([rows[i] for i in chosen], special["eos"]).to(device)
        written = coconut.generate(model, prompt, lengths, p.n_thoughts, eot, special["eos"], max_new_tokens, change)
        answers |= zip(chosen, written, strict=True)
    model.train(training)
    return [answers[i] for i in range(len(rows))]


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


VERDICTS = ("correct_path", "longer_path", "hallucination", "wrong_target", "correct_label", "incorrect_label")


def verdict(text: str, row: dict, hidden: bool) -> str:
    """Which of the six VERDICTS [Hao24 5.1] a text gets; hidden: its first steps were thoughts, so it may begin later.

    A chain whose beginning is hidden counts by the best beginning there is: the shortest path to its first word.

    >>> row = {"edges": [[0, 2], [2, 3], [2, 4], [4, 3]], "idx_to_symbol": ["Tom", "Max", "lempus", "rempus", "impus"],
    ...        "root": 0, "target": 3, "neg_target": 1, "answer": "Tom is a rempus."}
    >>> verdict("Tom is a lempus.\\nEvery lempus is a rempus.\\n### Tom is a rempus.", row, hidden=False)
    'correct_path'
    >>> verdict("Tom is a rempus.\\n### Tom is a rempus.", row, False), verdict("### Tom is a impus.", row, True)
    ('hallucination', 'incorrect_label')
    """
    head, mark, tail = text.rpartition("###")
    steps = (head if mark else tail).strip().split("\n")
    if steps == [""]:
        return "correct_label" if is_right(text, row) else "incorrect_label"
    names, from_root = row["idx_to_symbol"], data.distances(row["edges"], row["root"])
    facts = {data.fact(names, a, b): [a, b] for a, b in row["edges"]}
    edges = [facts.get(step) for step in steps]
    follows = all(edges) and all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))
    if not follows or edges[0][0] not in (from_root if hidden else [row["root"]]):
        return "hallucination"
    if edges[-1][1] != row["target"]:
        return "wrong_target"
    shortest = from_root[edges[0][0]] + len(edges) == from_root[row["target"]]
    return "correct_path" if shortest else "longer_path"


def baselines(rows: list[dict]) -> dict[str, float]:
    """How often one is right without a model: chance, where there are two answers, and rules that look for no path.

    ProntoQA: see mentions(). Of ProsQA's two options: the one that no other person reaches within two steps, the one
    with more ancestors, the one farther from its nearest person; where a rule cannot tell, half is counted.
    """
    graphs = all(map(data.has_graph, rows))
    found = {"chance": 0.5} if graphs or all(row["answer"] in ("True", "False") for row in rows) else {}
    if all(row["question"].rpartition(". ")[2].startswith("True or false: ") for row in rows):
        return found | {"more often mentioned concept": sum(map(mentions, rows)) / len(rows)}
    if not graphs:
        return found
    won = {"no other person within 2 steps back": 0.0, "more ancestors": 0.0, "farther from the nearest person": 0.0}
    for row in rows:
        scores = []
        for option in (row["target"], row["neg_target"]):
            above = data.distances([[b, a] for a, b in row["edges"]], option)  # of every ancestor
            persons = {v: d for v, d in above.items() if row["idx_to_symbol"][v][0].isupper()}
            alone = all(d > 2 or v == row["root"] for v, d in persons.items())
            scores.append((alone, len(above), min(persons.values(), default=math.inf)))
        for rule, right, wrong in zip(won, *scores, strict=True):
            won[rule] += (right > wrong) + (right == wrong) / 2
    return found | {rule: n / len(rows) for rule, n in won.items()}


def mentions(row: dict) -> float:
    """1 where ProntoQA's answer is what is said of the concept that the question names more often; a tie is a half.

    Two sentences are about the property asked for, one of them planted; the concept on the chain has more links.
    """
    *facts, query = row["question"].split(". ")
    asked = query.rstrip(".").split()[-1]
    said = {fact: " not " in fact for fact in facts if fact.split()[-1] == asked}
    stems = {fact: re.sub(r"^(every|each) |(us)es are .*| is .*", r"\2", fact.lower()) for fact in said}
    counts = {fact: len(re.findall(rf"\b{stem}(?:es)?\b", row["question"].lower())) for fact, stem in stems.items()}
    most = [fact for fact, n in counts.items() if n == max(counts.values())]
    right = [str(said[fact] == (" not " in query)) == row["answer"] for fact in most]
    return sum(right) / len(right) if right else 0.5


def summary(texts: list[str], n_tokens: list[int], rows: list[dict], n_thoughts: int, hidden: bool) -> dict:
    """Accuracy with its interval, mean number of tokens, [right, questions] for each number of hops, and verdicts."""
    n_hops = [len(row["steps"]) for row in rows]
    won = [n for n, text, row in zip(n_hops, texts, rows, strict=True) if is_right(text, row)]
    hops = {str(n): [won.count(n), n_hops.count(n)] for n in sorted(set(n_hops))}
    found = [verdict(*pair, hidden) for pair in zip(texts, rows, strict=True)] if all(map(data.has_graph, rows)) else []
    verdicts = {name: found.count(name) for name in VERDICTS if found}
    (low, high), tokens = wilson(len(won), len(rows)), sum(n_tokens) / len(rows) + n_thoughts
    return dict(accuracy=len(won) / len(rows), low=low, high=high, tokens=tokens, hops=hops, verdicts=verdicts)


def measure(run: Run, examples: data.Split, p: Plan, batch_size=250, intervene="none") -> tuple[dict, list[str]]:
    """The summary of a run's answers to a split under a plan, and the answers in words."""
    change = None if intervene == "none" else INTERVENTIONS[intervene]
    todo = [examples.example(i) for i in range(len(examples))]
    ids = answer(run.model, todo, p, run.special, run.data["max_new_tokens"], batch_size, change)
    texts = run.encoding.decode_batch(ids)
    hidden = p.n_thoughts > 0 if METHODS[run.config["method"]].filler == "thought" else p.n_removed != 0
    return summary(texts, list(map(len, ids)), examples.rows, p.n_thoughts, hidden), texts


def main(c: EvaluateConfig) -> None:
    run = Run(c.run, c.device)
    config.demand(c, "batch_size", lambda n: n >= 1, "at least 1")
    examples = data.Split(run.encoding, data.read_rows(Path(c.data))) if c.data else run.split(c.split)
    name, results = c.data or f"data/{run.config['task']}/{c.split}.json", []
    if c.hard:
        config.demand(c, "hard", lambda _: examples.graphs, f"false: the problems of {name} have no graph")
        rng, name = random.Random(0), f"{name}, hard"
        examples = data.Split(run.encoding, [data.tell(data.harder(row, rng), rng) for row in examples.rows])
    rows, without = examples.rows, baselines(examples.rows)
    print(f"{run.folder.name} ({run.config['method']}, stage {run.stage}) on {name}, {len(rows)} questions")
    for rule, share in without.items():
        print(f"  without a model, {rule}: {share:.1%}")
    for n_thoughts in c.latent or (None,):
        p = run.plan_for(n_thoughts)
        result, texts = measure(run, examples, p, c.batch_size, c.intervene)
        about = f" instead of the {run.plan.n_thoughts} of training" * (p is not run.plan)
        about += f" ({c.intervene})" * (c.intervene != "none")
        found = "{accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}), {tokens:.1f} tokens".format(**result)
        hops = ", ".join(f"{k}: {a}/{b}" for k, (a, b) in result["hops"].items())
        print(f"{p.n_thoughts} thoughts{about}: accuracy {found}; right by hops: {hops}")
        if counts := ", ".join(f"{v.replace('_', ' ')} {n}" for v, n in result["verdicts"].items() if n):
            print(f"  verdicts: {counts}")
        results.append({"latent": p.n_thoughts, "intervene": c.intervene, **result})
    for i in [i for i, row in enumerate(rows) if not is_right(texts[i], row)][:5]:
        print(f"wrong, {i}: {rows[i]['question'][-60:]}  expected: {rows[i]['answer']}  written: {texts[i]!r}")
    line = {"run": run.folder.name, "data": name, "n": len(rows), "chance": without.pop("chance", None)}
    print(json.dumps(line | {"shortcuts": without, "results": results}))


if __name__ == "__main__":
    config.run(main, EvaluateConfig, choices=CHOICES)
