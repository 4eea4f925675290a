"""Files as people have them: every form gives the same rows.

What is wrong is named by file, row and field.
"""

import bz2
import contextlib
import gzip
import http.server
import io
import json
import lzma
import random
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import prepare
import train
from nanococonut import cli, curriculum, data, evaluate, files, opening, prosqa, scoring
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/data"
released = pytest.mark.skipif(
    not SHARED.exists(), reason="the released files stand beside the project, not in it"
)


def sums(n, first=0):
    """n problems of two steps."""
    rows = []
    for i in range(first, first + n):
        steps = [f"<<{i}+1={i + 1}>>", f"<<{i + 1}*2={2 * i + 2}>>"]
        rows.append({"question": f"Twice {i} plus 1?", "steps": steps, "answer": str(2 * i + 2)})
    return rows


ROWS = sums(30)


def with_cot(row):
    steps = " ".join(row["steps"])
    return {"question": row["question"], "cot": steps, "answer": int(row["answer"])}


def as_json_lines(rows):
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def as_bars(rows):
    lines = [f"{row['question']}||{' '.join(row['steps'])} #### {row['answer']}" for row in rows]
    return "\n".join(lines) + "\n"


FORMS = {
    "list": json.dumps(ROWS),
    "indented": json.dumps(ROWS, indent=2),
    "lines": as_json_lines(ROWS),
    "lines with a blank one": as_json_lines(ROWS).replace("\n", "\n\n", 1),
    "byte order mark": "\ufeff" + json.dumps(ROWS),
    "carriage returns": as_json_lines(ROWS).replace("\n", "\r\n"),
    "both": "\ufeff" + json.dumps(ROWS, indent=1).replace("\n", "\r\n"),
    "data": json.dumps({"version": 1, "data": ROWS}),
    "cot": json.dumps(list(map(with_cot, ROWS))),
    "cot by lines": as_json_lines(map(with_cot, ROWS)),
    "steps in one text": json.dumps([row | {"steps": " ".join(row["steps"])} for row in ROWS]),
    "steps on lines": json.dumps([row | {"steps": "\n".join(row["steps"])} for row in ROWS]),
    "answers as numbers": json.dumps([row | {"answer": int(row["answer"])} for row in ROWS]),
    "answers as floats": json.dumps([row | {"answer": float(row["answer"])} for row in ROWS]),
    "answers marked": json.dumps([row | {"answer": f"#### {row['answer']}"} for row in ROWS]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["mine.json", "mine.jsonl", "mine.txt"])
def test_every_form_gives_the_same_rows(tmp_path, form, name):
    path = tmp_path / name
    path.write_bytes(FORMS[form].encode("utf-8"))
    assert files.read_rows(path) == ROWS


def test_lines_of_gsm8k_with_mark_and_carriage_returns(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(("\ufeff" + as_bars(ROWS).replace("\n", "\r\n")).encode("utf-8"))
    assert files.read_rows(path) == ROWS


def test_one_row_on_one_line(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n")
    assert files.read_rows(path) == ROWS[:1]


def test_what_was_read_once_reads_the_same_again(tmp_path):
    odd = [with_cot(ROWS[0]), ROWS[1] | {"answer": "#### 4"}]
    odd.append(ROWS[2] | {"query": "kept", "answer": "1 #### 2 #### 3"})
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(odd))
    rows = files.read_rows(path)
    assert rows[2]["answer"] == "3" and rows[2]["query"] == "kept"
    path.write_text(json.dumps(rows))
    assert files.read_rows(path) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(ROWS).encode("utf-16"), "it is in UTF-16; save it as UTF-8"),
        (json.dumps(ROWS).encode("utf-16-le"), "it is in UTF-16; save it as UTF-8"),
        (json.dumps(ROWS).encode("utf-16-be"), "it is in UTF-16; save it as UTF-8"),
        (
            as_json_lines(ROWS[:2]).encode() + b'{"question": \n',
            "mine.json is not a JSON file (Expecting value: line 3",
        ),
        (b"<!DOCTYPE html><html>Sign in</html>", "is a web page, not the data"),
        (json.dumps({"data": []}).encode(), "should hold a list of problems"),
        (json.dumps({"data": {"data": 3}}).encode(), "should hold a list of problems"),
        (
            json.dumps({"data": {"question": ["a", "b"]}}).encode(),
            "row 0: question is ['a', 'b'], not a text",
        ),
        (json.dumps([3]).encode(), "row 0: it is 3, not a problem"),
        (json.dumps([{"q": "a"}]).encode(), "row 0: it has no question; its fields are ['q']"),
        (json.dumps([ROWS[0] | {"question": 3}]).encode(), "row 0: question is 3, not a text"),
        (
            json.dumps([*ROWS, ROWS[0] | {"steps": None}]).encode(),
            "row 30: steps is None, not a list of texts",
        ),
        (json.dumps([ROWS[0] | {"steps": ["a", 2]}]).encode(), "row 0: step 2 is 2, not a text"),
        (
            json.dumps([ROWS[0] | {"answer": float("nan")}]).encode(),
            "row 0: answer is nan, not a text",
        ),
        (json.dumps([ROWS[0] | {"answer": [4]}]).encode(), "row 0: answer is [4], not a text"),
        (
            json.dumps([ROWS[0] | {"answer": "C#"}]).encode(),
            "row 0: answer is 'C#', but only the text after the",
        ),
        (
            json.dumps({"example1": {"test_example": {"question": "a", "query": "b"}}}).encode(),
            "row 0: it has no",
        ),
        (
            json.dumps(
                {"e": {"test_example": {"query": "b", "chain_of_thought": 3, "answer": "True"}}}
            ).encode(),
            "row 0: it has no question",
        ),
    ],
)
def test_what_is_wrong_is_named(workspace, content, message):
    Path("mine.json").write_bytes(content)
    readers = [lambda: files.read_rows(Path("mine.json"))]
    readers.append(lambda: prepares("prosqa", "--source=mine.json"))
    for read in readers:
        with pytest.raises(UserError, match=re.escape(message)) as refused:
            read()
        assert "mine.json" in str(refused.value) and "\n" not in str(refused.value)


def test_a_marked_answer_can_be_right():
    cases = {"#### 4": "4", "#### 1,200": "1200", "Tom is a lempus.": "Tom is a lempus."}
    for answer, written in cases.items():
        row = files.problem(ROWS[0] | {"answer": answer})
        assert scoring.is_right(curriculum.texts_of(row)[1], row)
        assert scoring.is_right(f"### {written}", row)
        assert not scoring.is_right("### 5", row) and not scoring.is_right("", row)
    # also where no reader came before
    assert scoring.is_right("### 4", ROWS[0] | {"answer": "#### 4"})


def test_a_number_becomes_text_however_long():
    long = [(10**400, "1" + "0" * 400), (1e22, "1" + "0" * 22)]
    for number, text in [*long, (-0.5, "-0.5"), (False, "False")]:
        assert files.problem(ROWS[0] | {"answer": number})["answer"] == text


def test_half_a_surrogate_pair_is_replaced(workspace):
    rows = [row | {"question": row["question"] + " \ud83e", "note": "\udd65"} for row in ROWS]
    rows[0]["question"] = "A cup of \U0001f965 \ud83e"
    Path("mine.json").write_text(json.dumps(rows))
    read = files.read_rows(Path("mine.json"))
    assert read[0]["question"] == "A cup of \U0001f965 \ufffd" and read[1]["note"] == "\ufffd"
    prepares("prosqa", "--source=mine.json", "--name=mine")
    dataset = data.Dataset("mine")
    split = dataset.split("test")
    assert dataset.encoding.decode(split.example(0).question) == split.rows[0]["question"] + "\n"


# ---- ProntoQA's generator ----


def raw_prontoqa(rows):
    """What the released generator writes, of rows in the paper's form."""
    examples = {}
    for number, row in enumerate(rows, start=1):
        question, _, query = row["question"].rpartition(". ")
        chain = [sentence for step in row["steps"] for sentence in re.findall(r"[^.]+\.", step)]
        example = {"question": f"{question}.", "query": query, "answer": row["answer"]}
        example["chain_of_thought"] = [sentence.strip() for sentence in chain]
        examples[f"example{number}"] = {"test_example": example}
    return examples


def test_raw_files_of_the_prontoqa_generator(workspace):
    rows = prepare.generate(prepare.PrepareConfig("prontoqa", train=18, valid=1, test=1))["train"]
    raw = raw_prontoqa(rows)
    assert len(raw["example1"]["test_example"]["chain_of_thought"]) == 11
    Path("raw.json").write_text(json.dumps(raw))
    assert files.read_rows(Path("raw.json")) == rows
    prepares("prontoqa", "--source=raw.json")
    assert data.Dataset("prontoqa").meta["max_steps"] == 6


@released
def test_raw_and_released_form_of_the_prontoqa_file_are_the_same(tmp_path):
    rows = files.read_rows(SHARED / "prontoqa_valid_official.json")
    (tmp_path / "raw.json").write_text(json.dumps(raw_prontoqa(rows)))
    assert files.read_rows(tmp_path / "raw.json") == rows


# ---- folders and addresses ----


def prepares(*words):
    prepare.main(cli.parse(prepare.PrepareConfig, words, choices=prepare.CHOICES))


NAMES = [
    ("prosqa", ["prosqa_train.json", "prosqa_valid.json", "prosqa_test.json"]),
    ("prosqa", [f"prosqa_{split}_graph_4_coconut.json" for split in data.SPLITS]),
    ("gsm8k", ["train.txt", "valid.txt", "test.txt"]),
    ("gsm8k", ["train.txt", "validation.txt", "test.txt"]),
    ("gsm8k", ["train.json", "validation.json", "test.json"]),
    ("gsm8k", ["gsm_train.json", "gsm_valid.json", "gsm_test.json"]),
    ("gsm8k", ["train.jsonl", "validation.jsonl", "test.jsonl"]),
    ("prontoqa", ["train.json", "validation.json", "test.json"]),
    ("prontoqa", ["train.jsonl", "valid.jsonl", "test.jsonl"]),
    ("prontoqa", ["train.txt", "valid.txt", "test.txt"]),
]


@pytest.mark.parametrize(("task", "names"), NAMES)
def test_the_splits_of_a_folder_are_found(workspace, task, names):
    parts = [ROWS[:20], ROWS[20:25], ROWS[25:]]
    Path("theirs").mkdir()
    for name, rows in zip(names, parts, strict=True):
        forms = {"json": json.dumps, "jsonl": as_json_lines, "txt": as_bars}
        write = forms[name.rpartition(".")[2]]
        Path("theirs", name).write_text(write(rows))
    prepares(task, "--source=theirs", "--name=theirs")
    assert [files.read_rows(Path(f"data/theirs/{split}.json")) for split in data.SPLITS] == parts


def test_a_split_that_is_missing_is_named(workspace):
    Path("theirs").mkdir()
    Path("theirs/train.json").write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match=r"theirs has no valid nor .* nor validation nor .*jsonl"):
        prepares("gsm8k", "--source=theirs")


@contextlib.contextmanager
def serving(held, otherwise=None):
    """The address of a server on this machine that holds these files, and what it is asked for.

    To any other name it answers `otherwise`.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = held.get(self.path.partition("?")[0], otherwise)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def test_an_address_is_taken_by_its_path_and_its_query_is_kept(workspace):
    with serving({"/x/train.json": json.dumps(ROWS).encode()}) as (address, asked):
        prepares("prosqa", f"--source={address}/x/train.json?download=true", "--name=mine")
    assert asked == ["/x/train.json?download=true"]
    assert Path("data/mine/source/train.json").exists()
    assert data.Dataset("mine").meta["counts"]["train"] == 24


def test_a_base_address_with_a_query(workspace):
    parts = {"train": ROWS[:20], "validation": ROWS[20:25], "test": ROWS[25:]}
    held = {f"/x/{name}.jsonl": as_json_lines(rows).encode() for name, rows in parts.items()}
    with serving(held) as (address, asked):
        prepares("gsm8k", f"--source={address}/x/?token=a")
    assert data.Dataset("gsm8k").meta["counts"] == {"train": 20, "valid": 5, "test": 5}
    assert all(path.endswith("?token=a") for path in asked) and "/x/train.jsonl?token=a" in asked


@pytest.mark.parametrize("content", [json.dumps(ROWS).encode(), b"<html>Sign in</html>"])
def test_a_base_address_that_answers_anything_is_refused(workspace, content):
    with (
        serving({}, otherwise=content) as (address, _),
        pytest.raises(UserError, match=r"hold the same problems|is a web page"),
    ):
        prepares("prosqa", f"--source={address}")


def test_addresses_with_nothing_behind_them(workspace):
    with serving({}) as (address, _):
        for source in (address, f"{address}/x.json", f"{address}/?a=b"):
            said = r"cannot fetch .*404|has no train nor"
            with pytest.raises((UserError, FileNotFoundError), match=said):
                prepares("prosqa", f"--source={source}")
    broken = ["http://[::1", "https://[x/train.json", "https:///train.json", "ftp://host/x.json"]
    for source in broken:
        with pytest.raises(UserError):
            prepares("prosqa", f"--source={source}")


def test_a_login_page_in_place_of_a_file(workspace):
    with (
        serving({}, otherwise=b"\n<!doctype HTML>\n<p>Sign in") as (address, _),
        pytest.raises(UserError, match="is a web page, not the data"),
    ):
        prepares("prosqa", f"--source={address}/train.json")


def folder_of(train, valid, test):
    Path("theirs").mkdir(exist_ok=True)
    for split, rows in {"train": train, "valid": valid, "test": test}.items():
        Path(f"theirs/{split}.json").write_text(json.dumps(rows))


def test_splits_that_are_the_same_are_refused(workspace):
    folder_of(ROWS[:20], ROWS[20:], ROWS[20:][::-1])
    with pytest.raises(UserError, match="valid and test hold the same problems"):
        prepares("prosqa", "--source=theirs")
    assert not Path("data").exists()


def test_questions_that_stand_in_two_splits_are_counted(workspace, capsys):
    folder_of(ROWS[:20], ROWS[18:25], ROWS[24:])
    prepares("prosqa", "--source=theirs")
    warning = "warning: 3 questions of valid or test also occur in an earlier split"
    assert warning in capsys.readouterr().out
    folder_of(ROWS[:20], ROWS[20:25], ROWS[25:])
    prepares("prosqa", "--source=theirs")
    assert "warning" not in capsys.readouterr().out


# ---- graphs ----


UNTOLD = "problems as they are in the file, because their words tell no graph"


def graphs(n=30, **options):
    options |= dict(train=n, valid=1, test=1, n_nodes=10, min_hops=2)
    return prepare.generate(prepare.PrepareConfig(**options))["train"]


def reworded(row, change):
    """The row with every text of its own changed; its graph stays."""
    changed = {field: change(row[field]) for field in ("question", "answer")}
    return row | changed | {"steps": list(map(change, row["steps"]))}


OTHER_WORDS = {
    "an": lambda row: reworded(row, lambda text: re.sub(r"\ba (\w)", r"an \1", text)),
    "or a": lambda row: row | {"question": row["question"].replace(" or ", " or a ")},
    "Each": lambda row: reworded(row, lambda text: text.replace("Every", "Each")),
    "lower case": lambda row: reworded(
        row, lambda text: re.sub(r"\b[A-Z][a-z]+ is", lambda m: m[0].lower(), text)
    ),
    "so": lambda row: row | {"steps": [*row["steps"][:-1], f"so {row['answer']}"]},
    "Yes": lambda row: row | {"answer": "Yes"},
    "a sentence more": lambda row: row | {"question": "It is a fine day. " + row["question"]},
}


def test_own_words_are_told_anew(workspace, capsys):
    rows = graphs()
    for row in rows:
        told = prosqa.read(row)
        assert prosqa.is_prosqa(told)
        assert told | {field: row[field] for field in prosqa.FIELDS} == row
        again = prosqa.read(prosqa.tell(told, random.Random(1)))
        assert sorted(named(again)) == sorted(named(told)), "facts and options in another order"
    Path("mine.json").write_text(json.dumps(rows))
    prepares("prosqa", "--source=mine.json", "--name=mine")
    assert "--augment leaves" not in capsys.readouterr().out
    rows = prepare.generate(prepare.PrepareConfig("prontoqa", train=20, valid=1, test=1))["train"]
    Path("other.json").write_text(json.dumps(rows[:10] + graphs(10)))
    prepares("prosqa", "--source=other.json", "--name=other")
    assert "--augment leaves" not in capsys.readouterr().out, "ProntoQA's words tell a graph too"


def named(row):
    """The edges and the ends of a row's graph by their names."""
    names = row["idx_to_symbol"]
    ends = [("end", field, names[row[field]]) for field in ("root", "target", "neg_target")]
    return [("edge", names[a], names[b]) for a, b in row["edges"]] + ends


def test_the_graph_read_is_the_one_that_was_drawn():
    for row in graphs(max_hops=3):
        assert sorted(named(prosqa.read(row))) == sorted(named(row))


@released
def test_every_released_problem_tells_its_own_graph():
    path = SHARED / "prosqa_valid_official.json"
    own = files.read_json(path)
    for row, told in zip(own, files.read_rows(path), strict=True):
        assert sorted(map(str, named(told))) == sorted(map(str, named(row)))


@pytest.mark.parametrize("form", OTHER_WORDS)
def test_other_words_are_kept_and_prepare_says_so(workspace, capsys, form):
    rows = [OTHER_WORDS[form](row) if i % 3 else row for i, row in enumerate(graphs())]
    folder_of(rows[:20], rows[20:25], rows[25:])
    prepares("prosqa", "--source=theirs", "--name=mine")
    line = next(line for line in capsys.readouterr().out.splitlines() if "--augment leaves" in line)
    assert f"leaves 13 of 20 {UNTOLD}; the first is row 1" in line
    dataset = data.Dataset("mine")
    train = dataset.split("train")
    assert train.told == [i % 3 == 0 for i in range(20)]
    own = {curriculum.texts_of(row)[0] for row in train.rows}
    texts = set()
    for i in range(50):
        for group in train.draw(8, random.Random(i), augment=True, reask=0.5):
            texts.add(dataset.encoding.decode(group.examples[0].question))
    untold = [row for i, row in enumerate(train.rows) if i % 3]
    assert texts & own == {curriculum.texts_of(row)[0] for row in untold}, "only these"
    persons, concepts = train.pool
    assert not {"0", "1", "tom"} & {*persons, *concepts}


def test_one_row_without_a_graph_does_not_stop_the_others(workspace, capsys):
    rows = graphs()
    # its graph is in the words
    rows[3] = {field: rows[3][field] for field in ("question", "steps", "answer")}
    rows[4] |= {"answer": "Yes"}
    folder_of(rows[:20], rows[20:25], rows[25:])
    prepares("prosqa", "--source=theirs", "--name=mine")
    assert f"leaves 1 of 20 {UNTOLD}; the first is row 4" in capsys.readouterr().out
    train = data.Dataset("mine").split("train")
    assert [i for i in range(20) if not train.told[i]] == [4]
    opening.demand_graphs(TrainConfig(preset="smoke", grow=(5,), augment=1), train)
    with pytest.raises(UserError, match=r"row 4 of data/prosqa tells no graph .* add --augment=1$"):
        opening.demand_graphs(TrainConfig(preset="smoke", augment=2), train)


def test_graph_options_want_a_graph(workspace, capsys):
    folder_of(ROWS[:20], ROWS[20:25], ROWS[25:])
    prepares("prosqa", "--source=theirs", "--name=mine")
    assert f"--augment leaves 20 of 20 {UNTOLD}" in capsys.readouterr().out
    train = data.Dataset("mine").split("train")
    opening.demand_graphs(TrainConfig(preset="smoke", augment=1), train)
    with pytest.raises(UserError, match=r"row 0 of data/prosqa tells no graph .* add --augment=1$"):
        opening.demand_graphs(TrainConfig(preset="smoke", augment=2), train)
    with pytest.raises(UserError, match=r"add --grow=0 --augment=1$"):
        opening.demand_graphs(TrainConfig(preset="smoke", augment=2, grow=(5, 20)), train)
    rows = [row | {"answer": "Yes"} for row in graphs()]
    folder_of(rows[:20], rows[20:25], rows[25:])
    prepares("prosqa", "--source=theirs", "--name=mine")
    train = data.Dataset("mine").split("train")
    with pytest.raises(UserError, match=r"row 0 of data/prosqa tells no graph .* add --grow=0$"):
        opening.demand_graphs(TrainConfig(preset="smoke", grow=(9,)), train)


FACTS = "Max is a impus. Tom is a lempus. Every lempus is a rempus."
TOM = {"question": f"{FACTS} Is Tom a rempus or impus?"}
TOM |= {"steps": ["Tom is a lempus.", "Every lempus is a rempus."], "answer": "Tom is a rempus."}
GRAPH = {"idx_to_symbol": ["Max", "impus", "Tom", "lempus", "rempus"]}
GRAPH |= {"edges": [[0, 1], [2, 3], [3, 4]], "root": 2, "target": 4, "neg_target": 1}


def test_a_graph_is_read_by_hand():
    assert prosqa.read(TOM) == TOM | GRAPH
    wrong = {"edges": 5, "root": "Tom", "idx_to_symbol": {}}
    assert prosqa.read(TOM | wrong) == TOM | GRAPH, "the words decide"


@pytest.mark.parametrize(
    "change",
    [
        # Tom reaches both
        {"question": "Every impus is a rempus. Every rempus is a impus. " + TOM["question"]},
        # Tom reaches neither
        {"question": TOM["question"].replace("Every lempus is a rempus. ", "")},
        # no fact is about it
        {"question": TOM["question"].replace("or impus", "or numpus")},
        {"question": TOM["question"].replace("Is Tom", "Is Sam")},
        {"question": "It rains. " + TOM["question"]},
        {"question": "Tom is an ox. " + TOM["question"]},
        {"question": "Every Tom is a lempus. " + TOM["question"]},
        {"question": "Tom is a lempus."},
        {"question": "Why?"},
        {"steps": TOM["steps"][:1]},  # the chain ends before the target
        {"steps": TOM["steps"][1:]},  # it does not begin at the root
        {"steps": TOM["steps"][::-1]},
        {"steps": ["Max is a impus.", *TOM["steps"]]},
        {"steps": ["Tom is a rempus."]},  # not a fact of the question
        {"steps": []},
        {"answer": "Tom is a impus."},
        {"answer": "rempus"},
    ],
)
def test_words_that_tell_no_graph(tmp_path, change):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([TOM, TOM | GRAPH | change]))
    # a graph that contradicts the words is not kept
    assert files.read_rows(path) == [TOM | GRAPH, TOM | change]


@pytest.mark.parametrize(
    "name", ["c37", "kind_x", "x-pus", "zumpüs", "汤", "is-pus", "_9", "Ōsaka"]
)
def test_names_of_letters_of_any_script_digits_and_two_marks(name):
    row = prosqa.read(json.loads(json.dumps(TOM, ensure_ascii=False).replace("rempus", name)))
    assert prosqa.is_prosqa(row) == (not name[0].isupper()), "a concept is not named like a person"


@pytest.mark.parametrize("name", ["x9.", "9x", "x--y", "a+b", "-x", "x-"])
def test_what_is_no_name_tells_no_graph(name):
    assert not prosqa.is_prosqa(prosqa.read(json.loads(json.dumps(TOM).replace("rempus", name))))


def test_neighbor_k_is_kept_and_ignored(workspace):
    rows = [row | {"neighbor_k": {"0": [row["root"]]}} for row in graphs()]
    folder_of(rows[:20], rows[20:25], rows[25:])
    for split in data.SPLITS:
        Path(f"theirs/{split}.json").rename(f"theirs/prosqa_{split}_graph_4_coconut.json")
    prepares("prosqa", "--source=theirs", "--name=mine")
    train = data.Dataset("mine").split("train")
    kept = [row["neighbor_k"] for row in train.rows]
    assert kept == [row["neighbor_k"] for row in rows[:20]]
    assert all(train.told)


# ---- the terminal ----


def test_a_terminal_that_is_not_utf_8_shows_question_marks(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr("sys.argv", ["prepare.py"])
    cli.run(lambda c: print("naïve \U0001f965", flush=True), prepare.PrepareConfig)
    assert shown.getvalue() == b"na?ve ?\n"


@pytest.mark.slow
def test_prepare_in_such_a_terminal(workspace):
    rows = [row | {"question": "Où? " + row["question"]} for row in ROWS]
    Path("où.json").write_text(json.dumps(rows), encoding="utf-8")
    environment = {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT)}
    environment["OMP_NUM_THREADS"] = "1"
    words = [sys.executable, str(ROOT / "prepare.py"), "prosqa", "--source=où.json", "--name=mine"]
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"O?? Twice" in done.stdout, done.stderr


@pytest.mark.parametrize("field", ["context", "passage", "facts"])
def test_facts_beside_a_question_are_read_before_it(workspace, field):
    facts = ["Tom is a lempus.", "Every lempus is a rempus.", "Max is a impus."]
    asked = "Is Tom a impus or rempus?"
    row = {"question": asked, "steps": facts[:2], "answer": "Tom is a rempus."}
    for value in (" ".join(facts), facts):
        more = {field: value, "id": "7", "note": "seen by nobody"}
        Path("a.json").write_text(json.dumps([row | more]))
        (found,) = files.read_rows(Path("a.json"))
        assert found["question"] == " ".join([*facts, asked])
        assert prosqa.is_prosqa(found)
        assert files.unread([found]) == ["id", "note"]
    whole = row | {"question": f"{facts[0]} Is it?", field: facts[0]}
    Path("a.json").write_text(json.dumps([whole]))
    (found,) = files.read_rows(Path("a.json"))
    assert found["question"] == whole["question"], "it stands there already"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("What is |x| || y?||<<0+1=1>> #### 1", "it has 2 || and a ####"),
        ("How much?||<<0+1=1>> 1", "it has 1 || and no ####"),
        ("How much #### is it?||<<0+1=1>> 1", "it has 1 || and no ####"),
    ],
)
def test_a_line_of_gsm8k_has_one_bar_and_a_mark(workspace, line, found):
    Path("a.txt").write_text(f"Fine?||<<1+1=2>> #### 2\n{line}\n")
    with pytest.raises(UserError, match=f"a.txt: line 2: expected .*{re.escape(found)}"):
        files.read_rows(Path("a.txt"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PAR1\x15\x04", "is a Parquet file; make JSON lines of it"),
        (gzip.compress(b"[]"), "compressed; unpack it with gunzip"),
        (bz2.compress(b"[]"), "compressed; unpack it with bunzip2"),
        (lzma.compress(b"[]"), "compressed; unpack it with unxz"),
        (b"PK\x03\x04\x14\x00", "a zip archive; unpack it"),
    ],
)
def test_files_that_are_no_text_say_what_to_do(workspace, content, said):
    Path("mine.json").write_bytes(content)
    with pytest.raises(UserError, match=said):
        files.read_rows(Path("mine.json"))


@pytest.mark.parametrize("field", ["question", "answer", "step 1"])
@pytest.mark.parametrize("piece", ["a.", "a", "Every ", ".", "汤", "a.\n"])
def test_texts_without_end(workspace, field, piece):
    """200,000 times "a." made the tokenizer panic."""
    rows = sums(12)
    if field == "step 1":
        rows[3]["steps"][0] = piece * 200_000
    else:
        rows[3][field] = piece * 200_000 + "1"
    Path("mine.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=f"row 3: {field} has .* characters; 100000 are the most"):
        prepares("prosqa", "--source=mine.json")
    for row in rows:
        row["question"] = (piece * 100_000)[:99_990] + "1"
        row["steps"], row["answer"] = ["a"], "b"
    Path("mine.json").write_text(json.dumps(rows))
    prepares("prosqa", "--source=mine.json")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"question": TOM["question"].replace("Tom is a lempus.", "Tom is an ox.")},
            "'Tom is an ox.' is no fact like",
        ),
        (
            {"question": TOM["question"].replace(" or ", " and ")},
            "is no question like 'Is Tom a lempus or rempus",
        ),
        (
            {"answer": "Tom is a impus."},
            "the answer is 'Tom is a impus.', but by its facts 'Tom is a rempus.'",
        ),
        (
            {"steps": TOM["steps"][:1]},
            "its steps are no chain of its facts that leads to the answer",
        ),
        (
            {"question": TOM["question"].replace("or impus", "or lempus")},
            "Tom reaches both options",
        ),
    ],
)
def test_prepare_says_why_words_tell_no_graph(workspace, capsys, change, why):
    rows = [dict(TOM) for _ in range(12)]
    Path("mine.json").write_text(json.dumps([row | change for row in rows]))
    prepares("prosqa", "--source=mine.json")
    said = capsys.readouterr().out
    assert "the first is row 0: " in said and why in said


def test_data_that_are_replaced_are_named(workspace, capsys):
    Path("mine.json").write_text(json.dumps(sums(12)))
    prepares("prosqa", "--source=mine.json")
    assert "replaced" not in capsys.readouterr().out
    prepares("prosqa", "--source=mine.json")
    assert "data/prosqa had data already, which are replaced" in capsys.readouterr().out


RAW = """Natalia sold 48/2 = <<48/2=24>>24 clips in May.
She sold 48+24 = <<48+24=72>>72 altogether.
#### 72"""


def test_gsm8k_itself_is_converted_as_the_paper_does(workspace):
    rows = [{"question": f"{i} clips?", "answer": RAW} for i in range(12)]
    Path("mine.json").write_text(as_json_lines(rows))
    (row, *_) = files.read_rows(Path("mine.json"))
    assert row == {"question": "0 clips?", "steps": ["<<48/2=24>>", "<<48+24=72>>"], "answer": "72"}
    answer = "Half of 48 is 24.\nTogether 72.\n#### 72"
    in_words = files.problem({"question": "q", "answer": answer})
    assert in_words["steps"] == ["Half of 48 is 24.", "Together 72."]
    assert in_words["answer"] == "72"


def test_problems_without_steps_are_for_no_cot(workspace, capsys):
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(12)]
    Path("mine.json").write_text(json.dumps(rows))
    prepares("gsm8k", "--source=mine.json", "--name=mine")
    said = "9 of 9 problems have no steps; from them a model learns the answer alone"
    assert said in capsys.readouterr().out
    words = ["smoke", "--task=mine", "--method=no_cot", "--stage_steps=2", "--name=run"]
    train.main(cli.parse(TrainConfig, words, PRESETS, CHOICES))
    evaluate.main(evaluate.EvaluateConfig(run="run"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 2


def test_steps_that_match_are_counted_outside_prosqa():
    row = {"question": "q", "steps": ["<<1+2=3>>", "<<3*2=6>>"], "answer": "6"}
    texts = ["<<1+2=3>>\n<<3*2=6>>\n### 6", "<<3*2=6>>\n### 6"]
    texts += ["<<1+1=2>>\n<<3*2=6>>\n### 6", "### 6"]
    found = evaluate.summary(texts, [1] * 4, [row] * 4, [0] * 4, hidden=False)
    assert found["steps"] == [4, 5] and found["verdicts"] == {}
