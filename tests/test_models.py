"""The model of the project: small, safe to load, right, and what the texts say of it."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prepare
import sample
from nanococonut import (
    cli,
    curriculum,
    data,
    evaluate,
    files,
    readout,
    runs,
)
from nanococonut.config import PRESETS

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models/prosqa.pt"
RELEASED = ROOT.parent / "shared/data/prosqa_valid_official.json"


def both_and_accuracy(rows):
    run = runs.Run(str(MODEL))
    result, _ = evaluate.measure(run, data.Split(run.encoding, rows))
    return result["both"], result["accuracy"]


def test_the_file_is_small_and_holds_where_it_comes_from():
    assert MODEL.stat().st_size < 3_000_000
    state = torch.load(MODEL, weights_only=True)
    assert {"train.json", "train.npz", "test.json"} <= state["data"]["sha256"].keys()
    assert (state["config"]["method"], state["config"]["layout"]) == ("coconut", "in_place")
    assert "taught" not in state["config"], "its loss was on words alone"
    for fact in (f"--seed={state['config']['seed']}", "commit", "test: accuracy", "both right"):
        assert fact in state["about"]


def test_it_is_a_run_of_the_default_preset():
    recipe = torch.load(MODEL, weights_only=True)["config"]
    preset = dict(PRESETS["prosqa"])
    del preset["eval_every"]  # looks at the model, and changes nothing
    assert tuple(recipe.pop("stage_steps")) == preset.pop("stage_steps")
    assert {name: recipe[name] for name in preset} == preset


def test_it_answers_problems_that_nobody_has_seen():
    rows = prepare.generate(prepare.PrepareConfig(train=300, valid=1, test=1, seed=12345))["train"]
    both, accuracy = both_and_accuracy(rows)
    assert accuracy >= 0.96 and both >= 0.935


@pytest.mark.skipif(
    not RELEASED.exists(), reason="the released files stand beside the project, not in it"
)
def test_it_answers_the_released_validation_file():
    both, accuracy = both_and_accuracy(files.read_rows(RELEASED))
    assert accuracy >= 0.97 and both >= 0.94


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A folder with the model, but without data and runs."""
    shutil.copytree(ROOT / "models", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shape(text):
    """A text without its measured numbers and without the breaks of its lines."""
    return re.sub(r"\d\.\d+", "#", " ".join(text.split()))


def test_sample_answers_at_once_as_the_readme_shows(bare):
    done = subprocess.run(
        [sys.executable, str(ROOT / "sample.py")], cwd=bare, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert shape(done.stdout) in shape((ROOT / "README.md").read_text(encoding="utf-8"))
    assert "right; the chain is:" in done.stdout


def test_it_is_found_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "sample.py")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "right; the chain is:" in done.stdout, done.stderr


def test_other_data_of_the_same_name_does_not_hide_its_problems(bare, capsys):
    """As the command for one's own problems makes it."""
    prepare.main(cli.parse(prepare.PrepareConfig, ["--train=20", "--valid=5", "--test=5"]))
    capsys.readouterr()
    sample.main(sample.SampleConfig("models/prosqa.pt"))
    printed = capsys.readouterr().out
    other = "data/prosqa is other data than models/prosqa was trained on"
    assert f"{other}: asking from models/prosqa.json" in printed
    assert "right; the chain is:" in printed


def test_evaluate_probe_and_training_take_it_by_its_path(bare, capsys):
    words = ["models/prosqa.pt", "--data=models/prosqa.json"]
    evaluate.main(cli.parse(evaluate.EvaluateConfig, words, choices=evaluate.CHOICES))
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["n"] == 20 and found["results"][0]["accuracy"] >= 0.9
    words = ["models/prosqa.pt", "--split=valid"]
    with pytest.raises(
        cli.UserError, match="has test problems alone; --split=valid needs the data"
    ):
        evaluate.main(cli.parse(evaluate.EvaluateConfig, words, choices=evaluate.CHOICES))
    words = ["models/prosqa.pt", "--intervene=zero"]  # there is no data: only the few problems
    evaluate.main(cli.parse(evaluate.EvaluateConfig, words, choices=evaluate.CHOICES))
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(" on models/prosqa.json, 20 questions")
    assert any(line.startswith("7 thoughts, zero: question and twin") for line in lines)
    assert json.loads(last)["data"] == "models/prosqa.json"
    file = runs.named("models/prosqa.pt")
    assert file == Path("models/prosqa.pt") and runs.named("models/other.pt") is None


def test_words_that_the_model_has_never_seen_are_named(capsys):
    facts = "Tom is a lempus. Every lempus is a rempus. Max is a impus."
    question = f"{facts} Is Tom a impus or rempus?"
    sample.main(sample.SampleConfig(str(MODEL), question=question))
    assert "never seen" not in capsys.readouterr().out
    sample.main(sample.SampleConfig(str(MODEL), question=question.replace("lempus", "foopus")))
    assert "never seen in training, and read byte by byte: foopus\n" in capsys.readouterr().out


def test_a_question_walks_through_five_files():
    """sample.py, and these four.

    They turn words into ids, ids into thoughts, and thoughts into an answer. Only whoever wants to
    read the thoughts as words needs readout.py too.
    """
    run, entered = runs.Run(str(MODEL)), set()
    (row, *_) = files.read_rows(MODEL.with_suffix(".json"))

    def note(frame, event, arg):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.parent.name == "nanococonut":
            entered.add(path.name)

    sys.setprofile(note)
    try:
        example = curriculum.tokenize(row, run.encoding.encode_ordinary)
        (answer,) = run.answer([example], run.plan)
        answering = set(entered)
        readout.words(run, answer.thoughts)
    finally:
        sys.setprofile(None)
    said = run.encoding.decode(answer.ids)
    assert said == row["answer"], "the last thought has taken the place of the mark"
    assert answering == {"runs.py", "curriculum.py", "coconut.py", "model.py"}
    assert entered == answering | {"readout.py"}
