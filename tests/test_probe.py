"""The quantities of a probe on cases whose answers are known, and the command on small runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare
import train
from nanococonut import coconut, config, data, evaluate, probe
from nanococonut.config import CHOICES, PRESETS, TrainConfig, UserError

# 0 -> 1 -> 2 (target), 0 -> 3 -> 4 -> 2 (a detour), 3 -> 5 (a wrong leaf), 6 -> 5 (another's)
ROW = {"edges": [[0, 1], [1, 2], [0, 3], [3, 4], [4, 2], [3, 5], [6, 5]], "root": 0, "target": 2}
ROW["idx_to_symbol"] = ["Tom", *"bcdef", "Max"]


def made(*words):
    small = ["--train=32", "--valid=6", "--test=8", "--n_nodes=8", "--min_hops=2", "--max_hops=3"]
    prepare.main(config.parse(prepare.PrepareConfig, [*small, *words]))


def trained(*words):
    train.main(config.parse(TrainConfig, ["smoke", "--name=run", *words], PRESETS, CHOICES))


def test_groups_of_a_hand_made_graph():
    assert probe.groups(ROW, 1) == {
        "not reachable": {6},
        "reachable": {0, 1, 3},
        "one behind": {0},
        "frontier": {1, 3},
        "optimal": {1},
    }
    second = probe.groups(ROW, 2)
    assert (second["frontier"], second["optimal"], second["one behind"]) == ({2, 4, 5}, {2}, {1, 3})
    assert probe.groups(ROW, 5)["frontier"] == set()


def test_heights_of_a_hand_made_graph():
    s = probe.search(ROW)
    assert s.shortest == {0: 2, 1: 1, 2: 0, 3: 1, 4: 1, 5: 0, 6: 1}
    assert s.longest == {0: 3, 1: 1, 2: 0, 3: 2, 4: 1, 5: 0, 6: 1}
    assert s.correct == {0, 1, 2, 3, 4}
    round_trip = ROW | {"edges": [[0, 1], [1, 0], [1, 2]]}  # a foreign graph may have cycles
    assert probe.search(round_trip).depth == {0: 0, 1: 1, 2: 2}


def test_sums_and_means_of_known_values():
    s, x = probe.search(ROW), np.zeros((7, 3))
    x[:, 1] = [9, 0.2, 9, 0.7, 9, 9, 9]  # after one thought only the nodes at depth 1 count, b and d
    x[:, 2] = [9, 9, 0.5, 9, 0.1, 0.3, 9]
    tops = probe.parallelism([s, s], [x, x / 2], 1)
    assert list(tops) == ["top 1", "top 2", "top 3"]
    assert tops["top 1"] == [(0, 0.35), (100, 0.7)]
    assert [round(y, 9) for _, y in tops["top 2"]] == [0.45, 0.9] == [round(y, 9) for _, y in tops["top 3"]]
    assert probe.by_height([s], [x], 2, "shortest") == {"correct": [(0, 0.5), (1, 0.1)], "wrong": [(0, 0.3)]}
    assert probe.by_height([s], [x], 1, "longest")["correct"] == [(1, 0.2), (2, 0.7)]


def test_values_are_products_of_token_probabilities(workspace):
    made()
    trained()
    run = evaluate.Run("run")
    examples = run.split("test")
    texts = [["Every zzz is a ", data.subject(name)] for name in examples.rows[0]["idx_to_symbol"][:2]]
    found = probe.values(run, [examples.example(0), examples.example(1)], texts, 2)
    assert [x.shape for x in found] == [(2, 3), (2, 3)]
    for i, mine in enumerate(texts):
        for j, text in enumerate(mine):  # written out: one row, one number of thoughts at a time
            ids = run.encoding.encode_ordinary(text)
            (prompt,), eot = evaluate.prompts([examples.example(i)], run.plan, run.special)
            for k in range(3):
                batch = coconut.Batch(
                    *(torch.tensor([prompt]), torch.tensor([len(prompt)]), torch.tensor([[eot, *ids[:-1]]])),
                    *(torch.tensor([ids]), k),
                )
                expected = math.exp(-coconut.forward_reference(run.model, batch).loss.item() * len(ids))
                assert math.isclose(found[i][j, k], expected, rel_tol=1e-4)


def test_a_trace_is_what_the_loop_thinks(workspace):
    made()
    trained()
    run = evaluate.Run("run")
    example = run.split("test").example(0)
    thoughts, attention = probe.trace(run, example, 2)
    (ids,), eot = evaluate.prompts([example], run.plan, run.special)
    batch = coconut.Batch(torch.tensor([ids]), torch.tensor([len(ids)]), torch.tensor([[eot]]), torch.tensor([[0]]), 2)
    torch.testing.assert_close(thoughts, coconut.forward_reference(run.model, batch).thoughts[0].detach())
    assert attention.shape == (2, len(ids))
    np.testing.assert_allclose(attention[0].sum(), run.model.config.n_head, rtol=1e-4)
    assert attention[1].sum() < run.model.config.n_head, "the second looks at the first too"


def test_a_nodes_embedding_is_the_mean_of_the_pieces_that_say_it(workspace):
    made()
    trained()
    run = evaluate.Run("run")
    pieces = [
        i
        for i, piece in enumerate(run.data["vocabulary"], 256)
        if piece in ("Tom is a ", " Tom is a ", " Is Tom a ", "### Tom is a ")
    ]
    (row,) = probe.node_embeddings(run, ["Tom"])
    torch.testing.assert_close(row, run.model.wte.weight[pieces].mean(dim=0))


def test_the_command_makes_every_figure(workspace, capsys):
    made()
    trained()
    probe.main(probe.ProbeConfig())
    folder = Path("runs/run/probe")
    figures = {path.stem for path in folder.glob("*.png") if path.read_bytes().startswith(b"\x89PNG")}
    assert figures == {"k", "interventions", "geometry", "parallelism", "height"}
    numbers = json.loads((folder / "probe.json").read_text())
    cells = {(x["intervene"], x["latent"]): x for x in numbers["interventions"]}
    assert {k for name, k in cells if name == "none"} >= {0, 1, 2}, "and as many more as fit"
    assert {key for key in cells if key[0] != "none"} == {
        (name, k) for name in evaluate.INTERVENTIONS if name != "none" for k in (1, 2)
    }
    assert cells["none", 2]["flipped"] == cells["permute", 1]["flipped"] == 0
    assert cells["permute", 1]["accuracy"] == cells["none", 1]["accuracy"]
    assert set(numbers["geometry"]) == {"inner product", "attention to facts"}


def test_a_run_without_graphs_gets_what_makes_sense(workspace, capsys):
    made("prontoqa")
    trained("--task=prontoqa")
    probe.main(probe.ProbeConfig())
    assert "these problems have no graph: geometry, parallelism and height are left out" in capsys.readouterr().out
    assert {path.name for path in Path("runs/run/probe").iterdir()} == {"k.png", "interventions.png", "probe.json"}


def test_a_run_without_thoughts_is_refused(workspace):
    made()
    trained("--method=pause")
    with pytest.raises(UserError, match=r"run \(pause, stage 2\) has no thoughts to probe"):
        probe.main(probe.ProbeConfig())
