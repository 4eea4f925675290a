"""A trained run answers one question, and shows the words its thoughts lean to: a reading, not their meaning.

python sample.py --question="Tom is a lempus. Every lempus is a rempus. Max is a impus. Is Tom a impus or rempus?"
"""

from dataclasses import dataclass
from pathlib import Path

from nanococonut import config, data, evaluate, graph, plots, probe, runs


@dataclass(frozen=True)
class SampleConfig:
    """python sample.py [RUN] [--option=value ...]: a trained run answers one question."""

    run: str = ""  # name or path of a run; default: the newest
    question: str = ""  # a question of your own; default: one of the run's data
    split: str = "test"  # split the question is taken from
    index: int = 0  # which question of the split, from 0
    latent: int = -1  # number of thoughts; -1: as many as in training
    words: int = 4  # words shown for each thought
    plot: str = ""  # FILE.png: draw the search tree
    device: str = "auto"  # where to run; auto: cuda, else mps, else cpu


def outline(row: dict, values, v: int) -> list[str]:
    """Values of node v by thought and its name; below it what shortest ways lead to; * stands on the chain."""
    depth, mark = graph.distances(row["edges"], row["root"]), " *" if v in graph.chain_of(row) else ""
    line = " ".join(f"{x:.2f}" for x in values[v]) + "   " * depth[v] + f"  {row['idx_to_symbol'][v]}{mark}"
    edges = [(a, b) for a, b in row["edges"] if a == v and depth[b] == depth[v] + 1]
    return [f"  {line}", *(text for _, b in edges for text in outline(row, values, b))]


def main(c: SampleConfig) -> None:
    run = runs.Run(c.run, device=c.device)
    config.demand(c, "words", lambda n: 1 <= n <= run.encoding.n_vocab, f"from 1 to {run.encoding.n_vocab}")
    given = [{"question": c.question, "steps": [], "answer": "?"}]
    examples, i = (data.Split(run.encoding, given), 0) if c.question else (run.split(c.split), c.index)
    if not 0 <= i < len(examples):
        raise config.UserError(f"--index={i}: {c.split} has questions 0 to {len(examples) - 1}")
    row, example = examples.rows[i], examples.example(i)
    p = run.plan_for(None if c.latent < 0 else c.latent)
    searched = p.n_thoughts and graph.has_graph(row)
    if c.plot and not (searched and c.plot.endswith(".png")):
        raise config.UserError(f"--plot={c.plot}: expected FILE.png, a run with thoughts, and a problem with a graph")
    instead = "" if p is run.plan else f" instead of the {run.plan.n_thoughts} of training"
    about = f"{run.config['method']}, stage {run.stage}, {p.n_thoughts} thoughts{instead}"
    print(f"{run.folder.name}: {about}\n\n{row['question']}\n")
    (ids,) = run.answer([example], p)
    if p.n_thoughts:
        thoughts = probe.trace(run, example, p.n_thoughts)
        for k, words in enumerate(probe.readings(run, thoughts, c.words)):
            shown = ", ".join(f"{word} {value:.2f}" for word, value in words)
            print(f"  thought {k + 1}  {shown}   (norm {thoughts[k].norm():.1f})")
        print()
    if searched:
        if run.config["taught"]:
            values = probe.leanings(run, examples, i, p.n_thoughts)
            shown = values[:, :-1]
            print("  how much thoughts 1, 2, ... lean to a node; * stands on the chain")
        else:
            (values,) = probe.values(run, [example], [row["idx_to_symbol"]], p.n_thoughts)
            shown = values[:, 1:]
            print("  how likely the chain goes on from a node after 1, 2, ... thoughts; * stands on the chain")
        print(*outline(row, shown, row["root"]), sep="\n", end="\n\n")
        if c.plot:
            plots.tree(row, values, Path(c.plot))
    text = run.encoding.decode(ids)
    print(text)
    if not c.question:
        right = data.is_right(text, row)
        print(f"\n{'right' if right else 'wrong: expected ' + row['answer']}; the chain is: {' '.join(row['steps'])}")


if __name__ == "__main__":
    config.run(main, SampleConfig, choices=evaluate.CHOICES)
