"""A trained run answers one question.

The words beside each thought are only its reading through the output head.
"""

from dataclasses import dataclass
from pathlib import Path

from nanococonut import cli, data, prosqa, readout, runs, scoring
from nanococonut.curriculum import tokenize


@dataclass(frozen=True)
class SampleConfig:
    """python sample.py [RUN] [--option=value ...]: a trained run answers one question."""

    # name or path of the run; default: the newest
    run: str = ""
    # a question of your own; default: one from the run's data
    question: str = ""
    # split that the question is taken from
    split: str = "test"
    # number of the question in the split, from 0
    index: int = 0
    # number of thoughts, or auto: until the answer begins; default: as many as in training
    latent: str = ""
    # file for a picture of the search: moving as .gif, or one drawing a thought as .png
    picture: str = ""


def outline(row: dict, probabilities, node: int) -> list[str]:
    """Lines of a tree: a node with its probability at each thought, then what lies below it.

    Below it are its children one step further from the root.
    """
    depth = prosqa.distances(row["edges"], row["root"])
    numbers = " ".join(f"{x:.2f}" for x in probabilities[node])
    indent = "   " * depth[node]
    mark = " *" if node in prosqa.chain_of(row) else ""
    lines = [f"  {numbers}{indent}  {row['idx_to_symbol'][node]}{mark}"]
    for a, b in row["edges"]:
        if a == node and depth[b] == depth[node] + 1:
            lines += outline(row, probabilities, b)
    return lines


def is_utf8(text: str) -> bool:
    """Whether a text that was typed is UTF-8; Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def asked(c: SampleConfig, run: runs.Run) -> tuple[dict, str]:
    """The problem that is asked, and why its answer is not known, if so. Raises UserError."""
    if c.question:
        cli.demand(c, "question", is_utf8, "in UTF-8")
        row, why = prosqa.solve(" ".join(c.question.split()))
        return row or {"question": c.question, "steps": [], "answer": ""}, why
    rows = run.split(c.split).rows
    if not 0 <= c.index < len(rows):
        raise cli.UserError(f"--index={c.index}: {c.split} has questions 0 to {len(rows) - 1}")
    return rows[c.index], ""


def show_thoughts(run: runs.Run, thoughts) -> None:
    """Prints what each thought (K, C) says through the output head."""
    for k, words in enumerate(readout.words(run, thoughts), start=1):
        likely = ", ".join(f"{word} {share:.2f}" for word, share in words if share >= 0.01)
        print(f"  thought {k}  {likely}   (norm {thoughts[k - 1].norm():.1f})")
    print()


def show_search(run: runs.Run, row: dict, example, plan, thoughts) -> None:
    """Prints the tree of what the root reaches, with each node's probability at each thought."""
    if plan.in_place:
        probabilities = readout.node_probabilities(run, row, thoughts)
        about = "probability of each node at thoughts 1, 2, ..."
    else:
        names = [row["idx_to_symbol"]]
        (found,) = readout.continuation_probabilities(run, [example], names, plan.n_thoughts)
        probabilities = found[:, 1:]
        about = "how likely the chain goes on from a node after 1, 2, ... thoughts"
    print(f"  {about}; * stands on the chain")
    print(*outline(row, probabilities, row["root"]), sep="\n", end="\n\n")


def draw_search(c: SampleConfig, run: runs.Run, row: dict, answer: runs.Answer) -> None:
    """Saves the picture of a search, up to the thought that names the target. Raises UserError."""
    if not (prosqa.is_prosqa(row) and len(answer.thoughts) and run.plan.in_place):
        needs = "a question of ProsQA's form, and a run with thoughts in place"
        raise cli.UserError(f"--picture={c.picture} needs {needs}")
    from nanococonut import picture  # matplotlib, which nothing else here needs

    thoughts = answer.thoughts[: len(row["steps"]) + 1]
    text = run.encoding.decode(answer.ids).rpartition("### ")[2]
    search = picture.Search(row, readout.node_probabilities(run, row, thoughts), text)
    path = Path(c.picture)
    draw = picture.film if path.suffix == ".gif" else picture.strip
    draw(search, path)
    print(f"saved {path}")


def main(c: SampleConfig) -> None:
    cli.demand(c, "picture", lambda name: name[-4:] in ("", ".gif", ".png"), "a .gif or a .png")
    run = runs.Run(c.run)
    row, why_unknown = asked(c, run)
    example = tokenize(row, run.encoding.encode_ordinary)
    (plan,) = run.plans_for([example], c.latent)
    usual = "" if plan is run.plan else f" instead of the {run.plan.n_thoughts} of training"
    about = f"{run.config['method']}, stage {run.stage}, {plan.n_thoughts} thoughts{usual}"
    print(f"{run.folder.name}: {about}\n{run.about}\n{row['question']}\n")
    if why_unknown and run.data["task"] == "prosqa":
        print(f"the answer is not checked: {why_unknown}\n")
    run.say_what_is_new([row["question"]])
    (answer,) = run.answer([example], plan)
    if plan.n_thoughts:
        show_thoughts(run, answer.thoughts)
    if plan.n_thoughts and prosqa.is_prosqa(row):
        show_search(run, row, example, plan, answer.thoughts)
    text = run.encoding.decode(answer.ids)
    print(text)
    if row["answer"]:
        verdict = "right" if scoring.is_right(text, row) else f"wrong: expected {row['answer']}"
        print(f"\n{verdict}; the chain is: {' '.join(row['steps'])}")
    if c.picture:
        draw_search(c, run, row, answer)


if __name__ == "__main__":
    cli.run(main, SampleConfig, choices={"split": data.SPLITS})
