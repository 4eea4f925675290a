"""The schedule of a training run: the stage of each step, and the plan of each stage."""

import bisect
import itertools

from nanococonut import curriculum, icot
from nanococonut.settings import TrainConfig

SLACK = 8  # extra tokens that an answer may have over the longest chain in the data


class Schedule:
    """The stage that each training step belongs to, and what each stage does to an example."""

    def __init__(self, c: TrainConfig, longest: dict[str, int]):
        self.c = c
        self.longest = longest  # lengths in tokens of the longest question, chain and rest
        self.n_steps = c.schedule  # steps of each stage
        self.ends = list(itertools.accumulate(self.n_steps))  # the step at which each stage ends
        self.total = self.ends[-1]
        self.plans = [self.plan(stage) for stage in range(len(self.n_steps))]  # at the start of each stage
        self.max_new_tokens = longest["rest"] + SLACK
        # The longest sequence of a run: a question, thoughts or pauses between two markers, and an answer.
        n_fillers = max(plan.n_thoughts + plan.n_pauses for plan in self.plans)
        self.n_positions = longest["question"] + n_fillers + 2 + self.max_new_tokens

    def plan(self, stage: int, progress: float = 0.0) -> curriculum.Plan:
        """The plan of a stage after a share `progress` of it."""
        c, last = self.c, len(self.n_steps) - 1
        plan = curriculum.plan_of(c.method, stage, last, c.c_thought, c.extra_stage)
        if curriculum.METHODS[c.method].removes != "tokens":  # only icot's do
            return plan
        return plan._replace(n_tokens=icot.n_removed_tokens(stage, last, self.longest["chain"], progress))

    def locate(self, step: int) -> tuple[int, int]:
        """The stage of a step, and the number of steps before it in that stage."""
        stage = bisect.bisect_right(self.ends, step)
        return stage, step - (self.ends[stage] - self.n_steps[stage])

    def show(self) -> None:
        """Prints one line per stage: its steps, thoughts, pauses and removed reasoning steps."""
        print(f"{self.c.method}: {self.total} steps of {self.c.batch_size} examples")
        print("stage  steps  thoughts  pauses  steps removed")
        for stage, (n, plan) in enumerate(zip(self.n_steps, self.plans, strict=True)):
            removed = "all" if plan.n_removed == curriculum.ALL else plan.n_removed
            print(f"{stage:5}  {n:5}  {plan.n_thoughts:8}  {plan.n_pauses:6}  {removed:>13}")
