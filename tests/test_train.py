"""One run from question to answer: trains, remembers, saves, answers."""

import csv
import json
import math
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

import prepare
import sample
import train
from nanococonut import (
    batching,
    cli,
    coconut,
    curriculum,
    data,
    evaluate,
    optim,
    readout,
    runs,
    scoring,
    writer,
)
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig
from nanococonut.curriculum import METHODS
from nanococonut.model import GPT, GPTConfig


def prepared(*words):
    small = ["--train=32", "--valid=10", "--test=10", "--n_nodes=8", "--min_hops=2", "--max_hops=3"]
    prepare.main(cli.parse(prepare.PrepareConfig, [*small, *words]))


def parsed(*words):
    return cli.parse(TrainConfig, words, PRESETS, CHOICES)


def trained(*words):
    train.main(parsed("smoke", *words))


def answered(capsys, *words):
    capsys.readouterr()
    evaluate.main(cli.parse(evaluate.EvaluateConfig, words))
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def read_csv(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


@pytest.mark.parametrize("method", curriculum.METHODS)
def test_every_method_trains_evaluates_and_samples(workspace, capsys, method):
    prepared()
    trained(f"--method={method}", "--name=run")
    line = answered(capsys, "run")
    assert (line["run"], line["n"], line["chance"]) == ("run", 10, 0.5)
    n_thoughts = 2 if curriculum.METHODS[method].filler == "thought" else 0
    (result,) = line["results"]
    assert result["latent"] == n_thoughts
    assert result["low"] <= result["accuracy"] <= result["high"]
    assert result["tokens"] >= n_thoughts
    assert sum(n for _, n in result["hops"].values()) == 10
    sample.main(sample.SampleConfig())
    printed = capsys.readouterr().out
    assert printed.count("  thought ") == n_thoughts
    assert "expected" in printed or "right" in printed


def test_a_run_leaves_what_the_readme_promises(workspace, capsys):
    prepared()
    trained("--stage_steps=3,2,2", "--eval_every=1", "--log_every=1")
    printed = capsys.readouterr().out
    heading = "stage  steps  thoughts  pauses  chain removed\n"
    assert f"{heading}    0      3         0       0              0" in printed
    folder = Path("runs/prosqa-coconut")
    promised = {"config.json", "log.csv", "curves.png", "ckpt.pt", "best.pt"}
    assert {path.name for path in folder.iterdir()} == promised
    assert json.loads((folder / "config.json").read_text())["stage_steps"] == [3, 2, 2]
    rows = read_csv(folder / "log.csv")
    assert list(rows[0]) == ["step", "stage", "split", "metric", "value"]
    losses = [r for r in rows if r["metric"] == "loss"]
    expected = [(str(step), stage) for step, stage in enumerate("0001122", start=1)]
    assert [(row["step"], row["stage"]) for row in losses] == expected
    assert {r["metric"] for r in rows if r["split"] == "valid"} == {"accuracy"}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    state = torch.load(folder / "ckpt.pt", weights_only=True)
    assert (state["step"], state["stage"]) == (7, 2)
    trained("--stage_steps=1")
    assert Path("runs/prosqa-coconut-2/ckpt.pt").exists(), "a second run has its own folder"
    with pytest.raises(UserError, match="runs/prosqa-coconut exists"):
        trained("--name=prosqa-coconut")


def test_the_number_of_thoughts_is_the_checkpoints_and_latent_overrides_it(workspace, capsys):
    prepared()
    trained("--name=a", "--c_thought=2")
    assert [r["latent"] for r in answered(capsys, "a")["results"]] == [4]
    assert [r["latent"] for r in answered(capsys, "a", "--latent=0,2,4")["results"]] == [0, 2, 4]
    capsys.readouterr()
    with pytest.raises(
        UserError, match=r"\d+ tokens, but \d+ positions: ask for less, or train with --block_size="
    ):
        evaluate.main(evaluate.EvaluateConfig("a", latent="0,1,900"))
    assert capsys.readouterr().out == "", "refused before anything is printed"
    evaluate.main(evaluate.EvaluateConfig("a", latent="1"))
    assert "1 thoughts instead of the 4 of training" in capsys.readouterr().out
    trained("--name=b", "--method=cot")
    with pytest.raises(
        UserError,
        match="expected 0 or more, and a run with thoughts; b was trained with method cot",
    ):
        answered(capsys, "b", "--latent=2")


@pytest.mark.parametrize("options", [[], ["--augment=2", "--grow=3"]])
def test_same_seed_same_run_and_micro_batches_change_nothing(workspace, monkeypatch, options):
    prepared()
    monkeypatch.setattr(optim, "WARMUP", 2)
    monkeypatch.setattr(optim, "max_norm", lambda c: 1.0)
    words = ["--decay=0.5", "--stage_steps=3", *options]
    for name, more in {"a": [], "b": [], "c": ["--micro_batch_size=3"], "d": ["--seed=1"]}.items():
        trained(*words, f"--name={name}", *more)
    a, b, c, d = (torch.load(f"runs/{n}/ckpt.pt", weights_only=True)["model"] for n in "abcd")
    for name in a:
        assert torch.equal(a[name], b[name]), name
        torch.testing.assert_close(a[name], c[name], atol=2e-5, rtol=0)
    assert not torch.equal(a["wte.weight"], d["wte.weight"])


def test_a_batch_depends_on_seed_and_step_alone(workspace):
    prepared()
    split = data.Dataset("prosqa").split("train")
    draws = [
        split.draw(6, random.Random(f"{seed} {step}"), augment=True)
        for seed, step in ((0, 5), (0, 6), (0, 5), (1, 5))
    ]
    assert draws[0] == draws[2]
    assert draws[0] not in (draws[1], draws[3])


@pytest.mark.parametrize("muon_lr", [0.0, 0.005])
def test_every_parameter_is_in_one_optimizer(muon_lr):
    model = GPT(GPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=8))
    made = optim.make(model, TrainConfig(muon_lr=muon_lr))
    held = [id(p) for o in made for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(map(id, model.parameters()))
    assert len(made) == (2 if muon_lr else 1)


def test_each_optimizer_has_its_own_learning_rate(workspace):
    prepared()
    words = ["--save_every=1", "--max_stage=0", "--stage_steps=1", "--name=a"]
    trained("--lr=0.25", "--muon_lr=0.125", *words)
    state = torch.load("runs/a/ckpt.pt", weights_only=True)
    assert [o["param_groups"][0]["lr"] for o in state["optimizers"]] == [0.25, 0.125]


def test_the_optimizer_starts_anew_at_each_stage(workspace, monkeypatch):
    prepared()
    made = []
    real = optim.make
    monkeypatch.setattr(optim, "make", lambda *a: made.append(1) or real(*a))
    trained("--stage_steps=4,4,4", "--layout=paper")
    assert len(made) == 3
    made.clear()
    trained("--stage_steps=0,4,4", "--layout=in_place")
    assert len(made) == 1, (
        "in place the losses of the stages before stay, and so does the optimizer"
    )


def test_a_tiny_run_memorises_32_problems(workspace, capsys):
    prepared()
    words = ["--augment=0", "--stage_steps=150", "--max_stage=1", "--batch_size=32"]
    trained(*words, "--n_embd=64", "--lr=3e-3", "--init_from=lookup")
    line = answered(capsys, "--split=train")
    assert line["results"][0]["accuracy"] == 1.0
    rows = read_csv("runs/prosqa-coconut/log.csv")
    loss = [float(row["value"]) for row in rows if row["metric"] == "loss"]
    assert loss[-1] < 0.02 < 3 < loss[0]


def test_a_loss_that_is_not_finite_stops_the_run(workspace, monkeypatch, capsys):
    prepared()
    real = coconut.forward
    monkeypatch.setattr(
        coconut, "forward", lambda m, b: real(m, b)._replace(loss=real(m, b).loss * math.nan)
    )
    found = "loss is nan and the gradient norm nan at step 1, stage 0, lr 0.001"
    with pytest.raises(UserError, match=f"{found}; .*no checkpoint yet"):
        trained()
    own_line = "the bar is closed, so the message gets a line of its own"
    assert capsys.readouterr().err.endswith("\n"), own_line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--task=nothing"],
            "data/nothing not found; there is: prosqa; "
            "or run: python prepare.py prosqa --name=nothing",
        ),
        (["--task=../x"], "is not a name for data/"),
        (["--name=a/b"], "is not a name for runs/"),
        (["--block_size=16"], "--block_size=16 is too short"),
        (["--method=magic"], "unknown method 'magic', choose from cot, "),
        (["--stage_steps=0"], "--stage_steps=0 should be"),
        (["--stage_steps=5,-1"], "--stage_steps=5,-1 should be"),
        (["--batch_size=0"], "--batch_size=0 should be"),
        (["--n_head=5"], "--n_embd=32 should be a multiple of --n_head=5"),
        (["--decay=1.5"], "--decay=1.5 should be"),
        (["--augment=-1"], "--augment=-1 should be from 0 to 1000"),
        (["--augment=1001"], "--augment=1001 should be from 0 to 1000"),
        (["--augment=3"], "--augment=3 should be a divisor of --batch_size=8"),
        (["--augment=true"], "--augment=true is not a whole number"),
        (["--grow=1", "--augment=0"], "--grow=1 should be 0 with --augment=0"),
        (["--grow=-1"], "--grow=-1 should be steps, or steps,percent like 4000,20"),
        (["--grow=5,101"], "--grow=5,101 should be steps, or steps,percent like 4000,20"),
        (["--grow=5,20,5"], "--grow=5,20,5 should be steps, or steps,percent like 4000,20"),
        (["--threads=2"], "unknown option --threads=2, "),
        (
            ["--extra_stage=true", "--layout=in_place"],
            "--extra_stage=true should be false with --layout=in_place",
        ),
        (["--grow=9,20", "--augment=0"], "--grow=9,20 should be 0 with --augment=0"),
        (["--lr=-1"], "--lr=-1.0 should be"),
        (["--dropout=1"], "--dropout=1.0 should be"),
    ],
)
def test_mistakes(workspace, words, message):
    prepared()
    with pytest.raises(UserError) as error:
        trained(*words)
    assert message in str(error.value)
    assert not Path("runs").exists()


def test_mistakes_of_evaluate_and_sample(workspace, capsys):
    with pytest.raises(
        UserError, match=r"runs/a not found; there is: none yet; run: python train\.py"
    ):
        runs.Run("a")
    assert runs.Run("").folder.name == "prosqa", "without a run the shipped model answers"
    prepared()
    trained("--name=a")
    for name, message in {"b": "runs/b not found; there is: a", "../a": "not found"}.items():
        with pytest.raises(UserError, match=message):
            runs.Run(name)
    for name in ("coconut-laptop", "cot-laptop", "z"):
        shutil.copytree("runs/a", f"runs/{name}")
    with pytest.raises(
        UserError, match=r"runs/coconut-laptob not found; there is: coconut-laptop, cot-laptop$"
    ):
        runs.Run("coconut-laptob")
    for file in ("best.pt", "ckpt.pt"):
        Path("runs/z", file).unlink(missing_ok=True)
    with pytest.raises(
        UserError, match=r"runs/z has no checkpoint yet: wait for one, or .* --resume=true"
    ):
        runs.Run("z")
    for name in ("coconut-laptop", "cot-laptop", "z"):
        shutil.rmtree(f"runs/{name}")
    with pytest.raises(UserError, match="test has questions 0 to 9"):
        sample.main(sample.SampleConfig(index=10))
    with pytest.raises(UserError, match=r"tokens, but \d+ positions"):
        sample.main(sample.SampleConfig(question="Tom is a lempus. " * 99))
    state = torch.load("runs/a/best.pt", weights_only=True)
    state["config"]["aligned"] = True  # it had one thought more than today's plan would give it
    torch.save(state, "old.pt")
    with pytest.raises(
        UserError, match=r"old\.pt holds neither .* it needs --aligned, an option of earlier"
    ):
        runs.Run("old.pt")
    Path("runs/a/best.pt").write_bytes(Path("runs/a/best.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"best\.pt holds neither a run nor GPT-2"):
        runs.Run("a")


def test_a_thought_in_place_says_the_next_word(workspace, monkeypatch):
    """A tiny model learns on chains alone: its first thought is the person."""
    prepared()
    monkeypatch.setattr(optim, "WARMUP", 10)
    words = ["--layout=in_place", "--stage_steps=150,60,60,200", "--max_stage=3"]
    words += ["--batch_size=32", "--n_embd=64", "--init_from=lookup"]
    words += ["--lr=3e-3", "--muon_lr=5e-3", "--decay=0.3"]
    trained(*words, "--grow=100000", "--name=run")
    run = runs.Run("run")
    assert run.plan.in_place and run.plan.n_thoughts == 3
    n_right = 0
    for group in run.split("train").draw(32, random.Random(0), augment=True, keep=0.0):
        (example,) = group.examples
        (((word, _),),) = readout.words(run, run.thoughts(example, 1), 1)
        n_right += word == run.encoding.decode(example.rests[0][:1]).strip()
    assert n_right > 0.9 * 32, "on bare graphs; it has seen no longer question"
    log_rows = read_csv(Path("runs/run/log.csv"))
    following = [float(r["value"]) for r in log_rows if r["metric"] == "next_word_loss"]
    assert following[-1] < 0.8 < 2 < following[0]


def test_thinking_ends_when_the_head_says_so(workspace, monkeypatch):
    prepared()
    trained("--name=a", "--c_thought=2", "--stage_steps=1", "--max_stage=3")
    run = runs.Run("a")
    examples = [run.split("test").example(i) for i in range(3)]
    name = run.split("test").rows[0]["idx_to_symbol"][-1]
    (ends,) = run.encoding.encode_ordinary(f"{name}.\n### ")
    said = torch.full((3, 13, run.encoding.n_vocab), -1.0)
    said[0, 3, ends] = 1  # after three thoughts, but only every second one is asked
    said[0, 4, ends] = said[1, 0, ends] = said[1, 6, ends] = 1
    with monkeypatch.context() as here:
        here.setattr(run, "states", lambda rows, n: said[:, : n + 1])
        here.setattr(run.model, "logits", lambda states: states)
        plans = run.plans_for(examples, "auto")
        assert [plan.n_thoughts for plan in plans] == [6, 2, 12], "at most twice as many"
    with pytest.raises(
        UserError, match=r"\d+ tokens, but \d+ positions: ask for less, or train with --block_size="
    ):
        run.plans_for([examples[0]._replace(question=examples[0].question * 20)], "auto")
    with pytest.raises(UserError, match="--latent=x: expected a number of thoughts, or auto"):
        run.plans_for(examples, "x")
    for name, words in {"b": ["--layout=paper"], "c": ["--method=no_curriculum"]}.items():
        trained(f"--name={name}", "--stage_steps=1", *words)
        with pytest.raises(
            UserError, match=f"--latent=auto: {name} was not trained to say when its thoughts end"
        ):
            runs.Run(name).plans_for(examples, "auto")
    evaluate.main(cli.parse(evaluate.EvaluateConfig, ["a", "--latent=2,auto"]))
    with pytest.raises(UserError, match="--latent=auto goes with the thoughts themselves"):
        words = ["a", "--latent=auto", "--intervene=zero"]
        evaluate.main(cli.parse(evaluate.EvaluateConfig, words))


@pytest.mark.parametrize("name", ["prosqa", "read"])
@pytest.mark.parametrize(("fair", "least"), [("true", 3), ("false", 1)])
def test_fair_problems_get_no_short_random_questions(workspace, monkeypatch, name, fair, least):
    made = ["--train=32", "--valid=10", "--test=10", "--n_nodes=16", f"--fair={fair}"]
    for words in ([*made, "--max_hops=4"], ["prosqa", "--source=data/prosqa", "--name=read"]):
        prepare.main(cli.parse(prepare.PrepareConfig, words))
    seen = []
    monkeypatch.setattr(data.prosqa, "ask", lambda row, people, rng, n: seen.append(n) or row)
    c = parsed("smoke", "--augment=2", "--batch_size=32")
    dataset = data.Dataset(name)
    schedule = batching.Schedule(c, dataset.meta["longest"])
    batching.draw_batch(c, dataset.split("train"), schedule, dataset.special, schedule.total - 1)
    assert set(seen) == {least}, "whether they are fair is seen in the problems themselves"


def test_graphs_grow_in_the_last_stage_and_then_get_more_questions(workspace, monkeypatch):
    prepared()
    seen, real = [], data.Split.draw

    def noting(self, n, rng, augment, **how):
        seen.append(dict(augment=augment, **how))
        return real(self, n, rng, augment, **how)

    monkeypatch.setattr(data.Split, "draw", noting)
    dataset = data.Dataset("prosqa")
    problems = dataset.split("train")

    def drawn(step, *words):
        """A batch, and how its problems were drawn."""
        c = parsed("smoke", *words)
        schedule = batching.Schedule(c, dataset.meta["longest"])
        return batching.draw_batch(c, problems, schedule, dataset.special, step), seen[-1]

    for step in range(6):
        drawn(step, "--augment=2", "--stage_steps=2,4", "--grow=2,20")
    assert [how["keep"] for how in seen] == pytest.approx([0.2, 0.2, 0.2, 0.6, 1, 1])
    assert [how.get("questions", 1) for how in seen] == [1, 1, 1, 1, 2, 2]
    assert {how["least"] for how in seen} == {1}
    assert {how["reask"] for how in seen} == {batching.RANDOM_QUESTIONS} == {0.5}

    _, how = drawn(5, "--stage_steps=2,4,0", "--grow=2")
    assert how["keep"] == 1, "the last stage that has steps"
    assert how["reask"] == 0, "with one question a graph none is replaced"
    _, how = drawn(0, "--stage_steps=2,4,0", "--grow=2")
    assert how["keep"] == 0, "without a percentage nothing off the chains"

    for n, n_prompts in {0: 8, 1: 8, 2: 4}.items():
        batch, how = drawn(0, f"--augment={n}", "--stage_steps=2,4")
        assert len(batch.suffix) == 8 and len(batch.prompt) == n_prompts
        assert how["augment"] == (n > 0), "0: as in the file"


@pytest.mark.parametrize("method", [m for m, row in METHODS.items() if row.filler is None])
def test_in_place_bot_is_asked_for_the_first_word(workspace, method):
    prepared()
    dataset = data.Dataset("prosqa")
    for layout in ("in_place", "paper"):
        c = parsed("smoke", f"--method={method}", f"--layout={layout}")
        schedule = batching.Schedule(c, dataset.meta["longest"])
        for step in range(schedule.total):
            batch = batching.draw_batch(c, dataset.split("train"), schedule, dataset.special, step)
            ends = batch.prompt[range(8), batch.prompt_len - 1]
            is_bot = ends == dataset.special["bot"]
            assert batch.n_thoughts == 0
            if layout == "paper":
                assert batch.next_words is None and not is_bot.any()
                continue
            assert is_bot.all()
            assert torch.equal(batch.next_words, batch.suffix[:, :1])
            assert batch.n_read == 0


@pytest.mark.parametrize(("layout", "step", "shown"), [("in_place", 6, 0.4), ("paper", 2, 0.9)])
def test_the_last_weights_answer_in_place_and_the_best_in_the_papers_layout(
    workspace, monkeypatch, capsys, layout, step, shown
):
    prepared()
    accuracies = iter([0.9, 0.5, 0.4])
    monkeypatch.setattr(runs, "accuracy", lambda *_: next(accuracies))
    words = ["--max_stage=0", "--stage_steps=6", "--eval_every=2", f"--layout={layout}"]
    trained(*words, "--name=run")
    state = torch.load("runs/run/best.pt", weights_only=True)
    assert (state["step"], state["best"]) == (step, shown)
    assert f"{shown:.1%} of valid right" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["cot", "no_thought", "coconut"])
def test_a_row_that_was_trained_without_bot_is_refused(workspace, method):
    prepared()
    trained(f"--method={method}", "--name=run")
    state = torch.load("runs/run/best.pt", weights_only=True)
    state["config"]["reask"] = 0.0  # an option from before every row had its <bot>
    torch.save(state, "earlier.pt")
    if method == "coconut":
        assert runs.Run("earlier.pt").config["method"] == method, "it had <bot> then too"
    else:
        with pytest.raises(UserError, match="it was trained without <bot>; train it anew"):
            runs.Run("earlier.pt")


def test_a_stage_in_place_reads_its_own_rest_or_an_earlier_ones():
    rng = random.Random(0)
    drawn = Counter(batching.stage_of_suffix(3, rng) for _ in range(3000))
    assert set(drawn) == {0, 1, 2, 3} and abs(drawn[3] / 3000 - 0.6) < 0.04
    assert all(abs(drawn[s] / 3000 - 0.4 / 3) < 0.03 for s in (0, 1, 2))
    assert {batching.stage_of_suffix(0, rng) for _ in range(9)} == {0}


@pytest.mark.parametrize("preset", ["laptop", "prosqa", "prontoqa", "arithmetic", "gpt2"])
def test_the_rows_of_a_preset_are_eight_different_trainings(preset):
    plans = {}
    for method in METHODS:
        c = parsed(preset, f"--method={method}")
        schedule = batching.Schedule(c, dict(question=90, chain=8, rest=10))
        assert schedule.ends[-1] == sum(c.schedule)
        assert min(c.schedule) > 0, "every stage is trained"
        of_stages = [schedule.plan(stage, 0.5) for stage in range(len(schedule.n_steps))]
        plans[method] = (tuple(schedule.n_steps), *of_stages)
    assert len(set(plans.values())) == 8


@pytest.mark.parametrize("option", ["--augment=4", "--grow=5", "--grow=5,20"])
def test_options_on_graphs_need_graphs(workspace, option):
    lines = [f"What is {n} + 2?||<<{n}+2={n + 2}>> #### {n + 2}" for n in range(30)]
    Path("some.txt").write_text("\n".join(lines))
    prepare.main(cli.parse(prepare.PrepareConfig, ["gsm8k", "--source=some.txt"]))
    off = "--augment=1" if "augment" in option else "--grow=0"
    with pytest.raises(
        UserError, match=f"row 0 of data/gsm8k tells no graph that they could use: add {off}$"
    ):
        trained("--task=gsm8k", option)
    assert not Path("runs").exists()


def test_a_run_that_was_never_evaluated_answers_from_its_last_checkpoint(workspace, capsys):
    prepared()
    trained("--name=a")
    Path("runs/a/best.pt").unlink()
    assert answered(capsys, "a")["n"] == 10
    sample.main(sample.SampleConfig("a"))
    remark = "has no best.pt, which its first evaluation writes: using its ckpt.pt"
    assert f"a {remark}" in capsys.readouterr().out
    trained("--name=b")
    runs.Run("runs/b/ckpt.pt")  # it was evaluated, and its last state is asked for
    assert remark not in capsys.readouterr().out


def test_the_newest_run_is_the_one_trained_last(workspace):
    prepared()
    trained("--name=old")
    trained("--name=new")
    os.utime("runs/old", (2e9, 2e9))  # as a probe does, which makes a folder there
    assert runs.Run("").folder.name == "new"
    os.utime("runs/old/log.csv", (2e9, 2e9))  # as training does that goes on
    assert runs.Run("").folder.name == "old"


def test_evaluation_takes_no_more_at_once_than_training(workspace, monkeypatch):
    prepared()
    seen, real = [], coconut.generate
    monkeypatch.setattr(
        coconut,
        "generate",
        lambda model, prompt, *a, **how: seen.append(len(prompt)) or real(model, prompt, *a, **how),
    )
    trained("--name=a", "--micro_batch_size=3")
    assert max(seen) == 3 and sum(seen) == 3 * 10, "ten problems of valid in each of three stages"
    seen.clear()
    trained("--name=b")
    assert seen == [10] * 3


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--layout=paper", "--muon_lr=0"],
        ["laptop", "--augment=1", "--seed=3"],
        ["--grow=30,5", "--stage_steps=1,2"],
    ],
)
def test_the_settings_printed_are_those_of_the_run(capsys, words):
    c = parsed(*words)
    cli.print_resolved(c, PRESETS[c.preset])
    name, *printed = capsys.readouterr().out.split()
    assert name == "settings:" and parsed(*printed) == c


def test_lookup_takes_an_odd_number_of_channels(workspace):
    prepared()
    trained("--init_from=lookup", "--n_embd=33", "--n_head=1", "--stage_steps=1", "--max_stage=0")


def test_longer_chains_than_any_in_training_get_room(workspace, capsys):
    prepared()
    trained("--method=cot", "--name=a")
    run = runs.Run("a")
    example = run.split("test").example(0)
    longest = max(len(rest) for i in range(10) for rest in run.split("test").example(i).rests)
    long = example._replace(rests=[example.rests[0] * 7, *example.rests[1:]])
    assert len(long.rests[0]) > longest + 8
    with torch.no_grad():  # a model that never ends: all logits are equal, and 0 is no <eos>
        run.model.wte.weight.zero_()
    (answer,) = run.answer([long], run.plan)
    assert len(answer.ids) == len(long.rests[0]) + 1
    capsys.readouterr()
    endless = example._replace(rests=[example.rests[0] * 400, *example.rests[1:]])
    run.answer([endless, example], run.plan)
    cut = "1 of 2 answers are cut: their chains are longer than the model has positions for"
    assert cut in capsys.readouterr().out


def test_a_presets_options_for_prosqa_are_refused_on_prontoqa(workspace):
    words = ["prontoqa", "--train=20", "--valid=4", "--test=4"]
    prepare.main(cli.parse(prepare.PrepareConfig, words))
    words = ["laptop", "--task=prontoqa", "--stage_steps=1", "--max_stage=1"]
    words += ["--batch_size=4", "--name=a"]
    said = "row 0 of data/prontoqa tells no graph that they could use: add --augment=1$"
    with pytest.raises(UserError, match=said):
        train.main(parsed(*words))
    train.main(parsed(*words, "--augment=1"))
    kept = json.loads(Path("runs/a/config.json").read_text())
    assert kept["grow"][0] > 0, "ProntoQA's graphs can grow"


class Evil:
    def __reduce__(self):
        return (Path("owned").touch, ())


def test_a_checkpoint_that_carries_code_is_refused_and_does_not_run(workspace):
    prepared()
    trained("--name=a")
    torch.save({"model": Evil()}, "runs/a/best.pt")
    with pytest.raises(UserError, match="holds neither a run nor GPT-2"):
        runs.Run("a")
    assert not Path("owned").exists()


def test_a_question_of_ones_own(workspace, capsys):
    prepared()
    trained("--name=a")
    question = "Tom is a lempus. Max is a impus. Is Tom a impus or lempus?"
    sample.main(sample.SampleConfig(question=question, latent="1"))
    printed = capsys.readouterr().out
    assert "1 thoughts instead of the 2 of training" in printed
    assert "Is Tom a impus or lempus?" in printed
    assert "(norm " in printed


def test_scoring():
    row = {"question": "Tom is a lempus. Is Tom a x or y?", "steps": ["Tom is a lempus."]}
    row["answer"] = "Tom is a rempus."
    assert scoring.is_right("Tom is a lempus.\n### Tom is a rempus.", row)
    assert not scoring.is_right("### Tom is a lempus.", row)
    assert scoring.is_right("### 1,000", {"answer": "1000"})
    low, high = scoring.wilson(0, 50)
    assert low == 0 < high < 0.08


def test_a_stage_that_is_learned_leaves_its_steps_to_the_last(workspace, monkeypatch):
    prepared()
    words = ["--log_every=5", "--stage_steps=60,30,30", "--max_stage=2", "--save_every=7"]
    monkeypatch.setattr(writer, "LEARNED", 1000)
    trained(*words, "--name=a")

    def stages(name):
        rows = [row for row in read_csv(f"runs/{name}/log.csv") if row["metric"] == "loss"]
        return {stage: max(int(r["step"]) for r in rows if r["stage"] == stage) for stage in "012"}

    assert stages("a") == {"0": 20, "1": 40, "2": 120}, (
        "it is looked at after every 20 steps of a stage"
    )
    assert torch.load("runs/a/ckpt.pt", weights_only=True)["n_steps"] == [20, 20, 80]
    monkeypatch.setattr(writer, "LEARNED", 0.0001)
    trained(*words, "--name=b")
    assert stages("b") == {"0": 60, "1": 90, "2": 120}, (
        "never learned: the steps are as many as given"
    )
    monkeypatch.setattr(writer, "LEARNED", 1000)
    trained("--log_every=5", "--stage_steps=40,40,0", "--name=c")
    assert torch.load("runs/c/ckpt.pt", weights_only=True)["n_steps"] == [20, 60, 0], (
        "none for a stage without any"
    )
    accuracies = [row for row in read_csv("runs/a/log.csv") if row["metric"] == "accuracy"]
    assert [row["step"] for row in accuracies] == ["20", "40", "120"], (
        "each stage is evaluated when it ends"
    )
    trained(*words, "--layout=paper", "--name=d")
    assert stages("d") == {"0": 60, "1": 90, "2": 120}, "in the paper's layout none ends early"


def test_an_early_stage_is_learned_at_015_nats():
    assert writer.LEARNED == 0.15


def test_more_thoughts_than_any_model_has_positions_for():
    model = GPT(GPTConfig(10, block_size=16, n_layer=1, n_head=1, n_embd=8))
    with pytest.raises(
        UserError, match=r"17 tokens, but 16 positions: ask for less, or train with --block_size=17"
    ):
        runs.demand_room(model, 17)
    with pytest.raises(
        UserError,
        match=r"100001 tokens, but 16 positions, and 100000 are the most that a model can have",
    ):
        runs.demand_room(model, 100_001)
