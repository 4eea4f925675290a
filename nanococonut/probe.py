"""Analyses what a run's thoughts encode and whether they matter: numbers and figures under runs/<name>/probe/.

k               the same weights with 0, 1, 2, ... thoughts: accuracy, also on twins, and verdicts  [Hao24 5]
interventions   accuracy and changed answers when thoughts are zeroed, swapped, permuted, ...: the controls
values          <eot> is forced after k thoughts: the probability of "Every lempus is a ", not renormalised [Hao24 5]
mass            the probability that the output head gives the search's nodes at each thought; norms of the thoughts
readings        the most probable words when a thought is read through the output head
"""

import json
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from nanococonut import answers, batching, coconut, config, data, evaluate, graph, plots


@dataclass(frozen=True)
class ProbeConfig:
    """python -m nanococonut.probe [RUN] [--option=value ...]: analyses and plots a run's thoughts, with controls."""

    run: str = ""  # name or path of the run; default: the newest
    split: str = "test"  # split of the data that the run was trained on
    n: int = 300  # maximum number of problems
    device: str = "auto"  # device to run on; auto: cuda, else mps, else cpu


def groups(row: dict, i: int) -> dict[str, set[int]]:
    """Node groups at thought i: unreachable, within i steps, at BFS depth i - 1, and at i."""
    steps = graph.distances(row["edges"], row["root"])
    behind, here = ({v for v, depth in steps.items() if depth == d} for d in (i - 1, i))
    return {
        "not reachable": set(range(len(row["idx_to_symbol"]))) - set(steps),
        "reachable": {v for v, depth in steps.items() if depth <= i},
        "one behind": behind,
        "frontier": here,
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
    tokens = [data.node_token(run.encoding, name) for name in row["idx_to_symbol"]]
    shares = run.model.logits(thoughts).softmax(-1).cpu()
    return torch.stack([0 * shares[:, 0] if t is None else shares[:, t] for t in tokens]).numpy()


def means(cells: dict[tuple, list]) -> dict[str, list]:
    """{(label, x): numbers} -> {label: [(x, mean, low, high)]}, 95 % intervals; fewer than 5 numbers give no point."""
    curves = {label: [] for label, _ in cells}
    for (label, x), numbers in sorted(cells.items(), key=lambda cell: cell[0][1]):
        if len(numbers) >= 5:
            mean, half = float(np.mean(numbers)), float(1.96 * np.std(numbers) / len(numbers) ** 0.5)
            curves[label].append((x, mean, mean - half, mean + half))
    return curves


def mass(run: answers.Run, examples: data.Split, n_thoughts: int) -> dict[str, dict]:
    """quantity -> means() over problems by thought: the head's probability of each group of nodes, and the norms."""
    cells = defaultdict(lambda: defaultdict(list))
    for i in tqdm(range(len(examples.rows)), desc="mass", unit="problem", leave=False):
        row, example = examples.rows[i], examples.example(i)
        lengths = run.model.wte.weight.detach()[example.question].norm(dim=-1).tolist()
        thoughts = run.thoughts(example, n_thoughts)
        shares = leanings(run, row, thoughts) if examples.graphs else None
        for k, thought in enumerate(thoughts, start=1):
            cells["length"]["thought", k].append(float(thought.norm()))
            cells["length"]["words of the question", k] += lengths
            for group, nodes in groups(row, k).items() if examples.graphs else ():
                cells["share of the head's distribution"][group, k].append(float(shares[list(nodes), k - 1].sum()))
    return {what: means(by) for what, by in sorted(cells.items())}


def frontier(rows: list[dict], found: list[np.ndarray]) -> tuple[dict, dict, int]:
    """Of values at depth k after k = 1, 2 thoughts: top-3 sums, means() by height, problem with the best runner-up."""
    best, cells = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for row, values in zip(rows, found, strict=True):
        depth, heights = graph.distances(row["edges"], row["root"]), graph.heights(row["edges"])
        correct = graph.distances(graph.backwards(row["edges"]), row["target"])  # nodes that lead to the target
        for k in range(1, min(3, values.shape[1])):
            nodes = [v for v in depth if depth[v] == k]
            best[k].append(sorted([*values[nodes, k], 0, 0, 0], reverse=True)[:3])  # 0 for a missing node
            for v in nodes:
                where = "correct" if v in correct else "wrong", heights[v]
                cells[f"steps to the nearest leaf, thought {k}"][where].append(values[v, k])
    percent, tops = np.linspace(0, 100, len(rows)).tolist(), {}
    for k, values in best.items():
        sums = np.sort(np.cumsum(values, axis=1), axis=0).T.tolist()  # (3, problems)
        curves = {f"top {j}": list(zip(percent, y, strict=True)) for j, y in enumerate(sums, start=1)}
        tops[f"problems, sorted (%), thought {k}"] = curves
    return tops, {about: means(by) for about, by in cells.items()}, int(np.argmax([y for _, y, _ in best[1]]))


def sweep(run: answers.Run, examples: data.Split, n_thoughts: int) -> list[dict]:
    """Results of evaluate.measure for each intervention and number of thoughts, and how many answers changed."""
    rows, plain = [], {}
    room = run.model.config.block_size - max(examples.lengths) - 2 - run.data["max_new_tokens"]  # 2: the two markers
    todo = [("none", k) for k in range(min(n_thoughts + 2, room) + 1)]
    todo += [(name, k) for name in evaluate.INTERVENTIONS if name != "none" for k in range(1, n_thoughts + 1)]
    for name, k in tqdm(todo, desc="answers", unit="pass", leave=False):
        result, texts = evaluate.measure(run, examples, run.plan_for(k), intervene=name)
        finals = list(map(data.final_answer, texts))
        n_flipped = sum(a != b for a, b in zip(finals, plain.setdefault(k, finals), strict=True))
        rows.append(dict(run=run.folder.name, intervene=name, latent=k, flipped=n_flipped, **result))
    return rows


def main(c: ProbeConfig) -> None:
    run = answers.Run(c.run, device=c.device)
    examples, folder, K = run.split(c.split), run.folder / "probe", run.plan.n_thoughts
    if not K:
        about = f"{run.folder.name} ({run.config['method']}, stage {run.stage})"
        raise config.UserError(f"{about} has no thoughts to probe")
    examples.rows = rows = examples.rows[: max(1, c.n)]
    n, shown = len(rows), 0
    numbers = dict(n=n, interventions=sweep(run, examples, K), mass=mass(run, examples, K))
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
    figures["mass"] = [("thought", what, by) for what, by in numbers["mass"].items()]
    if not examples.graphs:
        print("these problems are not all ProsQA's: groups of nodes, parallelism, height and tree are left out")
    else:
        if run.config["taught"]:  # such a run may never have learned to write chains, but its thoughts name the nodes
            found = [leanings(run, rows[i], run.thoughts(examples.example(i), K)) for i in range(n)]
        else:
            found = values(run, list(map(examples.example, range(n))), [row["idx_to_symbol"] for row in rows], K)
        tops, heights, shown = frontier(rows, found)
        figures["parallelism"] = [(x, "sum of the highest values", by) for x, by in tops.items()]
        figures["height"] = [(x, "mean value", by) for x, by in heights.items()]
        plots.tree(rows[shown], found[shown], folder / "tree.png")
        print(f"tree.png shows problem {shown}, whose second best first step has the highest value after one thought")
        numbers |= dict(parallelism=tops, height=heights, tree=found[shown].tolist())
    for name, panels in figures.items():
        plots.lines(panels, folder / f"{name}.png")
    numbers |= dict(problem=shown, readings=run.words(run.thoughts(examples.example(shown), K), 4))
    data.write_text(folder / "probe.json", json.dumps(numbers, indent=1) + "\n")
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    config.run(main, ProbeConfig, choices={"split": data.SPLITS})
