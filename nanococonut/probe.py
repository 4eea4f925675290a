"""What the thoughts of a run say, and whether they matter: numbers and figures under runs/<name>/probe/.

k               the same weights after 0, 1, 2, ... thoughts: accuracy and verdicts              [Hao24 5]
interventions   accuracy, and answers that change, with the thoughts zeroed, swapped, reordered, ...: the controls
values          after k thoughts <eot> is forced; a node's value is the probability that the chain goes on from it,
                the product over the tokens of "Every lempus is a ", not renormalised           [Hao24 5]
geometry        inner products of thought i with the nodes' embeddings, and the last layer's attention, summed over
                heads, from the position that makes thought i to the two tokens of each fact    [Zhu25 5]; lengths
readings        each layer's state where a thought is made, through ln_f and the head: the "logit lens"
"""

import contextlib
import fnmatch
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from nanococonut import coconut, config, data, evaluate, plots
from nanococonut.config import UserError
from nanococonut.curriculum import pad

BESIDE = ("cot", "no_cot", "pause_as_thought", "no_thought")  # rows of Table 1 without thoughts, to compare with


@dataclass(frozen=True)
class ProbeConfig:
    """python -m nanococonut.probe [RUN] [--option=value ...]: figures of a run's thoughts, with their controls."""

    run: str = ""  # name or path of a run; default: the newest
    split: str = "test"  # split of the run's own data
    n: int = 300  # problems looked at, at most
    beside: str = "*"  # names of runs to compare with, * for anything; the newest of each method on the same data count
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
    >>> search(row)[:3]
    ({0: 0, 1: 1, 3: 1, 2: 2, 4: 2, 5: 2}, {0, 1, 2}, {0, 1, 2, 3, 4})
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
    """Each layer's state, through ln_f, where thoughts begin (K, layers, C), and the last layer's attention (K, P)."""
    (ids,), _ = evaluate.prompts([example], run.plan, run.special)
    prompt, length = torch.tensor([ids], device=run.device), torch.tensor([len(ids)], device=run.device)
    hidden, cache = coconut.prefill(run.model, prompt, length)
    thoughts, _ = coconut.think(run.model, hidden, length, cache, n_thoughts)
    x, states, maps = torch.cat([run.model.wte(prompt), thoughts[:, :-1]], dim=1), [], []
    hooks = [block.register_forward_hook(lambda _, x, y: states.append(y[0][0, -n_thoughts:])) for block in run.model.h]
    run.model(x, torch.arange(x.size(1), device=run.device), maps=maps)  # once more as a whole, to look inside
    for hook in hooks:
        hook.remove()
    # the last layer's state is the thought itself; its attention to the prompt is summed over heads
    return run.model.ln_f(torch.stack(states, dim=1)), maps[-1][0, :, -n_thoughts:, : len(ids)].sum(dim=0).cpu().numpy()


def readings(run: evaluate.Run, states: torch.Tensor, n_words: int) -> list[list[list[tuple[str, float]]]]:
    """For each thought and layer of states (K, layers, C) the words it leans to through the head, and how much."""
    top = run.model.logits(states).detach().softmax(-1).topk(n_words)
    texts = {i: run.encoding.decode([i]) for i in top.indices.unique().tolist()}
    words = {i: " ".join(text.split()) or repr(text) for i, text in texts.items()}
    pairs = torch.stack([top.indices.cpu().double(), top.values.cpu().double()], dim=-1)  # (K, layers, words, 2)
    return [[[(words[i], p) for i, p in cell] for cell in layers] for layers in pairs.tolist()]


def node_embeddings(run: evaluate.Run, names: list[str]) -> torch.Tensor:
    """(names, C): the mean embedding of the vocabulary's pieces that say a name, or of the name's own tokens."""
    pieces = list(enumerate(run.data["vocabulary"], start=256))
    ids = [[i for i, piece in pieces if re.search(rf"\b{re.escape(name)}\b", piece)] for name in names]
    ids = [mine or run.encoding.encode_ordinary(" " + name) for mine, name in zip(ids, names, strict=True)]
    return torch.stack([run.model.wte.weight.detach()[torch.tensor(mine)].mean(dim=0) for mine in ids])


def means(cells: dict[tuple, list]) -> dict[str, list]:
    """{(label, x): numbers} -> {label: [(x, mean, low, high)]}, 95 % intervals; fewer than 5 numbers give no point."""
    curves = {label: [] for label, _ in cells}
    for (label, x), numbers in cells.items():
        if len(numbers) >= 5:
            mean, half = float(np.mean(numbers)), float(1.96 * np.std(numbers) / len(numbers) ** 0.5)
            curves[label].append((x, mean, mean - half, mean + half))
    return curves


def geometry(run: evaluate.Run, examples: data.Split, n_thoughts: int) -> dict[str, dict]:
    """quantity -> means() by group and thought over the nodes, facts, or words of all problems."""
    cells, names = defaultdict(lambda: defaultdict(list)), [name for kind in examples.names or () for name in kind]
    embeddings = dict(zip(names, node_embeddings(run, names), strict=True)) if names else {}
    for i in tqdm(range(len(examples.rows)), desc="geometry", unit="problem", leave=False):
        row, example = examples.rows[i], examples.example(i)
        states, attention = trace(run, example, n_thoughts)
        words = run.model.wte.weight.detach()[example.question].norm(dim=-1).tolist()
        for k in range(n_thoughts):
            cells["norm"]["thought", k + 1].append(float(states[k, -1].norm()))
            cells["norm"]["words of the question", k + 1] += words
        if not names:
            continue
        inner = states[:, -1] @ torch.stack([embeddings[name] for name in row["idx_to_symbol"]]).T  # (K, nodes)
        facts = [row["idx_to_symbol"].index(b) for b in re.findall(r" is a (\w+)\.", row["question"])]
        told = facts if 2 * len(facts) == len(example.question) - 5 else []  # two tokens a fact: the words encoding
        for k in range(n_thoughts):
            for group, nodes in groups(row, k + 1).items():
                cells["inner product"][group, k + 1] += [float(inner[k, v]) for v in nodes]
                seen = [attention[k, 2 * j : 2 * j + 2].sum() for j, v in enumerate(told) if v in nodes]
                cells["attention to facts"][group, k + 1] += seen
    return {what: means(by) for what, by in sorted(cells.items())}


def best(searches: list[Search], found: list[np.ndarray], k: int) -> np.ndarray:
    """(problems, 3): after k thoughts the values of the best three nodes at depth k; 0 for a node that is not there."""
    each = zip(searches, found, strict=True)
    return np.array([sorted([0, 0, 0, *(x[v, k] for v in s.depth if s.depth[v] == k)])[:-4:-1] for s, x in each])


def parallelism(searches: list[Search], found: list[np.ndarray], k: int) -> dict[str, list]:
    """[(problems in %, sum)]: values of the best 1, 2, 3 nodes at depth k after k thoughts, sorted over problems."""
    sums = np.sort(best(searches, found, k).cumsum(axis=1), axis=0).T.tolist()
    return {f"top {j}": list(zip(np.linspace(0, 100, len(x)).tolist(), x, strict=True)) for j, x in enumerate(sums, 1)}


def by_height(searches: list[Search], found: list[np.ndarray], k: int, which: str) -> dict[str, list]:
    """means() by height of the values, after k thoughts, of the nodes at depth k that lead to the target or do not."""
    cells = defaultdict(list)
    for s, x in zip(searches, found, strict=True):
        for v in (v for v in s.depth if s.depth[v] == k):
            cells["correct" if v in s.correct else "wrong", getattr(s, which)[v]].append(x[v, k])
    return means(dict(sorted(cells.items())))


def beside(run: evaluate.Run, pattern: str, device: str) -> list[evaluate.Run]:
    """Of each of BESIDE the newest run on the same data whose name fits and whose last stage has begun."""
    found = {}
    for path in sorted(Path("runs").glob("*/config.json"), key=lambda path: -path.parent.stat().st_mtime):
        with contextlib.suppress(UserError, KeyError, TypeError):  # one that has saved nothing yet, or is damaged
            method = data.read_json(path)["method"]
            if method in BESIDE and method not in found and fnmatch.fnmatch(path.parent.name, pattern):
                other = evaluate.Run(str(path.parent), device=device)
                if other.data["sha256"] == run.data["sha256"] and other.stage == len(other.config["stage_steps"]) - 1:
                    found[method] = other
    return [found[method] for method in BESIDE if method in found]


def sweep(run: evaluate.Run, others: list[evaluate.Run], examples: data.Split, n_thoughts: int) -> list[dict]:
    """What evaluate.measure finds by intervention and number of thoughts, how many answers flip; then of the others."""
    rows, plain = [], {}
    room = run.model.config.block_size - max(examples.lengths) - 2 - run.data["max_new_tokens"]  # two markers
    todo = [(run, "none", k) for k in range(min(n_thoughts + 2, room) + 1)]
    todo += [(run, name, k) for name in evaluate.INTERVENTIONS if name != "none" for k in range(1, n_thoughts + 1)]
    todo += [(other, None, None) for other in others]
    for who, name, k in tqdm(todo, desc="answers", unit="pass", leave=False):
        result, texts = evaluate.measure(who, examples, who.plan_for(k), intervene=name or "none")
        answers = list(map(evaluate.final_answer, texts))
        n_flipped = sum(a != b for a, b in zip(answers, plain.setdefault((who, k), answers), strict=True))
        about = dict(run=who.folder.name, method=who.config["method"], intervene=name, latent=k, flipped=n_flipped)
        rows.append(about | result)
    return rows


def main(c: ProbeConfig) -> None:
    run = evaluate.Run(c.run, device=c.device)
    if not run.plan.n_thoughts:
        raise UserError(f"{run.folder.name} ({run.config['method']}, stage {run.stage}) has no thoughts to probe")
    examples, folder, K = run.split(c.split), run.folder / "probe", run.plan.n_thoughts
    others = beside(run, c.beside, c.device)
    print("beside it: " + (", ".join(other.folder.name for other in others) or "no other run on this data"))
    n = min(len(examples.rows), max(1, c.n))
    examples.rows = examples.rows[:n]
    folder.mkdir(exist_ok=True)
    numbers = {"n": n, "interventions": sweep(run, others, examples, K), "geometry": geometry(run, examples, K)}
    curves, flips, said = defaultdict(list), defaultdict(list), defaultdict(list)
    for x in numbers["interventions"]:
        name, k = x["intervene"], x["latent"]
        curves[name or x["method"]].append((k, x["accuracy"], x["low"], x["high"]))
        if name:
            flips[name].append((k, x["flipped"] / n, *evaluate.wilson(x["flipped"], n)))
        for verdict, many in x["verdicts"].items() if name == "none" else ():
            said[verdict].append((k, many / n))
    bars = [("thoughts", "share of problems", said, True)] if said else []
    levels = {"accuracy": curves["none"]} | {name: curves[name] for name in BESIDE if name in curves}
    plots.lines([*bars, ("thoughts", "accuracy", levels)], folder / "k.png")
    like = {name: points for name, points in curves.items() if name not in ("cot", "no_cot")}  # a curriculum as here
    changed = ("thoughts", "share of answers that flip", flips)
    plots.lines([("thoughts", "accuracy", like), changed], folder / "interventions.png")
    plots.lines([("thought", what, by) for what, by in numbers["geometry"].items()], folder / "geometry.png")
    shown = 0
    if examples.graphs is None:
        print("these problems have no graph: groups of nodes, parallelism, height and tree are left out")
    else:
        starts = [[data.subject(name) for name in row["idx_to_symbol"]] for row in examples.rows]
        found = values(run, [examples.example(i) for i in range(n)], starts, K)
        searches, ks = list(map(search, examples.rows)), range(1, min(2, K) + 1)
        tops = {f"problems, sorted (%), thought {k}": parallelism(searches, found, k) for k in ks}
        plots.lines([(x, "sum of the highest values", by) for x, by in tops.items()], folder / "parallelism.png")
        ways = [(which, k) for which in ("shortest", "longest") for k in ks]
        heights = {f"{way} way to a leaf (steps), thought {k}": by_height(searches, found, k, way) for way, k in ways}
        plots.lines([(x, "mean value", by) for x, by in heights.items()], folder / "height.png")
        shown = int(np.argmax(best(searches, found, 1)[:, 1]))
        plots.tree(examples.rows[shown], found[shown], folder / "tree.png")
        print(f"tree.png shows problem {shown}, whose second best first step has the highest value after one thought")
        numbers |= dict(parallelism=tops, height=heights, tree=found[shown].tolist())
    numbers |= dict(problem=shown, readings=readings(run, trace(run, examples.example(shown), K)[0], 4))
    data.write_text(folder / "probe.json", json.dumps(numbers, indent=1) + "\n")
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    config.run(main, ProbeConfig, choices={"split": data.SPLITS})
