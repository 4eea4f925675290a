"""Verdicts, shortcuts and what evaluate prints beside an accuracy."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import prepare
import train
from nanococonut import cli, data, evaluate, files, prosqa, runs, scoring
from nanococonut.config import CHOICES, PRESETS, TrainConfig

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
A, B = "Tom is a lempus.", "Every lempus is a rempus."
C, D = "Every rempus is a impus.", "Every lempus is a jompus."
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
        # only by the detour can it be completed
        (["Every jompus is a rempus.", C], RIGHT, True, "longer_path"),
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
    assert prosqa.verdict("\n".join([*steps, answer]), ROW, hidden) == verdict


def test_every_text_gets_one_verdict():
    texts = [
        "",
        "###",
        "### ###",
        "\n\n",
        "Tom is a lempus.",
        "Is Tom a",
        "### Tom is a impus.\n### x",
        "a\x00b ### c",
    ]
    result = evaluate.summary(
        texts, [1] * len(texts), [ROW] * len(texts), [2] * len(texts), hidden=False
    )
    assert sum(result["verdicts"].values()) == len(texts)
    assert list(result["verdicts"]) == list(prosqa.VERDICTS)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        # begins with the object of a hidden step
        (f"lempus.\n{B}\n{C}\n{RIGHT}", "correct_path"),
        (f"impus.\n{RIGHT}", "correct_label"),
        # GPT-2's tokens may begin within a word
        (f" ipus is a rempus.\n{C}\n{RIGHT}", "correct_path"),
        # more thoughts than the chain has steps took the mark
        ("Tom is a impus.", "correct_label"),
        ("Tom is a yumpus.", "incorrect_label"),
        # it never came to an answer: its steps are judged
        (f"lempus.\n{B}\n{C}", "correct_path"),
        (f"lempus.\n{B}\nEvery x is a y.\n### z", "hallucination"),
    ],
)
def test_verdicts_behind_thoughts_in_place(text, verdict):
    assert prosqa.verdict(text, ROW, hidden=True) == verdict


def test_shortcuts_of_one_problem():
    # impus: persons within two steps back none, five nodes above it and itself;
    # yumpus: Max one step back.
    assert list(evaluate.rules([(ROW,)]).values()) == [0.5, 1.0, 1.0, 1.0], "chance first"
    turned = ROW | {"root": 1, "target": 6, "neg_target": 4}  # now the near, lonely one is right
    assert list(evaluate.rules([(turned,)]).values()) == [0.5, 0.5, 0.0, 0.0]
    assert evaluate.rules([({"question": "1 + 1?", "steps": [], "answer": "2"},)]) == {}


def test_one_odd_row_leaves_rules_and_verdicts_of_the_others():
    odd = {"question": "1 + 1?", "steps": [], "answer": "2"}
    assert evaluate.rules([(ROW,), (odd,), (ROW,)]) == evaluate.rules([(ROW,)])
    found = evaluate.summary(
        [RIGHT, "### 2", WRONG], [1] * 3, [ROW, odd, ROW], [2] * 3, hidden=True
    )
    assert found["accuracy"] == 2 / 3 and sum(found["verdicts"].values()) == 2
    assert (found["verdicts"]["correct_label"], found["verdicts"]["incorrect_label"]) == (1, 1)


@pytest.mark.skipif(
    not RELEASED.exists(), reason="the released files stand beside the project, not in it"
)
def test_shortcuts_of_the_released_file():
    """Measured on its 300 problems together with the 500 of test: 84.3, 70.7, 91.6 %."""
    found = evaluate.rules([(row,) for row in files.read_rows(RELEASED)])
    for share, expected in zip(found.values(), (0.5, 0.843, 0.707, 0.916), strict=True):
        assert abs(share - expected) < 0.03, found


ASKED = ROW | {"question": "Max is a yumpus. Tom is a lempus. Is Tom a impus or yumpus?"}


def test_a_chain_is_judged():
    row = {
        "edges": [[0, 2], [2, 3], [2, 4], [4, 3]],
        "idx_to_symbol": ["Tom", "Max", "lempus", "rempus", "impus"],
    }
    row |= {"root": 0, "target": 3}
    steps = ["Tom is a lempus.", "Every lempus is a rempus."]
    assert prosqa.judge_chain(steps, row, hidden=False) == "correct_path"
    longer = [steps[0], "Every lempus is a impus.", "Every impus is a rempus."]
    assert prosqa.judge_chain(longer, row, hidden=False) == "longer_path"
    assert prosqa.judge_chain(["Tom is a rempus."], row, hidden=False) == "hallucination"
    assert prosqa.judge_chain(longer[1:2], row, hidden=False) == "hallucination", (
        "it does not begin at the root"
    )
    assert prosqa.judge_chain(longer[1:2], row, hidden=True) == "wrong_target"


def test_the_twin_of_a_hand_made_graph():
    twin = prosqa.twin(ASKED)
    assert twin["question"] == "Max is a yumpus. Tom is a lempus. Is Max a impus or yumpus?"
    assert (twin["steps"], twin["answer"]) == (["Max is a yumpus."], "Max is a yumpus.")
    assert (twin["root"], twin["target"], twin["neg_target"]) == (1, 6, 4)
    back = prosqa.twin(twin)
    assert back | {"steps": 0} == ASKED | {"steps": 0}
    assert prosqa.twin(ROW) is None, "its question is none of ProsQA's"
    assert prosqa.twin(ASKED | {"edges": [*EDGES, [1, 3]]}) is None, "Max reaches both options"
    far = ASKED | {
        "idx_to_symbol": [*NAMES, "Sally"],
        "edges": [*EDGES[:-1], [1, 5], [5, 6], [7, 6]],
    }
    assert prosqa.twin(far)["root"] == 7, "Max, who now reaches both, is not asked"
    far["edges"] = [*EDGES[:-1], [1, 8], [8, 6], [7, 6]]
    far["idx_to_symbol"] = [*NAMES, "Sally", "zumpus"]
    assert prosqa.twin(far)["root"] == 7, "the nearer one is asked"
    far["edges"] = [*EDGES, [7, 6]]
    assert prosqa.twin(far)["root"] == 1, "of two equally near the first"


def test_rules_with_the_twin():
    pairs = evaluate.twins([ASKED, ROW])
    assert [row for row, _ in pairs] == [ASKED], "a problem without a twin counts in neither"
    # Tom's: 1, 1, 1. Asked of Max, impus is Tom's, three steps away, and yumpus nobody's but Max's:
    # a tie, then wrong twice.
    assert list(evaluate.rules(pairs).values()) == [0.25, 0.5, 0.0, 0.0], "chance first"
    assert evaluate.rules([]) == {}


@pytest.mark.skipif(
    not RELEASED.exists(), reason="the released files stand beside the project, not in it"
)
def test_twins_of_the_released_file():
    rows = files.read_rows(RELEASED)
    pairs = evaluate.twins(rows)
    assert len(pairs) == 300
    hops = Counter(len(twin["steps"]) for _, twin in pairs)
    assert hops == {1: 64, 2: 160, 3: 71, 4: 5}
    for row, twin in pairs:
        assert files.fault(twin) == ""
        words, twin_words = row["question"].split(), twin["question"].split()
        assert words[:-5] == twin_words[:-5]
        assert words[-4:] == twin_words[-4:], "only the name differs"
        assert prosqa.judge_chain(twin["steps"], twin, hidden=False) == "correct_path"
        assert twin["target"] not in prosqa.distances(row["edges"], row["root"])
    found = {rule: round(100 * share, 1) for rule, share in evaluate.rules(pairs).items()}
    assert list(found.values()) == [25.0, 43.2, 2.4, 2.6], found


def test_a_run_is_measured_with_twins(workspace, capsys):
    prepare.main(
        prepare.PrepareConfig(train=32, valid=6, test=8, n_nodes=8, min_hops=2, max_hops=3)
    )
    train.main(cli.parse(TrainConfig, ["smoke", "--name=run"], PRESETS, CHOICES))
    run = runs.Run("run")
    examples = run.split("test")
    twins = [twin for _, twin in evaluate.twins(examples.rows)]
    result, texts = evaluate.measure(run, examples)
    alone, twin_texts = evaluate.measure(run, data.Split(run.encoding, twins))
    assert result["twins"] == len(twins) == 8 and result["twin"] == alone["accuracy"]
    right = [scoring.is_right(*pair) for pair in zip(texts, examples.rows, strict=True)]
    twin_right = [scoring.is_right(*pair) for pair in zip(twin_texts, twins, strict=True)]
    assert result["both"] == sum(a and b for a, b in zip(right, twin_right, strict=True)) / 8
    capsys.readouterr()
    evaluate.main(evaluate.EvaluateConfig())
    printed = capsys.readouterr().out.splitlines()
    chance = "question and twin both right 25.0%, accuracy 50.0%"
    assert f"  without a model, chance: {chance}" in printed
    assert any("thoughts: question and twin both right" in line for line in printed)
    line = json.loads(printed[-1])
    assert line["chance_both"] == 0.25 and line["shortcuts_both"].keys() == line["shortcuts"].keys()
    assert line["results"][0]["both"] == result["both"]


def test_wilsons_interval():
    assert [round(x, 3) for x in scoring.wilson(97, 100)] == [0.915, 0.99]


def test_interventions_on_known_thoughts():
    thoughts = torch.arange(24.0).view(2, 3, 4) + 1
    change = {name: work(thoughts) for name, work in evaluate.INTERVENTIONS.items() if work}
    assert "none" not in change and not change["zero"].any()
    assert torch.equal(change["swap"], thoughts[[1, 0]]), "another problem's thoughts"
    assert torch.equal(change["mean"][0], (thoughts[0] + thoughts[1]) / 2)
    torch.testing.assert_close(change["noise"].norm(dim=-1), thoughts.norm(dim=-1))
    assert not torch.allclose(change["noise"], thoughts)
    for before, after in zip(thoughts, change["permute"], strict=True):
        assert sorted(map(tuple, before.tolist())) == sorted(map(tuple, after.tolist())), (
            "the same ones, reordered"
        )
    assert not torch.equal(change["permute"], thoughts)
    alone = thoughts[:1, :1]  # one problem, one thought: nothing to take from, nothing to reorder
    for name in ("swap", "permute", "mean"):
        assert torch.equal(evaluate.INTERVENTIONS[name](alone), alone), name
