"""Draws a search: what the root of a problem reaches, and what each thought says of every node.

    film     a moving picture, one thought after the other
    strip    the same side by side, for print

The root stands at the top, and each row holds what is one fact further away. An arrow is a fact
that leads one row down. Facts that lead back or aside are left out: no search needs them.
"""

import functools
import itertools
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from nanococonut import files, prosqa
from nanococonut.plots import BLUE, GREY, ORANGE

PAPER = "#fcfcfa"  # the background, so that a picture reads alike on light and dark pages
INK = "#222222"
SHADES = LinearSegmentedColormap.from_list("shades", [PAPER, "#9ecae9", BLUE])
FRAMES = 6  # of each thought, the first half of which fades it in
LAST_FRAMES = 12  # of the answer
PER_SECOND = 6


class Search(NamedTuple):
    """What is drawn."""

    row: dict  # a problem of ProsQA
    probabilities: np.ndarray  # (nodes, K): the probability of each node at each thought
    answer: str  # what the model wrote


def places(row: dict) -> dict[int, tuple[float, int]]:
    """Where each node stands that the root reaches: (x, -distance), near those that lead to it."""
    depth = prosqa.distances(row["edges"], row["root"])
    at = {row["root"]: (0.0, 0)}
    for d in range(1, max(depth.values()) + 1):
        level = [v for v in depth if depth[v] == d]
        above = {v: [] for v in level}  # where the nodes of the row above stand that lead there
        for a, b in row["edges"]:
            if b in above and depth.get(a) == d - 1:
                above[b].append(at[a][0])
        level.sort(key=lambda v: np.mean(above[v]))
        for i, v in enumerate(level):
            at[v] = (i - (len(level) - 1) / 2, -d)
    return at


class Canvas:
    """A search on matplotlib's axes, whose nodes can be coloured again and again."""

    def __init__(self, axes, search: Search):
        self.search = search
        self.at = places(search.row)
        names = search.row["idx_to_symbol"]
        self.boxes, self.arrows = {}, {}
        for v, (x, y) in self.at.items():
            box = dict(boxstyle="round,pad=0.35", facecolor=PAPER, edgecolor=GREY)
            how = dict(ha="center", va="center", fontsize=10, color=INK, bbox=box, zorder=3)
            self.boxes[v] = axes.text(x, y, names[v], **how)
        for a, b in search.row["edges"]:
            if a in self.at and self.at[b][1] == self.at[a][1] - 1:
                # From below one name to above the other, in shares of their heights: between two
                # rows there is no name that it could run through.
                ends = dict(xytext=(0.5, -0.45), textcoords=self.boxes[a])
                ends |= dict(xy=(0.5, 1.45), xycoords=self.boxes[b])
                style = dict(arrowstyle="-|>", color="#b8b8b8", linewidth=1, shrinkA=0, shrinkB=0)
                arrow = axes.annotate("", arrowprops=style, zorder=1, **ends)
                self.arrows[a, b] = arrow.arrow_patch
        half = max(x for x, _ in self.at.values()) + 0.62
        lowest = min(y for _, y in self.at.values())
        axes.set(xlim=(-half, half), ylim=(lowest - 0.5, 0.4))
        axes.axis("off")

    def colour(self, shares: np.ndarray) -> None:
        """Fills each node by its probability (nodes,)."""
        for v, text in self.boxes.items():
            share = float(np.clip(shares[v], 0, 1))
            text.get_bbox_patch().set_facecolor(SHADES(share))
            text.set_color("white" if share > 0.6 else INK)

    def mark_chain(self) -> None:
        """Marks the right chain."""
        chain = prosqa.chain_of(self.search.row)
        for v in chain:
            self.boxes[v].get_bbox_patch().set(edgecolor=ORANGE, linewidth=2.5)
        for edge in itertools.pairwise(chain):
            if edge in self.arrows:
                self.arrows[edge].set(color=ORANGE, linewidth=2.5, zorder=2)


def said(search: Search, k: int) -> str:
    """What thought k, from 1, says: its likeliest nodes."""
    shares = search.probabilities[:, k - 1]
    names = search.row["idx_to_symbol"]
    likely = [v for v in np.argsort(-shares) if shares[v] >= 0.1][:4]
    return ",  ".join(f"{names[v]} {shares[v]:.2f}" for v in likely) or "no node of the graph"


def question_of(row: dict) -> str:
    """The question itself, without its facts: it names the two options."""
    return row["question"].rpartition(". ")[2]


def remark_of(row: dict) -> str:
    """What is not drawn."""
    names = row["idx_to_symbol"]
    return f"no facts lead from {names[row['root']]} to {names[row['neg_target']]}"


def size_of(row: dict) -> tuple[float, float]:
    """The width and height in inches of one drawing."""
    at = places(row).values()
    n_columns = 1 + 2 * max(x for x, _ in at)
    n_rows = 1 - min(y for _, y in at)
    return max(4.2, 1.15 * n_columns), 0.85 * n_rows


def film(search: Search, path: Path) -> None:
    """Saves a moving picture (GIF): the graph, then each thought, then the answer."""
    width, height = size_of(search.row)
    width = max(width, 6.0)
    figure = Figure(figsize=(width, height + 1.1), facecolor=PAPER)
    figure.set_layout_engine("none")
    axes = figure.add_axes([0.01, 0.02, 0.98, height / (height + 1.1) - 0.02])
    canvas = Canvas(axes, search)
    top = 1 - 0.3 / (height + 1.1)
    figure.text(0.5, top, question_of(search.row), ha="center", fontsize=12, color=INK)
    figure.text(0.5, 0.02, remark_of(search.row), ha="center", fontsize=9, color=GREY)
    caption = figure.text(0.5, top - 0.4 / (height + 1.1), "", ha="center", fontsize=11)
    n_thoughts = search.probabilities.shape[1]
    nothing = np.zeros(len(search.probabilities))
    shown = [nothing, *search.probabilities.T]

    def draw(frame: int) -> None:
        k, within = divmod(frame, FRAMES)  # frames before the first thought show the graph
        if k > n_thoughts:
            canvas.colour(nothing)
            canvas.mark_chain()
            caption.set(text=f"answer:  {search.answer}", color=ORANGE)
            return
        faded_in = min(1.0, (within + 1) / (FRAMES / 2))
        before = shown[max(0, k - 1)]
        canvas.colour(before + faded_in * (shown[k] - before))
        text = f"thought {k}:  {said(search, k)}" if k else "what the facts lead to"
        caption.set(text=text, color=BLUE if k else GREY)

    n_frames = FRAMES * (n_thoughts + 1) + LAST_FRAMES
    moving = FuncAnimation(figure, draw, frames=n_frames)
    with tempfile.TemporaryDirectory() as folder:  # the writer wants a path, not a file
        made = Path(folder) / "film.gif"
        moving.save(made, PillowWriter(fps=PER_SECOND), dpi=100)
        content = made.read_bytes()
    files.write_atomically(path, lambda file: file.write(content))


def strip(search: Search, path: Path) -> None:
    """Saves one drawing for each thought, side by side, the chain marked in the last (PNG)."""
    width, height = size_of(search.row)
    n_thoughts = search.probabilities.shape[1]
    n_columns = min(4, n_thoughts)
    n_rows = -(-n_thoughts // n_columns)
    size = (n_columns * width, n_rows * (height + 0.6))
    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    figure.suptitle(f"{question_of(search.row)}  ({remark_of(search.row)})", color=INK)
    all_axes = figure.subplots(n_rows, n_columns, squeeze=False).flat
    for k, axes in enumerate(all_axes, start=1):
        axes.axis("off")
        if k > n_thoughts:
            continue
        canvas = Canvas(axes, search)
        canvas.colour(search.probabilities[:, k - 1])
        axes.set_title(f"thought {k}:  {said(search, k)}", color=BLUE, fontsize=10)
        if k == n_thoughts:
            canvas.mark_chain()
    write = functools.partial(figure.savefig, dpi=120, format="png")
    files.write_atomically(path, write)
