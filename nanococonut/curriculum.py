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
    1 | Q <bot> *s1 *s2 *s3 *A
    3 | Q <bot> *s1 *s2 *s3 *A
no_cot
    1 | Q <bot> *A
    3 | Q <bot> *A
icot
    1 | Q <bot> *s2 *s3 *A
    3 | Q <bot> *A
pause
    1 | Q <bot> . . . *A
    3 | Q <bot> . . . *A
coconut
    1 | Q <bot> ~ *s2 *s3 *A
    3 | Q <bot> ~ ~ ~ *A
no_curriculum
    1 | Q <bot> ~ ~ ~ *A
    3 | Q <bot> ~ ~ ~ *A
no_thought
    1 | Q <bot> *s2 *s3 *A
    3 | Q <bot> *A
pause_as_thought
    1 | Q <bot> . *s2 *s3 *A
    3 | Q <bot> . . . *A

This is the layout "in_place": a thought takes the place of a step, and what the model says at the
last thought is the next word. Without thoughts <bot> itself says it, so methods differ only in what
follows <bot>. The layout "paper" has a token <eot> after the thoughts, and without thoughts or
pauses neither token:

>>> print(layout("coconut", stage=1, max_stage=3, n_steps=3, in_place=False))
Q <bot> ~ <eot> *s2 *s3 *A
>>> print(layout("cot", stage=1, max_stage=3, n_steps=3, in_place=False))
Q *s1 *s2 *s3 *A

There a small model from scratch can let <eot> take the first hop by itself: then the thought stays
empty, and stage 2 has two hops to learn at once. In place nothing stands between the thought and
the word, and because the head is the embedding, a state that names the next word is already an
input that means it.

The table counts steps. In tokens a chain of n steps is n + 1: after three thoughts "jompus.\\n### "
is still to be written, and a fourth takes its place. Example.rest says exactly which tokens are
gone. A stage past that keeps its thoughts: their number says nothing about the chain's length. icot
removes token by token, see icot.py.
"""

from typing import NamedTuple

from nanococonut import icot


class Example(NamedTuple):
    """A problem as token ids."""

    question: list[int]  # with its newline
    # [k]: what is left to write without the first k steps; last the answer. Each is tokenized as a
    # whole, because a token may span two steps.
    rests: list[list[int]]

    def rest(self, n_removed: int, in_place: bool) -> list[int]:
        """What is left to write without the first steps.

        In place it is the end of the whole text. A thought stands for one token: the first says how
        step 1 begins ("Tom is a "), the next is "lempus.\\nEvery lempus is a ", which ends step 1
        and begins step 2, the last "jompus.\\n### ", which ends the chain. If several steps begin
        with the same token, as with "Max is a " in ProntoQA, that token goes too, because a thought
        stands for what is new.

        >>> whole, without_one, answer = [10, 11, 12, 10, 13, 20, 21], [10, 13, 20, 21], [20, 21]
        >>> example = Example([1], [whole, without_one, answer])
        >>> [example.rest(k, in_place=True) for k in range(1, 4)]
        [[13, 20, 21], [20, 21], [21]]
        >>> [example.rest(k, in_place=False) for k in range(1, 4)]
        [[10, 13, 20, 21], [20, 21], [20, 21]]
        """
        n_steps = len(self.rests) - 1
        if not in_place:
            return self.rests[min(n_removed, n_steps)]
        whole, answer = self.rests[0], self.rests[-1]
        if n_removed > n_steps:
            return whole[len(whole) - len(answer) + 1 :]
        starts = [len(whole) - len(rest) for rest in self.rests]
        start = starts[n_removed]
        firsts = [whole[i] for i in starts[:-1]]
        if 0 < n_removed < n_steps and firsts.count(whole[start]) > 1:
            start = min(start + 1, starts[n_removed + 1])
        return whole[start:]


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

    filler: str | None  # "thought", "pause", or None: nothing
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
    markers: bool  # whether <bot> follows the question, and <eot> the thoughts if not in place
    # Differs from the paper: no <eot> stands behind the thoughts, every row has <bot>, and earlier
    # stages stay in the loss.
    in_place: bool = False
    n_tokens: int = 0  # icot: tokens taken from the front of what is left of the chain

    @property
    def n_fillers(self) -> int:
        """Thoughts or pauses, whichever the method has."""
        return self.n_thoughts + self.n_pauses


def plan_of(
    method: str, stage: int, max_stage: int, c_thought=1, extra=False, in_place=False
) -> Plan:
    """The plan of a stage: c_thought thoughts or pauses for each removed step.

    A method that removes the whole chain gets the fillers of max_stage steps. With extra the last
    stage removes what is left and adds none: the paper's GSM8k [Hao24 4.2].

    >>> plan_of("coconut", stage=2, max_stage=4)
    Plan(n_thoughts=2, n_pauses=0, n_removed=2, markers=True, in_place=False, n_tokens=0)
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
        markers=in_place or filler is not None,
        in_place=in_place,
    )


def layout(
    method: str, stage: int, max_stage: int, n_steps: int, c_thought: int = 1, in_place: bool = True
) -> str:
    """One line that shows an example of n_steps steps when a stage begins, as above."""
    p = plan_of(method, stage, max_stage, c_thought, in_place=in_place)
    n_removed = min(p.n_removed, n_steps)
    if METHODS[method].removes == "tokens" and n_removed == 0:
        # Shown as if each step had one token.
        n_removed = icot.n_removed_tokens(stage, max_stage, longest_chain=n_steps, progress=0.0)
    inside = []
    if p.markers:
        inside = ["<bot>", *["~"] * p.n_thoughts, *["."] * p.n_pauses]
    if p.markers and not p.in_place:
        inside.append("<eot>")
    rest = [f"*s{i + 1}" for i in range(n_removed, n_steps)]
    return " ".join(["Q", *inside, *rest, "*A"])


def arrange(example: Example, plan: Plan, special, rng=None) -> tuple[list[int], list[int]]:
    """The ids before the thoughts or pauses, and the ids after them.

    The loss on the second part is on all but its first token. In the paper's layout that token is
    <eot>, and without markers the question's last token. In place it is the first word of the
    rest, for which the last thought itself is asked: see next_words.

    special  ids of "bot", "eot" and "eos"
    rng      for icot.remove
    """
    rest = example.rest(plan.n_removed, plan.in_place)
    if plan.n_tokens:
        rest = icot.remove(rest, plan.n_tokens, len(example.rests[-1]), rng)
    rest = [*rest, special["eos"]]
    if not plan.markers:
        return example.question[:-1], [example.question[-1], *rest]
    if not plan.in_place:
        rest = [special["eot"], *rest]
    return [*example.question, special["bot"]], rest


def next_words(example: Example, plan: Plan, special, nothing: int) -> list[int]:
    """In place: the id to predict after 0, 1, ..., K thoughts or pauses, or nothing.

    After the thoughts of k steps it is the first word of what is left without k steps. So each
    stage also trains all stages before it. Without a curriculum only the last one is asked.

    >>> example = Example([1], [[10, 11, 12, 20, 21], [13, 12, 20, 21], [20, 21]])
    >>> plan = plan_of("coconut", stage=2, max_stage=3, c_thought=2, in_place=True)
    >>> next_words(example, plan, special={"eos": 9}, nothing=-100)
    [10, -100, 11, -100, 20]
    """

    def first(n_removed: int) -> int:
        return [*example.rest(n_removed, in_place=True), special["eos"]][0]

    K = plan.n_fillers
    if plan.n_removed == ALL:
        return [nothing] * K + [first(ALL)]
    words = [nothing for _ in range(K + 1)]
    thoughts_of_a_step = K // max(1, plan.n_removed)
    for k in range(plan.n_removed + 1):
        words[k * thoughts_of_a_step] = first(k)
    return words
