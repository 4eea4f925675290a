"""What a training step learns from: its stage, and its problems, drawn, augmented and padded.

The examples of a step, and their words, depend only on the seed, the step and the schedule.
"""

import bisect
import itertools
import random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanococonut import curriculum, icot
from nanococonut.coconut import NOTHING, Batch
from nanococonut.config import TrainConfig
from nanococonut.data import Split

RANDOM_QUESTIONS = 0.5  # of several questions about a graph, the share of random ones (ours)


class Schedule:
    """The stage that each training step belongs to, and what each stage does to an example."""

    def __init__(self, c: TrainConfig, longest: dict[str, int]):
        self.c = c
        self.longest = longest  # lengths in tokens of the longest question, chain and rest
        self.set_steps(c.schedule)
        self.total = self.ends[-1]
        self.last = max(stage for stage, n in enumerate(self.n_steps) if n)  # that has steps
        self.plans = [self.plan(stage) for stage in range(len(self.n_steps))]  # as each begins
        self.max_new_tokens = longest["rest"] + 8  # an answer may be longer than those in the data
        # The longest sequence: a question, thoughts or pauses between two markers, an answer.
        n_fillers = max(plan.n_fillers for plan in self.plans)
        self.n_positions = longest["question"] + n_fillers + 2 + self.max_new_tokens

    def plan(self, stage: int, progress: float = 0.0) -> curriculum.Plan:
        """The plan of a stage after a share `progress` of it."""
        c, max_stage = self.c, len(self.n_steps) - 1
        in_place = c.layout == "in_place"
        plan = curriculum.plan_of(c.method, stage, max_stage, c.c_thought, c.extra_stage, in_place)
        if curriculum.METHODS[c.method].removes != "tokens":  # only icot's do
            return plan
        n_tokens = icot.n_removed_tokens(stage, max_stage, self.longest["chain"], progress)
        return plan._replace(n_tokens=n_tokens)

    def locate(self, step: int) -> tuple[int, int]:
        """The stage of a step, and the number of steps before it in that stage."""
        stage = bisect.bisect_right(self.ends, step)
        return stage, step - (self.ends[stage] - self.n_steps[stage])

    def span(self, step: int) -> tuple[int, int]:
        """Steps behind, and steps in all, of what the learning rates follow.

        In place that is the run, else the stage.
        """
        if self.c.layout == "in_place":
            return step, self.total
        stage, n_behind = self.locate(step)
        return n_behind, self.n_steps[stage]

    def end_stage(self, stage: int, step: int) -> None:
        """Ends a stage that is learned at a step; the last stage gets the steps left of it."""
        n_left = self.ends[stage] - step
        n_steps = list(self.n_steps)
        n_steps[stage] -= n_left
        n_steps[self.last] += n_left
        self.set_steps(n_steps)

    def set_steps(self, n_steps: list[int]) -> None:
        """Sets the steps of each stage."""
        self.n_steps = list(n_steps)
        self.ends = list(itertools.accumulate(self.n_steps))  # the step at which each stage ends

    def show(self) -> None:
        """Prints one line per stage: its steps, thoughts, pauses and removed reasoning steps."""
        print(f"{self.c.method}: {self.total} steps of {self.c.batch_size} examples")
        print("stage  steps  thoughts  pauses  chain removed")
        for stage, (n, plan) in enumerate(zip(self.n_steps, self.plans, strict=True)):
            removed = "all" if plan.n_removed == curriculum.ALL else plan.n_removed
            print(f"{stage:5}  {n:5}  {plan.n_thoughts:8}  {plan.n_pauses:6}  {removed:>13}")


def draw_batch(
    c: TrainConfig, problems: Split, schedule: Schedule, special: dict[str, int], step: int
) -> Batch:
    """The batch of a training step."""
    rng = random.Random(f"{c.seed} {step}")
    stage, n_behind = schedule.locate(step)
    plan = schedule.plan(stage, progress=n_behind / schedule.n_steps[stage])
    plan_of_suffix = plan  # of this stage or an earlier one: its remaining words are the suffix
    if plan.in_place and plan.n_fillers:
        plan_of_suffix = schedule.plan(stage_of_suffix(stage, rng))
    keep = share_of_facts(c, n_behind if stage == schedule.last else 0)
    how = dict(
        keep=keep,
        # While graphs grow, the chains of several questions would make them large at once.
        questions=c.n_questions if keep == 1 else 1,
        reask=RANDOM_QUESTIONS if c.augment > 1 else 0.0,
        # Short questions deny a shortcut, the option farther from every person. Fair problems do
        # not have it, so there they would only take the place of longer ones.
        least=3 if problems.fair else 1,
    )
    groups = problems.draw(c.batch_size, rng, c.augment > 0, **how)
    examples = [example for group in groups for example in group.examples]
    pairs = [curriculum.arrange(example, plan_of_suffix, special, rng) for example in examples]
    contexts = [group.context for group in groups if group.context]
    pause = special["pause"] if plan.n_pauses else None
    batch = collate(pairs, plan.n_fillers, special["eos"], contexts, pause)
    if not plan.in_place:
        return batch
    words = [after[:1] for _, after in pairs]  # without thoughts: what <bot> is asked for
    if plan.n_fillers:
        words = [curriculum.next_words(example, plan, special, NOTHING) for example in examples]
    return batch._replace(next_words=torch.tensor(words), n_read=plan_of_suffix.n_fillers)


def share_of_facts(c: TrainConfig, n_behind: int) -> float:
    """The share of the facts off the chains that graphs have, n_behind steps into the last stage.

    >>> [share_of_facts(TrainConfig(grow=(4000, 50)), step) for step in (0, 2000, 5000)]
    [0.5, 0.75, 1.0]
    """
    n_steps, *percent = c.grow
    if not n_steps:
        return 1.0
    at_first = percent[0] / 100 if percent else 0.0
    return at_first + (1 - at_first) * min(1.0, n_behind / n_steps)


def stage_of_suffix(stage: int, rng: random.Random) -> int:
    """The stage whose remaining words are the suffix: mostly the newest, else an earlier one.

    In place the thoughts of a stage begin with those of each earlier one, so all of them can go on
    in one pass. The 0.6 is ours.
    """
    if stage == 0 or rng.random() < 0.6:
        return stage
    return rng.randrange(stage)


def collate(pairs, n_thoughts: int, pad_id: int, contexts=(), pause: int | None = None) -> Batch:
    """Pads examples to a Batch.

    pairs      the ids of each example before and after its thoughts: see curriculum.arrange
    contexts   ids of shared facts, each for an equal number of neighbouring examples;
               empty: none are shared
    pause      the id that is read in place of each thought, if any
    """
    befores = [before for before, _ in pairs]
    afters = [after for _, after in pairs]
    prompts, question, question_len = befores, None, None
    if contexts:
        prompts = contexts
        question = pad(befores, pad_id, left=True)
        question_len = lengths(befores)
    return Batch(
        prompt=pad(prompts, pad_id),
        prompt_len=lengths(prompts),
        suffix=pad([ids[:-1] for ids in afters], pad_id),
        targets=pad([ids[1:] for ids in afters], NOTHING),
        n_thoughts=n_thoughts,
        question=question,
        question_len=question_len,
        pause=pause,
    )


def some_prompts(batch: Batch, which: slice) -> Batch:
    """The part of a batch with some of its prompts and the questions on top of them."""
    G = len(batch.prompt)

    def cut(x):
        if not isinstance(x, Tensor):
            return x
        return x.unflatten(0, (G, -1))[which].flatten(0, 1)  # rows by prompt, then as before

    return Batch(*map(cut, batch))


def micro_batches(batch: Batch, c: TrainConfig, rank: int, n_processes: int):
    """The micro-batches of a process's share of a batch, each with its weights (3,).

    One has at most --micro_batch_size examples. Its mean loss is weighed by its share of the
    batch's supervised tokens: in the suffix, and among the next words. So they add up to the mean
    over tokens, where a mean of means would favour short answers. The third weight makes a mean
    over all micro-batches of all processes.
    """
    n_targets, n_next = batch.n_supervised()
    mine = some_prompts(batch, slice(rank, None, n_processes))
    most = c.micro_batch_size or c.batch_size
    size = max(1, most * len(batch.prompt) // len(batch.suffix))  # prompts of a part
    starts = range(0, len(mine.prompt), size)
    for start in starts:
        one = some_prompts(mine, slice(start, start + size))
        words, following = one.n_supervised()  # counted on the CPU: no wait for the device
        weights = [words / n_targets, following / max(1, n_next), 1 / len(starts) / n_processes]
        yield one, torch.tensor(weights)


def lengths(rows: list[list[int]]) -> Tensor:
    """The lengths (B,) of rows of ids."""
    return torch.tensor([len(row) for row in rows])


def pad(rows: list[list[int]], value: int, left: bool = False) -> Tensor:
    """Rows of ids as one int64 tensor (B, longest), padded on the right or on the left."""
    rows = [torch.tensor(row, dtype=torch.int64) for row in rows]
    side = "left" if left else "right"
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
