"""Analyses what a run's thoughts encode and whether they matter: numbers and figures under runs/<name>/probe/.

k               the same weights with 0, 1, 2, ... thoughts: accuracy, also on twins, and verdicts  [Hao24 5]
interventions   accuracy and changed answers when thoughts are zeroed, swapped, permuted, ...: the controls
values          paper's layout: <eot> is forced after k thoughts: the probability of "Every lempus is a " [Hao24 5]
mass            the probability that the output head gives the search's nodes at each thought
pruning         among the nodes that are equally far: those that lead to the target, and dead ends by height [Hao24 5.3]
readings        the most probable words when a thought is read through the output head
"""

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tqdm import tqdm

from nanococonut import answers, batching, coconut, config, data, evaluate, graph, log
from nanococonut.log import GREY, ORANGE


@dataclass(frozen=True)
class ProbeConfig:
    """python -m nanococonut.probe [RUN] [--option=value ...]: analyses and plots a run's thoughts, with controls."""

    run: str = ""  # name or path of the run; default: the newest
    split: str = "test"  # split of the data that the run was trained on
    n: int = 300  # maximum number of problems


def groups(row: dict, i: int) -> dict[str, set[int]]:
    """Node groups at thought i: unreachable, within i steps, at BFS depth i - 1, and at i."""
    steps = graph.distances(row["edges"], row["root"])
    return {
        "not reachable": set(range(len(row["idx_to_symbol"]))) - set(steps),
        "reachable": {v for v, depth in steps.items() if depth <= i},
        "one behind": {v for v, depth in steps.items() if depth == i - 1},
        "frontier": {v for v, depth in steps.items() if depth == i},
    }


@torch.no_grad()
def values(run: answers.Run, examples, names: list[list[str]], n_thoughts: int) -> list[np.ndarray]:
    """For each example (its names, n_thoughts + 1): the probability that the chain continues there after k thoughts."""
    pairs = []
    for example, mine in zip(examples, names, strict=True):
        prompt = answers.before_thoughts(example, run.plan, run.special)
        pairs += [(prompt, [run.special["eot"], *run.encoding.encode_ordinary(graph.subject(name))]) for name in mine]
    found = np.zeros((len(pairs), n_thoughts + 1))
    for start in range(0, len(pairs), 512):
        batch = batching.collate(pairs[start : start + 512], n_thoughts=0, pad_id=0)
        prompt, length, suffix, targets = (x.to(run.machine.device) for x in batch[:4])
        with run.machine.autocast():
            hidden, prompt_kv = coconut.prefill(run.model, prompt, length)
            cache = coconut.open_cache(prompt_kv, length, n_slots=n_thoughts + 1 + suffix.size(1))
            for k in range(n_thoughts + 1):
                said, _ = coconut.step(run.model, suffix, cache)  # <eot> is read now; the cache is not changed
                logits = run.model.logits(said).float()
                each = F.cross_entropy(logits.mT, targets, reduction="none")  # (rows, S); 0 at pads
                found[start : start + 512, k] = each.sum(dim=1).neg().exp().cpu()
                hidden, cache = coconut.step(run.model, hidden, cache)
    return np.split(found, np.cumsum(list(map(len, names)))[:-1])


@torch.no_grad()
def leanings(run: answers.Run, row: dict, thoughts: torch.Tensor) -> np.ndarray:
    """(nodes, K): the probability that the output head gives each node of a problem at thoughts (K, C)."""
    tokens = [data.node_tokens(run.encoding, name) for name in row["idx_to_symbol"]]
    shares = run.model.logits(thoughts).softmax(-1).cpu()
    return torch.stack([shares[:, ids].sum(dim=1) for ids in tokens]).numpy()


def means(cells: dict[tuple, list]) -> dict[str, list]:
    """{(label, x): numbers} -> {label: [(x, mean, low, high)]}, 95 % intervals; fewer than 5 numbers give no point."""
    curves = {label: [] for label, _ in cells}
    for (label, x), numbers in sorted(cells.items(), key=lambda cell: cell[0][1]):
        if len(numbers) >= 5:
            mean, half = float(np.mean(numbers)), float(1.96 * np.std(numbers) / len(numbers) ** 0.5)
            curves[label].append((x, mean, mean - half, mean + half))
    return curves


def mass(rows: list[dict], leaned: list[np.ndarray]) -> dict[str, list]:
    """means() over problems, by thought: the sum of leanings() over each group of nodes."""
    cells = defaultdict(list)
    for row, shares in zip(rows, leaned, strict=True):
        for k, at_thought in enumerate(shares.T, start=1):
            for group, nodes in groups(row, k).items():
                cells[group, k].append(float(at_thought[list(nodes)].sum()))
    return means(cells)


def pruning(rows: list[dict], leaned: list[np.ndarray]) -> dict[str, list]:
    """means() over nodes, by thought k: leanings() of a node first reached after k - 1 steps, over an equal share.

    1 is what a search without preferences gives: the probability of all such nodes, divided by their number. Problems
    in which there is only one such node do not count, nor thoughts past the chain. A dead end's height is the distance
    of the farthest node below it. The nodes of a problem are not independent: the intervals are a little too narrow.
    """
    cells = defaultdict(list)
    for row, shares in zip(rows, leaned, strict=True):
        depth = graph.distances(row["edges"], row["root"])
        leads = graph.distances([[b, a] for a, b in row["edges"]], row["target"])
        for k, at_thought in enumerate(shares.T[: depth[row["target"]] + 1], start=1):
            level = [v for v in depth if depth[v] == k - 1]
            total = sum(at_thought[level])
            if len(level) < 2 or total == 0:
                continue
            for v in level:
                height = max(graph.distances(row["edges"], v).values())
                dead = f"dead end, height {height if height < 2 else '2 or more'}"
                group = "leads to the target" if v in leads else dead
                cells[group, k].append(float(at_thought[v] * len(level) / total))
    return means(cells)


def parallelism(rows: list[dict], found: list[np.ndarray]) -> tuple[dict, int]:
    """Sums of the three highest values at depth k after k = 1, 2 thoughts, and the problem with the best runner-up."""
    best = defaultdict(list)
    for row, values in zip(rows, found, strict=True):
        depth = graph.distances(row["edges"], row["root"])
        for k in range(1, min(3, values.shape[1])):
            nodes = [v for v in depth if depth[v] == k]
            best[k].append(sorted([*values[nodes, k], 0, 0, 0], reverse=True)[:3])  # 0 for a missing node
    percent, tops = np.linspace(0, 100, len(rows)).tolist(), {}
    for k, values in best.items():
        sums = np.sort(np.cumsum(values, axis=1), axis=0).T.tolist()  # (3, problems)
        curves = {f"top {j}": list(zip(percent, y, strict=True)) for j, y in enumerate(sums, start=1)}
        tops[f"problems, sorted (%), nodes at depth {k}"] = curves
    return tops, int(np.argmax([y for _, y, _ in best[1]]))


def sweep(run: answers.Run, examples: data.Split, n_thoughts: int) -> list[dict]:
    """Results of evaluate.measure for each intervention and number of thoughts, and how many answers changed."""
    rows, plain = [], {}
    room = run.model.config.block_size - max(examples.lengths) - 2 - run.data["max_new_tokens"]  # 2: the two markers
    todo = [("none", k) for k in range(min(n_thoughts + 2, room) + 1)]
    todo += [(name, k) for name in evaluate.INTERVENTIONS if name != "none" for k in range(1, n_thoughts + 1)]
    for name, k in tqdm(todo, desc="answers", unit="pass", leave=False):
        result, texts = evaluate.measure(run, examples, str(k), intervene=name)
        finals = list(map(data.final_answer, texts))
        n_flipped = sum(a != b for a, b in zip(finals, plain.setdefault(k, finals), strict=True))
        rows.append(dict(run=run.folder.name, intervene=name, latent=k, flipped=n_flipped, **result))
    return rows


def places(row: dict) -> dict[int, tuple[float, int]]:
    """Where draw_tree puts each node that the root reaches: (x, -depth), near the nodes that lead there."""
    depth = graph.distances(row["edges"], row["root"])
    at = {row["root"]: (0.0, 0)}
    for d in range(1, max(depth.values()) + 1):
        level = [v for v in depth if depth[v] == d]
        above = {v: [at[a][0] for a, b in row["edges"] if b == v and depth.get(a) == d - 1] for v in level}
        level.sort(key=lambda v: np.mean(above[v]))
        at |= {v: (i - (len(level) - 1) / 2, -d) for i, v in enumerate(level)}
    return at


def draw_tree(row: dict, values, out: Path) -> None:
    """Saves a picture of what the root reaches: in a node at depth d its value after d thoughts; the chain is orange.

    Facts that lead one level down are lines; those that lead anywhere else are faint, because no search needs them.
    """
    at, path = places(row), graph.chain_of(row)
    n_levels = 1 - min(y for _, y in at.values())
    half = max(x for x, _ in at.values()) + 0.6
    axes = Figure(figsize=(max(4.0, 2.6 * half), 0.7 + 0.95 * n_levels)).subplots()
    boxes = {}
    for v, (x, y) in at.items():
        is_shown = 0 < -y < values.shape[1]
        said = f"{row['idx_to_symbol'][v]}\n{values[v, -y]:.2f}" if is_shown else row["idx_to_symbol"][v]
        box = dict(boxstyle="round,pad=0.3", facecolor="white", edgecolor=ORANGE if v in path else GREY)
        box |= dict(linewidth=2 if v in path else 1)
        boxes[v] = axes.text(x, y, said, ha="center", va="center", bbox=box, zorder=5).get_bbox_patch()
    for a, b in (edge for edge in row["edges"] if edge[0] in at):
        down = at[b][1] == at[a][1] - 1
        on_chain = (a, b) in itertools.pairwise(path)
        style = dict(color=ORANGE if on_chain else GREY, arrowstyle="-|>", patchA=boxes[a], patchB=boxes[b])
        style |= dict(alpha=1.0 if down else 0.25, linewidth=2 if on_chain else 1, zorder=2 if on_chain else 1)
        style |= dict(connectionstyle=f"arc3,rad={0 if down else 0.3}", shrinkA=0, shrinkB=0)
        axes.annotate("", at[b], at[a], arrowprops=style)
    axes.set(xlim=(-half, half), ylim=(0.5 - n_levels, 0.5), xticks=[])
    axes.set(yticks=range(0, -n_levels, -1), yticklabels=range(n_levels), ylabel="steps from the root")
    axes.set(xlabel="orange: the right chain; number: the probability of a node at the thought of its level")
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    data.write_atomically(out, axes.figure.savefig)


def main(c: ProbeConfig) -> None:
    run = answers.Run(c.run)
    examples, folder, K = run.split(c.split), run.folder / "probe", run.plan.n_thoughts
    if not K:
        about = f"{run.folder.name} ({run.config['method']}, stage {run.stage})"
        raise config.UserError(f"{about} has no thoughts to probe")
    examples.rows = rows = examples.rows[: max(1, c.n)]
    n, shown = len(rows), 0
    numbers = dict(n=n, interventions=sweep(run, examples, K))
    curves, flips, said = defaultdict(list), defaultdict(list), defaultdict(list)
    for x in numbers["interventions"]:
        name, k = x["intervene"], x["latent"]
        curves[name].append((k, x["accuracy"], x["low"], x["high"]))
        flips[name].append((k, x["flipped"] / n, *evaluate.wilson(x["flipped"], n)))
        for verdict, many in x["verdicts"].items() if name == "none" else ():
            said[verdict].append((k, many / n))
    verdicts = [("thoughts", "share of problems", said)] if said else []
    figures = {"k": [*verdicts, ("thoughts", "accuracy", {"none": curves["none"]})]}
    figures["interventions"] = [("thoughts", "accuracy", curves), ("thoughts", "share of answers that flip", flips)]
    if not all(map(graph.is_prosqa, rows)):
        print("these problems are not all ProsQA's: groups of nodes, parallelism and tree are left out")
    else:
        asked, names = list(map(examples.example, range(n))), [row["idx_to_symbol"] for row in rows]
        prompts = [answers.before_thoughts(example, run.plan, run.special) for example in asked]
        states = [run.states([prompt], K)[0] for prompt in prompts]  # (K + 1, C) each
        leaned = [leanings(run, row, its) for row, its in zip(rows, states, strict=True)]
        # In place the states themselves name the nodes; in the paper's layout the word after <eot> does.
        found = leaned if run.plan.in_place else values(run, asked, names, K)
        leaned = leaned if run.plan.in_place else [its[:, :K] for its in leaned]  # its last state is not used
        numbers["mass"] = mass(rows, leaned)
        figures["mass"] = [("thought", "share of the head's distribution", numbers["mass"])]
        numbers["pruning"] = pruning(rows, leaned)
        figures["pruning"] = [("thought", "probability of a node, times its level's size", numbers["pruning"])]
        tops, shown = parallelism(rows, found)
        figures["parallelism"] = [(x, "sum of the highest values", by) for x, by in tops.items()]
        draw_tree(rows[shown], found[shown], folder / "tree.png")
        print(f"tree.png shows problem {shown}, whose second best first step has the highest value after one thought")
        numbers |= dict(parallelism=tops, tree=found[shown].tolist())
    for name, panels in figures.items():
        log.lines(panels, folder / f"{name}.png")
    numbers |= dict(problem=shown, readings=run.words(run.thoughts(examples.example(shown), K), 4))
    data.write_text(folder / "probe.json", json.dumps(numbers, indent=1) + "\n")
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    config.run(main, ProbeConfig, choices={"split": data.SPLITS})
