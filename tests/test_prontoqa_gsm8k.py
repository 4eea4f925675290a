"""ProntoQA proved by other code, beside the released generator's; GSM8k as the paper's code cuts it."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

import prepare
import sample
import train
from nanococonut import config, data, evaluate
from nanococonut.config import UserError
from nanococonut.settings import CHOICES, PRESETS, TrainConfig

SHARED = Path(__file__).parents[2] / "shared/data"
PRONTOQA, GSM8K = SHARED / "prontoqa_valid_official.json", SHARED / "gsm8k_valid_official.txt"
released = pytest.mark.skipif(not SHARED.exists(), reason="the released files stand beside the project, not in it")
FORMS = [
    ("entity", r"(?P<a>[A-Z][a-z]+) is an? (?P<b>[a-z]+)"),
    ("link", r"(?:Every|Each) (?P<a>[a-z]+) is an? (?P<b>[a-z]+)"),
    ("property", r"(?:Every|Each) (?P<a>[a-z]+) is (?P<no>not )?(?P<b>[a-z]+)"),
    ("link", r"(?P<a>[A-Z][a-z]+us)es are (?P<b>[a-z]+us)es"),
    ("property", r"(?P<a>[A-Z][a-z]+us)es are (?P<no>not )?(?P<b>[a-z]+)"),
]


def run(*words):
    prepare.main(config.parse(prepare.PrepareConfig, words, choices=prepare.CHOICES))


def read(sentence):
    """(kind, subject, object, negated) of a sentence without its full stop."""
    for kind, form in FORMS:
        found = re.fullmatch(form, sentence)
        if found:
            return kind, found["a"].lower(), found["b"], bool(found.groupdict().get("no"))
    raise AssertionError(sentence)


def prove(question):
    """What is true of the entity by the question's own facts: the answer, and the facts read."""
    *facts, query = question.split(". ")
    entity, no, asked = re.fullmatch(r"True or false: (\w+) is (not )?(\w+)\.", query).groups()
    read_facts = [read(fact) for fact in facts]
    is_a = {b for kind, a, b, _ in read_facts if kind == "entity" and a == entity.lower()}
    while new := {b for kind, a, b, _ in read_facts if kind == "link" and a in is_a} - is_a:
        is_a |= new
    (negated,) = {negated for kind, a, b, negated in read_facts if kind == "property" and a in is_a and b == asked}
    return str(negated == bool(no)), read_facts


def statistics(rows):
    """Shares of sentence forms, of negations and of answers."""
    counts = Counter()
    for row in rows:
        for sentence in row["question"].split(". ")[:-1]:
            kind, _, _, negated = read(sentence)
            first = sentence.split()[0]
            counts[kind, first if first in ("Every", "Each") else "other", negated] += 1
        counts["query not"] += " not " in row["question"].rpartition(": ")[2]
        counts[row["answer"]] += 1
    return {key: n / len(rows) for key, n in counts.items()}


def test_three_thousand_problems_are_sound(workspace):
    run("prontoqa", "--train=2900", "--valid=50", "--test=50")
    rows = [row for split in data.SPLITS for row in data.read_rows(Path(f"data/prontoqa/{split}.json"))]
    assert len({row["question"] for row in rows}) == 3000
    for row in rows:
        answer, facts = prove(row["question"])
        assert row["answer"] == answer
        assert Counter(kind for kind, *_ in facts) == {"link": 11, "property": 12, "entity": 2}
        assert [kind for kind, *_ in facts][-2:] == ["entity", "entity"]
        assert len(row["steps"]) == 6
        entity = row["question"].rpartition(": ")[2].split()[0]
        at = entity.lower()  # where the chain has come to
        for step, rule in (step.split(". ") for step in row["steps"][:-1]):
            kind, a, b, _ = read(step)
            assert (kind, a) == ("entity", entity.lower()) and f"{rule.rstrip('.')}." in row["question"]
            assert at in (entity.lower(), b)
            _, a, at, negated = read(rule.rstrip("."))
            assert a == b
        conclusion = f"{entity} is {'not ' if negated else ''}{at}."
        assert row["steps"][-1] == conclusion
        assert (conclusion == row["question"].rpartition(": ")[2]) == (answer == "True")
    assert abs(sum(row["answer"] == "True" for row in rows) / 3000 - 0.5) < 0.04


@released
def test_sentences_are_as_often_as_in_the_released_file(workspace):
    run("prontoqa", "--train=800", "--valid=100", "--test=100")
    own = statistics(data.read_rows(Path("data/prontoqa/train.json")))
    theirs = data.read_rows(PRONTOQA)
    assert all(prove(row["question"])[0] == row["answer"] for row in theirs)
    for key, expected in statistics(theirs).items():  # sentences a problem, of 25
        assert abs(own[key] - expected) < 0.35, (key, own[key], expected)
    assert evaluate.baselines(theirs) == {"chance": 0.5, "more often mentioned concept": 1.0}


def test_the_shortcut_and_the_way_without(workspace):
    run("prontoqa", "--train=300", "--valid=20", "--test=20")
    rows = data.read_rows(Path("data/prontoqa/train.json"))
    assert evaluate.baselines(rows) == {"chance": 0.5, "more often mentioned concept": 1.0}
    run("prontoqa", "--name=fair", "--fair=true", "--train=300", "--valid=20", "--test=20")
    rows = data.read_rows(Path("data/fair/train.json"))
    assert evaluate.baselines(rows) == {"chance": 0.5, "more often mentioned concept": 0.5}
    assert all(prove(row["question"])[0] == row["answer"] for row in rows)
    run("prontoqa", "--name=short", "--hops=2", "--train=20", "--valid=5", "--test=5")
    rows = data.read_rows(Path("data/short/train.json"))
    assert {len(row["steps"]) for row in rows} == {3} and all(prove(r["question"])[0] == r["answer"] for r in rows)
    with pytest.raises(UserError, match="--hops=7 should be from 1 to 6"):
        run("prontoqa", "--hops=7")


def test_gsm8k_lines(workspace):
    line = "Tom has {0}, buys 2. How many?||<<{0}+2={1}>> <<{1}-.5={1}>> #### {1}"
    lines = [line.format(n, n + 2) for n in range(18)] + ["None?|| #### 1,000", "Half?||<<1/2=.5>> #### 0.5"]
    Path("some.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run("gsm8k", "--source=some.txt")
    rows = [row for split in data.SPLITS for row in data.read_rows(Path(f"data/gsm8k/{split}.json"))]
    assert len(rows) == 20
    by_question = {row["question"]: row for row in rows}
    assert by_question["None?"] == {"question": "None?", "steps": [""], "answer": "1000"}
    assert by_question["Half?"]["answer"] == "0.5"
    dataset = data.Dataset("gsm8k")
    ids = dataset.encoding.encode_ordinary("48 clips")
    assert [dataset.encoding.decode([i]) for i in ids[:2]] == ["4", "8"], "digit by digit"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 87\n", "is a Git-LFS pointer"),
        (b"\xff\xfe\x00", "cannot read bad.txt"),
        (b"no bars #### 3\n", "bad.txt: line 1: expected question"),
        (b"\n\n", "bad.txt: line 1: expected question"),
        (b"fine?||<<1+1=2>> #### 2\n\nno bars #### 3\n", "bad.txt: line 2: expected question"),
    ],
)
def test_files_that_are_not_gsm8k(workspace, content, message):
    Path("bad.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        run("gsm8k", "--source=bad.txt")


def test_offline_the_default_address_is_one_clear_line(workspace, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match=r"cannot fetch https://media.*train\.txt .*give its path as --source"):
        run("gsm8k")


def steps_of(task, *words):
    train.main(config.parse(TrainConfig, ["smoke", f"--task={task}", "--name=run", *words], PRESETS, CHOICES))


@pytest.mark.parametrize("task", ["prontoqa", "gsm8k"])
def test_the_other_tasks_train_evaluate_and_sample(workspace, capsys, task):
    if task == "prontoqa":
        run("prontoqa", "--train=40", "--valid=5", "--test=5")
    elif GSM8K.exists():
        run("gsm8k", f"--source={GSM8K}")
    else:
        Path("some.txt").write_text("\n".join(f"Is {n} it?||<<{n}+2={n + 2}>> #### {n + 2}" for n in range(30)))
        run("gsm8k", "--source=some.txt")
    steps_of(task, "--c_thought=2", "--stage_steps=2")
    capsys.readouterr()
    evaluate.main(evaluate.EvaluateConfig("run"))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["results"][0]["latent"] == 4 and line["results"][0]["verdicts"] == {}
    assert line["chance"] == (0.5 if task == "prontoqa" else None)
    sample.main(sample.SampleConfig())
    assert "  thought 4  " in capsys.readouterr().out
