"""README's commands: each is understood by what it calls, and the short way works as typed."""

import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prepare
import sample
from nanococonut import cli, config, evaluate
from nanococonut.curriculum import METHODS
from nanococonut.lab import bench, probe, table1

ROOT = Path(__file__).parents[1]
RELEASED = ROOT.parent / "shared/data/prosqa_valid_official.json"
PARSERS = {
    "prepare.py": lambda words: cli.parse(prepare.PrepareConfig, words),
    "train.py": lambda words: cli.parse(config.TrainConfig, words, config.PRESETS, config.CHOICES),
    "sample.py": lambda words: cli.parse(sample.SampleConfig, words),
    "nanococonut.table1": lambda words: cli.parse(table1.Table1Config, words),
    "nanococonut.probe": lambda words: cli.parse(probe.ProbeConfig, words),
    "nanococonut.bench": lambda words: cli.parse(bench.BenchConfig, words),
    "nanococonut.evaluate": lambda words: cli.parse(evaluate.EvaluateConfig, words),
}


def commands():
    """Every `python ...` and `make ...` in the code of the README, the docs and the Makefile.

    But not of earlier commits.
    """
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/faq.md")]
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    texts.append(results.split("\n# Earlier commits\n")[0])
    text = "\n".join(texts)
    blocks = re.findall(r"^```sh\n(.+?)^```", text, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"[^`]`(python [^`]+)`", text)
    blocks += [command.replace("\n", " ") for command in inline]
    recipe = re.compile(r"^\t\$\((?:PYTHON|BIN)\)(?:/python)? (.+)$", re.MULTILINE)
    others = ("-m venv", "-m pip", "-m pytest")
    for line in recipe.findall((ROOT / "Makefile").read_text()):
        if not line.startswith(others):
            blocks.append(f"python {line}")
    found = set()
    for line in "\n".join(blocks).splitlines():
        found.update(part.strip() for part in line.split("#")[0].split("&&"))
    return sorted(line for line in found if line.startswith(("python ", "make ")))


@pytest.mark.parametrize("command", commands())
def test_command_is_understood(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert f"\n{words[1]}: " in (ROOT / "Makefile").read_text()
        return
    words = [word for word in words[1:] if word != "-m"]
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            PARSERS[words[0]](words[1:])
    else:
        assert PARSERS[words[0]](words[1:]) is not None


def test_every_command_explains_itself():
    for parser in PARSERS.values():
        with pytest.raises(SystemExit, match="0"):
            parser(["--help"])


def run(folder, *words):
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    words = [str(ROOT / word) if word.endswith(".py") else word for word in words]
    how = dict(cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    done = subprocess.run([sys.executable, *words], **how)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_short_way_as_typed(tmp_path):
    assert "python prepare.py prosqa" in commands()
    run(tmp_path, "prepare.py", "prosqa")
    assert "stage  steps  thoughts" in run(tmp_path, "train.py", "--stage_steps=20")
    printed = run(tmp_path, "sample.py", "--latent=2")
    assert "  thought 2  " in printed
    assert "2 thoughts instead of the 6 of training" in printed
    if RELEASED.exists():
        printed = run(tmp_path, "-m", "nanococonut.evaluate", f"--data={RELEASED}")
        assert '"n": 300' in printed.splitlines()[-1]


def test_a_mistake_is_one_line_and_exit_2(tmp_path):
    no_data = "train.py: data/prosqa not found; run: python prepare.py prosqa\n"
    no_run = "sample.py: runs/nope not found; there is: none yet; run: python train.py\n"
    for words, line in {("train.py",): no_data, ("sample.py", "nope"): no_run}.items():
        command = [sys.executable, str(ROOT / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, line)


def test_links_lead_to_files_that_define_what_they_name():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\[([\w.]+)\]\(([\w/]+\.py)\)", text)
    assert len(links) >= 15
    for name, file in links:
        code = (ROOT / file).read_text(encoding="utf-8")
        word = name.rpartition(".")[2]
        if name not in (Path(file).name, Path(file).stem):
            assert re.search(rf"^\s*(def |class |){word}\b", code, re.MULTILINE), (name, file)
    assert "#L" not in text, "line numbers drift"


def test_the_tables_are_those_of_the_results_files():
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    found = sorted((ROOT / "results").glob("*.md"))
    assert found
    for path in found:
        assert path.read_text(encoding="utf-8") in text, f"another table than {path.name} is quoted"


def test_the_readmes_numbers_are_those_of_the_results_files():
    table = (ROOT / "results/table1-prosqa-small-laptop.md").read_text(encoding="utf-8")
    (cells,) = re.findall(r"^\| coconut \| (\S+) \| (\S+) \| (\d) \|", table, re.MULTILINE)
    rows = re.findall(r"^\|.+\|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    start = f"| fair, 16 nodes (`laptop`) | {' | '.join(cells)} | "
    assert any(row.startswith(start) for row in rows), cells
    about = torch.load(ROOT / "models/prosqa.pt", weights_only=True)["about"]
    (shipped,) = re.findall(r"accuracy ([\d.]+) %, question and twin both right ([\d.]+) %", about)
    start = f"| the shipped model, released size | {' | '.join(shipped)} | 1 |"
    assert any(row.startswith(start) for row in rows), about


COLUMNS = {  # of README's Table 1: the results file of each
    "fair ProsQA": "rows-prosqa-small-laptop.md",
    "ProntoQA": "table1-prontoqa-prontoqa.md",
    "its fair form": "table1-prontoqa-fair-prontoqa.md",
    "arithmetic": "table1-arithmetic-arithmetic.md",
}


def cell_of(method, file):
    """What README has of a method: accuracy and both right, of one seed without a deviation."""
    table = (ROOT / "results" / file).read_text(encoding="utf-8")
    found = re.search(rf"^\| {method} \| (\S+) \| (\S+) \| (\d) \|", table, re.MULTILINE)
    if not found:
        return "-"
    accuracy, both, n_seeds = found.groups()
    cell = accuracy if both == "-" else f"{accuracy}, {both}"
    return cell.replace("±0.0", "") if n_seeds == "1" else cell


def test_the_readmes_table_1_is_that_of_the_results_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| `--method=` .*\n\|---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    (header,) = re.findall(r"^\| `--method=` \| (.*)$", text, re.MULTILINE)
    assert header.startswith(" | ".join(COLUMNS))
    rows = [line.strip("| \n").split(" | ") for line in table.splitlines()]
    assert [row[0] for row in rows[:-1]] == list(METHODS)
    for method, *cells in rows[:-1]:
        assert cells[: len(COLUMNS)] == [cell_of(method, file) for file in COLUMNS.values()]
        theirs = [table1.paper(task)[method][0] for task in ("prosqa", "prontoqa", "gsm8k")]
        assert cells[len(COLUMNS) :] == [number.partition("±")[0] for number in theirs]


def test_the_walkthrough_does_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = Path("docs/walkthrough.md").read_text(encoding="utf-8")
    text = re.sub("^```.*$", "", text, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, "walkthrough", "docs/walkthrough.md", 0)
    with torch.no_grad():
        failed, n_tried = doctest.DocTestRunner().run(test)
    assert failed == 0 and n_tried > 20


def test_the_quick_starts_block_is_what_the_recorded_run_printed():
    recorded = (ROOT / "results/quickstart-output.txt").read_text(encoding="utf-8")
    assert f"```\n{recorded}```\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


def test_the_results_are_short_and_no_file_is_left_over():
    assert len((ROOT / "docs/results.md").read_text(encoding="utf-8").splitlines()) <= 300
    paths = [path for folder in (".", "docs", "tests") for path in (ROOT / folder).glob("*.*")]
    texts = [path for path in paths if path.suffix in (".md", ".py")]
    said = "\n".join(path.read_text(encoding="utf-8") for path in texts)
    for path in [*(ROOT / "results").iterdir(), *(ROOT / "figures").iterdir()]:
        is_table = path.with_suffix(".md").exists()  # whose text docs/results.md quotes, see above
        assert path.name in said or is_table, f"nothing names {path.name}"
