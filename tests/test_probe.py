"""The quantities of a probe on cases whose answers are known, and the command on small runs."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import prepare
import sample
import train
from nanococonut import cli, coconut, curriculum, evaluate, prosqa, readout, runs
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.lab import probe

# 0 -> 1 -> 2 (target), 0 -> 3 -> 4 -> 2 (a detour), 3 -> 5 (a wrong leaf), 6 -> 5 (another's)
ROW = {"edges": [[0, 1], [1, 2], [0, 3], [3, 4], [4, 2], [3, 5], [6, 5]], "root": 0, "target": 2}
ROW["idx_to_symbol"] = ["Tom", *"bcdef", "Max"]


def made(task="prosqa"):
    sizes = ["--train=32", "--valid=6", "--test=8"]
    small = ["--n_nodes=8", "--min_hops=2", "--max_hops=3"] if task == "prosqa" else []
    prepare.main(cli.parse(prepare.PrepareConfig, [task, *sizes, *small]))


def trained(*words, name="run"):
    train.main(cli.parse(TrainConfig, ["smoke", f"--name={name}", *words], PRESETS, CHOICES))


def test_groups_of_a_hand_made_graph():
    assert probe.groups(ROW, 1) == {
        "not reachable": {6},
        "reachable": {0, 1, 3},
        "one behind": {0},
        "frontier": {1, 3},
    }
    second = probe.groups(ROW, 2)
    assert (second["frontier"], second["one behind"]) == ({2, 4, 5}, {1, 3})
    assert probe.groups(ROW, 5)["frontier"] == set()


def test_sums_and_means_of_known_values():
    x = np.zeros((7, 3))
    # After one thought only the nodes at depth 1 count, b and d.
    x[:, 1] = [9, 0.2, 9, 0.7, 9, 9, 9]
    x[:, 2] = [9, 9, 0.5, 9, 0.1, 0.3, 9]
    tops, shown = probe.parallelism([ROW, ROW], [x[:, :2] / 2, x[:, :2]])
    tops = tops["problems, sorted (%), nodes at depth 1"]
    assert list(tops) == ["top 1", "top 2", "top 3"] and shown == 1
    assert tops["top 1"] == [(0, 0.35), (100, 0.7)]
    for top in ("top 2", "top 3"):
        assert [round(y, 9) for _, y in tops[top]] == [0.45, 0.9]
    tops, _ = probe.parallelism([ROW] * 5, [x] * 5)
    curves = tops["problems, sorted (%), nodes at depth 2"].values()
    np.testing.assert_allclose([y[0][1] for y in curves], [0.5, 0.8, 0.9])


def test_means_have_the_textbooks_interval():
    curves = probe.means({("a", 1): [0, 2] * 8, ("b", 1): [], ("b", 2): [3] * 5, ("c", 1): [3] * 4})
    assert curves == {"a": [(1, 1, 0.51, 1.49)], "b": [(2, 3, 3, 3)], "c": []}, (
        "four are too few for an interval"
    )


@pytest.fixture
def asked(workspace):
    """A run of two thoughts, and its test split."""
    made()
    trained()
    run = runs.Run("run")
    return run, run.split("test")


def test_a_model_that_knows_nothing_values_a_text_at_one_in_v_for_each_token(asked):
    run, examples = asked
    with torch.no_grad():
        run.model.wte.weight.zero_()  # the head is the embedding: all logits are 0
    names = ["zzz", examples.rows[0]["idx_to_symbol"][2]]
    (found,) = readout.continuation_probabilities(run, [examples.example(0)], [names], 2)
    lengths = [len(run.encoding.encode_ordinary(prosqa.subject(name))) for name in names]
    expected = [[float(run.encoding.n_vocab) ** -n] * 3 for n in lengths]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_pruning_of_a_hand_made_graph():
    # 0 -> 1, 2, 3 one step away: 1 leads to the target 4; 2 is a leaf; 3 has a child, but not the
    # target
    row = {"edges": [[0, 1], [0, 2], [0, 3], [1, 4], [3, 5]], "root": 0, "target": 4}
    shares = np.array([[1.0, 0], [0, 0.5], [0, 0.1], [0, 0.2], [0, 0], [0, 0]])  # (nodes, thoughts)
    found = probe.pruning([row] * 5, [shares] * 5)
    shown = {}
    for group, curve in found.items():
        shown[group] = [(k, round(mean, 6)) for k, mean, _, _ in curve]
    assert shown == {
        "leads to the target": [(2, 1.875)],  # .5 of .8 in all, times three
        "dead end, height 0": [(2, 0.375)],
        "dead end, as deep as the target": [(2, 0.75)],
    }, "one node alone, as at thought 1, does not count"


def test_a_dead_end_is_as_deep_as_the_target_or_named_by_its_height():
    # 0 -> 1 -> 2 -> 3 (target), 0 -> 4 -> 5
    row = {"edges": [[0, 1], [1, 2], [2, 3], [0, 4], [4, 5]], "root": 0, "target": 3}
    assert probe.worth(row, 1, to_go=2) == "leads to the target"
    assert probe.worth(row, 4, to_go=2) == "dead end, height 1"
    assert probe.worth(row, 4, to_go=1) == "dead end, as deep as the target"


def test_shortest_chains_are_counted():
    assert probe.n_shortest(ROW) == 1, "the detour is longer"
    joins = {"edges": [[0, 1], [0, 2], [0, 3], [1, 4], [2, 4], [3, 4], [4, 5]], "root": 0}
    assert [probe.n_shortest(joins | {"target": v}) for v in (1, 4, 5)] == [1, 3, 3]
    # as many as shortest_path() draws
    distance = prosqa.distances(joins["edges"], 0)
    rng = random.Random(0)
    paths = {tuple(prosqa.shortest_path(joins["edges"], distance, 5, rng)) for _ in range(100)}
    assert len(paths) == 3
    rows = [joins | {"target": 5, "answer": "a"}, ROW | {"answer": "b"}, ROW | {"answer": "b"}]
    assert probe.joining(rows, ["### a", "### b", "### c"]) == {1: [1, 2], 3: [1, 1]}


def test_a_redirected_fact_makes_the_other_option_true(workspace):
    made()
    rows = json.loads(Path("data/prosqa/test.json").read_text())
    rng = random.Random(0)
    n_redirected = 0
    for row in rows:
        new = probe.redirected(row, rng)
        if new is None:
            continue
        n_redirected += 1
        told, told_before = (set(x["question"].split(". ")) for x in (new, row))
        assert len(told - told_before) == len(told_before - told) == 1, "one fact changes"
        solved, why = prosqa.solve(new["question"])
        assert not why and solved["answer"] == new["answer"] != row["answer"]
        assert prosqa.judge_chain(new["steps"], new, hidden=False) == "correct_path"
        assert prosqa.distances(new["edges"], new["root"])[new["target"]] == len(new["steps"])
    assert n_redirected >= 2


def test_two_ways_to_the_target_leave_no_fact_to_redirect():
    # 0 -> 1 -> 2 (target) and 0 -> 2; 3, a person, -> 4 (the other option)
    row = prosqa.tell(
        {
            "idx_to_symbol": ["Tom", "b", "c", "Max", "e"],
            "edges": [[0, 1], [0, 2], [1, 2], [3, 4]],
            "root": 0,
            "target": 2,
            "neg_target": 4,
            "steps": ["Tom is a c."],
        },
        random.Random(0),
    )
    assert probe.redirected(row, random.Random(0)) is None


def told(names, edges, root, target, neg_target, steps):
    row = dict(idx_to_symbol=names, edges=edges, root=root, target=target, neg_target=neg_target)
    return prosqa.tell(row | {"steps": steps}, random.Random(0))


def test_a_redirected_fact_makes_no_loop_and_hides_no_option():
    # Tom -> b -> c (target), Max -> e (the other option). b -> e hides c; Tom -> e leaves b -> c.
    one = told(["Tom", "b", "c", "Max", "e"], [[0, 1], [1, 2], [3, 4]], 0, 2, 4, ["b.", "c."])
    found = [probe.redirected(one, random.Random(seed)) for seed in range(20)]
    assert {tuple(map(tuple, row["edges"])) for row in found} == {((0, 4), (1, 2), (3, 4))}
    assert found[0]["answer"] == "Tom is a e." and found[0]["steps"] == ["Tom is a e."]
    # Tom -> b -> c -> d (target), Max -> c -> e ... the other option's ancestors are c and Max:
    # c -> d cannot go to c itself, and b -> c leads there already.
    two = told(
        ["Tom", "b", "c", "d", "Max", "e", "f"],
        [[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 3]],
        root=0,
        target=3,
        neg_target=6,
        steps=["b.", "c.", "d."],
    )
    assert probe.redirected(two, random.Random(0)) is None, "whoever reaches f reaches d"


def test_a_name_at_the_end_of_another_is_not_redirected_with_it():
    names = ["Tom", "b", "c", "Big-Tom", "e"]
    row = told(names, [[0, 1], [1, 2], [3, 4], [3, 1]], 0, 2, 4, ["b.", "c."])
    new = probe.redirected(row, random.Random(0))
    assert "Big-Tom is a b." in new["question"]


def test_interventions_that_change_nothing(asked):
    run, examples = asked
    with torch.no_grad():  # a model that says many things, and other things for other thoughts
        torch.manual_seed(0)
        for p in run.model.parameters():
            p.normal_()
    _, plain = evaluate.measure(run, examples)
    todo = [examples.example(i) for i in range(len(examples))]

    def ids(examples, plan, **how):
        return [answer.ids for answer in run.answer(examples, plan, **how)]

    def changed(name, plan=run.plan, examples=todo):
        return ids(examples, plan, change=evaluate.INTERVENTIONS[name])

    bare = ids(todo, run.plan)
    assert changed("none") == bare, (
        "the loop that may change thoughts is the plain one where it does not"
    )
    assert evaluate.measure(run, examples, intervene="none")[1] == plain
    assert changed("permute", run.plan_for(1)) == ids(todo, run.plan_for(1))
    assert changed("swap", examples=todo[:1] * 3) == bare[:1] * 3, "swapped with its own twin"
    assert changed("mean", examples=todo[:1] * 3) == bare[:1] * 3
    assert any(changed(name) != bare for name in ("zero", "noise", "swap")), (
        "and others do change something"
    )


def test_values_are_products_of_token_probabilities(workspace):
    made()
    trained("--layout=paper")
    run = runs.Run("run")
    examples = run.split("test")
    names = [["zzz", name] for name in examples.rows[0]["idx_to_symbol"][:2]]
    found = readout.continuation_probabilities(
        run, [examples.example(0), examples.example(1)], names, 2
    )
    assert [x.shape for x in found] == [(2, 3), (2, 3)]
    for i, mine in enumerate(names):
        for j, name in enumerate(mine):  # written out: one row, one number of thoughts at a time
            ids = run.encoding.encode_ordinary(prosqa.subject(name))
            prompt = runs.before_thoughts(examples.example(i), run.plan, run.special)
            read = [run.special["eot"], *ids[:-1]]
            rows = [torch.tensor([row]) for row in (prompt, read, ids)]
            for k in range(3):
                batch = coconut.Batch(rows[0], torch.tensor([len(prompt)]), rows[1], rows[2], k)
                loss = coconut.forward_reference(run.model, batch).loss.item()
                expected = math.exp(-loss * len(ids))
                assert math.isclose(found[i][j, k], expected, rel_tol=1e-4)


def test_a_trace_is_what_the_loop_thinks(workspace):
    made()
    trained()
    run = runs.Run("run")
    example = run.split("test").example(0)
    thoughts = run.thoughts(example, 2)
    (answer,) = run.answer([example], run.plan)
    torch.testing.assert_close(answer.thoughts, thoughts)
    ids, eot = runs.before_thoughts(example, run.plan, run.special), run.special["eot"]
    prompt, length = torch.tensor([ids]), torch.tensor([len(ids)])
    batch = coconut.Batch(prompt, length, torch.tensor([[eot]]), torch.tensor([[0]]), 2)
    expected = coconut.forward_reference(run.model, batch).thoughts[0].detach()
    torch.testing.assert_close(thoughts, expected)
    read = readout.words(run, thoughts, 3)
    assert list(map(len, read)) == [3, 3]
    probabilities = run.model.logits(thoughts[1]).softmax(-1)
    ((word, p), *_) = read[1]
    assert math.isclose(p, probabilities.max().item(), rel_tol=1e-5)
    said = run.encoding.decode([probabilities.argmax().item()])
    assert word == " ".join(said.split()) or word.startswith("'")


def test_the_command_makes_every_figure(workspace, capsys):
    made()
    trained()
    probe.main(probe.ProbeConfig())
    folder = Path("runs/run/probe")
    pictures = [path for path in folder.glob("*.png") if path.read_bytes()[:4] == b"\x89PNG"]
    figures = {path.stem for path in pictures}
    assert figures == {"k", "interventions", "mass", "pruning", "parallelism", "tree"}
    numbers = json.loads((folder / "probe.json").read_text())
    cells = {(x["intervene"], x["latent"]): x for x in numbers["interventions"]}
    assert {k for name, k in cells if name == "none"} >= {0, 1, 2}, "and as many more as fit"
    changes = [name for name in evaluate.INTERVENTIONS if name != "none"]
    asked = {key for key in cells if key[0] != "none"}
    assert asked == {(name, k) for name in changes for k in (1, 2)}
    whole = [x for x in cells.values() if x["twins"] == numbers["n"]]
    assert all(0 <= x["both"] <= min(x["accuracy"], x["twin"]) for x in whole)
    assert all(x["both_low"] <= x["both"] <= x["both_high"] for x in cells.values())
    assert cells["none", 2]["flipped"] == cells["permute", 1]["flipped"] == 0
    assert cells["permute", 1]["accuracy"] == cells["none", 1]["accuracy"]
    assert "leads to the target" in numbers["pruning"]
    assert set(numbers["mass"]) == {"not reachable", "reachable", "one behind", "frontier"}
    assert list(map(len, numbers["readings"])) == [4, 4]
    assert 0 <= numbers["problem"] < 8


def test_the_tree_in_words(asked, capsys):
    row = ROW | {"steps": ["Tom is a b.", "Every b is a c."]}
    row["neg_target"] = 5
    known = np.arange(21).reshape(7, 3) / 100
    assert sample.outline(row, known[:, 1:], 0) == [
        "  0.01 0.02  Tom *",
        "  0.04 0.05     b *",
        "  0.07 0.08        c *",
        "  0.10 0.11     d",
        "  0.13 0.14        e",
        "  0.16 0.17        f",
    ]
    sample.main(sample.SampleConfig())
    printed = capsys.readouterr().out
    assert "  thought 2  " in printed and " *\n" in printed


def test_thoughts_in_place_are_read_as_nodes(workspace, capsys):
    made()
    trained()
    run = runs.Run("run")
    examples = run.split("test")
    thoughts = run.thoughts(examples.example(0), 3)
    leans = readout.node_probabilities(run, examples.rows[0], thoughts)
    names = examples.rows[0]["idx_to_symbol"]
    assert leans.shape == (len(names), 3)
    for v, name in enumerate(names):  # the tokens of a node say it and begin what follows from it
        texts = [f"{name}.\nEvery {name} is a ", f"{name}.\n### "]
        if name[0].isupper():
            texts = [f"{name} is a "]
        tokens = [run.encoding.encode_ordinary(text) for text in texts]
        assert all(len(ids) == 1 for ids in tokens)
        shares = run.model.logits(thoughts).softmax(-1)[:, [ids[0] for ids in tokens]]
        np.testing.assert_allclose(leans[v], shares.sum(dim=1).tolist(), rtol=1e-5)
    sample.main(sample.SampleConfig())
    assert "probability of each node at thoughts 1, 2, ..." in capsys.readouterr().out
    probe.main(probe.ProbeConfig())
    assert Path("runs/run/probe/tree.png").exists()
    shutil.rmtree("runs/run")
    trained("--layout=paper", "--max_stage=1")
    assert runs.Run("run").plan.n_thoughts == 1
    probe.main(probe.ProbeConfig())
    assert Path("runs/run/probe/tree.png").exists()


def test_a_run_without_graphs_gets_what_makes_sense(workspace, capsys):
    made("prontoqa")
    trained("--task=prontoqa")
    probe.main(probe.ProbeConfig())
    printed = capsys.readouterr().out
    left_out = "what is about graphs is left out"
    assert f"these problems are not all ProsQA's: {left_out}\n" in printed
    made_files = {path.name for path in Path("runs/run/probe").iterdir()}
    assert made_files == {"k.png", "interventions.png", "probe.json"}
    numbers = json.loads(Path("runs/run/probe/probe.json").read_text())
    assert "mass" not in numbers and len(numbers["readings"]) == 2


def test_results_of_calculations_are_found_at_the_thought_that_says_them(workspace, monkeypatch):
    prepare.main(
        cli.parse(
            prepare.PrepareConfig,
            ["arithmetic", "--train=40", "--valid=5", "--test=8"],
            choices=prepare.CHOICES,
        )
    )
    trained("--task=arithmetic", "--max_stage=5")
    run = runs.Run("run")
    examples = run.split("test")
    wte = run.model.wte.weight

    def states(rows, n_thoughts):
        """States that name what next_words() asks for, as a perfect model's would."""
        (i,) = [i for i in range(8) if rows[0][:-1] == examples.example(i).question]
        words = curriculum.next_words(examples.example(i), run.plan, run.special, -100)
        return torch.stack([1000 * wte[word] / wte[word].norm() for word in words])[None]

    with torch.no_grad(), monkeypatch.context() as patch:
        torch.manual_seed(0)
        wte.normal_()
        patch.setattr(run, "states", states)
        named = probe.results_named(run, examples, n_thoughts=5)
    for step in (1, 2):
        curve = {k: mean for k, mean, _, _ in named[f"result of step {step}"]}
        assert curve[step + 1] == 1, "thought k + 1 says what step k finds"
        assert max(mean for k, mean in curve.items() if k <= step) < 0.5
    probe.main(probe.ProbeConfig())
    numbers = json.loads(Path("runs/run/probe/probe.json").read_text())
    assert list(numbers["results"]) == [f"result of step {k}" for k in range(1, 6)]
    assert Path("runs/run/probe/results.png").exists()


def test_a_run_without_thoughts_is_refused(workspace):
    made()
    trained("--method=pause")
    with pytest.raises(UserError, match=r"run \(pause, stage 2\) has no thoughts to probe"):
        probe.main(probe.ProbeConfig())
