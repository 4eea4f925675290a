"""Reads a command line into a dataclass.

Options are typed as --key=value. A bare word sets the first field, as in `train.py smoke`.
"""

import dataclasses
import difflib
import inspect
import io
import re
import signal
import sys


class UserError(Exception):
    """A mistake by the user.

    Its text is the one line they see: what was expected, and what to type instead.
    """


def run(main, config_class, presets=None, choices=None) -> None:
    """Parses the command line and calls main(config).

    A UserError becomes one line on stderr and exit status 2.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without UTF-8 shows ? for the characters that it lacks.
        sys.stdout.reconfigure(errors="replace")
    # The package takes this handler away while torch is loaded.
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
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
        print_error(f"out of memory; {advice}")
        raise SystemExit(2) from None
    except (UserError, OSError) as error:  # OSError: a full disk, a folder without write permission
        print_error(str(error))
        raise SystemExit(2) from None


def print_error(message: str) -> None:
    """Prints one line on stderr, behind the program's name."""
    program = sys.argv[0].rsplit("/", 1)[-1]
    print(f"{program}: {message}", file=sys.stderr)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that memory is used up, on a CPU or a GPU."""
    phrases = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    while error:
        if isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases):
            return True
        error = error.__cause__ or error.__context__
    return False


def parse(config_class, argv, presets=None, choices=None):
    """An instance of config_class: its defaults, then the preset, then the options in argv.

    presets   maps the values of the first field to {field: value}
    choices   maps a field to its allowed values
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    first = next(iter(fields))
    choices = dict(choices or {})
    if presets:
        choices[first] = tuple(presets)
    if "--help" in argv or "-h" in argv:
        chosen = next((word for word in argv if not word.startswith("-")), fields[first].default)
        values = {}
        if presets and chosen in presets:
            values = presets[chosen] | {first: chosen}
        print(help_text(config_class, choices, values))
        raise SystemExit(0)
    given = {}
    for name, text in options_in(argv, fields):
        if name in given:
            raise UserError(f"--{name} is given twice")
        value = value_of(name, text, fields[name].type)
        if name in choices and value not in choices[name]:
            raise UserError(f"unknown {name} {text!r}, choose from {', '.join(choices[name])}")
        given[name] = value
    preset = {}
    if presets:
        preset = presets[given.get(first, fields[first].default)]
    return config_class(**(preset | given))


def options_in(argv: list[str], fields: dict[str, dataclasses.Field]):
    """Yields the name and the text of each option in argv. Raises UserError."""
    first = next(iter(fields))
    words = iter(argv)
    for word in words:
        if not word.startswith("-"):
            yield first, word
            continue
        name, equals, text = word.lstrip("-").partition("=")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean --{near[0]}=... ?" if near else "see --help"
            raise UserError(f"unknown option {word}, {hint}")
        if not equals:
            text = next(words, "--")  # the word that follows, as in --lr 3e-4
            if text.startswith("--"):
                example = "true" if fields[name].type is bool else written(fields[name].default)
                raise UserError(f"--{name} needs a value, like --{name}={example}")
        yield name, text


def value_of(name, text, kind):
    """The text after --name= converted to its type. Raises UserError.

    >>> value_of("lr", "1", float), value_of("compile", "false", bool)
    (1.0, False)
    >>> value_of("stage_steps", "20,5", tuple[int, ...])
    (20, 5)
    """
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind == tuple[int, ...]:
            return tuple(map(int, text.split(",")))
        return kind(text)
    except (ValueError, KeyError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}
        wanted = expected.get(kind, "numbers like 20 or 20,5,5")
        raise UserError(f"--{name}={text} is not {wanted}") from None


def written(value) -> str:
    """A value as typed on the command line.

    >>> written((2000, 500)), written(True), written(0.1)
    ('2000,500', 'true', '0.1')
    """
    if isinstance(value, tuple | list):
        return ",".join(map(written, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def demand(c, names: str, fits, wanted: str) -> None:
    """Raises UserError for the first field in names (separated by spaces) that does not fit."""
    for name in names.split():
        value = getattr(c, name)
        if not fits(value):
            raise UserError(f"--{name}={written(value)} should be {wanted}")


def help_text(config_class, choices, values=None) -> str:
    """The class docstring, and for each field its value, the comment above it, and its choices.

    values are those of a preset; a field without one has its default. A heading above a field
    stands on a line of its own.
    """
    values = values or {}
    lines = [inspect.cleandoc(config_class.__doc__)]
    described = comments(config_class)
    for number, field in enumerate(dataclasses.fields(config_class)):
        heading, description = described[field.name]
        if heading or number == 0:
            lines.append("")
        if heading:
            lines.append(heading)
        if field.name in choices:
            description += f" [{', '.join(choices[field.name])}]"
        option = f"  --{field.name}={written(values.get(field.name, field.default))}"
        lines.append(f"{option:<28}  {description}")
    return "\n".join(lines)


def comments(config_class) -> dict[str, tuple[str, str]]:
    """Of each field, the heading above it (mostly empty) and the comment above it.

    A heading is a comment between dashes: # --- model ---
    """
    described = {}
    heading = ""
    comment_lines = []
    for line in inspect.getsource(config_class).splitlines():
        comment = re.fullmatch(r"    # (.+)", line)
        field = re.match(r"    (\w+): ", line)
        if comment and comment[1].startswith("---"):
            heading = comment[1].strip("- ")
        elif comment:
            comment_lines.append(comment[1])
        elif field and comment_lines:
            described[field[1]] = heading, " ".join(comment_lines)
            heading = ""
            comment_lines = []
    return described


def print_resolved(c, preset: dict) -> None:
    """Prints the settings that differ from their default or from the preset, as typed."""
    deviations = []
    for field in dataclasses.fields(c):
        value = getattr(c, field.name)
        if value != field.default or value != preset.get(field.name, value):
            deviations.append(f"--{field.name}={written(value)}")
    print("settings:", *deviations)
