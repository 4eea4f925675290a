"""What the thoughts of a run say, and whether they matter: numbers and figures under runs/<name>/probe/.

k               the same weights after 0, 1, 2, ... thoughts: accuracy and verdicts              [Hao24 5]
interventions   accuracy with the thoughts zeroed, swapped, reordered, ...: the controls
values          after k thoughts <eot> is forced; a node's value is the probability that the chain goes on from it,
                the product over the tokens of "Every lempus is a ", not renormalised           [Hao24 5]
geometry        inner products of thought i with the nodes' embeddings, and the last layer's attention, summed over
                heads, from the position that makes thought i to the two tokens of each fact    [Zhu25 5]
"""

import json
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nanococonut import coconut, config, data, evaluate, plots
from nanococonut.config import UserError
from nanococonut.curriculum import pad


@dataclass(frozen=True)
class ProbeConfig:
    """python -m nanococonut.probe [RUN] [--option=value ...]: figures of a run's thoughts, with their controls."""

    run: str = ""  # name or path of a run; default: the newest
    split: str = "test"  # split of the run's own data
    n: int = 300  # problems looked at, at most
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu


class Search(NamedTuple):
    """What breadth-first search knows of a problem; nodes are numbers."""

    depth: dict[int, int]  # steps from the root, of what it reaches
    optimal: set[int]  # on some shortest path from root to target
    correct: set[int]  # from where the target can be reached
    shortest: dict[int, int]  # height: steps to the nearest leaf
    longest: dict[int, int]  # height: steps to the farthest leaf


def search(row: dict) -> Search:
    """
    >>> row = {"edges": [[0, 1], [1, 2], [0, 3], [3, 4], [4, 2], [3, 5], [6, 5]], "root": 0, "target": 2}
    >>> s = search(row)
    >>> s.depth, s.optimal, s.correct
    ({0: 0, 1: 1, 3: 1, 2: 2, 4: 2, 5: 2}, {0, 1, 2}, {0, 1, 2, 3, 4})
    >>> s.shortest[0], s.longest[0], s.longest[2]
    (2, 3, 0)
    """
    edges, depth = row["edges"], data.distances(row["edges"], row["root"])
    above = data.distances([[b, a] for a, b in edges], row["target"])
    optimal = {v for v in above if v in depth and depth[v] + above[v] == depth[row["target"]]}
    nodes, inner = {v for edge in edges for v in edge}, {a for a, _ in edges}
    shortest = {v: min((d for u, d in data.distances(edges, v).items() if u not in inner), default=0) for v in nodes}
    longest = dict.fromkeys(nodes, 0)
    for _ in nodes:  # as often as the longest way could be
        for a, b in edges:
            longest[a] = min(len(nodes), max(longest[a], 1 + longest[b]))
    return Search(depth, optimal, set(above), shortest, longest)


def groups(row: dict, i: int) -> dict[str, set[int]]:
    """Nodes at thought i: reachable within i steps, at BFS depth i - 1, at i, and of these on a shortest path."""
    s = search(row)
    at = {d: {v for v, depth in s.depth.items() if depth == d} for d in range(i + 1)}
    return {
        "not reachable": set(range(len(row["idx_to_symbol"]))) - set(s.depth),
        "reachable": set().union(*at.values()),
        "one behind": at[i - 1],
        "frontier": at[i],
        "optimal": at[i] & s.optimal,
    }


@torch.no_grad()
def values(run: evaluate.Run, examples, texts: list[list[str]], n_thoughts: int) -> list[np.ndarray]:
    """For each example (number of its texts, n_thoughts + 1): the probability that a text follows after k thoughts."""
    prompts, eot = evaluate.prompts(examples, run.plan, run.special)
    rows = [(prompts[i], run.encoding.encode_ordinary(text)) for i, mine in enumerate(texts) for text in mine]
    found = []
    for start in range(0, len(rows), 512):
        before, after = zip(*rows[start : start + 512], strict=True)
        length = torch.tensor(list(map(len, before)), device=run.device)
        suffix = pad([[eot, *ids[:-1]] for ids in after], run.special["eos"]).to(run.device)
        targets = pad(after, -1).to(run.device)  # (rows, S)
        hidden, cache = coconut.prefill(run.model, pad(before, run.special["eos"]).to(run.device), length)
        columns = []
        for k in range(n_thoughts + 1):
            logits, _ = coconut.decode(run.model, suffix, length + k, cache)
            each = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[:, :, None])[:, :, 0]  # (rows, S)
            columns.append((each * (targets >= 0)).sum(dim=1).exp())
            hidden, cache = coconut.step(run.model, hidden, (length + k)[:, None], cache)
        found.append(torch.stack(columns, dim=1).cpu().numpy())
    return np.split(np.concatenate(found), np.cumsum(list(map(len, texts)))[:-1])


@torch.no_grad()
def trace(run: evaluate.Run, example, n_thoughts: int) -> tuple[torch.Tensor, np.ndarray]:
    """Of one example its thoughts (K, C), and the last layer's attention (K, P) from where each is made, over heads."""
    (ids,), _ = evaluate.prompts([example], run.plan, run.special)
    x, positions = run.model.wte(torch.tensor([ids], device=run.device)), torch.arange(len(ids), device=run.device)
    cache, thoughts, attention = None, [], []
    for k in range(n_thoughts):
        maps = []
        hidden, segments = run.model(x, positions, past=cache, maps=maps)
        cache = [[new] for new in segments] if k == 0 else list(map(coconut.grow, cache, segments))
        x, positions = hidden[:, -1:], torch.tensor([[len(ids) + k]], device=run.device)
        thoughts.append(x[0, 0])
        attention.append(maps[-1][0, :, -1, : len(ids)].sum(dim=0))
    return torch.stack(thoughts), torch.stack(attention).cpu().numpy()


def node_embeddings(run: evaluate.Run, names: list[str]) -> torch.Tensor:
    """(names, C): the mean embedding of the vocabulary's pieces that say a name, or of the name's own tokens."""
    pieces = list(enumerate(run.data["vocabulary"], start=256))
    ids = [[i for i, piece in pieces if re.search(rf"\b{re.escape(name)}\b", piece)] for name in names]
    ids = [mine or run.encoding.encode_ordinary(" " + name) for mine, name in zip(ids, names, strict=True)]
    return torch.stack([run.model.wte.weight.detach()[torch.tensor(mine)].mean(dim=0) for mine in ids])


def geometry(run: evaluate.Run, examples: data.Split, n: int, n_thoughts: int) -> dict[str, dict]:
    """(quantity, group) -> [(thought, mean, low, high)] over nodes or facts of n problems; 95 % intervals."""
    cells = {}
    names = [*examples.names.persons, *examples.names.concepts]
    embeddings = dict(zip(names, node_embeddings(run, names), strict=True))
    for i in tqdm(range(n), desc="geometry", unit="problem", leave=False):
        row, example = examples.rows[i], examples.example(i)
        thoughts, attention = trace(run, example, n_thoughts)
        inner = (thoughts @ torch.stack([embeddings[name] for name in row["idx_to_symbol"]]).T).cpu().numpy()
        facts = [row["idx_to_symbol"].index(b) for b in re.findall(r" is a (\w+)\.", row["question"])]
        told = facts if 2 * len(facts) == len(example.question) - 5 else []  # two tokens a fact: the words encoding
        for k in range(n_thoughts):
            for group, nodes in groups(row, k + 1).items():
                cells.setdefault(("inner product", group, k + 1), []).extend(inner[k, v] for v in nodes)
                seen = [attention[k, 2 * j : 2 * j + 2].sum() for j, v in enumerate(told) if v in nodes]
                cells.setdefault(("attention to facts", group, k + 1), []).extend(seen)
    curves = {}
    for (what, group, k), x in cells.items():
        curve = curves.setdefault(what, {}).setdefault(group, [])  # a group keeps its colour, empty or not
        if x:
            mean, half = float(np.mean(x)), float(1.96 * np.std(x) / len(x) ** 0.5)
            curve.append((k, mean, mean - half, mean + half))
    return curves


def parallelism(searches: list[Search], found: list[np.ndarray], k: int) -> dict[str, list]:
    """[(problems in %, sum)]: values of the best 1, 2, 3 nodes at depth k after k thoughts, sorted over problems."""
    best = [
        sorted((x[v, k] for v, d in s.depth.items() if d == k), reverse=True)
        for s, x in zip(searches, found, strict=True)
    ]
    sums = np.sort([np.cumsum([*x, 0, 0, 0])[:3] for x in best], axis=0).T.tolist()
    return {
        f"top {j + 1}": list(zip(np.linspace(0, 100, len(best)).tolist(), x, strict=True)) for j, x in enumerate(sums)
    }


def by_height(searches: list[Search], found: list[np.ndarray], k: int, which: str) -> dict[str, list]:
    """[(height, mean value)] after k thoughts of the nodes at depth k, from where the target can be reached or not."""
    cells = {"correct": {}, "wrong": {}}
    for s, x in zip(searches, found, strict=True):
        for v in (v for v, d in s.depth.items() if d == k):
            cells["correct" if v in s.correct else "wrong"].setdefault(getattr(s, which)[v], []).append(x[v, k])
    return {side: [(h, float(np.mean(x))) for h, x in sorted(at.items())] for side, at in cells.items()}


def sweep(run: evaluate.Run, examples: data.Split, n_thoughts: int) -> list[dict]:
    """What evaluate.measure finds for each intervention and number of thoughts, and how many answers it flips."""
    cells, plain = [], {}
    room = run.model.config.block_size - max(examples.lengths) - 2 - run.data["max_new_tokens"]  # two markers
    todo = [("none", k) for k in range(min(n_thoughts + 2, room) + 1)]
    todo += [(name, k) for name in evaluate.INTERVENTIONS if name != "none" for k in range(1, n_thoughts + 1)]
    for name, k in tqdm(todo, desc="answers", unit="pass", leave=False):
        result, texts = evaluate.measure(run, examples, run.plan_for(k), intervene=name)
        answers = list(map(evaluate.final_answer, texts))
        flipped = sum(a != b for a, b in zip(answers, plain.setdefault(k, answers), strict=True))
        cells.append(result | {"intervene": name, "latent": k, "flipped": flipped})
    return cells


def main(c: ProbeConfig) -> None:
    run = evaluate.Run(c.run, device=c.device)
    if not run.plan.n_thoughts:
        raise UserError(f"{run.folder.name} ({run.config['method']}, stage {run.stage}) has no thoughts to probe")
    examples, folder, K = run.split(c.split), run.folder / "probe", run.plan.n_thoughts
    examples.rows = examples.rows[: max(1, c.n)]
    n = len(examples.rows)
    folder.mkdir(exist_ok=True)
    cells = sweep(run, examples, K)
    plots.verdicts([cell for cell in cells if cell["intervene"] == "none"], folder / "k.png")
    at = ("latent", "accuracy", "low", "high")
    names = evaluate.INTERVENTIONS
    curves = {name: [tuple(x[k] for k in at) for x in cells if x["intervene"] == name] for name in names}
    plots.lines([("thoughts", "accuracy", curves)], folder / "interventions.png")
    numbers = {"n": n, "interventions": cells}
    if examples.graphs is None:
        print("these problems have no graph: geometry, parallelism and height are left out")
    else:
        numbers["geometry"] = geometry(run, examples, n, K)
        plots.lines([("thought", what, by) for what, by in numbers["geometry"].items()], folder / "geometry.png")
        texts = [[data.subject(name) for name in row["idx_to_symbol"]] for row in examples.rows]
        found = values(run, [examples.example(i) for i in range(n)], texts, K)
        searches, ks = list(map(search, examples.rows)), range(1, min(2, K) + 1)
        tops = {f"problems, sorted (%), after {k}": parallelism(searches, found, k) for k in ks}
        plots.lines([(x, "value of the best nodes", by) for x, by in tops.items()], folder / "parallelism.png")
        height = {(which, k): by_height(searches, found, k, which) for which in ("shortest", "longest") for k in ks}
        heights = {f"{which} way to a leaf (steps), after {k}": by for (which, k), by in height.items()}
        plots.lines([(x, "mean value", by) for x, by in heights.items()], folder / "height.png")
        numbers |= dict(parallelism=tops, height=heights)
    data.write_text(folder / "probe.json", json.dumps(numbers, indent=1) + "\n")
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    config.run(main, ProbeConfig, choices={"split": data.SPLITS})
