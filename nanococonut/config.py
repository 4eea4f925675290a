"""Reads a command line into a dataclass: --key=value, or a bare word for the first field, as in `train.py smoke`."""

import dataclasses
import difflib
import inspect
import io
import re
import signal
import sys


class UserError(Exception):
    """A mistake by the user. Its text is the one line they see: what was expected, and what to type instead."""


def run(main, config_class, presets=None, choices=None) -> None:
    """Parses the command line and calls main(config). A UserError becomes one line on stderr and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # ? for characters that a terminal without UTF-8 cannot show
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set while torch was loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)
    c = None
    try:
        c = parse(config_class, sys.argv[1:], presets, choices)
        main(c)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # `python sample.py | head`
        sys.stderr.close()
        raise SystemExit(0) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = getattr(c, "less_memory", "close other programs, or use a smaller file or model")
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: out of memory; {advice}", file=sys.stderr)
        raise SystemExit(2) from None
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without write permission
        print(f"{sys.argv[0].rsplit('/', 1)[-1]}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or the one that it came from, says that memory is used up, on the CPU or on a GPU."""
    said = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    while error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in said):
            return True
        error = error.__cause__ or error.__context__
    return False


def parse(config_class, argv, presets=None, choices=None):
    """An instance of config_class: its defaults, overridden by the preset, overridden by the options in argv.

    presets maps the values of the first field to {field: value}; choices maps a field to its allowed values.
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
                example = "true" if fields[name].type is bool else written(fields[name].default)
                raise UserError(f"--{name} needs a value, like --{name}={example}")
        if name in given:
            raise UserError(f"--{name} is given twice")
        given[name] = value_of(name, text, fields[name].type)
        if name in choices and given[name] not in choices[name]:
            raise UserError(f"unknown {name} {text!r}, choose from {', '.join(choices[name])}")
    preset = presets[given.get(first, fields[first].default)] if presets else {}
    return config_class(**(preset | given))


def value_of(name, text, kind):
    """The text after --name= converted to its type. Raises UserError.

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
    """A value as typed on the command line: 2000,500 for a tuple, true for True."""
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def demand(c, names: str, fits, wanted: str) -> None:
    """Raises UserError for the first field in names (separated by spaces) whose value does not fit."""
    for name in names.split():
        if not fits(getattr(c, name)):
            raise UserError(f"--{name}={written(getattr(c, name))} should be {wanted}")


def help_text(config_class, choices) -> str:
    """The class docstring, and one line per field: its default, its comment, and its choices."""
    comments = dict(re.findall(r"^    (\w+): .+  # (.+)$", inspect.getsource(config_class), re.MULTILINE))
    lines = [inspect.cleandoc(config_class.__doc__), ""]
    for field in dataclasses.fields(config_class):
        options = f" [{', '.join(choices[field.name])}]" if field.name in choices else ""
        lines.append(f"  --{field.name}={written(field.default)}".ljust(28) + f"  {comments[field.name]}{options}")
    return "\n".join(lines)


def print_resolved(c, preset: dict) -> None:
    """Prints the settings of a run that differ from the defaults or from its preset, as they would be typed."""
    values = [(field.name, getattr(c, field.name), field.default) for field in dataclasses.fields(c)]
    print("settings:", *(f"--{k}={written(x)}" for k, x, default in values if x != default or x != preset.get(k, x)))
