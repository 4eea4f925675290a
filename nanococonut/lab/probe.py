"""Analyses what a run's thoughts encode and whether they matter.

Writes numbers and figures under runs/<name>/probe/:

k               the same weights with 0, 1, 2, ... thoughts: accuracy, also on twins, and verdicts
                [Hao24 5]
interventions   the controls: accuracy and changed answers when thoughts are zeroed, swapped, ...
mass            the probability that the output head gives the search's nodes at each thought
pruning         among the nodes that are equally far: those that lead to the target, and dead ends
                by height [Hao24 5.3]; a dead end that goes on as far as the target does is the
                control, because only the question tells the two apart
joining         accuracy by the number of shortest chains to the target
redirected      accuracy where one fact of the chain now leads to the other option
results         where steps are calculations: the probability of each step's result, by thought
parallelism     the highest values among the nodes that are equally far. In the paper's layout <eot>
                is forced after k thoughts, for the probability of "Every lempus is a " [Hao24 5]
tree            one problem's graph for each thought, coloured by these values
readings        the most probable words when a thought is read through the output head
"""

import itertools
import json
import random
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nanococonut import cli, data, evaluate, files, picture, plots, prosqa, readout, runs, scoring


@dataclass(frozen=True)
class ProbeConfig:
    """python -m nanococonut.probe [RUN] [--option=value ...]: probes thoughts, with controls."""

    # name or path of the run; default: the newest
    run: str = ""
    # split of the data that the run was trained on
    split: str = "test"
    # maximum number of problems
    n: int = 300


def groups(row: dict, i: int) -> dict[str, set[int]]:
    """Node groups at thought i: unreachable, within i steps, at BFS depth i - 1, and at i."""
    steps = prosqa.distances(row["edges"], row["root"])
    return {
        "not reachable": set(range(len(row["idx_to_symbol"]))) - set(steps),
        "reachable": {v for v, depth in steps.items() if depth <= i},
        "one behind": {v for v, depth in steps.items() if depth == i - 1},
        "frontier": {v for v, depth in steps.items() if depth == i},
    }


def means(cells: dict[tuple, list]) -> dict[str, list]:
    """Curves of means with 95 % intervals; fewer than 5 numbers give no point.

    {(label, x): numbers} -> {label: [(x, mean, low, high)]}
    """
    curves = {label: [] for label, _ in cells}
    for (label, x), numbers in sorted(cells.items(), key=lambda cell: cell[0][1]):
        if len(numbers) >= 5:
            mean = float(np.mean(numbers))
            half = float(1.96 * np.std(numbers) / len(numbers) ** 0.5)
            curves[label].append((x, mean, mean - half, mean + half))
    return curves


def mass(rows: list[dict], shares_of: list[np.ndarray]) -> dict[str, list]:
    """means() over problems, by thought: the sum of shares over each group of nodes.

    shares_of  readout.node_probabilities() (nodes, K) of each problem
    """
    cells = defaultdict(list)
    for row, shares in zip(rows, shares_of, strict=True):
        for k, at_thought in enumerate(shares.T, start=1):
            for group, nodes in groups(row, k).items():
                cells[group, k].append(float(at_thought[list(nodes)].sum()))
    return means(cells)


def pruning(rows: list[dict], shares_of: list[np.ndarray]) -> dict[str, list]:
    """means() over nodes, by thought k: the share of a node at depth k - 1, over an equal share.

    1 is what a search without preferences gives: the probability of all nodes at that depth,
    divided by their number. Depths with only one node do not count, nor the target's own and what
    lies past it: there the question itself names a node.
    The nodes of a problem are not independent: the intervals are a little too narrow.
    shares_of  readout.node_probabilities() (nodes, K) of each problem
    """
    cells = defaultdict(list)
    for row, shares in zip(rows, shares_of, strict=True):
        depth = prosqa.distances(row["edges"], row["root"])
        for k, at_thought in enumerate(shares.T[: depth[row["target"]]], start=1):
            level = [v for v in depth if depth[v] == k - 1]
            total = sum(at_thought[level])
            if len(level) < 2 or total == 0:
                continue
            for v in level:
                relative = float(at_thought[v] * len(level) / total)
                to_go = depth[row["target"]] - depth[v]
                cells[worth(row, v, to_go), k].append(relative)
    return means(cells)


def worth(row: dict, v: int, to_go: int) -> str:
    """Whether a node leads to the target or, if not, how far the farthest node below it is.

    to_go  hops from the node's level to the target
    """
    below = prosqa.distances(row["edges"], v)
    if row["target"] in below:
        return "leads to the target"
    height = max(below.values())
    if height >= to_go:
        return "dead end, as deep as the target"
    return f"dead end, height {height if height < 2 else '2 or more'}"


def joining(rows: list[dict], texts: list[str]) -> dict[int, list[int]]:
    """{number of shortest chains to the target: [right, questions]}; 4 stands for more too."""
    counts = defaultdict(lambda: [0, 0])
    for row, text in zip(rows, texts, strict=True):
        n_chains = min(4, n_shortest(row))
        counts[n_chains][0] += scoring.is_right(text, row)
        counts[n_chains][1] += 1
    return dict(sorted(counts.items()))


def n_shortest(row: dict) -> int:
    """The number of shortest chains from the root to the target."""
    depth = prosqa.distances(row["edges"], row["root"])
    n_chains = {row["root"]: 1}
    for v in list(depth)[1:]:  # nearest first
        before = {a for a, b in row["edges"] if b == v and depth.get(a) == depth[v] - 1}
        n_chains[v] = sum(n_chains[a] for a in before)
    return n_chains[row["target"]]


def redirected(row: dict, rng: random.Random) -> dict | None:
    """The row with one fact of its chain redirected so that the other option is the answer.

    A fact "Every b is a c." on the chain becomes "Every b is a d.", where d leads to the other
    option. Person, options and all other facts stay, and facts still name both options. None if no
    single fact can do that.
    """
    backwards = [[b, a] for a, b in row["edges"]]
    leading_there = prosqa.distances(backwards, row["neg_target"])
    changes = []
    for a, b in itertools.pairwise(prosqa.chain_of(row)):
        for new in leading_there:
            edges = [[a, new] if edge == [a, b] else edge for edge in row["edges"]]
            reached = prosqa.distances(edges, row["root"])
            is_person = prosqa.is_person(row["idx_to_symbol"][new])
            is_loop = a in prosqa.distances(edges, new)
            is_the_other = row["neg_target"] in reached and row["target"] not in reached
            names_both = any(row["target"] in edge for edge in edges)
            if is_the_other and names_both and not is_person and not is_loop:
                changes.append(((a, b), (a, new), edges))
    if not changes:
        return None
    old, new, edges = rng.choice(changes)
    names, root, target = row["idx_to_symbol"], row["root"], row["neg_target"]
    path = prosqa.shortest_path(edges, prosqa.distances(edges, root), target, rng)
    sentence_of = {prosqa.fact(names, *old): prosqa.fact(names, *new)}
    sentences = re.split(r"(?<=\.) ", row["question"])
    return row | {
        "question": " ".join(sentence_of.get(sentence, sentence) for sentence in sentences),
        "edges": edges,
        "target": target,
        "neg_target": row["target"],
        "steps": prosqa.facts_along(names, path),
        "answer": prosqa.fact(names, root, target),
    }


def parallelism(rows: list[dict], values_of: list[np.ndarray]) -> tuple[dict, int]:
    """Sums of the highest values at depth k after k = 1, 2 thoughts, over the sorted problems.

    values_of  (nodes, thoughts + 1) of each problem, from 0 thoughts on
    Returns {x label: {"top 1": [(percent of problems, sum)], ...}}, and the number of the problem
    with the best runner-up after one thought.
    """
    best = defaultdict(list)  # k -> the three highest values of each problem
    for row, values in zip(rows, values_of, strict=True):
        depth = prosqa.distances(row["edges"], row["root"])
        for k in range(1, min(3, values.shape[1])):
            nodes = [v for v in depth if depth[v] == k]
            missing = [0, 0, 0]  # for depths with fewer than three nodes
            best[k].append(sorted([*values[nodes, k], *missing], reverse=True)[:3])
    percent = np.linspace(0, 100, len(rows)).tolist()
    curves = {}
    for k, values in best.items():
        sums = np.cumsum(values, axis=1)  # (problems, 3)
        columns = np.sort(sums, axis=0).T.tolist()
        label = f"problems, sorted (%), nodes at depth {k}"
        curves[label] = {}
        for j, column in enumerate(columns, start=1):
            curves[label][f"top {j}"] = list(zip(percent, column, strict=True))
    runners_up = [second for _, second, _ in best[1]]
    return curves, int(np.argmax(runners_up))


def sweep(run: runs.Run, examples: data.Split, n_thoughts: int) -> list[dict]:
    """Results of evaluate.measure for each intervention and number of thoughts.

    Each says as well how many answers flipped: with as many thoughts, but without an intervention,
    another answer is written.
    """
    # Two more thoughts than in training, if the positions suffice for these and the two markers.
    longest = max(examples.lengths) + 2 + run.data["max_new_tokens"]
    max_thoughts = min(n_thoughts + 2, run.model.config.block_size - longest)
    todo = [("none", k) for k in range(max_thoughts + 1)]
    for name in evaluate.INTERVENTIONS:
        if name != "none":
            todo += [(name, k) for k in range(1, n_thoughts + 1)]
    results = []
    answers_of = {}  # number of thoughts -> the answers without an intervention
    for name, k in tqdm(todo, desc="answers", unit="pass", leave=False):
        result, texts = evaluate.measure(run, examples, str(k), intervene=name)
        answers = [scoring.final_answer(text) for text in texts]
        before = answers_of.setdefault(k, answers)
        n_flipped = sum(a != b for a, b in zip(answers, before, strict=True))
        about = dict(run=run.folder.name, intervene=name, latent=k, flipped=n_flipped)
        results.append(about | result)
    return results


def answer_figures(results: list[dict], n: int) -> dict[str, list[tuple]]:
    """The panels of k.png and interventions.png, from sweep() over n problems."""
    accuracies, flips, verdicts = defaultdict(list), defaultdict(list), defaultdict(list)
    for result in results:
        name, k, n_flipped = result["intervene"], result["latent"], result["flipped"]
        accuracies[name].append((k, result["accuracy"], result["low"], result["high"]))
        flips[name].append((k, n_flipped / n, *scoring.wilson(n_flipped, n)))
        if name == "none":
            for verdict, n_given in result["verdicts"].items():
                verdicts[verdict].append((k, n_given / n))
    by_k = [("thoughts", "accuracy", {"none": accuracies["none"]})]
    if verdicts:
        by_k.insert(0, ("thoughts", "share of problems", verdicts))
    by_intervention = [
        ("thoughts", "accuracy", accuracies),
        ("thoughts", "share of answers that flip", flips),
    ]
    return {"k": by_k, "interventions": by_intervention}


def node_values(
    run: runs.Run, examples: data.Split, n_thoughts: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each problem the probability of each node: at thoughts 1 to K, and after 0 to K of them.

    Returns the shares (nodes, K or, in place, K + 1) for mass() and pruning(), and the values
    (nodes, K + 1) for parallelism().
    """
    rows = examples.rows
    asked = [examples.example(i) for i in range(len(rows))]
    shares_of = []
    for example, row in zip(asked, rows, strict=True):
        prompt = runs.before_thoughts(example, run.plan, run.special)
        (states,) = run.states([prompt], n_thoughts)  # (K + 1, C)
        shares_of.append(readout.node_probabilities(run, row, states))
    if run.plan.in_place:  # the states themselves name the nodes
        return shares_of, shares_of
    # In the paper's layout the word after <eot> names a node, and the last state is not used.
    shares_of = [shares[:, :n_thoughts] for shares in shares_of]
    names = [row["idx_to_symbol"] for row in rows]
    return shares_of, readout.continuation_probabilities(run, asked, names, n_thoughts)


def draw_tree(run: runs.Run, row: dict, values: np.ndarray, path: Path) -> None:
    """Saves a drawing of what the root reaches for each thought, up to the chain's end."""
    if not run.plan.in_place:
        values = values[:, 1:]  # the first are those before any thought
    shares = values[:, : len(row["steps"]) + 1]
    picture.strip(picture.Search(row, shares, row["answer"]), path)


def graph_figures(
    rows: list[dict], shares_of: list[np.ndarray], values_of: list[np.ndarray]
) -> tuple[dict, dict[str, list[tuple]], int]:
    """The numbers about nodes, the panels of their figures, and the problem of tree.png."""
    curves, shown = parallelism(rows, values_of)
    numbers = {
        "mass": mass(rows, shares_of),
        "pruning": pruning(rows, shares_of),
        "parallelism": curves,
        "tree": values_of[shown].tolist(),
    }
    relative = "share, times the level's size"
    figures = {
        "mass": [("thought", "share of the head's distribution", numbers["mass"])],
        "pruning": [("thought", relative, numbers["pruning"])],
        "parallelism": [(x, "sum of the highest values", by_top) for x, by_top in curves.items()],
    }
    return numbers, figures, shown


def results_of(row: dict) -> list[str]:
    """The result of each step of a row, if all are calculations like GSM8k's; else [].

    >>> results_of({"steps": ["<<7+3=10>>", "<<10*2=20>>"]}), results_of({"steps": ["So 1=1."]})
    (['10', '20'], [])
    """
    matches = [re.fullmatch(r"<<[^<>]*=([^<>=]+)>>", step) for step in row["steps"]]
    return [match[1] for match in matches] if all(matches) else []


def results_named(run: runs.Run, examples: data.Split, n_thoughts: int) -> dict[str, list]:
    """means() over problems, by thought: the probability of the result of each step."""
    cells = defaultdict(list)
    for i, row in enumerate(examples.rows):
        prompt = runs.before_thoughts(examples.example(i), run.plan, run.special)
        (states,) = run.states([prompt], n_thoughts)  # (K + 1, C)
        shares = readout.number_probabilities(run, results_of(row), states)
        for step, of_result in enumerate(shares, start=1):
            for k, share in enumerate(of_result, start=1):
                if not np.isnan(share):
                    cells[f"result of step {step}", k].append(float(share))
    return means(cells)


def answers_about_graphs(run: runs.Run, examples: data.Split, n_thoughts: int) -> dict:
    """The results of joining(), and of evaluate.measure on the rows that can be redirected()."""
    _, texts = evaluate.measure(run, examples, str(n_thoughts))
    rng = random.Random(0)
    others = [redirected(row, rng) for row in examples.rows]
    others = [row for row in others if row]
    found = {"joining": joining(examples.rows, texts)}
    if others:
        split = data.Split(run.encoding, others)
        found["redirected"], _ = evaluate.measure(run, split, str(n_thoughts))
        found["redirected"]["n"] = len(others)
    return found


def main(c: ProbeConfig) -> None:
    """Writes probe.json and the figures of a run."""
    run = runs.Run(c.run)
    examples = run.split(c.split)
    folder = run.folder / "probe"
    K = run.plan.n_thoughts
    if not K:
        name = f"{run.folder.name} ({run.config['method']}, stage {run.stage})"
        raise cli.UserError(f"{name} has no thoughts to probe")
    rows = examples.rows[: max(1, c.n)]
    examples.rows = rows
    results = sweep(run, examples, K)
    numbers = {"n": len(rows), "interventions": results}
    figures = answer_figures(results, len(rows))
    shown = 0
    if all(map(prosqa.is_prosqa, rows)):
        shares_of, values_of = node_values(run, examples, K)
        about_nodes, node_figures, shown = graph_figures(rows, shares_of, values_of)
        numbers |= about_nodes | answers_about_graphs(run, examples, K)
        figures |= node_figures
        draw_tree(run, rows[shown], values_of[shown], folder / "tree.png")
        reason = "whose second best first step has the highest value after one thought"
        print(f"tree.png shows problem {shown}, {reason}")
    else:
        left_out = "what is about graphs is left out"
        print(f"these problems are not all ProsQA's: {left_out}")
    if all(map(results_of, rows)):
        numbers["results"] = results_named(run, examples, K)
        share = "share of the head's distribution"
        figures["results"] = [("thought", share, numbers["results"])]
    for name, panels in figures.items():
        plots.lines(panels, folder / f"{name}.png")
    numbers["problem"] = shown
    thoughts = run.thoughts(examples.example(shown), K)
    numbers["readings"] = readout.words(run, thoughts, 4)
    files.write_text(folder / "probe.json", json.dumps(numbers, indent=1) + "\n")
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    cli.run(main, ProbeConfig, choices={"split": data.SPLITS})
