"""The questions: sound, like the released ones, the same for the same seed; and others' files."""

import io
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

import prepare
from nanococonut import curriculum, data, files, prosqa
from nanococonut.cli import UserError, parse

RELEASED = Path(__file__).parents[2] / "shared/data/prosqa_valid_official.json"
released = pytest.mark.skipif(
    not RELEASED.exists(), reason="the released files stand beside the project, not in it"
)


def problems(n, seed=1, **options):
    c = prepare.PrepareConfig(train=n, valid=1, test=1, seed=seed, **options)
    return prepare.generate(c)["train"]


def children(row):
    out = {}
    for a, b in row["edges"]:
        out.setdefault(a, []).append(b)
    return out


def walk(row, start):
    """Distances from start, by sets of nodes: not the generator's own search."""
    reach, frontier, d = {start: 0}, {start}, 0
    while frontier:
        d += 1
        frontier = {b for a in frontier for b in children(row).get(a, [])} - set(reach)
        reach |= dict.fromkeys(frontier, d)
    return reach


def check_sound(row):
    names, reach = row["idx_to_symbol"], walk(row, row["root"])
    assert row["target"] in reach and row["neg_target"] not in reach
    assert len(row["steps"]) == reach[row["target"]], "a shortest path"
    assert len(set(names)) == len(names)
    has_parent = {b for _, b in row["edges"]}
    assert all(name[0].isupper() == (v not in has_parent) for v, name in enumerate(names))
    assert all(a not in prosqa.distances(row["edges"], b) for a, b in row["edges"]), "no cycle"
    assert len(set(map(tuple, row["edges"]))) == len(row["edges"])
    assert row["target"] not in children(row), "the target is a leaf"
    facts, _, question = row["question"].rpartition(" Is ")
    told = set()
    for a, b in row["edges"]:
        every = "" if names[a][0].isupper() else "Every "
        told.add(f"{every}{names[a]} is a {names[b]}.")
    sentences = [s.strip() + "." for s in facts.split(".") if s.strip()]
    assert sorted(sentences) == sorted(told)
    root, options = names[row["root"]], {names[row["target"]], names[row["neg_target"]]}
    words = question.rstrip("?").split()  # Tom a lempus or rempus
    assert (words[0], {words[2], words[4]}) == (root, options)
    assert row["answer"] == f"{root} is a {names[row['target']]}."
    at = root
    for step in row["steps"]:
        assert step in told and step.removeprefix("Every ").split()[0] == at
        at = step.rstrip(".").split()[-1]
    assert at == names[row["target"]]


def means(rows):
    hops = Counter(len(row["steps"]) for row in rows)
    n = len(rows)
    nodes = sum(len(row["idx_to_symbol"]) for row in rows) / n
    edges = sum(len(row["edges"]) for row in rows) / n
    return nodes, edges, {k: hops[k] / n for k in hops}


def test_problems_are_sound_and_like_the_released_ones():
    rows = problems(2000)
    for row in rows:
        check_sound(row)
    nodes, edges, hops = means(rows)  # the released 800: 22.8, 36.0, .41 .44 .13 .02
    assert abs(nodes - 22.8) <= 0.6 and abs(edges - 36.0) <= 1.2, (nodes, edges)
    shares = {3: 0.41, 4: 0.44, 5: 0.13}
    assert all(abs(hops[k] - share) <= 0.05 for k, share in shares.items()), hops
    assert set(hops) == {3, 4, 5, 6}
    targets = [row["idx_to_symbol"][row["target"]] for row in rows]
    firsts = [row["question"].split()[-3] for row in rows]
    n_first = sum(a == b for a, b in zip(firsts, targets, strict=True))
    assert abs(n_first / 2000 - 0.5) < 0.05, "the right option stands first half the time"


@released
def test_the_check_holds_for_the_released_file_and_the_means_agree():
    rows = files.read_rows(RELEASED)
    for row in rows:
        check_sound(row)
    for ours, theirs in zip(means(problems(2000, seed=2))[:2], means(rows)[:2], strict=True):
        assert abs(ours - theirs) / theirs < 0.03


def test_small_graphs_are_sound_too():
    for row in problems(300, n_nodes=10, min_hops=2, max_hops=4):
        check_sound(row)
        assert len(row["idx_to_symbol"]) <= 10 and 2 <= len(row["steps"]) <= 4


def test_more_parents_make_denser_graphs():
    edges_per_node = {}
    for parents in (1.0, 1.5, 4.0):
        rows = problems(200, n_nodes=20, min_hops=2, parents=parents)
        for row in rows:
            check_sound(row)
        nodes, edges, _ = means(rows)
        edges_per_node[parents] = edges / nodes
    assert edges_per_node[1.0] < 1.4 < edges_per_node[1.5] < 1.8 < 2.4 < edges_per_node[4.0]


@pytest.mark.parametrize("n_nodes", [10, 13, 28])
def test_fair_graphs_are_sound_and_their_options_hang_equally_deep(n_nodes):
    rows = problems(300, n_nodes=n_nodes, min_hops=3, max_hops=4 if n_nodes < 28 else 6, fair=True)
    for row in rows:
        check_sound(row)
        (other,) = {0, 1} - {row["root"]}
        from_other = walk(row, other)
        assert from_other[row["neg_target"]] == len(row["steps"])
        assert row["target"] not in from_other
        turned = {"edges": [[b, a] for a, b in row["edges"]]}
        up = {option: walk(turned, row[option]) for option in ("target", "neg_target")}
        shapes = {option: sorted(up[option].values()) for option in up}
        assert shapes["target"] == shapes["neg_target"], "as many ancestors at every distance"
        above = [{v for v in up[option] if row["idx_to_symbol"][v][0].isupper()} for option in up]
        assert above == [{row["root"]}, {other}], "each below one person"
    assert abs(sum(row["root"] for row in rows) / 300 - 0.5) < 0.12, "either is asked"


def test_shortest_paths_are_drawn_evenly():
    edges = [[0, 1], [0, 2], [0, 3], [1, 4], [2, 4], [3, 5], [4, 6], [5, 6]]
    distance = prosqa.distances(edges, 0)
    rng = random.Random(0)
    paths = Counter(tuple(prosqa.shortest_path(edges, distance, 6, rng)) for _ in range(3000))
    assert set(paths) == {(0, 1, 4, 6), (0, 2, 4, 6), (0, 3, 5, 6)}
    assert all(abs(n / 3000 - 1 / 3) < 0.04 for n in paths.values()), paths


def run(*words):
    choices = {"task": ("prosqa",), "tokenizer": ("words", "gpt2")}
    prepare.main(parse(prepare.PrepareConfig, words, choices=choices))


SMALL = ("--train=60", "--valid=15", "--test=20")


def test_same_seed_same_bytes_and_disjoint_splits(workspace):
    run("prosqa", *SMALL, "--name=a")
    run("prosqa", *SMALL, "--name=b")
    run("prosqa", *SMALL, "--name=c", "--seed=1")
    made = [f"{split}.{kind}" for split in data.SPLITS for kind in ("json", "npz")]
    for file in [*made, "preview.txt"]:
        assert (Path("data/a") / file).read_bytes() == (Path("data/b") / file).read_bytes(), file
        assert (Path("data/a") / file).read_bytes() != (Path("data/c") / file).read_bytes(), file
    meta = json.loads(Path("data/a/meta.json").read_text())
    assert meta["counts"] == {"train": 60, "valid": 15, "test": 20}
    assert meta["sha256"] == {file: files.sha256(Path("data/a") / file) for file in made}
    rows = [row for s in data.SPLITS for row in files.read_rows(Path(f"data/a/{s}.json"))]
    graphs = [str((r["edges"], r["root"], r["target"], r["neg_target"])) for r in rows]
    assert len(set(graphs)) == len(graphs) == 95
    assert not list(Path("data").rglob("*.tmp"))
    preview = Path("data/a/preview.txt").read_text()
    assert preview.count("### ") == 10 and "stage 1 | Q <bot> ~ *s2" in preview


def test_tokens_on_disk_are_the_texts(workspace):
    run("prosqa", *SMALL)
    dataset = data.Dataset("prosqa")
    for split in data.SPLITS:
        opened = dataset.split(split)
        for i, row in enumerate(opened.rows):
            example = opened.example(i)
            texts = list(map(dataset.encoding.decode, [example.question, *example.rests]))
            assert texts == curriculum.texts_of(row)
            assert len(example.question) == 2 * len(row["edges"]) + 5
            n_steps, lengths = len(row["steps"]), list(map(len, example.rests))
            assert lengths == [*range(n_steps + 3, 3, -1), 3], "a step is a token"
    splits = list(map(dataset.split, data.SPLITS))
    examples = [split.example(i) for split in splits for i in range(len(split))]
    assert dataset.meta["longest"] == {
        "question": max(len(e.question) for e in examples),
        "chain": max(len(e.rests[0]) - len(e.rests[-1]) for e in examples),
        "rest": max(len(e.rests[0]) for e in examples),
    }


def test_a_retold_problem_is_the_same_problem(workspace):
    run("prosqa", *SMALL)
    dataset = data.Dataset("prosqa")
    train, rng = dataset.split("train"), random.Random(0)
    seen = set()
    for i, row in enumerate(train.rows):
        (e,) = train.retold(i, rng).examples
        text, *rests = map(dataset.encoding.decode, [e.question, *e.rests])
        *steps, answer = rests[0].split("\n")
        assert rests == ["\n".join([*steps[k:], answer]) for k in range(len(steps) + 1)]
        assert e.rests == [dataset.encoding.encode_ordinary(rest) for rest in rests]
        assert e.question == dataset.encoding.encode_ordinary(text)
        assert len(e.question) == len(train.example(i).question), "whatever the names"
        facts = {s.strip() + "." for s in text[: text.rindex(" Is ")].split(".") if s.strip()}
        assert set(steps) <= facts and len(facts) == len(row["edges"])
        assert len(steps) == len(row["steps"])
        seen.add(text)
    again = lambda: train.retold(0, random.Random(5))  # noqa: E731
    assert len(seen) == 60 and again() == again()
    (with_fewer,) = train.retold(0, random.Random(5), keep=0.0).examples
    assert len(with_fewer.rests) == 1 + len(train.rows[0]["steps"])
    n_facts, row = dataset.encoding.decode(with_fewer.question).count(" is a "), train.rows[0]
    assert len(row["steps"]) < n_facts < len(row["edges"]), "both chains and nothing else"


def backwards(row, node):
    """Steps back from a node to its nearest person, found by asking for ever longer ways."""
    here, steps = {node}, 0
    while not any(row["idx_to_symbol"][v][0].isupper() for v in here):
        here, steps = {a for a, b in row["edges"] if b in here}, steps + 1
    return steps


TOM = {"idx_to_symbol": ["Tom", "Max", "lempus", "rempus", "impus"]}
TOM |= {"edges": [[0, 2], [2, 3], [1, 4]], "root": 0, "target": 3, "neg_target": 4}
TOM |= {"steps": ["Tom is a lempus.", "Every lempus is a rempus."]}


def test_a_graph_told_by_hand():
    told = prosqa.tell(TOM, random.Random(1))
    facts = "Tom is a lempus. Max is a impus. Every lempus is a rempus."
    assert told["question"] == f"{facts} Is Tom a rempus or impus?"
    assert (told["steps"], told["answer"]) == (TOM["steps"], "Tom is a rempus.")


def test_a_chain_is_drawn_anew_among_the_shortest():
    row = TOM | {
        "edges": [*TOM["edges"], [0, 5], [5, 3]],
        "idx_to_symbol": [*TOM["idx_to_symbol"], "zumpus"],
    }
    rng = random.Random(0)
    chains = [prosqa.rechain(row, prosqa.askers(row), rng)["steps"] for _ in range(400)]
    drawn = Counter(map(tuple, chains))
    assert set(drawn) == {tuple(TOM["steps"]), ("Tom is a zumpus.", "Every zumpus is a rempus.")}
    assert all(150 < n < 250 for n in drawn.values()), "as often the one as the other"
    longer = row | {"edges": [*row["edges"], [0, 3]]}
    again = prosqa.rechain(longer, prosqa.askers(longer), rng)
    assert again["steps"] == TOM["steps"], "one's own detour stays"


def test_questions_asked_anew_are_sound(workspace):
    run("prosqa", *SMALL)
    dataset = data.Dataset("prosqa")
    train = dataset.split("train")
    groups = train.draw(400, random.Random(0), augment=True, questions=4, reask=1.0)
    roots = set()
    for group in groups:
        context = dataset.encoding.decode(group.context)
        facts = re.findall(r"(\w+) is a (\w+)\.", context)
        names = sorted({name for fact in facts for name in fact})
        edges = [[names.index(a), names.index(b)] for a, b in facts]
        for example in group.examples:
            root, *options = re.findall(r"\w+", dataset.encoding.decode(example.question))[1::2]
            steps = dataset.encoding.decode(example.rests[0]).split("\n")
            answer = steps.pop().split()[-1].rstrip(".")
            below = prosqa.distances(edges, names.index(root))
            assert names.index(answer) in below and answer in options
            (other,) = set(options) - {answer}
            assert names.index(other) not in below
            assert all(f"{step} " in f"{context} " for step in steps)
            assert len(steps) == below[names.index(answer)]
            roots.add(root)
    assert len(groups) == 100 and len(roots) > 3


def test_growing_graphs_keep_both_chains(workspace):
    run("prosqa", *SMALL)
    dataset = data.Dataset("prosqa")
    for group in dataset.split("train").draw(200, random.Random(0), augment=True, keep=0.0):
        (example,) = group.examples
        facts = re.findall(r"(\w+) is a (\w+)\.", dataset.encoding.decode(example.question))
        options = re.findall(r"\w+", dataset.encoding.decode(example.question))[-3::2]
        assert set(options) <= {b for _, b in facts}, "no option hangs in the air"
        assert len(facts) < 12


def alone(groups):
    """The examples of groups of one."""
    return [group.examples[0] for group in groups]


def test_a_batch_is_of_like_length_and_every_problem_as_likely(workspace):
    run("prosqa", *SMALL)
    train, rng = data.Dataset("prosqa").split("train"), random.Random(0)
    drawn = [alone(train.draw(4, rng, augment=False)) for _ in range(6000)]
    counts = Counter(tuple(e.question) for batch in drawn for e in batch)
    assert len(counts) == 60
    # 400 +- 5 deviations of 20
    assert all(abs(n / 24000 * 60 - 1) < 0.25 for n in counts.values()), counts.values()
    of_batches = [[len(e.question) for e in batch] for batch in drawn]
    spread = sum(max(lengths) - min(lengths) for lengths in of_batches) / 6000
    lengths = [len(train.example(i).question) for i in range(60)]
    apart = sum(max(c) - min(c) for c in (rng.choices(lengths, k=4) for _ in range(6000))) / 6000
    assert spread < 0.5 * apart


# ---- files of others ----


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


ROWS = [
    {"question": f"What is {i} plus 1?", "steps": [f"{i}+1={i + 1}"], "answer": str(i + 1)}
    for i in range(50)
]


def test_a_single_file_is_divided_by_the_seed(workspace):
    path = write(workspace / "mine.json", ROWS)
    run("prosqa", f"--source={path}", "--name=mine")
    splits = {split: files.read_rows(Path(f"data/mine/{split}.json")) for split in data.SPLITS}
    assert [len(rows) for rows in splits.values()] == [40, 5, 5]
    questions = [row["question"] for rows in splits.values() for row in rows]
    assert sorted(questions) == sorted(row["question"] for row in ROWS)
    assert splits["train"] != ROWS[:40]


def test_a_folder_is_taken_split_by_split(workspace):
    for split, rows in {"prosqa_train": ROWS[:30], "valid": ROWS[30:40], "test": ROWS[40:]}.items():
        write(workspace / "theirs" / f"{split}.json", rows)
    run("prosqa", "--source=theirs", "--name=theirs")
    assert files.read_rows(Path("data/theirs/train.json")) == ROWS[:30]
    assert len(data.Dataset("theirs").split("test")) == 10


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a JSON file"),
        (b"\xff\xfe\x00", "cannot read bad.json as text in utf-8"),
        (b'[{"question": "a"', "is not a JSON file"),
        (b"[]", "at least one"),
        (b'{"a": 1}', "should hold a list"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git-LFS pointer"),
        (
            json.dumps([*ROWS[:3], {"question": "q", "answer": "a"}]).encode(),
            "row 3: it has no steps; its fields are ['question', 'answer']",
        ),
        (
            json.dumps([{"question": "", "steps": [], "answer": "a"}]).encode(),
            "row 0: question is '', not a text",
        ),
        (json.dumps(ROWS[:5]).encode(), "10 are needed"),
    ],
)
def test_bad_files_are_named(workspace, content, message):
    (workspace / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)):
        run("prosqa", "--source=bad.json")
    assert not Path("data").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["nope"], "unknown task 'nope', choose from prosqa"),
        (["--source=missing"], "cannot read missing: no such file or folder"),
        (["--source=missing.json"], "cannot read missing.json"),
        (["--source=http://example.com/x.json"], "only https addresses"),
        (["--name=../x"], "is not a name for data/"),
        (["--n_nodes=60"], "--n_nodes=60 should be from 3 to 40"),
        (["--parents=0"], "--parents=0.0 should be from 0.1 to 5"),
        (["--min_hops=5", "--max_hops=4"], "--min_hops=5 should be from 1 to --max_hops=4"),
        (["--n_nodes=5", "--min_hops=6"], "hardly ever"),
        (["--train=-1"], "--train=-1 should be from 0"),
    ],
)
def test_mistakes(workspace, words, message):
    with pytest.raises((UserError, FileNotFoundError), match=message):
        run(*words)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("end", "claimed", "message"),
    [
        ("https://a.org/x.json", 4, None),
        ("http://127.0.0.1:80/x.json", 4, None),
        (
            "http://a.org/x.json",
            4,
            "it redirects to http://a.org/x.json; only https addresses are fetched",
        ),
        ("http://localhost:80@a.org/x.json", 4, "only https addresses"),
        ("http://localhost.a.org/x.json", 4, "only https addresses"),
        ("https://a.org/x.json", 5, "received 4 bytes of 5"),
        ("https://a.org/x.json", 0, "received 4 bytes of 0; the limit is 3"),
    ],
)
def test_what_is_fetched_is_whole_not_too_large_and_from_an_allowed_address(
    tmp_path, monkeypatch, end, claimed, message
):
    about = {"url": end, "headers": {"Content-Length": claimed}}
    reply = type("Reply", (io.BytesIO,), about)(b"four")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: reply)
    monkeypatch.setattr(files, "MAX_DOWNLOAD", 8 if claimed else 3)
    path = tmp_path / "kept/x.json"
    if message:
        with pytest.raises(UserError, match=message):
            files.fetch("https://here.org/x.json", path, "source")
        assert not path.parent.exists()
    else:
        assert files.fetch("https://here.org/x.json", path, "source").read_bytes() == b"four"


def test_an_example_is_printed(workspace, capsys):
    run("prosqa", *SMALL)
    printed = capsys.readouterr().out
    assert printed.count("### ") == 1 and " words, see data/prosqa/preview.txt" in printed
