"""Whatever is typed and whatever the files hold: an answer, or one line of complaint."""

import bz2
import gzip
import json
import random
import shutil
from pathlib import Path

import pytest

import prepare
import sample
import train
from nanococonut import cli, evaluate
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.lab import table1

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.compile's own parts
JUNK = ["", "0", "-1", "1", "2", "7", "0.5", "-0.5", "1e999", "nan", "inf", "abc"]
JUNK += ["..", "../x", "/etc/passwd", "a/b", "a=b", "1,2,,3", "1,2", "9" * 25, "-" * 9]
JUNK += ["true", "False", "é漢", "\x00", " ", "$(touch owned)", "run", "prosqa", "all"]
SMALL = ["--train=12", "--valid=4", "--test=4", "--n_nodes=8", "--min_hops=2", "--max_hops=3"]
TINY = ["smoke", "--stage_steps=1", "--max_stage=1", "--batch_size=2", "--n_embd=8"]


def prepares(words):
    prepare.main(cli.parse(prepare.PrepareConfig, words, choices=prepare.CHOICES))


def trains(words):
    train.main(cli.parse(TrainConfig, words, PRESETS, CHOICES))


def evaluates(words):
    evaluate.main(cli.parse(evaluate.EvaluateConfig, words, choices=evaluate.CHOICES))


def samples(words):
    sample.main(cli.parse(sample.SampleConfig, words, choices=evaluate.CHOICES))


COMMANDS = {  # what runs it, its class, words that make it quick
    "prepare": (prepares, prepare.PrepareConfig, SMALL),
    "train": (trains, TrainConfig, TINY),
    "evaluate": (evaluates, evaluate.EvaluateConfig, []),
    "sample": (samples, sample.SampleConfig, []),
    "table1": (lambda words: cli.parse(table1.Table1Config, words), table1.Table1Config, []),
}


@pytest.fixture
def prepared(workspace):
    prepares(["prosqa", *SMALL])
    trains([*TINY, "--name=run"])
    shutil.copytree("data", "whole/data")
    shutil.copytree("runs", "whole/runs")
    return workspace


def restore():
    for name in ("data", "runs"):
        shutil.rmtree(name)
        shutil.copytree(f"whole/{name}", name)


def outcome(run, words):
    """ "done" or "refused"; any other exception is a failure that shows what was typed."""
    try:
        run(list(words))
        return "done"
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error).strip(), (
            f"more than one line for {words}: {error}"
        )
        return "refused"
    except SystemExit as error:
        assert error.code in (0, 2), words
        return "done"
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}; typed: {words}") from error


def typed(rng, name):
    """A command line: some of the command's own options and some others.

    Their values may fit or not.
    """
    _, kind, quick = COMMANDS[name]
    words = list(quick)
    options = list(kind.__dataclass_fields__)
    for _ in range(rng.randint(1, 3)):
        option = rng.choice([*options, *options, "nothing", "", "lr"])
        words = [word for word in words if not word.startswith(f"--{option}=")]
        default = kind.__dataclass_fields__[option].default if option in options else "1"
        value = rng.choice([*JUNK, cli.written(default)])
        at = rng.randrange(len(words) + 1)
        word = rng.choice([f"--{option}={value}", f"--{option}", value, "--help"])
        words.insert(at, word)
    return words


def fuzz_commands(n, seed):
    rng, seen = random.Random(seed), {}
    for _ in range(n):
        name = rng.choice(list(COMMANDS))
        words = typed(rng, name)
        key = (name, outcome(COMMANDS[name][0], words))
        seen[key] = seen.get(key, 0) + 1
        if key[1] == "done" and name in ("prepare", "train"):
            restore()
    assert not Path("owned").exists()
    return seen


def in_another_form(rng, content: bytes) -> bytes:
    """The rows of a file as other people keep them, at times damaged as well."""
    try:
        rows = json.loads(content)
    except (UnicodeDecodeError, json.JSONDecodeError):
        rows = None
    if not isinstance(rows, list):  # not a file of rows
        return b"\xef\xbb\xbf" + content
    kind = rng.randrange(12)  # of all rows; one more changes in another way
    changed = [changed_row(rng, row, kind) for row in rows]
    if rng.random() < 0.3:
        changed[-1] = changed_row(rng, rows[-1], rng.randrange(12))
    lines = "\n".join(map(json.dumps, changed))
    example = {f"example{i}": {"test_example": row} for i, row in enumerate(changed)}
    values = [changed, {"data": changed}, example, changed[0]]
    text = rng.choice([lines, *map(json.dumps, values)])
    if rng.random() < 0.3:
        text = text.replace("\n", "\r\n")
    form = text.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16-le"]))
    if rng.random() < 0.3:
        i = rng.randrange(len(form))
        form = form[:i] + rng.choice([b"", b"\n", b"\\ud83e", b"#"]) + form[i + 1 :]
    return rng.choice([gzip.compress, bz2.compress])(form) if rng.random() < 0.1 else form


def changed_row(rng, row: dict, kind: int) -> dict:
    """A row with one field in another form."""
    if kind == 0:
        row = row | {"cot": " ".join(row["steps"])}
        del row["steps"]
    elif kind == 1:
        row = row | {"steps": rng.choice([" ", "\n"]).join(row["steps"])}
    elif kind == 2:
        row = row | {"answer": rng.choice([4, 4.5, 1e30, True, "#### 4", "#### 5", "C#", None])}
    elif kind == 3:
        row = row | {"query": "Is it?", "chain_of_thought": rng.choice([row["steps"], 3, [3], []])}
        del row["steps"]
    elif kind == 4:
        row = row | {"question": row["question"] + rng.choice(["", " \ud83e", " \udd65?", "\r\n"])}
    elif kind == 5:
        numbers = list(range(len(row["idx_to_symbol"])))
        row = row | {"idx_to_symbol": rng.choice([numbers, [True], "Tom", [""]])}
    elif kind == 6:
        row = {field: value for field, value in row.items() if field != rng.choice(list(row))}
    elif kind == 7:  # other names
        names = ["c37", "kind_x", "x-pus", "zumpüs", "汤", "Über", "9x", "a.b", "is"]
        names.append("x" * 10**5)
        name, old = rng.choice(names), rng.choice(["lempus", "impus", "Tom"])
        row = json.loads(json.dumps(row, ensure_ascii=False).replace(old, name))
    elif kind == 8:  # facts beside the question
        facts, mark, asked = row["question"].rpartition(" Is ")
        facts = rng.choice([facts, facts.split(". "), [3], None, {"text": facts}])
        field = rng.choice(["context", "facts", "passage", "body"])
        row = row | {"question": mark.strip() + " " + asked, field: facts}
    elif kind == 9:  # no steps
        row = {field: row[field] for field in ("question", "answer")}
    elif kind == 10:  # GSM8k itself
        answers = ["48/2 = <<48/2=24>>24.\n#### 24", "Half is 24.\n#### 24"]
        answers += ["#### ", "<<>>\n####24####"]
        row = {"question": row["question"], "answer": rng.choice(answers)}
    elif kind == 11:
        field, piece = rng.choice(["question", "answer"]), rng.choice(["a.", "Every ", "汤"])
        row = row | {field: piece * 10**5}
    return row


def mutated(rng, content: bytes) -> bytes:
    """The content of a file, damaged in one of the ways files get damaged."""
    kind = rng.randrange(9)
    if kind == 0:
        return content[: rng.randrange(len(content))]
    if kind == 1:
        i = rng.randrange(len(content))
        return content[:i] + bytes([content[i] ^ (1 << rng.randrange(8))]) + content[i + 1 :]
    if kind == 2:
        small = [b"", b"\n", b"null", b"[]", b"{}", b"[1]", b'"x"', b"[[]]", b"NaN", b"[{}]"]
        return rng.choice([*small, b"[" * 10000])
    if kind == 3:
        return rng.randbytes(rng.randrange(1, 400))
    if kind == 4:
        return b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 133\n"
    if kind == 5:
        return content.decode("latin-1").encode("utf-16")
    if kind == 8:
        return in_another_form(rng, content)
    try:  # another value somewhere in the JSON, or a field less
        value = json.loads(content)
        inside = value
        while True:
            key = rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            if rng.random() < 0.4 or not isinstance(inside[key], dict | list) or not inside[key]:
                break
            inside = inside[key]
        if kind == 6 and isinstance(inside, dict):
            del inside[key]
        else:
            values = [None, -1, 0, 10**30, 1.5, "", "x", [], {}, [[0, 1]], True, "Tom", "a\x00b"]
            inside[key] = rng.choice(values)
        return json.dumps(value).encode()
    except (UnicodeDecodeError, json.JSONDecodeError, IndexError):
        return content + b"\x00"


def fuzz_files(n, seed):
    """Damages one file of a dataset or a run, or a file given by name.

    Then asks a command that would read it.
    """
    rng, seen = random.Random(seed), {}
    files = [*Path("data/prosqa").iterdir(), *Path("runs/run").iterdir()]
    files = sorted(path for path in files if path.suffix != ".png")
    given = Path("given.json")
    for _ in range(n):
        path = rng.choice([*files, *[given] * 6])
        source = Path("whole") / path if path != given else Path("whole/data/prosqa/test.json")
        path.write_bytes(mutated(rng, source.read_bytes()))
        if path == given:
            asked = [(evaluates, ["run", "--data=given.json"])]
            asked.append((prepares, ["--name=other", "--source=given.json"]))
        else:
            asked = [(evaluates, ["run"]), (samples, ["run"])]
            asked += [(trains, [*TINY, "--name=run", "--resume=true"]), (trains, TINY)]
        run, words = rng.choice(asked)
        try:
            key = (path.name, outcome(run, words))
        except AssertionError as error:
            raise AssertionError(f"{error}; {path} holds {path.read_bytes()[:200]!r}") from error
        seen[key] = seen.get(key, 0) + 1
        restore()
    return seen


def report(capsys, what, seen):
    with capsys.disabled():
        n_refused = sum(n for (_, how), n in seen.items() if how == "refused")
        print(f"\n{sum(seen.values())} {what} tried, {n_refused} refused with one line", end="")
    return n_refused


def test_command_lines(prepared, capsys):
    n_refused = report(capsys, "command lines", fuzz_commands(300, seed=0))
    assert 100 < n_refused < 300, "some are mistakes, some are not"


def test_damaged_files(prepared, capsys):
    assert report(capsys, "damaged files", fuzz_files(150, seed=0)) > 50


@pytest.mark.slow
def test_many_more(prepared, capsys):
    report(capsys, "command lines", fuzz_commands(5000, seed=1))
    report(capsys, "damaged files", fuzz_files(3000, seed=1))
