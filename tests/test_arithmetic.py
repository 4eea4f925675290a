"""Arithmetic word problems, solved by other code: it reads the English with its own expressions."""

import json
import random
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest

import prepare
import sample
import train
from nanococonut import arithmetic, cli, curriculum, data, evaluate, files, tokenizer
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig

X, Y, Z = (rf"(?P<{name}>[A-Z]\w+)" for name in "xyz")
HAS = "(?:has|owns)"
SENTENCES = [  # a number told; a relation to one person; to two
    rf"{X} {HAS} (?P<n>\d+) [a-z]+",
    rf"{X} {HAS} (?P<n>\d+) (?P<how>more|fewer) than {Y}",
    rf"{X} {HAS} (?P<how>twice|half|a third|a quarter|a fifth) as many as {Y}",
    rf"{X} {HAS} (?P<n>\d+) (?P<how>times) as many as {Y}",
    rf"{X} {HAS} as many as {Y} (?P<how>and) {Z} together",
]
ASKED = [
    rf"How many [a-z]+ does {Y} have",
    rf"How many [a-z]+ do {Y} (?P<how>and) {Z} have together",
    rf"How many more [a-z]+ does {Y} have (?P<how>than) {Z}",
]
FACTORS = {"twice": ("*", 2), "half": ("/", 2), "a third": ("/", 3), "a quarter": ("/", 4)}
FACTORS |= {"a fifth": ("/", 5)}
SIGNS = {"more": "+", "fewer": "-", "times": "*", "and": "+", "than": "-"}
SMALL = ("--train=60", "--valid=15", "--test=20")


def run(*words):
    prepare.main(cli.parse(prepare.PrepareConfig, words, choices=prepare.CHOICES))


def read(sentence, forms):
    """(person, formula): without a person in a question. A formula is [operand, sign, operand].

    A formula without a step is [operand]. An operand is a name, or a number.
    """
    (found,) = [match for form in forms if (match := re.fullmatch(form, sentence))]
    said = {"x": None, "y": None, "z": None, "n": None, "how": None} | found.groupdict()
    number = said["n"] and int(said["n"])
    if said["how"] is None:
        return said["x"], [said["y"] or number]
    sign, factor = FACTORS.get(said["how"]) or (SIGNS[said["how"]], said["z"] or number)
    return said["x"], [said["y"], sign, factor]


def read_problem(question):
    """The formula of each person, in the order told, and the formula of the question."""
    *sentences, asked = re.split(r"(?<=\.) ", question)
    formulas = [read(sentence.removesuffix("."), SENTENCES) for sentence in sentences]
    assert len(dict(formulas)) == len(formulas), "one fact a person"
    return dict(formulas), read(asked.removesuffix("?"), ASKED)[1]


def solve(formula, formulas):
    """The value of a formula, exactly."""
    values = [x if isinstance(x, int) else solve(formulas[x], formulas) for x in formula[::2]]
    if len(values) == 1:
        return Fraction(values[0])
    first, second = map(Fraction, values)
    signs = {"+": first + second, "-": first - second, "*": first * second, "/": first / second}
    return signs[formula[1]]


def needed_by(formula, formulas):
    """The persons whom a formula needs, directly or not."""
    found = {x for x in formula[::2] if isinstance(x, str)}
    return found.union(*(needed_by(formulas[name], formulas) for name in found))


def unfolded(formula, formulas):
    """A formula without names."""
    parts = [x if isinstance(x, int) else unfolded(formulas[x], formulas) for x in formula[::2]]
    return f"({formula[1:2]} {parts})"


def same(question):
    """What a question has in common with another that differs in names, words and order alone."""
    formulas, asked = read_problem(question)
    others = sorted(unfolded(formula, formulas) for formula in formulas.values())
    return unfolded(asked, formulas), tuple(others)


def check(row):
    """The answer is right; each step is right, new, needed, and its operands are known."""
    formulas, asked = read_problem(row["question"])
    values = {name: solve(formula, formulas) for name, formula in formulas.items()}
    assert len(set(values.values())) == len(values), "no two persons have equally many"
    assert row["answer"] == str(solve(asked, formulas))
    needed = needed_by(asked, formulas)
    todo = [formula for name, formula in formulas.items() if name in needed] + [asked]
    todo = [formula for formula in todo if len(formula) == 3]  # in the order told
    known = {name for name, formula in formulas.items() if len(formula) == 1}
    for step in row["steps"]:
        a, sign, b, result = re.fullmatch(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", step).groups()
        formula = todo.pop(0)
        assert all(x in known for x in formula[::2] if isinstance(x, str)), "operands are known"
        assert [a, sign, b] == [str(values.get(x, x)) for x in formula]
        assert int(result) == solve(formula, formulas)
        known |= {name for name in needed if formulas[name] is formula}
    assert not todo, "all that is needed is taken"
    assert step.endswith(f"={row['answer']}>>")
    return formulas, needed, values


def problems(n, **options):
    c = prepare.PrepareConfig("arithmetic", train=n, valid=1, test=1, **options)
    return prepare.generate(c)["train"]


def test_the_reader_by_hand():
    question = (
        "Ann has 7 pens. Bob has 3 more than Ann. Dan owns half as many as Bob. "
        "Cat has twice as many as Bob. How many pens do Cat and Ann have together?"
    )
    row = {"question": question, "steps": ["<<7+3=10>>", "<<10*2=20>>", "<<20+7=27>>"]}
    row["answer"] = "27"
    formulas, needed, _ = check(row)
    assert formulas["Ann"] == [7] and formulas["Bob"] == ["Ann", "+", 3]
    assert formulas["Cat"] == ["Bob", "*", 2] and formulas["Dan"] == ["Bob", "/", 2]
    assert needed == {"Ann", "Bob", "Cat"}
    wrong = [
        {"answer": "28"},
        {"steps": row["steps"][1:]},
        {"steps": [row["steps"][1], row["steps"][0], row["steps"][2]]},
        {"steps": ["<<7+3=11>>", *row["steps"][1:]]},
        {"steps": ["<<7+3=10>>", *row["steps"]]},
    ]
    for change in wrong:
        with pytest.raises((AssertionError, IndexError)):
            check(row | change)


def test_three_thousand_problems_are_sound():
    rows = problems(3000)
    n_distractors, kinds, n_apart = Counter(), Counter(), 0
    for row in rows:
        formulas, needed, values = check(row)
        assert all(1 <= value <= 50 for value in values.values()) and 1 <= int(row["answer"]) <= 50
        assert len({step.rpartition("=")[2] for step in row["steps"]}) == len(row["steps"])
        n_distractors[len(formulas) - len(needed)] += 1
        kinds.update(sign for step in row["steps"] for sign in re.findall("[-+*/]", step))
        told = list(formulas)
        names_in = [filter(str.istitle, map(str, formula[::2])) for formula in formulas.values()]
        spoken_of = list(map(set, names_in))
        for i, names in enumerate(spoken_of):
            assert names <= set(told[:i]), "each sentence speaks of persons who are known"
        assert set().union(*spoken_of) <= needed, "nobody speaks of a distractor"
        asked_things = row["question"].rpartition("How many ")[2].removeprefix("more ").split()[0]
        with_things = re.findall(rf"(\w+) (?:has|owns) \d+ {asked_things}\.", row["question"])
        assert len(with_things) == 1 and with_things[0] in needed, "one person's number is told"
        assert {name for name, formula in formulas.items() if len(formula) == 1} - needed == set(
            formulas
        ) - needed, "a distractor has a number"
        n_apart += any(names and told[i - 1] not in names for i, names in enumerate(spoken_of))
        numbers = [re.findall(r"\d+", step) for step in row["steps"]]
        for before, after in zip(numbers, numbers[1:], strict=False):
            assert before[-1] in after[:-1], "a step goes on with what the step before it found"
    assert Counter(len(row["steps"]) for row in rows) == dict.fromkeys(range(1, 6), 600)
    assert set(n_distractors) == {0, 1, 2} and min(n_distractors.values()) > 600
    assert min(kinds[sign] for sign in "-+*/") > 500, kinds
    assert n_apart > 500, "what a sentence needs does not always stand right before it"


def test_distractors_have_other_things():
    counted = Counter()
    for row in problems(500):
        formulas, asked = read_problem(row["question"])
        needed = needed_by(asked, formulas)
        things = dict(re.findall(r"(\w+) (?:has|owns) \d+ ([a-z]+)\.", row["question"]))
        assert len(set(things.values())) == len(things), "each has things of their own"
        assert set(formulas) - needed == set(things) - needed
        counted[len(things)] += 1
    assert set(counted) == {1, 2, 3} and min(counted.values()) > 100


def test_no_two_splits_share_a_problem(workspace):
    run("arithmetic", "--train=2000", "--valid=200", "--test=200", "--max_number=30")
    splits = [files.read_rows(Path(f"data/arithmetic/{split}.json")) for split in data.SPLITS]
    found = [same(row["question"]) for rows in splits for row in rows]
    assert len(set(found)) == len(found) == 2400, "not even under other names and in another order"
    chains = [{same(row["question"])[0] for row in rows} for rows in splits]
    assert sum(map(len, chains)) == len(set().union(*chains)), "nor with other distractors"


def test_names_words_and_order_do_not_make_another_problem():
    one = "Ann has 7 pens. Bob has 3 more than Ann. How many pens does Bob have?"
    other = "Ida owns 7 toys. Zoe owns 3 more than Ida. How many toys does Zoe have?"
    assert same(one) == same(other) != same(one.replace("more", "fewer"))


def test_same_seed_same_bytes(workspace):
    run("arithmetic", *SMALL, "--name=a")
    run("arithmetic", *SMALL, "--name=b")
    run("arithmetic", *SMALL, "--name=c", "--seed=1")
    for file in [f"{split}.{kind}" for split in data.SPLITS for kind in ("json", "npz")]:
        a, b, c = (Path(f"data/{name}/{file}").read_bytes() for name in "abc")
        assert a == b != c


def test_each_number_is_one_token_wherever_it_stands(workspace):
    run("arithmetic", "--train=600", "--valid=5", "--test=5", "--max_number=200")
    encoding = data.Dataset("arithmetic").encoding
    for n in range(1, 201):
        told = [f"{n} {things}. " for things in arithmetic.THINGS]
        for text in (*told, f"{n}", f"<<{n}", f"+{n}=", f"{n}>>\n", f"{n}>>\n### "):
            assert [encoding.decode([i]) for i in encoding.encode_ordinary(text)] == [text]
    text = "Ann has 117 pens. Bob has 3 more than Ann. Cat owns as many as Ann and Bob together."
    words = [encoding.decode([i]) for i in encoding.encode_ordinary(text)]
    facts = "Ann has |117 pens. |Bob has |3 more than |Ann|. |Cat owns |as many as |Ann| and |Bob"
    assert words[:11] == facts.split("|"), "a number and its things are one token"


def test_a_step_of_every_problem_is_three_tokens(workspace):
    run("arithmetic", *SMALL)
    dataset = data.Dataset("arithmetic")
    for split in map(dataset.split, data.SPLITS):
        for i, row in enumerate(split.rows):
            example = split.example(i)
            texts = list(map(dataset.encoding.decode, [example.question, *example.rests]))
            assert texts == curriculum.texts_of(row)
            sizes = [3 * n for n in range(len(row["steps"]), 0, -1)]
            assert [len(rest) - 1 for rest in example.rests] == [*sizes, 1]


def test_in_place_each_thought_is_asked_how_the_next_step_begins(workspace):
    run("arithmetic", *SMALL)
    dataset = data.Dataset("arithmetic")
    split = dataset.split("train")
    plan = curriculum.plan_of("coconut", stage=6, max_stage=6, in_place=True)
    for i, row in enumerate(split.rows):
        ids = curriculum.next_words(split.example(i), plan, dataset.special, -100)
        words = dataset.encoding.decode_batch([[i] for i in ids])
        results = [step.partition("=")[2] for step in row["steps"]]
        firsts = [re.match(r"<<\d+", step)[0] for step in row["steps"]]
        n = len(results)
        assert words[: n + 2] == [*firsts, f"{results[-1]}\n### ", row["answer"]]
        assert set(words[n + 2 :]) <= {row["answer"]}, "a stage past the chain keeps its thoughts"


def test_the_other_tasks_keep_their_tokens(workspace):
    for task in ("prosqa", "prontoqa"):
        run(task, "--train=20", "--valid=4", "--test=4")
        meta = json.loads(Path(f"data/{task}/meta.json").read_text())
        rows = files.read_rows(Path(f"data/{task}/train.json"))
        assert meta["pattern"] == tokenizer.PATTERN
        assert meta["vocabulary"] == tokenizer.fit(data.texts_to_know(rows))[0]


def test_a_file_of_such_problems_gets_the_same_tokens(workspace):
    run("arithmetic", *SMALL)
    run("arithmetic", "--source=data/arithmetic", "--name=mine")
    run("arithmetic", *SMALL, "--seed=1", "--name=other")
    made, mine, other = (data.Dataset(name).meta for name in ("arithmetic", "mine", "other"))
    assert data.tokens_of(mine) == data.tokens_of(made) != data.tokens_of(other)
    assert made["pattern"] == other["pattern"] == arithmetic.PATTERN
    assert data.same_problems(mine["sha256"], made["sha256"])


def test_only_a_number_of_known_things_is_one_token_with_them():
    found = tokenizer.pieces("Ann has 12 pens. She paid 12 dollars. ", arithmetic.PATTERN)
    assert "12 pens. " in found and "12" in found and "12 dollars. " not in found


def test_tiktoken_cuts_where_python_cuts():
    vocabulary, _ = tokenizer.fit(arithmetic.texts_to_know(50), pattern=arithmetic.PATTERN)
    encoding = tokenizer.words(vocabulary, arithmetic.PATTERN)
    odd = ["", "<<", ">>\n", "<<1+1=2>>\n### 2", "12,345.678", "naïve 漢字 \x00\t", " a b C"]
    for text in odd + [row["question"] for row in problems(50)]:
        pieces = tokenizer.pieces(text, arithmetic.PATTERN)
        ids = [i for piece in pieces for i in encoding.encode_ordinary(piece)]
        assert "".join(pieces) == text and encoding.encode_ordinary(text) == ids
        assert encoding.decode(ids) == text


def test_the_baselines_are_hardly_ever_right(workspace, capsys):
    run("arithmetic", "--train=2000", "--valid=20", "--test=500")
    printed = capsys.readouterr().out
    found = re.findall(r"baseline, (.+): (.+)% of test", printed)
    names = [name for name, _ in found]
    assert names == ["most frequent answer", "last number", "sum of all numbers"]
    assert all(float(share) < 8 for _, share in found)


def test_the_baselines_by_hand():
    rows = [
        {"question": "Ann has 7 pens. Bob has 3 more than Ann. How many?", "answer": "10"},
        {"question": "Ann has 8 pens. Bob has 3 fewer than Ann. How many?", "answer": "5"},
        {"question": "Ann has 8 pens. Bob has 4 pens. How many?", "answer": "4"},
        {"question": "Ann has 8 pens. Bob has 5 pens. How many?", "answer": "5"},
    ]
    found = arithmetic.baselines(rows, train=rows)
    assert found == {"most frequent answer": 0.5, "last number": 0.5, "sum of all numbers": 0.25}
    none = arithmetic.baselines([{"question": "How many?", "answer": "5"}], train=rows)
    assert none == {"most frequent answer": 1.0, "last number": 0.0, "sum of all numbers": 0.0}


@pytest.mark.parametrize("options", [{"max_steps": 1}, {"max_steps": 8}, {"max_number": 20}])
def test_other_sizes_are_sound_too(options):
    rows = problems(80, **options)
    for row in rows:
        _, _, values = check(row)
        assert max(values.values()) <= options.get("max_number", 50)
    assert {len(row["steps"]) for row in rows} == set(range(1, options.get("max_steps", 5) + 1))


def test_no_number_of_steps_is_hard_to_draw():
    rng = random.Random(0)
    for n_steps in range(1, arithmetic.MOST_STEPS + 1):
        found = [arithmetic.draw(rng, n_steps, 20) for _ in range(4000)]
        assert sum(map(bool, found)) > 4000 / 200, n_steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps=0"], "--max_steps=0 should be from 1 to 8"),
        (["--max_steps=9"], "--max_steps=9 should be from 1 to 8"),
        (["--max_number=19"], "--max_number=19 should be from 20 to 200"),
        (["--max_number=201"], "--max_number=201 should be from 20 to 200"),
        (["--hops=2"], "--hops has no effect on arithmetic: leave it out"),
        (["--fair=true"], "--fair has no effect on arithmetic: leave it out"),
    ],
)
def test_mistakes(workspace, words, message):
    with pytest.raises(UserError, match=message) as refused:
        run("arithmetic", *words)
    assert "\n" not in str(refused.value) and not Path("data").exists()


def test_options_of_arithmetic_are_refused_elsewhere(workspace):
    for option in ("--max_steps=3", "--max_number=40"):
        with pytest.raises(UserError, match="has no effect on prosqa: leave it out"):
            run("prosqa", option)


def test_when_problems_run_out_one_line_says_so(monkeypatch):
    row = {"question": "Ann has 7 pens.", "steps": ["<<7+1=8>>"], "answer": "8"}
    monkeypatch.setattr(arithmetic, "draw", lambda *_: (row, "the same"))
    with pytest.raises(UserError, match="hardly any other problems with numbers up to 50; try a"):
        problems(5)


@pytest.mark.parametrize("method", curriculum.METHODS)
def test_a_model_trains_on_them_answers_and_is_measured(workspace, capsys, method):
    run("arithmetic", "--train=40", "--valid=5", "--test=5")
    words = ["smoke", "--task=arithmetic", "--name=run", f"--method={method}", "--stage_steps=2"]
    train.main(cli.parse(TrainConfig, words, PRESETS, CHOICES))
    capsys.readouterr()
    evaluate.main(evaluate.EvaluateConfig("run", split="train"))
    assert "never seen" not in capsys.readouterr().out
    evaluate.main(evaluate.EvaluateConfig("run"))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["n"] == 5 and line["results"][0]["verdicts"] == {}
    sample.main(sample.SampleConfig())
    assert "the chain is: <<" in capsys.readouterr().out
