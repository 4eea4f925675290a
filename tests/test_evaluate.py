"""Verdicts, shortcuts and what evaluate prints beside an accuracy."""

from pathlib import Path

import pytest
import torch

from nanococonut import data, evaluate

RELEASED = Path(__file__).parents[2] / "shared/data/prosqa_valid_official.json"
# Tom -> lempus -> rempus -> impus, a detour lempus -> jompus -> rempus, and Max -> yumpus.
NAMES = ["Tom", "Max", "lempus", "rempus", "impus", "jompus", "yumpus"]
EDGES = [[0, 2], [2, 3], [3, 4], [2, 5], [5, 3], [1, 6]]
ROW = {
    "question": "?",
    "steps": ["Tom is a lempus.", "Every lempus is a rempus.", "Every rempus is a impus."],
    "answer": "Tom is a impus.",
    **{"edges": EDGES, "idx_to_symbol": NAMES, "root": 0, "target": 4, "neg_target": 6},
}
A, B, C, D = "Tom is a lempus.", "Every lempus is a rempus.", "Every rempus is a impus.", "Every lempus is a jompus."
RIGHT, WRONG = "### Tom is a impus.", "### Tom is a yumpus."


@pytest.mark.parametrize(
    ("steps", "answer", "hidden", "verdict"),
    [
        ([A, B, C], RIGHT, False, "correct_path"),
        ([A, B, C], WRONG, False, "correct_path"),  # the chain is judged, not the answer
        ([A, D, "Every jompus is a rempus.", C], RIGHT, False, "longer_path"),
        ([A, B], RIGHT, False, "wrong_target"),
        ([B, C], RIGHT, False, "hallucination"),  # begins nowhere
        ([B, C], RIGHT, True, "correct_path"),
        (["Every jompus is a rempus.", C], RIGHT, True, "longer_path"),  # only by the detour can it be completed
        ([A, B, C], RIGHT, True, "correct_path"),
        (["Max is a yumpus."], WRONG, True, "hallucination"),  # Tom never comes there
        ([A, C], RIGHT, False, "hallucination"),  # not connected
        ([A, "Every lempus is a impus."], RIGHT, False, "hallucination"),  # no such fact
        ([A, "Every lempus is"], RIGHT, False, "hallucination"),
        ([A, "Every zumpus is a impus."], RIGHT, False, "hallucination"),
        ([], RIGHT, True, "correct_label"),
        ([], WRONG, True, "incorrect_label"),
        ([], "", False, "incorrect_label"),
    ],
)
def test_verdicts(steps, answer, hidden, verdict):
    assert evaluate.verdict("\n".join([*steps, answer]), ROW, hidden) == verdict


def test_every_text_gets_one_verdict():
    texts = ["", "###", "### ###", "\n\n", "Tom is a lempus.", "Is Tom a", "### Tom is a impus.\n### x", "a\x00b ### c"]
    result = evaluate.summary(texts, [1] * len(texts), [ROW] * len(texts), 2, hidden=False)
    assert sum(result["verdicts"].values()) == len(texts)
    assert list(result["verdicts"]) == list(evaluate.VERDICTS)


def test_shortcuts_of_one_problem():
    # impus: persons within two steps back none, five nodes above it and itself; yumpus: Max one step back.
    assert list(evaluate.baselines([ROW]).values()) == [0.5, 1.0, 1.0, 1.0], "chance first"
    turned = ROW | {"root": 1, "target": 6, "neg_target": 4}  # now the near, lonely one is right
    assert list(evaluate.baselines([turned]).values()) == [0.5, 0.5, 0.0, 0.0]
    assert evaluate.baselines([{"question": "1 + 1?", "steps": [], "answer": "2"}]) == {}


@pytest.mark.skipif(not RELEASED.exists(), reason="the released files stand beside the project, not in it")
def test_shortcuts_of_the_released_file():
    """Measured on its 300 problems together with the 500 of test: 84.3, 70.7, 91.6 %."""
    found = evaluate.baselines(data.read_rows(RELEASED))
    for share, expected in zip(found.values(), (0.5, 0.843, 0.707, 0.916), strict=True):
        assert abs(share - expected) < 0.03, found


def test_interventions_on_known_thoughts():
    thoughts = torch.arange(24.0).view(2, 3, 4) + 1
    change = {name: evaluate.INTERVENTIONS[name](thoughts) for name in evaluate.INTERVENTIONS}
    assert torch.equal(change["none"], thoughts) and not change["zero"].any()
    assert torch.equal(change["swap"], thoughts[[1, 0]]), "another problem's thoughts"
    assert torch.equal(change["mean"][0], (thoughts[0] + thoughts[1]) / 2)
    torch.testing.assert_close(change["noise"].norm(dim=-1), thoughts.norm(dim=-1))
    assert not torch.allclose(change["noise"], thoughts)
    for before, after in zip(thoughts, change["permute"], strict=True):
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist())), "the same ones, reordered"
    assert not torch.equal(change["permute"], thoughts)
    alone = thoughts[:1, :1]  # one problem, one thought: nothing to take from, nothing to reorder
    for name in ("swap", "permute", "mean"):
        assert torch.equal(evaluate.INTERVENTIONS[name](alone), alone), name
