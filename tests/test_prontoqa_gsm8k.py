"""ProntoQA proved by other code, beside the released generator's; GSM8k as the paper cuts it."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

import prepare
import sample
import train
from nanococonut import cli, curriculum, data, evaluate, files, prontoqa, tokenizer
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig

SHARED = Path(__file__).parents[2] / "shared/data"
PRONTOQA, GSM8K = SHARED / "prontoqa_valid_official.json", SHARED / "gsm8k_valid_official.txt"
released = pytest.mark.skipif(
    not SHARED.exists(), reason="the released files stand beside the project, not in it"
)
FORMS = [
    ("entity", r"(?P<a>[A-Z][a-z]+) is an? (?P<b>[a-z]+)"),
    ("link", r"(?:Every|Each) (?P<a>[a-z]+) is an? (?P<b>[a-z]+)"),
    ("property", r"(?:Every|Each) (?P<a>[a-z]+) is (?P<no>not )?(?P<b>[a-z]+)"),
    ("link", r"(?P<a>[A-Z][a-z]+us)es are (?P<b>[a-z]+us)es"),
    ("property", r"(?P<a>[A-Z][a-z]+us)es are (?P<no>not )?(?P<b>[a-z]+)"),
]


def run(*words):
    prepare.main(cli.parse(prepare.PrepareConfig, words, choices=prepare.CHOICES))


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
    properties = [fact[1:] for fact in read_facts if fact[0] == "property"]
    (negated,) = {negated for a, b, negated in properties if a in is_a and b == asked}
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
    paths = [Path(f"data/prontoqa/{split}.json") for split in data.SPLITS]
    rows = [row for path in paths for row in files.read_rows(path)]
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
            assert (kind, a) == ("entity", entity.lower())
            assert f"{rule.rstrip('.')}." in row["question"]
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
    own = statistics(files.read_rows(Path("data/prontoqa/train.json")))
    theirs = files.read_rows(PRONTOQA)
    assert all(prove(row["question"])[0] == row["answer"] for row in theirs)
    for key, expected in statistics(theirs).items():  # sentences a problem, of 25
        assert abs(own[key] - expected) < 0.35, (key, own[key], expected)
    found = evaluate.rules([(row,) for row in theirs])
    assert found == {"chance": 0.5, "more often mentioned concept": 1.0}


def test_the_shortcut_and_the_way_without(workspace):
    run("prontoqa", "--train=300", "--valid=20", "--test=20")
    rows = files.read_rows(Path("data/prontoqa/train.json"))
    found = evaluate.rules([(row,) for row in rows])
    assert found == {"chance": 0.5, "more often mentioned concept": 1.0}
    run("prontoqa", "--name=fair", "--fair=true", "--train=300", "--valid=20", "--test=20")
    rows = files.read_rows(Path("data/fair/train.json"))
    found = evaluate.rules([(row,) for row in rows])
    assert found == {"chance": 0.5, "more often mentioned concept": 0.5}
    assert all(prove(row["question"])[0] == row["answer"] for row in rows)
    run("prontoqa", "--name=short", "--hops=2", "--train=20", "--valid=5", "--test=5")
    rows = files.read_rows(Path("data/short/train.json"))
    assert {len(row["steps"]) for row in rows} == {3}
    assert all(prove(row["question"])[0] == row["answer"] for row in rows)
    with pytest.raises(UserError, match="--hops=7 should be from 1 to 6"):
        run("prontoqa", "--hops=7")


LEMPUS = {
    "question": "Lempuses are happy. Each rempus is not happy. Max is an impus. "
    "Every impus is a lempus. Max is a gorpus. True or false: Max is not happy.",
    "steps": [
        "Max is an impus. Every impus is a lempus.",
        "Max is a lempus. Lempuses are happy.",
        "Max is happy.",
    ],
    "answer": "False",
}


def test_an_ontology_is_read_by_hand():
    found = prontoqa.read(LEMPUS)
    assert found.names == ["Max", "gorpus", "happy", "impus", "lempus", "not happy", "rempus"]
    assert list(found.facts) == [(4, 2), (6, 5), (0, 3), (3, 4), (0, 1)]
    assert found.facts[3, 4] == "Every impus is a lempus."
    assert found.facts[6, 5] == "Each rempus is not happy."
    assert (found.target, found.neg_target) == (2, 5)
    assert found.needed == {(0, 3), (3, 4), (4, 2), (6, 5)}, "all but what leads nowhere"
    # lempus is in two facts, rempus in one
    assert prontoqa.rule_points(LEMPUS) == {"more often mentioned concept": 1.0}
    even = LEMPUS | {"question": "Rempuses are gorpuses. " + LEMPUS["question"]}
    assert prontoqa.rule_points(even) == {"more often mentioned concept": 0.5}
    two = ["Each rempus is happy. ", "Each lempus is happy. ", "Each lempus is a rempus. "]
    # Two concepts have what Max has: the order of facts is no matter.
    for order in (two, two[::-1]):
        rest = "Gorpuses are not happy. Max is a lempus. True or false: Max is happy."
        both = LEMPUS | {"question": "".join(order) + rest, "answer": "True"}
        assert prontoqa.rule_points(both) == {"more often mentioned concept": 1.0}


def test_a_chain_with_a_shorter_way_keeps_its_own_facts():
    shorter = "Lempuses are happy. Impuses are happy."
    question = LEMPUS["question"].replace("Lempuses are happy.", shorter)
    found = prontoqa.read(LEMPUS | {"question": question})
    said = {found.facts[edge] for edge in found.needed}
    assert {"Impuses are happy.", "Every impus is a lempus.", "Lempuses are happy."} <= said


def test_an_entity_whose_name_ends_in_es():
    found = prontoqa.read(json.loads(json.dumps(LEMPUS).replace("Max", "James")))
    assert found.names[0] == "James"


def test_rows_of_two_tasks_have_no_common_rules(workspace):
    run("prosqa", "--train=20", "--valid=4", "--test=4")
    mixed = [*files.read_rows(Path("data/prosqa/test.json")), LEMPUS]
    for rows in (mixed, mixed[::-1]):
        assert evaluate.rules([(row,) for row in rows]) == {}
    alone = evaluate.rules([(LEMPUS,)])
    odd = {"question": "1 + 1?", "steps": [], "answer": "2"}
    assert evaluate.rules([(LEMPUS,), (odd,)]) == alone != {}
    assert evaluate.rules(evaluate.twins(mixed)) == {}


def test_facts_in_any_order_fit_the_vocabulary_and_the_model(workspace):
    entity_first = []
    for n in range(30):
        c = prepare.PrepareConfig("prontoqa", train=1, valid=1, test=1, seed=n)
        (row,) = prepare.generate(c)["train"]
        facts, asks, query = row["question"].partition(prontoqa.ASKS)
        sentences = re.split(r"(?<=\.) ", facts)
        turned = " ".join([*sentences[-2:], *sentences[:-2]])
        entity_first.append(row | {"question": turned + asks + query})
    Path("own.json").write_text(json.dumps(entity_first))
    run("prontoqa", "--source=own.json", "--name=own")
    dataset = data.Dataset("own")
    groups = dataset.split("train").draw(200, random.Random(0), True)
    questions = [group.examples[0].question for group in groups]
    assert max(map(len, questions)) <= dataset.meta["longest"]["question"]
    single = {dataset.encoding.encode_single_token("\n")}
    found = {i for ids in questions for i in ids if i < 256}
    assert found <= single, "no fact falls to bytes"


def test_a_node_that_is_no_token_has_none(workspace):
    run("prontoqa", "--train=20", "--valid=4", "--test=4")
    encoding = data.Dataset("prontoqa").encoding
    # not the first byte of it, which other names have too
    assert tokenizer.node_tokens(encoding, "wug") == []
    assert [encoding.decode([i]) for i in tokenizer.node_tokens(encoding, "Max")] == ["Max is a "]


def test_data_is_read_with_the_pattern_it_was_prepared_with(workspace):
    run("prontoqa", "--train=20", "--valid=4", "--test=4")
    path = Path("data/prontoqa/meta.json")
    meta = json.loads(path.read_text())
    path.write_text(json.dumps(meta | {"pattern": r"[a-z]+|[\s\S]"}))
    words = tokenizer.load("words", meta["vocabulary"])
    assert data.Dataset("prontoqa").encoding.encode("gorpus.") != words.encode("gorpus.")
    path.write_text(json.dumps({key: value for key, value in meta.items() if key != "pattern"}))
    with pytest.raises(UserError, match="json is damaged or outdated; prepare the data again"):
        data.Dataset("prontoqa")


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "True"},
        {"question": LEMPUS["question"].replace("Max is not happy", "Max is not sad")},
        # Max has neither form
        {"question": LEMPUS["question"].replace("Lempuses are happy. ", "")},
        # Max has both
        {"question": LEMPUS["question"].replace("Max is a gorpus", "Max is a rempus")},
        {"question": "It rains. " + LEMPUS["question"]},
        {"question": LEMPUS["question"].replace("True or false: ", "")},
        {"question": "How many?"},
        {"question": LEMPUS["question"].replace("Max is not happy", "Max is a lempus")},
        {"question": LEMPUS["question"].replace("Max is not happy", "Lempuses are happy")},
        {"answer": "Yes"},
    ],
)
def test_words_that_tell_no_ontology(change):
    row = LEMPUS | change
    assert prontoqa.read(row) is None and prontoqa.twin(row) is None
    assert prontoqa.rule_points(row) == {}


def test_the_twin_is_negated_and_proved_by_other_code(workspace):
    run("prontoqa", "--train=40", "--valid=5", "--test=5")
    rows = files.read_rows(Path("data/prontoqa/train.json"))
    pairs = evaluate.twins(rows)
    assert [row for row, _ in pairs] == rows
    for row, twin in pairs:
        assert twin["answer"] == prove(twin["question"])[0] != row["answer"]
        assert prontoqa.twin(twin) == row
        facts, _, _ = row["question"].rpartition(" True or false: ")
        assert twin["question"].startswith(facts) and prontoqa.read(twin)
    assert evaluate.rules(pairs) == {"chance": 0.25, "more often mentioned concept": 1.0}
    assert evaluate.twins([{"question": "1 + 1?", "steps": [], "answer": "2"}]) == []


@released
def test_every_released_problem_is_read():
    rows = files.read_rows(PRONTOQA)
    assert all(map(prontoqa.read, rows)), "an impus too"
    assert any(" an impus." in row["question"] for row in rows)
    c = prepare.PrepareConfig("prontoqa", train=200, valid=1, test=1)
    ours = prepare.generate(c)["train"]
    assert not any(" a impus" in row["question"] for row in ours)


def test_problems_are_told_in_a_new_order_and_grow(workspace):
    run("prontoqa", "--fair=true", "--train=60", "--valid=5", "--test=5")
    dataset = data.Dataset("prontoqa")
    train_split, decode = dataset.split("train"), dataset.encoding.decode
    asked = {row["question"].partition(prontoqa.ASKS)[2] for row in train_split.rows}
    for keep in (0.0, 0.5, 1.0):
        groups = train_split.draw(100, random.Random(1), True, keep=keep)
        for example in [example for group in groups for example in group.examples]:
            question = decode(example.question).rstrip("\n")
            answer, facts = prove(question)
            written = decode(example.rests[-1])
            assert question.partition(prontoqa.ASKS)[2] in asked and written == f"### {answer}"
            kinds = [kind for kind, *_ in facts]
            assert kinds[-1] == "entity", "the entity's facts stand last, as in the released files"
            n_facts = len(facts)
            least, most = {0.0: (7, 7), 0.5: (8, 27), 1.0: (28, 28)}[keep]
            assert least <= n_facts <= most
            steps = decode(example.rests[0]).split("\n")[:-2]
            needed = [step.split(". ")[1].rstrip(".") + "." for step in steps]
            assert all(fact in question for fact in needed), "the chain stays"


def test_in_place_each_thought_says_the_next_concept(workspace):
    """Not "Max is a ", with which every step begins."""
    run("prontoqa", "--train=60", "--valid=5", "--test=5")
    dataset = data.Dataset("prontoqa")
    split, plan = dataset.split("train"), curriculum.plan_of("coconut", 7, 7, in_place=True)
    for i in range(60):
        ids = curriculum.next_words(split.example(i), plan, dataset.special, -100)
        words = dataset.encoding.decode_batch([[i] for i in ids])
        steps = split.rows[i]["steps"]
        entity = steps[0].split()[0]
        parts = [re.match(r"(\w+ is an? )(\w+\.)", step).groups() for step in steps[:5]]
        for k in range(1, 5):  # "Max is an " is new behind "Max is a "
            assert words[k] == parts[k][1] if parts[k][0] == parts[k - 1][0] else parts[k][0]
        found = steps[5].removeprefix(f"{entity} is ") + "\n### "
        assert words[0] == parts[0][0] and words[6:] == [found, split.rows[i]["answer"]]


@pytest.mark.parametrize("method", curriculum.METHODS)
def test_every_row_of_the_table_trains_on_prontoqa(workspace, capsys, method):
    run("prontoqa", "--train=40", "--valid=5", "--test=5")
    steps_of("prontoqa", f"--method={method}", "--stage_steps=1,1,1,1,1,1,1,3", "--grow=2")
    capsys.readouterr()
    evaluate.main(evaluate.EvaluateConfig("run"))
    (result,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert result["twins"] == 5 and 0 <= result["both"] <= result["accuracy"]


def test_gsm8k_lines(workspace):
    line = "Tom has {0}, buys 2. How many?||<<{0}+2={1}>> <<{1}-.5={1}>> #### {1}"
    lines = [line.format(n, n + 2) for n in range(18)]
    lines += ["None?|| #### 1,000", "Half?||<<1/2=.5>> #### 0.5"]
    Path("some.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run("gsm8k", "--source=some.txt")
    paths = [Path(f"data/gsm8k/{split}.json") for split in data.SPLITS]
    rows = [row for path in paths for row in files.read_rows(path)]
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
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 87\n",
            "is a Git-LFS pointer",
        ),
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
    with pytest.raises(
        UserError, match=r"cannot fetch https://media.*train\.txt .*give its path as --source"
    ):
        run("gsm8k")


def steps_of(task, *words):
    words = ["smoke", f"--task={task}", "--name=run", *words]
    train.main(cli.parse(TrainConfig, words, PRESETS, CHOICES))


@pytest.mark.parametrize("task", ["prontoqa", "gsm8k"])
def test_the_other_tasks_train_evaluate_and_sample(workspace, capsys, task):
    if task == "prontoqa":
        run("prontoqa", "--train=40", "--valid=5", "--test=5")
    elif GSM8K.exists():
        run("gsm8k", f"--source={GSM8K}")
    else:
        lines = [f"Is {n} it?||<<{n}+2={n + 2}>> #### {n + 2}" for n in range(30)]
        Path("some.txt").write_text("\n".join(lines))
        run("gsm8k", "--source=some.txt")
    steps_of(task, "--c_thought=2", "--stage_steps=2")
    capsys.readouterr()
    evaluate.main(evaluate.EvaluateConfig("run"))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["results"][0]["latent"] == 4 and line["results"][0]["verdicts"] == {}
    assert line["chance"] == (0.5 if task == "prontoqa" else None)
    sample.main(sample.SampleConfig())
    assert "  thought 4  " in capsys.readouterr().out
