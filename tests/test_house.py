"""The house rules: size, imports, and that what the README says about the code is so."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "nanococonut").glob("*.py"))
SCRIPTS = [ROOT / name for name in ("prepare.py", "train.py", "sample.py")]
READING_PATH = [ROOT / "nanococonut" / f"{name}.py" for name in ("model", "coconut", "curriculum")] + [
    ROOT / "train.py"
]


def n_lines(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def test_size():
    assert n_lines(READING_PATH) <= 920
    assert n_lines(PACKAGE + SCRIPTS) <= 3800
    assert not {"utils.py", "common.py", "helpers.py", "base.py"} & {path.name for path in PACKAGE}


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
    for path in [*PACKAGE, *SCRIPTS, *(ROOT / "tests").glob("*.py")]:
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


def test_readme_lists_every_difference_from_the_paper():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Differences from the paper and the released code")[1].split("\n## ")[0]
    listed = len(re.findall(r"^- ", section, re.MULTILINE))
    marked = sum(
        len(re.findall("Differs from the (?:paper|released code)", p.read_text())) for p in [*PACKAGE, *SCRIPTS]
    )
    assert listed == marked > 0


def test_readme_counts_the_lines_of_the_reading_path():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in READING_PATH:
        (written,) = re.findall(rf"{path.name}`?\]?[^|\n]*\| *(\d+) \|", readme)
        assert int(written) == n_lines([path]), f"{path.name} has {n_lines([path])} lines, README says {written}"
