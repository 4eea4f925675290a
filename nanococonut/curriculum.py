"""What a stage does to an example. Read this third, after coconut.py; train.py comes next.

An example is a question, its reasoning steps in words, and the answer. The curriculum removes the
first steps and puts continuous thoughts where they stood, one more at each stage [Hao24 3.1]. Here
`~` is a thought, `.` a pause, and `*` stands before what the loss is taken on. Of a chain of three
steps stages 1 and 3 are shown; in stage 0 the chain is whole, where there is one at all.

>>> for method in METHODS:
...     print(method)
...     for stage in (1, 3):
...         print("   ", stage, "|", layout(method, stage, max_stage=3, n_steps=3))
cot
    1 | Q *s1 *s2 *s3 *A
    3 | Q *s1 *s2 *s3 *A
no_cot
    1 | Q *A
    3 | Q *A
icot
    1 | Q *s2 *s3 *A
    3 | Q *A
pause
    1 | Q <bot> . . . <eot> *A
    3 | Q <bot> . . . <eot> *A
coconut
    1 | Q <bot> ~ <eot> *s2 *s3 *A
    3 | Q <bot> ~ ~ ~ <eot> *A
no_curriculum
    1 | Q <bot> ~ ~ ~ <eot> *A
    3 | Q <bot> ~ ~ ~ <eot> *A
no_thought
    1 | Q *s2 *s3 *A
    3 | Q *A
pause_as_thought
    1 | Q <bot> . <eot> *s2 *s3 *A
    3 | Q <bot> . . . <eot> *A

A stage past a chain's length removes all of it and keeps its thoughts: their number says nothing
about the chain's length. icot removes token by token, see icot.py.
"""

from typing import NamedTuple

from nanococonut import icot


class Example(NamedTuple):
    """A problem as token ids."""

    question: list[int]  # with its newline
    # [k]: what is left to write without the first k steps; last the answer. Each is tokenized as a
    # whole, because a token may span two steps.
    rests: list[list[int]]
    frontiers: tuple[list[int], ...] = ()  # [k]: the tokens that thought k + 1 is taught


def texts_of(row: dict) -> list[str]:
    """A problem's question, and what is left to write without its first 0, 1, ... steps."""
    lines = [step + "\n" for step in row["steps"]] + ["### " + row["answer"]]
    return [row["question"] + "\n", *("".join(lines[k:]) for k in range(len(lines)))]


def tokenize(row: dict, encode) -> Example:
    """A problem in words as an Example; encode makes ids of a text."""
    question, *rests = map(encode, texts_of(row))
    return Example(question, rests)


class Method(NamedTuple):
    """A row of Table 1: what stands in place of the removed steps, and when which steps go."""

    filler: str | None  # "thought", "pause", or None: nothing, and then no <bot> <eot> either
    removes: str  # "never", "all" from the start, one more of the "steps" a stage, or "tokens"


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
ALL = 10**6


class Plan(NamedTuple):
    """What a method does at a moment of training, before it meets an example."""

    n_thoughts: int
    n_pauses: int
    n_removed: int  # steps cut from the front of the chain; ALL: the chain, however long
    markers: bool  # whether <bot> and <eot> stand around what was put in
    n_tokens: int = 0  # icot: tokens taken from the front of what is left of the chain


def plan_of(method: str, stage: int, max_stage: int, c_thought=1, extra=False) -> Plan:
    """The plan of a stage: c_thought thoughts or pauses for each removed step.

    A whole chain counts as max_stage steps. With extra the last stage removes the
    rest without more thoughts: the paper's GSM8k [Hao24 4.2].

    >>> plan_of("coconut", stage=2, max_stage=4)
    Plan(n_thoughts=2, n_pauses=0, n_removed=2, markers=True, n_tokens=0)
    >>> plan_of("pause", stage=0, max_stage=4) == Plan(0, 4, ALL, True)
    True
    >>> [plan_of("coconut", stage, 2, c_thought=2, extra=True).n_thoughts for stage in (0, 1, 2)]
    [0, 2, 2]
    """
    assert 0 <= stage <= max_stage, (stage, max_stage)
    filler, removes = METHODS[method]
    is_last = stage == max_stage
    n_removed = 0
    if removes == "all" or (removes == "tokens" and is_last):
        n_removed = ALL
    elif removes == "steps":
        n_removed = ALL if extra and is_last else stage
    n_stages_filled = max_stage - 1 if extra and max_stage else max_stage
    n_fillers = c_thought * min(n_removed, n_stages_filled)
    return Plan(
        n_thoughts=n_fillers if filler == "thought" else 0,
        n_pauses=n_fillers if filler == "pause" else 0,
        n_removed=n_removed,
        markers=filler is not None,
    )


def layout(method: str, stage: int, max_stage: int, n_steps: int, c_thought: int = 1) -> str:
    """One line that shows an example of n_steps steps when a stage begins, as above."""
    p = plan_of(method, stage, max_stage, c_thought)
    n_removed = min(p.n_removed, n_steps)
    if METHODS[method].removes == "tokens" and n_removed == 0:
        # Shown as if each step had one token.
        n_removed = icot.n_removed_tokens(stage, max_stage, longest_chain=n_steps, progress=0.0)
    inside = []
    if p.markers:
        inside = ["<bot>", *["~"] * p.n_thoughts, *["."] * p.n_pauses, "<eot>"]
    rest = [f"*s{i + 1}" for i in range(n_removed, n_steps)]
    return " ".join(["Q", *inside, *rest, "*A"])


def arrange(example: Example, plan: Plan, special, rng=None) -> tuple[list[int], list[int]]:
    """The ids before the thoughts, and the ids after them.

    The second part begins with <eot>. Without markers it begins with the question's last token, so
    the loss is always on all but the first token of the second part.

    special  ids of "bot", "eot", "pause" and "eos"
    rng      for icot.remove
    """
    n_steps = len(example.rests) - 1
    rest = example.rests[min(plan.n_removed, n_steps)]
    if plan.n_tokens:
        rest = icot.remove(rest, plan.n_tokens, len(example.rests[-1]), rng)
    rest = [*rest, special["eos"]]
    if not plan.markers:
        return example.question[:-1], [example.question[-1], *rest]
    pauses = [special["pause"]] * plan.n_pauses
    return [*example.question, special["bot"], *pauses], [special["eot"], *rest]
