"""Pictures of a search: whole files, no arrow through a name, and one line for what has none."""

import io
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import prepare
import sample
from nanococonut import picture, prosqa
from nanococonut.cli import UserError

ROOT = Path(__file__).parents[1]


def problems(n):
    return prepare.generate(prepare.PrepareConfig(train=n, valid=1, test=1, seed=5))["train"]


def searched(row, n_thoughts=3):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(len(row["idx_to_symbol"])), size=n_thoughts).T
    return picture.Search(row, shares, row["answer"])


def n_frames(content: bytes) -> int:
    return content.count(b"\x21\xf9\x04")  # how a GIF's graphic control extensions begin


def test_a_film_shows_each_thought_and_the_answer(tmp_path):
    (row,) = problems(1)
    picture.film(searched(row), tmp_path / "search.gif")
    content = (tmp_path / "search.gif").read_bytes()
    assert content.startswith(b"GIF89a") and len(content) < 10**6
    # At least the graph alone, two frames for each of three thoughts, and the answer.
    assert n_frames(content) >= 8
    assert [path.name for path in tmp_path.iterdir()] == ["search.gif"], "nothing is left beside it"


def test_a_strip_has_a_drawing_for_each_thought(tmp_path):
    (row,) = problems(1)
    sizes = {}
    for n in (1, 4):
        picture.strip(searched(row, n), tmp_path / f"{n}.png")
        content = (tmp_path / f"{n}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        sizes[n] = int.from_bytes(content[16:20], "big")  # its width
    assert sizes[4] == pytest.approx(4 * sizes[1], abs=4)


def wide():
    """A problem whose first concept leads to eight others, over the width of the picture."""
    facts = [f"Tom is a a{i}." for i in range(8)] + [f"Every a0 is a b{i}." for i in range(8)]
    row, _ = prosqa.solve(" ".join([*facts, "Max is a c.", "Is Tom a b7 or c?"]))
    return row


def test_no_arrow_runs_through_a_name():
    for row in [wide(), *problems(20)]:
        figure = Figure(figsize=picture.size_of(row))
        figure.set_layout_engine("none")
        axes = figure.add_axes([0, 0, 1, 1])
        canvas = picture.Canvas(axes, searched(row))
        figure.savefig(io.BytesIO(), dpi=figure.dpi)  # places the arrows
        margin = 0.35 * 10 * figure.dpi / 72  # the frame's distance from a name, in pixels
        boxes = {v: text.get_window_extent() for v, text in canvas.boxes.items()}
        boxes = {v: box.padded(margin) for v, box in boxes.items()}
        for (a, b), arrow in canvas.arrows.items():
            points = arrow.get_path().interpolated(20).vertices  # in pixels
            for v, box in boxes.items():
                inside = [box.contains(*point) for point in points]
                assert v in (a, b) or not any(inside), (row["idx_to_symbol"][v], a, b)


def test_each_node_that_can_be_reached_has_its_own_place():
    rng = random.Random(0)
    for row in problems(20):
        at = picture.places(row)
        depth = prosqa.distances(row["edges"], row["root"])
        assert {v: -y for v, (_, y) in at.items()} == depth
        assert len(set(at.values())) == len(at)
        assert picture.places(row | {"edges": rng.sample(row["edges"], len(row["edges"]))})


def test_sample_saves_a_picture_or_says_what_it_needs(tmp_path):
    words = [sys.executable, str(ROOT / "sample.py"), str(ROOT / "models/prosqa.pt")]

    def asked(*more):
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = asked("--picture=new/search.png")
    assert code == 0 and out.endswith("saved new/search.png\n")
    assert (tmp_path / "new/search.png").exists()
    code, _, err = asked("--picture=search.mp4")
    assert code == 2 and err == "sample.py: --picture=search.mp4 should be a .gif or a .png\n"
    code, _, err = asked("--picture=search.gif", "--question=Who is Tom?")
    assert code == 2 and "needs a question of ProsQA's form" in err
    assert not (tmp_path / "search.gif").exists()


def test_the_help_names_the_picture(capsys):
    with pytest.raises((SystemExit, UserError)):
        sample.cli.parse(sample.SampleConfig, ["--help"])
    assert "--picture=" in capsys.readouterr().out
