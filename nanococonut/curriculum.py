"""What a stage does to an example. Read this third, after coconut.py; train.py comes next.

An example is a question, its reasoning steps in words, and the answer. The curriculum removes the first steps and puts
continuous thoughts where they stood, one more at each stage [Hao24 3.1]. Here `~` is a thought, `.` a pause, `*` stands
before what the loss is taken on, `'` before a step whose first tokens are gone, and the chain has three steps:

>>> for method in METHODS:
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
icot
    0 | Q *s1 *s2 *s3 *A
    1 | Q *'s1 *s2 *s3 *A
    2 | Q *'s2 *s3 *A
    3 | Q *A
pause
    0 | Q <bot> . . . <eot> *A
    1 | Q <bot> . . . <eot> *A
    2 | Q <bot> . . . <eot> *A
    3 | Q <bot> . . . <eot> *A
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
pause_as_thought
    0 | Q <bot> <eot> *s1 *s2 *s3 *A
    1 | Q <bot> . <eot> *s2 *s3 *A
    2 | Q <bot> . . <eot> *s3 *A
    3 | Q <bot> . . . <eot> *A

A stage past a chain's length removes all of it and keeps its thoughts: the number of thoughts says nothing about the
length of the chain, at test least of all. icot forgets the chain token by token instead [Deng24]: the first token goes
when stage 1 begins, the last one of the longest chain when the last stage does.
"""

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Example(NamedTuple):
    """Token ids: the question with its newline; and what is left to write when k steps are removed, at index k."""

    question: list[int]
    rests: list[list[int]]  # the last one is `### answer` alone


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
    removes: str  # "never"; "all" from the start; one more of the "steps" at each stage; "tokens" one by one


METHODS = {
    "cot": Method(None, "never"),
    "no_cot": Method(None, "all"),
    "icot": Method(None, "tokens"),
    "pause": Method("pause", "all"),
    "coconut": Method("thought", "steps"),
    "no_curriculum": Method("thought", "all"),
    "no_thought": Method(None, "steps"),
    "pause_as_thought": Method("pause", "steps"),
}
SMOOTHING = 4.0  # icot forgets j more tokens with a probability in proportion to exp(-SMOOTHING * j) [Deng24]


class Plan(NamedTuple):
    """What a method does at a moment of training, before it meets an example."""

    n_thoughts: int
    n_pauses: int
    n_removed: int | None  # steps taken from the front of the chain; None: all of them
    markers: bool  # whether <bot> and <eot> stand around what was put in
    n_tokens: int = 0  # tokens taken from the front of what is left of the chain


def plan(method, stage, max_stage, c_thought=1, chain=0, behind=0.0, extra=False, aligned=False) -> Plan:
    """The plan of a stage: c_thought fillers for each removed step, max_stage * c_thought where all steps are removed.

    chain, behind  for icot: tokens of the longest chain, and the share (0 to 1) of the stage that is over
    extra          the last stage removes what is left without adding fillers: the paper's GSM8k [Hao24 4.2]
    aligned        one filler more, once there are any: the last one then is the token that <eot> writes next

    >>> plan("coconut", stage=2, max_stage=4)
    Plan(n_thoughts=2, n_pauses=0, n_removed=2, markers=True, n_tokens=0)
    >>> plan("pause", stage=0, max_stage=4)
    Plan(n_thoughts=0, n_pauses=4, n_removed=None, markers=True, n_tokens=0)
    >>> [plan("icot", stage, 3, chain=10, behind=0.3).n_tokens for stage in (0, 1, 2)]
    [0, 2, 6]
    >>> [plan("coconut", stage, 2, c_thought=2, extra=True)[:3] for stage in (1, 2)]
    [(2, 0, 1), (2, 0, None)]
    """
    filler, removes = METHODS[method]
    assert 0 <= stage <= max_stage, (stage, max_stage)
    over = stage == max_stage
    gone = {"never": 0, "all": None, "steps": None if over and extra else stage, "tokens": None if over else 0}
    n_removed = gone[removes]
    n_tokens = 0
    if removes == "tokens" and 0 < stage < max_stage:
        # Differs from the paper of iCoT [Deng24], which takes 8 tokens an epoch and starts AdamW anew at each.
        n_tokens = 1 + math.floor((chain - 1) * (stage - 1 + behind) / (max_stage - 1))
    n_filled = c_thought * (max(0, max_stage - extra) if n_removed is None else n_removed)
    n_filled += aligned and n_filled > 0
    n_thoughts, n_pauses = n_filled * (filler == "thought"), n_filled * (filler == "pause")
    return Plan(n_thoughts, n_pauses, n_removed, filler is not None, n_tokens)


def layout(method: str, stage: int, max_stage: int, n_steps: int, c_thought: int = 1) -> str:
    """One line that shows an example of n_steps steps when a stage begins, as in the module's docstring."""
    p = plan(method, stage, max_stage, c_thought, chain=2 * n_steps)  # as if each step had two tokens
    inside = ["~"] * p.n_thoughts + ["."] * p.n_pauses
    gone = n_steps if p.n_removed is None else p.n_removed + p.n_tokens // 2
    rest = [f"*s{i + 1}" for i in range(gone, n_steps)]
    if p.n_tokens % 2:
        rest[0] = rest[0].replace("*", "*'")
    return " ".join(["Q", *(["<bot>", *inside, "<eot>"] if p.markers else []), *rest, "*A"])


def split(example: Example, plan: Plan, special: dict[str, int], rng: random.Random | None = None):
    """The two written parts (list[int], list[int]) of an example: what is before the thoughts, and what comes after.

    The second part begins with <eot>; without markers it begins with the question's last token, which then stands
    where <eot> would: the loss is always on all but the first token of the second part. With rng a plan that takes
    tokens takes some more now and then, so that the next one's absence is no surprise: "removal smoothing" [Deng24].
    """
    n_steps = len(example.rests) - 1
    rest = example.rests[n_steps if plan.n_removed is None else min(plan.n_removed, n_steps)]
    if plan.n_tokens:
        more = math.floor(rng.expovariate(SMOOTHING)) if rng else 0
        rest = rest[min(plan.n_tokens + more, len(rest) - len(example.rests[-1])) :]  # never of the answer
    rest = [*rest, special["eos"]]
    if not plan.markers:
        return example.question[:-1], [example.question[-1], *rest]
    return [*example.question, special["bot"], *[special["pause"]] * plan.n_pauses], [special["eot"], *rest]


def prompts(examples: list[Example], plan: Plan, special: dict[str, int]) -> tuple[list[list[int]], int | None]:
    """What stands before the thoughts, and the id that ends them: split() without what is to be generated."""
    if plan.markers:
        return [split(example, plan, special)[0] for example in examples], special["eot"]
    return [example.question for example in examples], None


def collate(pairs: list[tuple[list[int], list[int]]], n_thoughts: int, fill: int) -> Batch:
    """A Batch of what split() returns, padded with the id `fill`."""
    prompts, suffixes = zip(*pairs, strict=True)
    fed, targets = [s[:-1] for s in suffixes], [s[1:] for s in suffixes]
    lengths = torch.tensor([len(p) for p in prompts])
    return Batch(pad(prompts, fill), lengths, pad(fed, fill), pad(targets, -100), n_thoughts)


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Rows of ids as one right-padded int64 tensor (B, longest)."""
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=value)


def draw_stage(stage: int, mix: float, rng: random.Random) -> int:
    """The stage of one batch: an earlier one with probability mix, else the scheduled one.

    Differs from the released code, which mixes example by example and also draws later stages: one batch has one
    stage here, and so one number of thoughts.
    """
    return rng.randrange(stage) if stage > 0 and rng.random() < mix else stage
