"""One's own data to the end: other names, many names, and the shipped model trained on."""

import functools
import json
import random
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

import prepare
import sample
import train
from nanococonut import cli, data, evaluate, files, prosqa, runs, tokenizer
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig

ROOT = Path(__file__).parents[1]


def run(*words):
    prepare.main(cli.parse(prepare.PrepareConfig, words, choices=prepare.CHOICES))


def trained(*words):
    train.main(cli.parse(TrainConfig, ["smoke", *words], PRESETS, CHOICES))


def sampled(*words):
    sample.main(cli.parse(sample.SampleConfig, words))


def chains(n, names, persons, seed=0):
    """n problems of two hops with these names, each with two persons."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        a, b, c, d = rng.sample(names, 4)
        one, other = rng.sample(persons, 2)
        facts = [f"{one} is a {a}.", f"Every {a} is a {b}."]
        facts += [f"{other} is a {c}.", f"Every {c} is a {d}."]
        question = " ".join([*rng.sample(facts, 4), f"Is {one} a {b} or {d}?"])
        rows.append({"question": question, "steps": facts[:2], "answer": f"{one} is a {b}."})
    return rows


def write(name, rows):
    Path(name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


NAMES = "c37 kind_x x-pus zumpüs concept0001 汤 каша".split()


def test_names_of_any_script_are_tokens_and_are_learned_on(workspace, capsys):
    write("mine.json", chains(40, NAMES, ["Ömer", "Zoë"]))
    run("prosqa", "--source=mine.json")
    said = capsys.readouterr().out
    assert "no token" not in said and "tell no graph" not in said
    split = data.Dataset("prosqa").split("train")
    assert all(split.told)
    encoding = split.encoding
    names = [name for row in split.rows for name in row["idx_to_symbol"]]
    assert all(tokenizer.node_tokens(encoding, name) for name in names)
    # Two tokens a fact, and 9 of "Is Tom a x or y?" and the newline at most.
    for i, row in enumerate(split.rows):
        assert len(split.example(i).question) <= 2 * len(row["edges"]) + 9
    (group,) = split.draw(1, random.Random(0), augment=True)
    text = encoding.decode(group.examples[0].question)
    told, why = prosqa.told_by(text.strip())
    assert told, why
    assert set(told["idx_to_symbol"]) <= {*NAMES, "Ömer", "Zoë"}


def test_a_thousand_names_are_prepared_in_linear_memory(workspace, capsys):
    names = [f"concept{i:04}" for i in range(1000)]
    write("mine.json", chains(700, names, ["Tom", "Max", "Eva"]))
    tracemalloc.start()
    run("prosqa", "--source=mine.json")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 100e6, f"{most / 1e6:.0f} MB for a file of 200 KB"
    meta = data.Dataset("prosqa").meta
    assert f"Every {names[7]} is a " in meta["vocabulary"] and len(meta["vocabulary"]) < 8000
    assert "byte by byte" not in capsys.readouterr().out


def test_a_vocabulary_that_is_cut_says_so(workspace, capsys, monkeypatch):
    write("mine.json", chains(100, [f"c{i}" for i in range(60)], ["Tom", "Max"]))
    fewer = functools.partial(data.tokenizer.fit, max_pieces=100)
    monkeypatch.setattr(data.tokenizer, "fit", fewer)
    run("prosqa", "--source=mine.json")
    said = capsys.readouterr().out
    assert "the 100 most frequent pieces of text are tokens; " in said
    assert " others are read byte by byte" in said
    assert "names have no token and are read byte by byte, as 'c" in said


def packed_anew(path):
    """The same arrays in another zip file, as another version of Python writes it."""
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    before = path.read_bytes()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in sorted(parts, reverse=True):
            new.writestr(name, parts[name])
    assert path.read_bytes() != before


def test_data_packed_by_another_python_are_the_same_data(workspace):
    run("prosqa", "--train=20", "--valid=4", "--test=4")
    trained("--name=run", "--stage_steps=1")
    for split in data.SPLITS:
        packed_anew(Path(f"data/prosqa/{split}.npz"))
    assert len(runs.Run("run").split("test")) == 4
    trained("--name=run", "--stage_steps=1", "--resume=true")


@pytest.mark.parametrize("how", ["tokens", "half"])
def test_damaged_tokens_are_refused(workspace, how):
    run("prosqa", "--train=20", "--valid=4", "--test=4")
    path = Path("data/prosqa/train.npz")
    if how == "half":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        with np.load(path) as file:
            arrays = dict(file)
        arrays["tokens"][3] += 1
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"train.npz is not as it was prepared \(checksum\)"):
        data.Dataset("prosqa").split("train")


def test_the_shipped_model_is_trained_on_with_ones_own_problems(workspace, capsys):
    """Its vocabulary is taken over; then it learns, is measured and answers a question."""
    model = str(ROOT / "models/prosqa.pt")
    write("mine.json", chains(200, prosqa.CONCEPTS[:12], prosqa.PERSONS[:5]))
    run("prosqa", "--source=mine.json", "--name=mine")
    advice = "prepare it again with --vocabulary_of="
    with pytest.raises(UserError, match=f"has another vocabulary than data/mine; {advice}"):
        trained("--task=mine", "--name=tuned", f"--init_from={model}")
    run("prosqa", "--source=mine.json", "--name=mine", f"--vocabulary_of={model}")
    assert data.Dataset("mine").encoding.n_vocab == runs.Run(model).encoding.n_vocab
    rates = ["--lr=1e-3", "--batch_size=32", "--stage_steps=0,0,0,0,0,0,0,30"]
    trained("--task=mine", "--name=tuned", f"--init_from={model}", *rates)
    capsys.readouterr()
    evaluate.main(evaluate.EvaluateConfig(run="tuned"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["results"][0]["accuracy"] >= 0.9
    facts = "Tom is a lempus. Every lempus is a rempus. Max is a impus."
    sampled("tuned", f"--question={facts} Is Tom a rempus or impus?")
    assert "the chain is: Tom is a lempus. Every lempus is a rempus." in capsys.readouterr().out
    run("prosqa", "--source=mine.json", "--name=again", "--vocabulary_of=tuned")
    assert data.Dataset("again").meta["vocabulary"] == data.Dataset("mine").meta["vocabulary"]
    with pytest.raises(UserError, match="--vocabulary_of=nobody not found"):
        run("prosqa", "--source=mine.json", "--name=again", "--vocabulary_of=nobody")


def test_a_run_keeps_its_own_tokens_when_its_data_are_prepared_again(workspace):
    """The problems are the same, their tokens are not: the run reads them in its own."""
    run("prosqa", "--train=20", "--valid=4", "--test=4")
    trained("--name=run", "--stage_steps=1")
    before = [runs.Run("run").split("test").example(i) for i in range(4)]
    model = ROOT / "models/prosqa.pt"
    run("prosqa", "--train=20", "--valid=4", "--test=4", f"--vocabulary_of={model}")
    split = runs.Run("run").split("test")
    assert [split.example(i) for i in range(4)] == before
    assert [data.Dataset("prosqa").split("test").example(i) for i in range(4)] != before
    advice = "prepare it again with --vocabulary_of=runs/run"
    with pytest.raises(UserError, match=f"data/prosqa has other tokens than runs/run; {advice}"):
        trained("--name=run", "--stage_steps=1", "--resume=true")


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (
            "Tom is a lempus. Max is a impus. Every impus is a rempus. Is Max a rempus or lempus?",
            "right; the chain is: Max",
        ),
        ("Tom is a lempus. Max is a lempus. Is Tom a lempus or impus?", "no fact names 'impus'"),
        (
            "Tom  is a lempus.  Max is a impus. Is Tom a lempus or impus?",
            "the chain is: Tom is a lempus.",
        ),
        (
            "tom is a lempus. Max is a impus. Is tom a lempus or impus?",
            "'tom', but a person's name begins",
        ),
        (
            "Every Tom is a lempus. Max is a impus. Is Tom a lempus or impus?",
            "'Every Tom is a lempus.': facts about a",
        ),
        (
            "Tom is a lempus. Max is a impus. Every impus is a lempus. Is Max a lempus or impus?",
            "Max reaches both options",
        ),
        (
            "Tom is a lempus. Max is a impus. Every a is a b. Is Tom a b or impus?",
            "Tom reaches none of the two options",
        ),
        (
            "Tom is a lempus. Is Tom a lempus or impus? Is Tom a impus or lempus?",
            "the answer is not checked: ",
        ),
        ("Tom is a lempus.", "'Tom is a lempus.' is no question like"),
        (
            "Tom is a lempus. Max is a impus. Is Tom a Tom or impus?",
            "'Tom' is what somebody is, but begins with a capital",
        ),
        (
            "Tom is a lempus. Max is a 汤. Is Tom a lempus or 汤?",
            "never seen in training, and read byte by byte: 汤\n",
        ),
        (
            "Tom is an lempus. Max is a impus. Is Tom a lempus or impus?",
            "in a form never seen in training",
        ),
    ],
)
def test_a_typed_question(workspace, capsys, question, said):
    sampled(str(ROOT / "models/prosqa.pt"), f"--question={question}")
    shown = capsys.readouterr().out
    assert said in shown
    assert ("stands on the chain" in shown) == ("; the chain is: " in shown)


def no_checkpoint():
    run("prosqa", "--train=20", "--valid=4", "--test=4")
    trained("--name=run", "--stage_steps=4")


def test_a_run_that_lost_its_checkpoint_is_not_begun_again(workspace):
    no_checkpoint()
    Path("runs/run/ckpt.pt").unlink()
    before = {path: path.read_bytes() for path in Path("runs/run").iterdir()}
    with pytest.raises(UserError, match=r"runs/run has lost its ckpt.pt, .* --init_from=run"):
        trained("--name=run", "--stage_steps=4", "--resume=true")
    with pytest.raises(UserError, match=r"runs/run was trained with --lr="):
        trained("--name=run", "--stage_steps=4", "--resume=true", "--lr=0.5")
    assert {path: path.read_bytes() for path in Path("runs/run").iterdir()} == before
    trained("--name=other", "--stage_steps=4", "--init_from=run")


def test_a_folder_with_a_checkpoint_alone_is_a_run(workspace):
    no_checkpoint()
    Path("runs/run/best.pt").rename("best.pt")
    Path("runs/alone").mkdir()
    Path("best.pt").rename("runs/alone/best.pt")
    assert runs.Run("alone").folder == Path("runs/alone")
    with pytest.raises(UserError, match=r"runs/alone has no config\.json: nothing to resume"):
        trained("--name=alone", "--stage_steps=4", "--resume=true")


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": 3}', "[", '{"sha256": [1]}'])
def test_a_damaged_meta_is_one_line(workspace, content):
    no_checkpoint()
    Path("data/prosqa/meta.json").write_text(content)
    with pytest.raises(UserError, match=r"meta.json is"):
        runs.Run("run").split("test")


def test_data_under_another_name_are_found_by_their_problems(workspace):
    no_checkpoint()
    Path("data/prosqa").rename("data/mine")
    assert str(runs.Run("run").split("test").path) == "data/mine/test.json"
    run("prosqa", "--train=30", "--valid=4", "--test=4")
    assert str(runs.Run("run").split("test").path) == "data/mine/test.json"


def test_a_model_with_a_dot_in_its_name_has_no_other_models_questions(workspace):
    no_checkpoint()
    Path("runs/run/best.pt").rename("prosqa.mine.pt")
    Path("prosqa.json").write_bytes((ROOT / "models/prosqa.json").read_bytes())
    assert str(runs.Run("prosqa.mine.pt").split("test").path) == "data/prosqa/test.json"


def test_the_shipped_model_is_found_from_anywhere_and_says_what_it_was_asked(workspace, capsys):
    run("prosqa", "--train=20", "--valid=4", "--test=4")  # other data under its name
    capsys.readouterr()
    evaluate.main(evaluate.EvaluateConfig(run="models/prosqa.pt"))
    said = capsys.readouterr().out
    assert f"on {ROOT}/models/prosqa.json, 20 questions" in said
    assert json.loads(said.splitlines()[-1])["data"] == f"{ROOT}/models/prosqa.json"


CHANGES = {
    "no rules, verdicts and twins of them; the first: the answer is": lambda row: {
        "answer": row["answer"].rstrip(".")
    },
    "in a form never seen in training": lambda row: {
        "question": row["question"].replace(" is a ", " is an ", 1)
    },
    "never seen in training, and read byte by byte: ": lambda row: {
        "question": row["question"].replace("pus", "wug", 2)
    },
    "not read: story": lambda row: {"story": [["Tom is a lempus."]]},
    "not read: context": lambda row: {"context": {"facts": "Tom is a lempus."}},
}


@pytest.mark.parametrize("said", CHANGES)
def test_evaluate_says_what_the_model_cannot_use(workspace, capsys, said):
    rows = json.loads((ROOT / "models/prosqa.json").read_text(encoding="utf-8"))
    write("mine.json", [row | CHANGES[said](row) for row in rows])
    evaluate.main(evaluate.EvaluateConfig(run="models/prosqa.pt", data="mine.json"))
    assert said in capsys.readouterr().out


def test_facts_in_a_nested_list_are_joined():
    row = {
        "context": [["A", ["Tom is a lempus.", "Max is a impus."]]],
        "question": "Is Tom a lempus or impus?",
    }
    question = "A Tom is a lempus. Max is a impus. Is Tom a lempus or impus?"
    assert files.problem(row) == {"question": question}


def test_the_same_problem_in_another_order_is_no_new_one(workspace, capsys):
    rng, rows = random.Random(0), []
    for row in chains(8, prosqa.CONCEPTS, prosqa.PERSONS):
        *facts, asked = row["question"].replace(". ", ".\t").split("\t")
        for _ in range(3):
            shuffled = rng.sample(facts, len(facts))
            rows.append(row | {"question": " ".join([*shuffled, asked])})
    write("mine.json", rows)
    run("prosqa", "--source=mine.json")
    assert "questions of valid or test also occur in an earlier split" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["prosqa", "--source=mine.json", "--train=4"],
        ["prosqa", "--source=mine.json", "--fair=true"],
        ["prosqa", "--hops=2"],
        ["prontoqa", "--n_nodes=9"],
        ["prosqa", "--vocabulary_of=x", "--tokenizer=gpt2"],
    ],
)
def test_an_option_without_an_effect_is_refused(workspace, words):
    with pytest.raises(UserError, match=r"leave --[a-z_]+ out|leave it out"):
        run(*words)
    assert not Path("data").exists()


def test_data_are_not_prepared_over_their_own_source(workspace):
    run("prosqa", "--train=20", "--valid=4", "--test=4")
    for source in ("data/prosqa/train.json", "data/prosqa"):
        with pytest.raises(UserError, match="which would be replaced: choose another --name"):
            run("prosqa", f"--source={source}")


def test_a_taxonomy_without_persons_is_prepared_and_says_why_it_is_not_augmented(workspace, capsys):
    row = {
        "question": "Every ka is a kb. Every kd is a ke. Is ka a kb or ke?",
        "steps": ["Every ka is a kb."],
    }
    write("mine.json", [row | {"answer": "Every ka is a kb."}] * 12)
    run("prosqa", "--source=mine.json")
    why = "it asks about 'ka', but a person's name begins with a capital letter"
    assert why in capsys.readouterr().out


def test_a_typed_question_that_is_not_utf8(workspace):
    with pytest.raises(UserError, match="should be in UTF-8"):
        sampled("models/prosqa.pt", "--question=Zo\udceb is a lempus.")


def test_an_option_that_is_true_or_false_shows_the_value_that_does_something():
    with pytest.raises(UserError, match="--resume needs a value, like --resume=true"):
        cli.parse(TrainConfig, ["smoke", "--resume"], PRESETS, CHOICES)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.csv", b"question,answer\n1,2\n", "a table has to become JSON lines"),
        ("a.npz", b"PK\x03\x04", "a file of tokens"),
    ],
)
def test_files_of_another_kind(workspace, name, content, said):
    Path(name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        files.read_rows(Path(name))


def test_giventhat_scoring_cuts_are_named(workspace, capsys):
    rows = [
        {"question": f"{i}?", "steps": ["a"], "answer": answer}
        for i, answer in enumerate(["1,200"] * 11 + ["3,5"])
    ]
    write("mine.json", rows)
    run("gsm8k", "--source=mine.json")
    cut = "1 answers count without their commas and what stands before their last #, as '3,5'"
    assert cut in capsys.readouterr().out
    cases = {"seat A #3": True, "1,200,000": False, "yes": False, "1,2345": True}
    assert {text: prepare.is_cut_by_scoring(text) for text in cases} == cases


def test_the_module_that_is_no_command_says_so():
    command = [sys.executable, "-m", "nanococonut.pretrained", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "This is no command" in done.stdout
