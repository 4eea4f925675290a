"""The table of mistakes: what is typed, and what it must give."""

import dataclasses
import inspect

import pytest

from nanococonut import cli
from nanococonut.cli import UserError
from nanococonut.config import CHOICES, PRESETS, TrainConfig


@dataclasses.dataclass(frozen=True)
class Example:
    """An example of a configuration."""

    # --- start ---
    # where to start
    preset: str = "a"
    # how fast
    lr: float = 0.0001
    # what to ask
    question: str = ""

    # --- steps and such ---
    # whether to compile
    compile: bool = True
    # steps per stage,
    # one after the other
    stage_steps: tuple[int, ...] = (5,)
    # where randomness starts
    seed: int = 0


def parse(*words):
    return cli.parse(Example, words, presets={"a": {}, "b": {"lr": 0.5, "seed": 3}})


@pytest.mark.parametrize(
    "words, field, value",
    [
        (["--lr=1"], "lr", 1.0),
        (["--question=a=b"], "question", "a=b"),
        (["--compile=false"], "compile", False),
        (["--lr", "3e-4"], "lr", 0.0003),
        (["--stage_steps=2000,500,500"], "stage_steps", (2000, 500, 500)),
        (["--stage_steps=20"], "stage_steps", (20,)),
        (["--seed=-1"], "seed", -1),
        (["--question="], "question", ""),
        (["b"], "lr", 0.5),
        (["b", "--lr=2"], "lr", 2.0),
        (["--preset=b"], "seed", 3),
        (["-seed=3"], "seed", 3),
        ([], "lr", 0.0001),
    ],
)
def test_values(words, field, value):
    actual = getattr(parse(*words), field)
    assert actual == value and type(actual) is type(value)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--stage_step=5"], "unknown option --stage_step=5, did you mean --stage_steps=... ?"),
        (["--lr"], "--lr needs a value, like --lr=0.0001"),
        (["--lr", "--seed=1"], "--lr needs a value, like --lr=0.0001"),
        (["--lr=1", "--lr=2"], "--lr is given twice"),
        (["--lr=fast"], "--lr=fast is not a number"),
        (["--seed=1.5"], "--seed=1.5 is not a whole number"),
        (["--compile=maybe"], "--compile=maybe is not true or false"),
        (["--stage_steps=5,x"], "--stage_steps=5,x is not numbers like 20 or 20,5,5"),
        (["nope"], "unknown preset 'nope', choose from a, b"),
        (["a", "b"], "--preset is given twice"),
        (["-x"], "unknown option -x, see --help"),
        (["-lrs=1"], "unknown option -lrs=1, did you mean --lr=... ?"),
        (["--zzz=1"], "unknown option --zzz=1, see --help"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UserError) as error:
        parse(*words)
    assert str(error.value).startswith(message)


def test_unknown_preset_of_train_names_the_real_ones():
    with pytest.raises(UserError, match=f"unknown preset 'nope', choose from {', '.join(PRESETS)}"):
        cli.parse(TrainConfig, ["nope"], PRESETS, CHOICES)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name):
    c = cli.parse(TrainConfig, [name], PRESETS, CHOICES)
    assert c.preset == name and c.n_embd % c.n_head == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_help_has_the_docstring_and_each_fields_value_in_the_preset(capsys, preset):
    is_default = preset == TrainConfig.preset
    with pytest.raises(SystemExit) as end:
        words = ["--help"] if is_default else [preset, "--help"]
        cli.parse(TrainConfig, words, PRESETS, CHOICES)
    printed = capsys.readouterr().out
    assert end.value.code == 0
    assert printed.startswith(inspect.cleandoc(TrainConfig.__doc__) + "\n")
    lines = printed.splitlines()
    c = cli.parse(TrainConfig, [preset], PRESETS, CHOICES)
    for field in dataclasses.fields(TrainConfig):
        option = f"  --{field.name}={cli.written(getattr(c, field.name))}"
        (line,) = [line for line in lines if line.startswith(f"  --{field.name}=")]
        assert line.startswith(option)
        assert line.removeprefix(option).strip(), f"{field.name} has no comment"


def test_help_shows_the_comment_above_each_field_and_the_headings(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    assert capsys.readouterr().out.splitlines() == [
        "An example of a configuration.",
        "",
        "start",
        "  --preset=a                  where to start [a, b]",
        "  --lr=0.0001                 how fast",
        "  --question=                 what to ask",
        "",
        "steps and such",
        "  --compile=true              whether to compile",
        "  --stage_steps=5             steps per stage, one after the other",
        "  --seed=0                    where randomness starts",
    ]


def test_a_users_mistake_is_one_line_and_exit_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--lr=x"])
    with pytest.raises(SystemExit) as end:
        cli.run(lambda c: None, TrainConfig, PRESETS, CHOICES)
    assert end.value.code == 2
    assert capsys.readouterr().err == "train.py: --lr=x is not a number\n"


def test_a_value_is_written_as_one_would_type_it():
    assert [cli.written(value) for value in ((2000, 500), True, 0.0001)] == [
        "2000,500",
        "true",
        "0.0001",
    ]
