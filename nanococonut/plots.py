"""Draws the figures of probe.py: curves with error bands, and the tree of one problem."""

from pathlib import Path

from matplotlib.figure import Figure

from nanococonut import data, graph
from nanococonut.log import BLUE, GREY, ORANGE

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", GREY, "black")


def draw(axes, i: int, label: str, points: list[tuple]) -> None:
    """Draws points (x, y) or (x, y, low, high) as a curve with the i-th colour and marker."""
    x, y, *band = zip(*points, strict=True) if points else ((), ())
    marker = "osD^vPX*"[i] if len(x) < 20 else None
    axes.plot(x, y, color=COLOURS[i], label=label, linewidth=1.3, marker=marker, markersize=4)
    axes.fill_between(x, *(band or (y, y)), color=COLOURS[i], alpha=0.12, lw=0)


def lines(panels: list[tuple[str, str, dict]], out: Path) -> None:
    """Saves one panel per (x label, y label, {label: points of draw()}), two or three side by side, and one legend."""
    width = min(2 + len(panels) % 2, len(panels))
    height = -(-len(panels) // width)
    fig, known, handles = Figure(figsize=(7.5, 3 * height + 0.5)), {}, {}
    for axes, (xlabel, ylabel, curves) in zip(fig.subplots(height, width, squeeze=False).flat, panels, strict=True):
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for label, points in curves.items():
            draw(axes, known.setdefault(label, len(known)) % len(COLOURS), label, points)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    fits = max(1, min(5, 120 // (6 + max(map(len, known), default=0))))  # labels per line of the legend
    fig.legend(handles.values(), handles, loc="outside lower center", ncols=fits, fontsize=8)
    data.write_atomically(out, fig.savefig)


def tree(row: dict, values, out: Path) -> None:
    """Saves a tree of what the root reaches: over a node at depth d its value after d thoughts; the chain is orange."""
    depth, path = graph.distances(row["edges"], row["root"]), graph.chain_of(row)
    levels = [[v for v in depth if depth[v] == d] for d in range(max(depth.values()) + 1)]
    at = {v: (i - (len(level) - 1) / 2, -d) for d, level in enumerate(levels) for i, v in enumerate(level)}
    half, n = max(map(len, levels)) / 2, len(levels)
    fig = Figure(figsize=(7.5, 1 + 0.75 * n))
    axes = fig.subplots()
    for v, (x, y) in at.items():
        box = dict(boxstyle="round,pad=0.25", facecolor="white", edgecolor=ORANGE if v in path else GREY)
        axes.text(x, y, row["idx_to_symbol"][v], ha="center", va="center", bbox=box)
        if 0 < depth[v] < values.shape[1]:
            above = dict(ha="center", zorder=5, bbox=dict(facecolor="white", edgecolor="none", pad=0.5))
            axes.text(x, y + 0.27, f"{values[v, depth[v]]:.2f}", color=BLUE, **above)
    for a, b in (edge for edge in row["edges"] if edge[0] in depth):
        style = dict(color=ORANGE if (a, b) in zip(path, path[1:], strict=False) else GREY, arrowstyle="-|>")
        style |= dict(connectionstyle=f"arc3,rad={0 if depth[b] == depth[a] + 1 else 0.3}", shrinkA=9, shrinkB=9)
        axes.annotate("", at[b], at[a], arrowprops=style)
    axes.set(xlim=(-half, half), ylim=(0.4 - n, 0.4), xticks=[], yticks=range(0, -n, -1), yticklabels=range(n))
    about = "orange: the shortest chain; blue: a node's value at its depth's thought"
    axes.set(xlabel=about, ylabel="steps from the root")
    data.write_atomically(out, fig.savefig)
