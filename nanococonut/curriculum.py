"""What a stage does to an example. Read this third, after coconut.py; train.py comes next.

An example is a question, its reasoning steps in words, and the answer. The curriculum removes the first steps and puts
continuous thoughts where they stood, one more at each stage [Hao24 3.1]. Here `~` is a thought, `*` stands before what
the loss is taken on, and the chain has three steps:

>>> for method in ("cot", "no_cot", "coconut", "no_curriculum", "no_thought", "pause", "pause_as_thought"):
...     print(method)
...     for stage in range(4):
...         print("   ", stage, "|", layout(method, stage, max_stage=3, n_steps=3))
cot
    0 | Q *s1 *s2 *s3 *A
    1 | Q *s1 *s2 *s3 *A
    2 | Q *s1 *s2 *s3 *A
    3 | Q *s1 *s2 *s3 *A
no_cot
    0 | Q *A
    1 | Q *A
    2 | Q *A
    3 | Q *A
coconut
    0 | Q <bot> <eot> *s1 *s2 *s3 *A
    1 | Q <bot> ~ <eot> *s2 *s3 *A
    2 | Q <bot> ~ ~ <eot> *s3 *A
    3 | Q <bot> ~ ~ ~ <eot> *A
no_curriculum
    0 | Q <bot> ~ ~ ~ <eot> *A
    1 | Q <bot> ~ ~ ~ <eot> *A
    2 | Q <bot> ~ ~ ~ <eot> *A
    3 | Q <bot> ~ ~ ~ <eot> *A
no_thought
    0 | Q *s1 *s2 *s3 *A
    1 | Q *s2 *s3 *A
    2 | Q *s3 *A
    3 | Q *A
pause
    0 | Q <bot> . . . <eot> *A
    1 | Q <bot> . . . <eot> *A
    2 | Q <bot> . . . <eot> *A
    3 | Q <bot> . . . <eot> *A
pause_as_thought
    0 | Q <bot> <eot> *s1 *s2 *s3 *A
    1 | Q <bot> . <eot> *s2 *s3 *A
    2 | Q <bot> . . <eot> *s3 *A
    3 | Q <bot> . . . <eot> *A

A stage past a chain's length removes all of it and keeps its thoughts: the number of thoughts says nothing about the
length of the chain, at test least of all.
"""

import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Example(NamedTuple):
    """Token ids: the question with its newline, each step with its newline, `### answer`."""

    question: list[int]
    steps: list[list[int]]
    answer: list[int]


class Batch(NamedTuple):
    """One stage, one number of thoughts, right-padded rows. Thoughts have no token: they are a number, not a tensor."""

    prompt: Tensor  # (B, P) int64
    prompt_len: Tensor  # (B,) int64
    suffix: Tensor  # (B, S) int64
    targets: Tensor  # (B, S) int64: the id to predict at suffix position j (shifted already), -100 where nothing is
    n_thoughts: int


class Method(NamedTuple):
    """A row of Table 1: what stands in place of the removed steps, and when which steps go."""

    filler: str | None  # "thought", "pause", or None: nothing, and then no <bot> <eot> either
    removes: str  # "never"; "all" from the start; "steps": one more at each stage


METHODS = {
    "cot": Method(None, "never"),
    "no_cot": Method(None, "all"),
    "pause": Method("pause", "all"),
    "coconut": Method("thought", "steps"),
    "no_curriculum": Method("thought", "all"),
    "no_thought": Method(None, "steps"),
    "pause_as_thought": Method("pause", "steps"),
}


class Plan(NamedTuple):
    """What a method does at a stage, before it meets an example."""

    n_thoughts: int
    n_pauses: int
    n_removed: int | None  # steps taken from the front of the chain; None: all of them
    markers: bool  # whether <bot> and <eot> stand around what was put in


def plan(method: str, stage: int, max_stage: int, c_thought: int = 1) -> Plan:
    """The plan of a stage: c_thought fillers for each removed step, max_stage * c_thought where all steps are removed.

    >>> plan("coconut", stage=2, max_stage=4)
    Plan(n_thoughts=2, n_pauses=0, n_removed=2, markers=True)
    >>> plan("pause", stage=0, max_stage=4)
    Plan(n_thoughts=0, n_pauses=4, n_removed=None, markers=True)
    """
    filler, removes = METHODS[method]
    assert 0 <= stage <= max_stage, (stage, max_stage)
    n_removed = {"never": 0, "all": None, "steps": stage}[removes]
    n_filled = c_thought * (max_stage if n_removed is None else n_removed)
    return Plan(n_filled * (filler == "thought"), n_filled * (filler == "pause"), n_removed, filler is not None)


def layout(method: str, stage: int, max_stage: int, n_steps: int, c_thought: int = 1) -> str:
    """One line that shows an example of n_steps steps at a stage, as in the module's docstring."""
    p = plan(method, stage, max_stage, c_thought)
    inside = ["~"] * p.n_thoughts + ["."] * p.n_pauses
    rest = [f"*s{i + 1}" for i in range(n_steps)][n_steps if p.n_removed is None else p.n_removed :]
    return " ".join(["Q", *(["<bot>", *inside, "<eot>"] if p.markers else []), *rest, "*A"])


def split(example: Example, plan: Plan, special: dict[str, int]) -> tuple[list[int], list[int]]:
    """The two written parts of an example under a plan: what comes before the thoughts, and what comes after.

    The second part begins with <eot>; without markers it begins with the question's last token, which then stands
    where <eot> would: the loss is always on all but the first token of the second part.
    """
    rest = [] if plan.n_removed is None else [token for step in example.steps[plan.n_removed :] for token in step]
    rest = [*rest, *example.answer, special["eos"]]
    if not plan.markers:
        return example.question[:-1], [example.question[-1], *rest]
    return [*example.question, special["bot"], *[special["pause"]] * plan.n_pauses], [special["eot"], *rest]


def collate(examples: list[Example], plan: Plan, special: dict[str, int]) -> Batch:
    """A Batch of examples under one plan."""
    prompts, suffixes = zip(*(split(example, plan, special) for example in examples), strict=True)
    suffix = pad([s[:-1] for s in suffixes], special["eos"])
    targets = pad([s[1:] for s in suffixes], -100)
    return Batch(
        pad(prompts, special["eos"]), torch.tensor([len(p) for p in prompts]), suffix, targets, plan.n_thoughts
    )


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Rows of ids as one right-padded int64 tensor (B, longest)."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def draw_stage(stage: int, mix: float, rng: random.Random) -> int:
    """The stage of one batch: an earlier one with probability mix, else the scheduled one.

    Differs from the released code, which mixes example by example and also draws later stages: one batch has one
    stage here, and so one number of thoughts.
    """
    return rng.randrange(stage) if stage > 0 and rng.random() < mix else stage
