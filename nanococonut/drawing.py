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
    """The examples of a step.

    By chance the batch is of an earlier stage (mix) or of chains with steps left to write (longer). Problems are told
    anew (augment), with facts that come in one after the other (grow) and other questions about their graph (reask,
    questions). While thoughts are taught, the examples say what.
    """
    rng = random.Random(f"{c.seed} {step}")
    stage, n_behind = schedule.locate(step)
    drawn = stage
    if stage > 0 and rng.random() < c.mix:
        # Differs from the released code, which mixes example by example and also draws later stages.
        drawn = rng.randrange(stage)
    plan = schedule.plans[drawn]
    longer_than = 0
    if c.longer and rng.random() < c.longer:
        longer_than = plan.n_removed
    teaching = schedule.teaching(step)
    augmentation = Augmentation(
        augment=c.augment,
        keep=min(1.0, step / c.grow) if c.grow else 1.0,
        longer_than=longer_than,
        reask=c.reask,
        questions=c.questions,
        n_taught=plan.n_thoughts if teaching else 0,
    )
    groups = problems.draw(c.batch_size, rng, augmentation)
    if schedule.removes_tokens:
        progress = n_behind / schedule.n_steps[stage]
        if drawn != stage:
            progress = rng.random()  # some moment of the earlier stage
        plan = plan._replace(n_tokens=schedule.n_tokens(drawn, progress))
    arranged = []
    for group in groups:
        pairs = [curriculum.arrange(example, plan, special, rng) for example in group.examples]
        arranged.append(Arranged(group.context, pairs, [example.taught for example in group.examples]))
    return Draw(arranged, plan.n_thoughts, drawn == stage, teaching)
