"""What each method feeds the model at each stage, token by token."""

import math
import random
from collections import Counter

import pytest

from nanococonut.batching import collate
from nanococonut.curriculum import METHODS, Example, arrange, layout, next_words, plan_of
from nanococonut.icot import n_removed_tokens

SPECIAL = {"bot": 90, "eot": 91, "pause": 92, "eos": 93}
# Three steps; the words of a rest need not be the end of those before it: 19 is 20 where another
# step precedes it.
EXAMPLE = Example(
    [1, 2, 3],
    [[10, 11, 19, 30, 31, 32, 40, 41], [20, 30, 31, 32, 40, 41], [30, 31, 32, 40, 41], [40, 41]],
)


def at_begin(method, stage, max_stage, longest_chain):
    """A plan when its stage begins, as train.Schedule makes it."""
    p = plan_of(method, stage, max_stage)
    if METHODS[method].removes == "tokens":
        p = p._replace(n_tokens=n_removed_tokens(stage, max_stage, longest_chain, progress=0.0))
    return p


@pytest.mark.parametrize(
    ("method", "stage", "prompt", "suffix", "n_thoughts"),
    [
        ("cot", 2, [1, 2], [3, 10, 11, 19, 30, 31, 32, 40, 41, 93], 0),
        ("no_cot", 0, [1, 2], [3, 40, 41, 93], 0),
        ("icot", 0, [1, 2], [3, 10, 11, 19, 30, 31, 32, 40, 41, 93], 0),
        ("icot", 1, [1, 2], [3, 11, 19, 30, 31, 32, 40, 41, 93], 0),
        ("icot", 4, [1, 2], [3, 31, 32, 40, 41, 93], 0),
        ("icot", 5, [1, 2], [3, 40, 41, 93], 0),
        ("coconut", 0, [1, 2, 3, 90], [91, 10, 11, 19, 30, 31, 32, 40, 41, 93], 0),
        ("coconut", 1, [1, 2, 3, 90], [91, 20, 30, 31, 32, 40, 41, 93], 1),
        ("coconut", 3, [1, 2, 3, 90], [91, 40, 41, 93], 3),
        ("coconut", 5, [1, 2, 3, 90], [91, 40, 41, 93], 5),
        ("no_curriculum", 0, [1, 2, 3, 90], [91, 40, 41, 93], 5),
        ("no_thought", 1, [1, 2], [3, 20, 30, 31, 32, 40, 41, 93], 0),
        ("pause", 0, [1, 2, 3, 90], [91, 40, 41, 93], 5),
        ("pause_as_thought", 0, [1, 2, 3, 90], [91, 10, 11, 19, 30, 31, 32, 40, 41, 93], 0),
        ("pause_as_thought", 2, [1, 2, 3, 90], [91, 30, 31, 32, 40, 41, 93], 2),
    ],
)
def test_layout_of_tokens(method, stage, prompt, suffix, n_thoughts):
    p = at_begin(method, stage, max_stage=5, longest_chain=6)
    assert arrange(EXAMPLE, p, SPECIAL) == (prompt, suffix)
    pairs = [arrange(e, p, SPECIAL) for e in (EXAMPLE, Example([7], [[8]]))]
    pause = SPECIAL["pause"] if p.n_pauses else None
    batch = collate(pairs, p.n_fillers, SPECIAL["eos"], pause=pause)
    assert batch.n_thoughts == n_thoughts
    assert batch.pause == (92 if METHODS[method].filler == "pause" and n_thoughts else None)
    assert batch.prompt_len.tolist() == [len(prompt), len(prompt) - 2]
    assert batch.prompt[0].tolist() == prompt
    assert batch.suffix[0].tolist() == suffix[:-1]
    assert batch.targets[0].tolist() == suffix[1:], (
        "the marker or the question's end predicts the first word"
    )
    assert batch.targets[1].tolist() == [8, 93] + [-100] * (len(suffix) - 3), (
        "an empty chain, right-padded"
    )


@pytest.mark.parametrize(
    ("method", "stage", "prompt", "after", "following"),
    [
        ("coconut", 0, [1, 2, 3, 90], [10, 11, 19, 30, 31, 32, 40, 41, 93], [10]),
        ("coconut", 1, [1, 2, 3, 90], [19, 30, 31, 32, 40, 41, 93], [10, 19]),
        ("coconut", 3, [1, 2, 3, 90], [40, 41, 93], [10, 19, 30, 40]),
        ("coconut", 5, [1, 2, 3, 90], [41, 93], [10, 19, 30, 40, 41, 41]),
        ("pause_as_thought", 2, [1, 2, 3, 90], [30, 31, 32, 40, 41, 93], [10, 19, 30]),
        ("no_curriculum", 0, [1, 2, 3, 90], [41, 93], [-100] * 5 + [41]),
        ("pause", 0, [1, 2, 3, 90], [41, 93], [-100] * 5 + [41]),
        ("cot", 0, [1, 2, 3, 90], [10, 11, 19, 30, 31, 32, 40, 41, 93], [10]),
        ("cot", 5, [1, 2, 3, 90], [10, 11, 19, 30, 31, 32, 40, 41, 93], [10]),
        ("no_cot", 0, [1, 2, 3, 90], [41, 93], [41]),
        ("icot", 0, [1, 2, 3, 90], [10, 11, 19, 30, 31, 32, 40, 41, 93], [10]),
        ("icot", 5, [1, 2, 3, 90], [41, 93], [41]),
        ("no_thought", 1, [1, 2, 3, 90], [19, 30, 31, 32, 40, 41, 93], [19]),
        ("no_thought", 3, [1, 2, 3, 90], [40, 41, 93], [40]),
    ],
)
def test_layout_in_place(method, stage, prompt, after, following):
    """Nothing stands between a thought and the word it replaces.

    19 spans two steps and goes with the second.
    """
    p = plan_of(method, stage, 5, in_place=True)
    assert arrange(EXAMPLE, p, SPECIAL) == (prompt, after)
    assert next_words(EXAMPLE, p, SPECIAL, -100) == following
    assert following[-1] == after[0], "the last thought predicts the first word of the rest"


def test_in_place_every_row_has_bot_behind_the_question():
    """With it CoT learns: the first word is asked of <bot>, as in the rows with thoughts."""
    for method, row in METHODS.items():
        for stage in range(4):
            in_place, paper = plan_of(method, stage, 3, in_place=True), plan_of(method, stage, 3)
            assert in_place == paper._replace(markers=True, in_place=True)
            assert paper.markers == (row.filler is not None), "nothing changes in the paper's"
            before, after = arrange(EXAMPLE, in_place, SPECIAL)
            assert before == [1, 2, 3, 90] and 91 not in after
            words = next_words(EXAMPLE, in_place, SPECIAL, -100)
            assert len(words) == 1 + in_place.n_fillers and words[-1] == after[0]


def test_icot_in_place_takes_tokens_from_behind_bot():
    plan = at_begin("icot", 1, 5, longest_chain=6)._replace(markers=True, in_place=True)
    after = [11, 19, 30, 31, 32, 40, 41, 93]
    assert arrange(EXAMPLE, plan, SPECIAL) == ([1, 2, 3, 90], after)


def test_c_thoughts_for_each_removed_step():
    assert plan_of("coconut", 2, 3, c_thought=2).n_thoughts == 4
    assert plan_of("pause", 0, 3, c_thought=2).n_pauses == 6
    assert layout("coconut", 1, 3, 3, c_thought=2) == "Q <bot> ~ ~ *s2 *s3 *A"
    assert layout("coconut", 1, 3, 3, c_thought=2, in_place=False) == "Q <bot> ~ ~ <eot> *s2 *s3 *A"


def test_every_method_ends_where_table_1_evaluates_it():
    for method, row in METHODS.items():
        last = plan_of(method, 6, 6)
        assert last.markers == (row.filler is not None)
        assert last.n_thoughts == (6 if row.filler == "thought" else 0)
        assert last.n_pauses == (6 if row.filler == "pause" else 0)
        words = layout(method, 6, 6, n_steps=4).count("*s")
        assert words == (4 if method == "cot" else 0)


def test_icot_forgets_one_token_after_the_other():
    gone = [
        n_removed_tokens(stage, 4, longest_chain=9, progress=i / 10)
        for stage in range(4)
        for i in range(10)
    ]
    assert gone[:10] == [0] * 10 and gone[10] == 1 and gone[-1] == 8
    assert all(b - a in (0, 1) for a, b in zip(gone, gone[1:], strict=False)), "never two at once"
    assert arrange(EXAMPLE, at_begin("icot", 3, 4, longest_chain=90), SPECIAL) == (
        [1, 2],
        [3, 40, 41, 93],
    ), "the answer stays"


def test_icot_smooths_the_removal_as_deng_et_al_do():
    p, rng = at_begin("icot", 1, 5, longest_chain=6), random.Random(0)
    more = Counter(9 - len(arrange(EXAMPLE, p, SPECIAL, rng)[1]) for _ in range(20000))
    for j in (0, 1):  # geometric: P(j) = (1 - e^-4) e^-4j
        assert abs(more[j] / 20000 - (1 - math.exp(-4)) * math.exp(-4 * j)) < 0.004
    assert arrange(EXAMPLE, p, SPECIAL) == arrange(EXAMPLE, p, SPECIAL), (
        "without rng nothing is drawn"
    )
