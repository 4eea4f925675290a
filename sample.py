"""A trained run answers one question. The words beside each thought are only its reading through the output head."""

from dataclasses import dataclass

from nanococonut import answers, config, data, graph, probe
from nanococonut.curriculum import tokenize


@dataclass(frozen=True)
class SampleConfig:
    """python sample.py [RUN] [--option=value ...]: a trained run answers one question."""

    run: str = ""  # name or path of the run; default: the newest
    question: str = ""  # a question of your own; default: one from the run's data
    split: str = "test"  # split that the question is taken from
    index: int = 0  # number of the question in the split, from 0
    latent: str = ""  # number of thoughts, or auto: until the answer begins; default: as many as in training


def outline(row: dict, values, v: int) -> list[str]:
    """Lines of a tree: node v with one value per thought, then the subtrees of its children one step further out."""
    depth, mark = graph.distances(row["edges"], row["root"]), " *" if v in graph.chain_of(row) else ""
    line = " ".join(f"{x:.2f}" for x in values[v]) + "   " * depth[v] + f"  {row['idx_to_symbol'][v]}{mark}"
    edges = [(a, b) for a, b in row["edges"] if a == v and depth[b] == depth[v] + 1]
    return [f"  {line}", *(text for _, b in edges for text in outline(row, values, b))]


def is_utf8(text: str) -> bool:
    """Whether a text that was typed could be read as UTF-8; Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def main(c: SampleConfig) -> None:
    run = answers.Run(c.run)
    remark, is_known = "", True
    if c.question:
        config.demand(c, "question", is_utf8, "in UTF-8")
        row, remark = graph.solve(" ".join(c.question.split()))
        is_known = row is not None
        row = row or {"question": c.question, "steps": [], "answer": "?"}
    else:
        rows = run.split(c.split).rows
        if not 0 <= c.index < len(rows):
            raise config.UserError(f"--index={c.index}: {c.split} has questions 0 to {len(rows) - 1}")
        row = rows[c.index]
    example = tokenize(row, run.encoding.encode_ordinary)
    (p,) = run.plans_for([example], c.latent)
    instead = "" if p is run.plan else f" instead of the {run.plan.n_thoughts} of training"
    about = f"{run.config['method']}, stage {run.stage}, {p.n_thoughts} thoughts{instead}"
    print(f"{run.folder.name}: {about}\n{run.about}\n{row['question']}\n")
    if remark and run.data["task"] == "prosqa":
        print(f"the answer is not checked: {remark}\n")
    run.say_what_is_new([row["question"]])
    (ids,) = run.answer([example], p)
    if p.n_thoughts:
        thoughts = run.thoughts(example, p.n_thoughts)  # computed again, this time to show them
        for k, words in enumerate(run.words(thoughts)):
            shown = ", ".join(f"{word} {value:.2f}" for word, value in words if value >= 0.01)
            print(f"  thought {k + 1}  {shown}   (norm {thoughts[k].norm():.1f})")
        print()
    if p.n_thoughts and graph.is_prosqa(row):
        values, about = probe.leanings(run, row, thoughts), "probability of each node at thoughts 1, 2, ..."
        if not p.in_place:
            values = probe.values(run, [example], [row["idx_to_symbol"]], p.n_thoughts)[0][:, 1:]
            about = "how likely the chain goes on from a node after 1, 2, ... thoughts"
        print(f"  {about}; * stands on the chain")
        print(*outline(row, values, row["root"]), sep="\n", end="\n\n")
    text = run.encoding.decode(ids)
    print(text)
    if is_known:
        right = data.is_right(text, row)
        print(f"\n{'right' if right else 'wrong: expected ' + row['answer']}; the chain is: {' '.join(row['steps'])}")


if __name__ == "__main__":
    config.run(main, SampleConfig, choices={"split": data.SPLITS})
