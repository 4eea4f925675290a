"""What the thoughts of a run say, and whether they matter: numbers and figures under runs/<name>/probe/.

k               the same weights after 0, 1, 2, ... thoughts: accuracy, with twins, and verdicts  [Hao24 5]
interventions   accuracy, and answers that change, with the thoughts zeroed, swapped, reordered, ...: the controls
values          after k thoughts <eot> is forced: the probability of "Every lempus is a ", not renormalised [Hao24 5]
geometry        thoughts' inner products with embeddings, and lengths [Zhu25 5]
readings        the words that thoughts lean to through the head
"""

import itertools
import json
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from nanococonut import answers, batching, coconut, config, data, evaluate, graph, plots, runs
from nanococonut.batching import Arranged


@dataclass(frozen=True)
class ProbeConfig:
    """python -m nanococonut.probe [RUN] [--option=value ...]: figures of a run's thoughts, with their controls."""

    run: str = ""  # name or path of a run; default: the newest
    split: str = "test"  # split of the run's own data
    n: int = 300  # problems looked at, at most
    beside: str = ""  # names of runs to compare with, separated by commas: rows of Table 1 without thoughts
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu


def groups(row: dict, i: int) -> dict[str, set[int]]:
    """Nodes at thought i: reachable within i steps, at BFS depth i - 1, at i, and of these on a shortest path."""
    steps, optimal = graph.distances(row["edges"], row["root"]), graph.on_shortest_paths(row)
    behind, here = ({v for v, depth in steps.items() if depth == d} for d in (i - 1, i))
    return {
        "not reachable": set(range(len(row["idx_to_symbol"]))) - set(steps),
        "reachable": {v for v, depth in steps.items() if depth <= i},
        "one behind": behind,
        "frontier": here,
        "optimal": here & optimal,
    }


@torch.no_grad()
def values(run: runs.Run, examples, names: list[list[str]], n_thoughts: int) -> list[np.ndarray]:
    """For each example (its names, n_thoughts + 1): the probability that after k thoughts the chain goes on from it."""
    prompts, eot = answers.prompts(examples, run.plan, run.special)
    pairs = []
    for prompt, mine in zip(prompts, names, strict=True):
        pairs += [(prompt, [eot, *run.encoding.encode_ordinary(graph.subject(name))]) for name in mine]
    found = np.zeros((len(pairs), n_thoughts + 1))
    for start in range(0, len(pairs), 512):
        batch = batching.collate([Arranged([], pairs[start : start + 512], [])], n_thoughts=0, fill=0)
        prompt, length, suffix, targets = (x.to(run.machine.device) for x in batch[:4])
        with run.machine.autocast():
            hidden, prompt_kv = coconut.prefill(run.model, prompt, length)
            cache = coconut.open_cache(prompt_kv, length, room=n_thoughts + 1 + suffix.size(1))
            for k in range(n_thoughts + 1):
                said, _ = coconut.step(run.model, suffix, cache)  # what <eot> says now; the cache stays as it was
                logits = run.model.logits(said).float()
                each = F.cross_entropy(logits.mT, targets, reduction="none")  # (rows, S), pads 0
                found[start : start + 512, k] = each.sum(dim=1).neg().exp().cpu()
                hidden, cache = coconut.step(run.model, hidden, cache)
    return np.split(found, np.cumsum(list(map(len, names)))[:-1])


@torch.no_grad()
def trace(run: runs.Run, example, n_thoughts: int) -> torch.Tensor:
    """The thoughts (K, C) that a run has about a question."""
    (ids,), _ = answers.prompts([example], run.plan, run.special)
    prompt, length = torch.tensor([ids]).to(run.machine.device), torch.tensor([len(ids)]).to(run.machine.device)
    with run.machine.autocast():
        hidden, prompt_kv = coconut.prefill(run.model, prompt, length)
        cache = coconut.open_cache(prompt_kv, length, room=n_thoughts)
        thoughts, _ = coconut.think(run.model, hidden, cache, n_thoughts)
    return thoughts[0].float()


@torch.no_grad()
def leanings(run: runs.Run, examples: data.Split, i: int, n_thoughts: int) -> np.ndarray:
    """(nodes of problem i, n_thoughts + 1): what each node has of the head's distribution at thoughts 1, 2, ..."""
    shares = run.model.logits(trace(run, examples.example(i), n_thoughts + 1)).softmax(-1)  # (K + 1, V)
    tokens = [examples.node_token(name) for name in examples.rows[i]["idx_to_symbol"]]
    return shares[:, tokens].T.cpu().numpy()


@torch.no_grad()
def readings(run: runs.Run, thoughts: torch.Tensor, n_words: int) -> list[list[tuple[str, float]]]:
    """For each of some thoughts (K, C) the words it leans to through the head, and how much."""
    top = run.model.logits(thoughts).softmax(-1).topk(n_words)
    found = []
    for ids, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True):
        texts = [run.encoding.decode([i]) for i in ids]
        found.append([(" ".join(text.split()) or repr(text), p) for text, p in zip(texts, shares, strict=True)])
    return found


def node_embeddings(run: runs.Run, names: list[str]) -> dict[str, torch.Tensor]:
    """name -> (C,): the mean embedding of the vocabulary's pieces that say it, or of the name's own tokens."""
    found, pieces = {}, list(enumerate(run.data["vocabulary"], start=256))
    for name in names:
        ids = [i for i, piece in pieces if re.search(rf"\b{re.escape(name)}\b", piece)]
        found[name] = run.model.wte.weight.detach()[ids or run.encoding.encode_ordinary(" " + name)].mean(dim=0)
    return found


def means(cells: dict[tuple, list]) -> dict[str, list]:
    """{(label, x): numbers} -> {label: [(x, mean, low, high)]}, 95 % intervals; fewer than 5 numbers give no point."""
    curves = {label: [] for label, _ in cells}
    for (label, x), numbers in sorted(cells.items(), key=lambda cell: cell[0][1]):
        if len(numbers) >= 5:
            mean, half = float(np.mean(numbers)), float(1.96 * np.std(numbers) / len(numbers) ** 0.5)
            curves[label].append((x, mean, mean - half, mean + half))
    return curves


def geometry(run: runs.Run, examples: data.Split, n_thoughts: int) -> dict[str, dict]:
    """quantity -> means() by group and thought over the nodes or words of all problems."""
    cells = defaultdict(lambda: defaultdict(list))
    embeddings = node_embeddings(run, [name for kind in examples.names or () for name in kind])
    for i in tqdm(range(len(examples.rows)), desc="geometry", unit="problem", leave=False):
        row, example = examples.rows[i], examples.example(i)
        lengths = run.model.wte.weight.detach()[example.question].norm(dim=-1).tolist()
        for k, thought in enumerate(trace(run, example, n_thoughts), start=1):
            cells["norm"]["thought", k].append(float(thought.norm()))
            cells["norm"]["words of the question", k] += lengths
            for group, nodes in groups(row, k).items() if embeddings else ():
                names = [row["idx_to_symbol"][v] for v in nodes]
                cells["inner product"][group, k] += [float(thought @ embeddings[name]) for name in names]
    return {what: means(by) for what, by in sorted(cells.items())}


def frontier(rows: list[dict], found: list[np.ndarray], n_thoughts: int) -> tuple[dict, dict, int]:
    """Of values at depth k after k = 1, 2 thoughts: sums of the best, means() by height, where the second is best."""
    best, cells = defaultdict(list), defaultdict(lambda: defaultdict(list))
    for row, values in zip(rows, found, strict=True):
        depth, heights = graph.distances(row["edges"], row["root"]), graph.heights(row["edges"])
        correct = graph.distances(graph.backwards(row["edges"]), row["target"])  # they lead to the target
        for k in range(1, min(2, n_thoughts) + 1):
            nodes = [v for v in depth if depth[v] == k]
            best[k].append(sorted([*values[nodes, k], 0, 0, 0], reverse=True)[:3])  # 0 for a node that is not there
            for v, way in itertools.product(nodes, heights):
                where = "correct" if v in correct else "wrong", heights[way][v]
                cells[f"{way} way to a leaf (steps), thought {k}"][where].append(values[v, k])
    percent, tops = np.linspace(0, 100, len(rows)).tolist(), {}
    for k, values in best.items():
        sums = np.sort(np.cumsum(values, axis=1), axis=0).T.tolist()  # (3, problems)
        curves = {f"top {j}": list(zip(percent, y, strict=True)) for j, y in enumerate(sums, start=1)}
        tops[f"problems, sorted (%), thought {k}"] = curves
    return tops, {about: means(by) for about, by in cells.items()}, int(np.argmax([y for _, y, _ in best[1]]))


def beside(run: runs.Run, names: str, device: str) -> list[runs.Run]:
    """The runs to compare with, by their names with commas. Raises UserError for one of other data."""
    others = [runs.Run(name, device=device) for name in names.split(",") if name]
    for other in others:
        if other.data["sha256"] != run.data["sha256"]:
            raise config.UserError(f"--beside: {other.folder} was trained on other data than {run.folder}")
    return others


def sweep(run: runs.Run, others: list[runs.Run], examples: data.Split, n_thoughts: int) -> list[dict]:
    """What evaluate.measure finds by intervention and number of thoughts, how many answers flip; then of the others."""
    rows, plain = [], {}
    room = run.model.config.block_size - max(examples.lengths) - 2 - run.data["max_new_tokens"]  # two markers
    todo = [(run, "none", k) for k in range(min(n_thoughts + 2, room) + 1)]
    todo += [(run, name, k) for name in evaluate.INTERVENTIONS if name != "none" for k in range(1, n_thoughts + 1)]
    todo += [(other, None, None) for other in others]
    for who, name, k in tqdm(todo, desc="answers", unit="pass", leave=False):
        result, texts = evaluate.measure(who, examples, who.plan_for(k), intervene=name or "none")
        answers = list(map(data.final_answer, texts))
        n_flipped = sum(a != b for a, b in zip(answers, plain.setdefault((who, k), answers), strict=True))
        about = dict(run=who.folder.name, method=who.config["method"], intervene=name, latent=k, flipped=n_flipped)
        rows.append(about | result)
    return rows


def main(c: ProbeConfig) -> None:
    run = runs.Run(c.run, device=c.device)
    examples, folder, K = run.split(c.split), run.folder / "probe", run.plan.n_thoughts
    if not K:
        about = f"{run.folder.name} ({run.config['method']}, stage {run.stage})"
        raise config.UserError(f"{about} has no thoughts to probe")
    others = beside(run, c.beside, c.device)
    examples.rows = rows = examples.rows[: max(1, c.n)]
    n, shown = len(rows), 0
    numbers = dict(n=n, interventions=sweep(run, others, examples, K), geometry=geometry(run, examples, K))
    curves, flips, said = defaultdict(list), defaultdict(list), defaultdict(list)
    for x in numbers["interventions"]:
        name, k = x["intervene"], x["latent"]
        curves[name or x["method"]].append((k, x["accuracy"], x["low"], x["high"]))
        if name:
            flips[name].append((k, x["flipped"] / n, *evaluate.wilson(x["flipped"], n)))
        for verdict, many in x["verdicts"].items() if name == "none" else ():
            said[verdict].append((k, many / n))
    levels = {name: points for name, points in curves.items() if name not in evaluate.INTERVENTIONS or name == "none"}
    verdicts = [("thoughts", "share of problems", said)] if said else []
    figures = {"k": [*verdicts, ("thoughts", "accuracy", levels)]}
    figures["interventions"] = [("thoughts", "accuracy", curves), ("thoughts", "share of answers that flip", flips)]
    figures["geometry"] = [("thought", what, by) for what, by in numbers["geometry"].items()]
    if examples.graphs is None:
        print("these problems have no graph: groups of nodes, parallelism, height and tree are left out")
    else:
        if run.config["taught"]:  # such a run may never have written a chain, but its thoughts name the nodes
            found = [leanings(run, examples, i, K) for i in range(n)]
        else:
            found = values(run, list(map(examples.example, range(n))), [row["idx_to_symbol"] for row in rows], K)
        tops, heights, shown = frontier(rows, found, K)
        figures["parallelism"] = [(x, "sum of the highest values", by) for x, by in tops.items()]
        figures["height"] = [(x, "mean value", by) for x, by in heights.items()]
        plots.tree(rows[shown], found[shown], folder / "tree.png")
        print(f"tree.png shows problem {shown}, whose second best first step has the highest value after one thought")
        numbers |= dict(parallelism=tops, height=heights, tree=found[shown].tolist())
    for name, panels in figures.items():
        plots.lines(panels, folder / f"{name}.png")
    numbers |= dict(problem=shown, readings=readings(run, trace(run, examples.example(shown), K), 4))
    data.write_text(folder / "probe.json", json.dumps(numbers, indent=1) + "\n")
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    config.run(main, ProbeConfig, choices={"split": data.SPLITS})
