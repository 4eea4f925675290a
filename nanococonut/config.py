"""From a frozen dataclass to --key=value, and the settings of a training run.

A setting is one line: name, type, default, and a comment that is also its line in --help, so the help cannot drift from
the code. The first field of a class may be given as a bare word: `python train.py smoke --lr=1e-3`.
"""

import dataclasses
import difflib
import inspect
import io
import re
import sys

from nanococonut.curriculum import METHODS


class UserError(Exception):
    """A mistake of the user's. Its text is the one line they see: what was expected, and what to type instead."""


def run(main, config_class, presets=None, choices=None) -> None:
    """Parses the command line, calls main(config), and turns a UserError into one line on stderr and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows ? for what it cannot show
    try:
        main(parse(config_class, sys.argv[1:], presets, choices))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `python sample.py | head`
        sys.stderr.close()
        raise SystemExit(0) from None
    except (UserError, OSError) as error:  # OSError: a full disk, a folder one may not write to
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def parse(config_class, argv, presets=None, choices=None):
    """An instance of config_class from command line words: defaults, then the preset, then what was typed.

    presets  name -> {field: value}; the first field then names one of them
    choices  field -> the values it may take
    Raises UserError for a mistake and SystemExit(0) after --help.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    first = next(iter(fields))
    choices = (choices or {}) | ({first: tuple(presets)} if presets else {})
    if "--help" in argv or "-h" in argv:
        print(help_text(config_class, choices))
        raise SystemExit(0)
    given, words = {}, iter(argv)
    for word in words:
        name, equals, text = word.lstrip("-").partition("=")
        if not word.startswith("-"):
            name, text = first, word
        elif name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(f"unknown option {word}, {f'did you mean --{near[0]}=... ?' if near else 'see --help'}")
        elif not equals:
            text = next(words, "--")  # the word that follows, as in --lr 3e-4
            if text.startswith("--"):
                raise UserError(f"--{name} needs a value, like --{name}={written(fields[name].default)}")
        if name in given:
            raise UserError(f"--{name} is given twice")
        given[name] = value_of(name, text, fields[name].type)
        if name in choices and given[name] not in choices[name]:
            raise UserError(f"unknown {name} {text!r}, choose from {', '.join(choices[name])}")
    preset = presets[given.get(first, fields[first].default)] if presets else {}
    return config_class(**(preset | given))


def value_of(name, text, kind):
    """The text after --name= as a value of its type. Raises UserError.

    >>> value_of("lr", "1", float), value_of("compile", "false", bool), value_of("stage_steps", "20,5", tuple[int, ...])
    (1.0, False, (20, 5))
    """
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return tuple(map(int, text.split(","))) if kind == tuple[int, ...] else kind(text)
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}
        raise UserError(f"--{name}={text} is not {wanted.get(kind, 'numbers like 20 or 20,5,5')}") from None


def written(value) -> str:
    """A value as one would type it.

    >>> written((2000, 500)), written(True), written(0.0001)
    ('2000,500', 'true', '0.0001')
    """
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def demand(c, names: str, fits, wanted: str) -> None:
    """Raises UserError for the first of the fields named, in one string, whose value does not fit."""
    for name in names.split():
        if not fits(getattr(c, name)):
            raise UserError(f"--{name}={written(getattr(c, name))} should be {wanted}")


def help_text(config_class, choices) -> str:
    """The class docstring and one line per field: its default, its own comment, what it may be."""
    comments = dict(re.findall(r"^    (\w+): .+  # (.+)$", inspect.getsource(config_class), re.MULTILINE))
    lines = [inspect.cleandoc(config_class.__doc__), ""]
    for field in dataclasses.fields(config_class):
        options = f" [{', '.join(choices[field.name])}]" if field.name in choices else ""
        lines.append(f"  --{field.name}={written(field.default)}".ljust(28) + f"  {comments[field.name]}{options}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """python train.py [PRESET] [--option=value ...]: trains a GPT-2 through the latent curriculum into runs/<name>/."""

    preset: str = "laptop"  # the settings to start from
    task: str = "prosqa"  # which data/<task>/ to train on
    name: str = ""  # run's folder under runs/; default: task-method, numbered where that exists
    method: str = "coconut"  # row of the paper's Table 1
    seed: int = 0  # of weights, batches and dropout
    stage_steps: tuple[int, ...] = (700,)  # optimizer steps per stage 0..max_stage; one number serves every stage
    max_stage: int = 6  # last stage, where one stage_steps serves all
    c_thought: int = 1  # thoughts for each removed step
    aligned: bool = False  # thoughts begin as the chain's own tokens: <bot> as a copy of <eot>, and one filler more
    extra_stage: bool = False  # a last stage with no steps left and no more thoughts, as in the paper's GSM8k
    mix: float = 0.0  # probability that a batch comes from an earlier stage
    longer: float = 0.0  # probability that a batch is of chains with steps left to write, as long as there are any
    augment: bool = True  # tell each ProsQA problem anew whenever it is drawn: names, facts' order, options' order
    hard: float = 0.0  # share of problems told anew whose false option is as far from every person as there is one
    grow: int = 0  # steps over which the facts beside the chain grow from none to all
    batch_size: int = 128  # examples per optimizer step
    micro_batch_size: int = 0  # examples in memory at once; 0: batch_size
    lr: float = 0.0001  # AdamW's learning rate
    first_lr: float = 0.0  # AdamW's in stage 0; 0: lr there too
    muon_lr: float = 0.0  # Muon's, on the blocks' matrices; 0: AdamW there too
    first_muon_lr: float = 0.0  # Muon's in stage 0; 0: muon_lr there too
    beta2: float = 0.999  # AdamW's
    weight_decay: float = 0.01  # of both optimizers, on all parameters
    warmup: int = 0  # steps of linear warm-up at the start of each stage
    decay: float = 0.0  # share of each stage, at its end, over which the learning rates fall to zero
    grad_clip: float = 0.0  # largest gradient norm; 0: no clipping
    n_layer: int = 12  # blocks
    n_head: int = 12  # attention heads per block
    n_embd: int = 768  # channels
    block_size: int = 0  # positions; 0: what the data needs
    dropout: float = 0.1  # in embeddings, attention and both residual branches
    init_from: str = ""  # weights to start from, with their sizes: gpt2, gpt2-medium, a run or a file; empty: random
    init: str = "gpt2"  # where training starts: GPT-2's normal draw, or lookup (see model.GPT)
    init_std: float = 0.02  # standard deviation of the first weights
    device: str = "auto"  # where to train; auto: cuda, else mps, else cpu
    dtype: str = "auto"  # of the arithmetic; parameters stay float32. auto: bfloat16 on cuda, float32 elsewhere
    compile: str = "auto"  # torch.compile for the blocks; auto: on cuda with a working Triton
    log_every: int = 20  # steps between lines of log.csv
    eval_every: int = 0  # steps between accuracies on valid; 0: at each stage's end alone
    save_every: int = 500  # steps between checkpoints
    resume: bool = False  # go on with the run --name from its last checkpoint

    @property
    def schedule(self) -> list[int]:
        """Steps of each stage 0..max_stage."""
        return list(self.stage_steps) * (self.max_stage + 1 if len(self.stage_steps) == 1 else 1)

    def __post_init__(self):
        demand(self, "batch_size n_layer n_head n_embd c_thought", lambda n: 1 <= n <= 10**5, "from 1 to 100000")
        demand(self, "log_every save_every", lambda x: x >= 1, "at least 1")
        sizes = "seed micro_batch_size warmup grow eval_every lr first_lr muon_lr first_muon_lr weight_decay grad_clip"
        demand(self, f"{sizes} init_std", lambda x: 0 <= x <= 1e9, "from 0 to 1e9")
        demand(self, "max_stage block_size", lambda x: 0 <= x <= 10**5, "from 0 to 100000")
        demand(self, "mix longer hard decay dropout beta2", lambda x: 0 <= x < 1, "at least 0 and below 1")
        demand(self, "stage_steps", lambda n: min(n) >= 0 and 1 <= sum(n) <= 10**9, "0 or more each, 1 to 1e9 in all")
        demand(self, "n_embd", lambda n: n % self.n_head == 0, f"a multiple of --n_head={self.n_head}")


# What each preset changes. What it was measured to reach stands in RESULTS.md.
FROM_SCRATCH = dict(
    **dict(n_layer=2, n_head=4, n_embd=128, dropout=0.0, init="lookup", init_std=0.08, batch_size=64, mix=0.2),
    **dict(first_lr=5e-3, lr=2e-3, muon_lr=5e-3, beta2=0.99, warmup=100, decay=0.4, grad_clip=1.0, eval_every=400),
)
RELEASED = FROM_SCRATCH | dict(
    **dict(stage_steps=(7000, 1000, 1500, 1500, 1000, 500, 11500), grow=2000, mix=0.3, longer=0.9, aligned=True),
    **dict(hard=0.6, lr=1e-3, muon_lr=2e-3, first_muon_lr=5e-3, decay=0.6),
)
PRESETS = {
    # any machine, a second: a model too small to learn, for tests
    "smoke": dict(n_layer=2, n_head=2, n_embd=32, stage_steps=(4,), max_stage=2, batch_size=8, lr=1e-3, dropout=0.0),
    # two CPU cores, 7 minutes: 95 to 99 % of test right on data/prosqa-small (10 nodes, 3 and 4 hops)
    "laptop": FROM_SCRATCH | dict(stage_steps=(1500, 900, 1500, 1200, 1400), grow=700),
    # one of two CPU cores, 54 minutes: 88 % of test right on data/prosqa, the released size (one seed)
    "cpu-prosqa": RELEASED,
    # one CUDA GPU, the same with a wider model and four times the batch: not measured on a GPU yet
    "gpu": RELEASED | dict(n_head=8, n_embd=256, init_std=0.06, batch_size=256),
    # one CUDA GPU, the paper's recipe for ProsQA (5 epochs a stage, the last to epoch 50): 97 there, not measured here
    "gpt2": dict(init_from="gpt2", stage_steps=(700, 700, 700, 700, 700, 700, 2800), augment=False),
}
CHOICES = {"method": tuple(METHODS), "init": ("gpt2", "lookup")}
CHOICES |= {"dtype": ("auto", "float32", "bfloat16"), "compile": ("auto", "true", "false")}


def print_resolved(c) -> None:
    """Every setting of a run on one line each, those that differ from the class's defaults marked."""
    for field in dataclasses.fields(c):
        value = getattr(c, field.name)
        mark = "" if value == field.default else f"  * default {written(field.default) or 'empty'}"
        print(f"  {field.name} = {written(value)}{mark}")
