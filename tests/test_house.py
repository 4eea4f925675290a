"""The house rules: size, imports, and that what the README says about the code is so."""

import ast
import dataclasses
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanococonut.config import TrainConfig

ROOT = Path(__file__).parents[1]
ROOM = sorted((ROOT / "nanococonut").glob("*.py"))
LAB = sorted((ROOT / "nanococonut/lab").glob("*.py"))
PACKAGE = [*ROOM, *LAB]
SCRIPTS = [ROOT / name for name in ("prepare.py", "train.py", "sample.py")]
TESTS = sorted((ROOT / "tests").glob("*.py"))
CORE = [ROOT / "nanococonut" / f"{name}.py" for name in ("model", "coconut", "curriculum")]
CORE.append(ROOT / "train.py")
# The files that forward `python -m nanococonut.probe` and the like to the lab.
FORWARDING = [ROOT / "nanococonut" / f"{name}.py" for name in ("probe", "table1", "bench")]
# What the core does not need.
MEASURING = {"evaluate", "probe", "table1", "bench", "pretrained", "lab"}


def by_name(path) -> str:
    """How a file is called among the parameters of a test."""
    return str(path.relative_to(ROOT))


def every(paths):
    return pytest.mark.parametrize("path", paths, ids=by_name)


def n_lines(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def tree(path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_size():
    assert n_lines(CORE) <= 900
    assert not {"utils.py", "common.py", "helpers.py", "base.py"} & {path.name for path in PACKAGE}


@every([*PACKAGE, *SCRIPTS, *TESTS])
def test_lines_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    long = {number: len(line) for number, line in enumerate(lines, start=1) if len(line) > 100}
    assert not long, "numbers of lines, and how long each is"


def imported(path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, (
                f"{path.name} has a relative import, which is not understood here"
            )
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("nanococonut.") for name in names}


def modules(path) -> set[str]:
    """The first parts of what imported() gives: lab for lab.probe."""
    return {name.partition(".")[0] for name in imported(path)}


def test_imports_go_from_the_lab_to_the_core():
    for path in CORE:
        assert not modules(path) & MEASURING, f"{path.name} imports {modules(path) & MEASURING}"
    for path in ROOM:
        if path in CORE or path.stem in MEASURING:
            continue
        # Rooms around the core; two of them take others' weights.
        allowed = {"pretrained"} if path.stem in ("runs", "opening") else set()
        found = modules(path) & MEASURING - allowed
        assert not found, f"{path.name} imports {found}"
    for earlier, later in itertools.pairwise(CORE):  # read in this order, and never back
        assert later.stem not in modules(earlier), (
            f"{earlier.name} imports {later.name}, which is read after it"
        )


def test_the_lab_is_imported_by_nobody():
    """The three forwarding commands run it by its name."""
    names = ["__init__", "bench", "export", "probe", "table1"]
    assert [path.stem for path in LAB] == names
    for path in [*ROOM, *SCRIPTS]:
        text = path.read_text(encoding="utf-8")
        assert "lab" not in modules(path), path.name
        assert ("nanococonut.lab" in text) == (path in FORWARDING), path.name
    for path in FORWARDING:
        assert imported(path) == {"runpy"}, path.name
        assert f'"nanococonut.lab.{path.stem}"' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["sample", "nanococonut.runs", "nanococonut.readout"])
def test_whoever_asks_a_run_needs_no_matplotlib(name):
    code = f"import sys, {name}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout.split() and "matplotlib" not in done.stdout.split()


def test_autograd_is_pytorchs_own():
    for path in [*PACKAGE, *SCRIPTS]:
        assert "autograd.Function" not in path.read_text(encoding="utf-8"), path.name


def test_only_the_six_packages_are_imported():
    allowed = {"torch", "numpy", "tiktoken", "tqdm", "matplotlib", "pytest"}
    allowed |= {"nanococonut", "prepare", "sample", "train"} | {path.stem for path in TESTS}
    for path in [*PACKAGE, *SCRIPTS, *TESTS]:
        for node in ast.walk(tree(path)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed | sys.stdlib_module_names, (
                    f"{path.name} imports {name}"
                )


@every([*PACKAGE, *SCRIPTS])
def test_functions_are_short(path):
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]
    lengths = [(node.name, node.end_lineno - node.lineno) for node in functions]
    assert not [(name, length) for name, length in lengths if length >= 50]


@every([*PACKAGE, *SCRIPTS, *TESTS])
def test_every_module_says_what_it_is(path):
    assert (ast.get_docstring(tree(path)) or "").strip()


def test_training_has_at_most_thirty_options():
    assert len(dataclasses.fields(TrainConfig)) <= 30


def test_docs_list_every_difference_from_the_paper():
    section = (ROOT / "docs/differences.md").read_text(encoding="utf-8")
    listed = len(re.findall(r"^- ", section, re.MULTILINE))
    mark = "Differs from the (?:paper|released code)"
    texts = [path.read_text(encoding="utf-8") for path in [*PACKAGE, *SCRIPTS]]
    marked = sum(len(re.findall(mark, text)) for text in texts)
    assert listed == marked > 0


def test_readme_counts_the_lines_of_the_reading_path():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in CORE:
        (written,) = re.findall(rf"{path.name}`?\]?[^|\n]*\| *(\d+) \|", readme)
        assert int(written) == n_lines([path]), (
            f"{path.name} has {n_lines([path])} lines, README says {written}"
        )


def test_pyproject_promises_no_more_than_it_installs():
    """The commands stand beside the package, and so does the model.

    An installed package alone would lack them.
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^packages = \[\]$", text, re.MULTILINE)
    assert re.search(r"^py-modules = \[\]$", text, re.MULTILINE)
    # 77 is the first that reads license = as a text.
    assert int(re.search(r"setuptools>=(\d+)", text)[1]) >= 77
    assert 'license = "MIT"' in text and "[project.scripts]" not in text


def test_one_formatter_formats_everything():
    assert re.search("^line-length = 100$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert makefile.count("ruff format") == 1 and "ruff format --check ." in makefile
