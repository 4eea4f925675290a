"""What one training step learns from: all that augments the data is drawn here, and depends on (seed, step) alone."""

import random
from typing import NamedTuple

from nanococonut import curriculum
from nanococonut.batching import Arranged
from nanococonut.data import Augmentation, Split
from nanococonut.schedule import Schedule
from nanococonut.settings import TrainConfig


class Draw(NamedTuple):
    """The examples of one step, as its stage makes them."""

    groups: list[Arranged]
    n_thoughts: int
    is_scheduled: bool  # false: of an earlier stage
    teaching: float  # weight of the loss that teaches thoughts


def draw_batch(c: TrainConfig, problems: Split, schedule: Schedule, special: dict[str, int], step: int) -> Draw:
    """The examples of a step: of which stage and with how long chains is a matter of chance (mix, longer)."""
    rng = random.Random(f"{c.seed} {step}")
    stage, n_behind = schedule.locate(step)
    drawn = stage
    if stage > 0 and rng.random() < c.mix:
        # Differs from the released code, which mixes example by example and also draws later stages.
        drawn = rng.randrange(stage)
    plan, teaching = schedule.plans[drawn], schedule.teaching(step)
    longer_than = plan.n_removed if c.longer and rng.random() < c.longer else 0
    keep = min(1.0, step / c.grow) if c.grow else 1.0
    n_taught = plan.n_thoughts if teaching else 0
    augmentation = Augmentation(
        augment=c.augment, keep=keep, longer_than=longer_than, reask=c.reask, questions=c.questions, n_taught=n_taught
    )
    groups = problems.draw(c.batch_size, rng, augmentation)
    if schedule.removes_tokens:  # an earlier stage is met at some moment of it
        progress = n_behind / schedule.n_steps[stage] if drawn == stage else rng.random()
        plan = schedule.plan(drawn, progress)
    arranged = []
    for group in groups:
        pairs = [curriculum.arrange(example, plan, special, rng) for example in group.examples]
        arranged.append(Arranged(group.context, pairs, [example.taught for example in group.examples]))
    return Draw(arranged, plan.n_thoughts, drawn == stage, teaching)
