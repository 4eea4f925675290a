"""The house rules: size, imports, and that what the README says about the code is so."""

import ast
import itertools
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "nanococonut").glob("*.py"))
SCRIPTS = [ROOT / name for name in ("prepare.py", "train.py", "sample.py")]
CORE = [ROOT / "nanococonut" / f"{name}.py" for name in ("model", "coconut", "curriculum")] + [ROOT / "train.py"]
LAB = {"evaluate", "probe", "table1", "bench", "pretrained"}


def n_lines(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_size():
    assert n_lines(CORE) <= 900
    assert not {"utils.py", "common.py", "helpers.py", "base.py"} & {path.name for path in PACKAGE}


def test_lines_of_the_core_are_short():
    for path in CORE:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            assert len(line) <= 100, f"{path.name}, line {number}"


def imported(path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("nanococonut.") for name in names}


def test_imports_go_from_the_lab_to_the_core():
    for path in CORE:
        assert not imported(path) & LAB, f"{path.name} imports {imported(path) & LAB}"
    for path in PACKAGE:
        if path not in CORE and path.stem not in LAB:  # rooms around the core; two of them take others' weights
            allowed = {"pretrained"} if path.stem in ("runs", "answers") else set()
            assert not imported(path) & LAB - allowed, f"{path.name} imports {imported(path) & LAB}"
    for earlier, later in itertools.pairwise(CORE):  # read in this order, and never back
        assert later.stem not in imported(earlier), f"{earlier.name} imports {later.name}, which is read after it"


def test_autograd_is_pytorchs_own():
    for path in [*PACKAGE, *SCRIPTS]:
        assert "autograd.Function" not in path.read_text(encoding="utf-8"), path.name


def test_only_the_six_packages_are_imported():
    allowed = {
        "torch",
        "numpy",
        "tiktoken",
        "tqdm",
        "matplotlib",
        "pytest",
        "nanococonut",
        "prepare",
        "sample",
        "train",
    }
    tests = sorted((ROOT / "tests").glob("*.py"))
    allowed |= {path.stem for path in tests}
    for path in [*PACKAGE, *SCRIPTS, *tests]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed | sys.stdlib_module_names, f"{path.name} imports {name}"


def test_functions_are_short():
    for path in [*PACKAGE, *SCRIPTS]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name != "main":
                assert node.end_lineno - node.lineno < 65, f"{path.name}: {node.name}"


def test_docs_list_every_difference_from_the_paper():
    section = (ROOT / "docs/differences.md").read_text(encoding="utf-8")
    listed = len(re.findall(r"^- ", section, re.MULTILINE))
    marked = sum(
        len(re.findall("Differs from the (?:paper|released code)", p.read_text())) for p in [*PACKAGE, *SCRIPTS]
    )
    assert listed == marked > 0


def test_readme_counts_the_lines_of_the_reading_path():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in CORE:
        (written,) = re.findall(rf"{path.name}`?\]?[^|\n]*\| *(\d+) \|", readme)
        assert int(written) == n_lines([path]), f"{path.name} has {n_lines([path])} lines, README says {written}"


def test_pyproject_promises_no_more_than_it_installs():
    """The commands stand beside the package, and so does the model: an installed package alone would lack them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^packages = \[\]$", text, re.MULTILINE) and re.search(r"^py-modules = \[\]$", text, re.MULTILINE)
    assert int(re.search(r"setuptools>=(\d+)", text)[1]) >= 77, "the first that reads license = as a text"
    assert 'license = "MIT"' in text and "[project.scripts]" not in text
