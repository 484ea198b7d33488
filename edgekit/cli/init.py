"""`edgekit init`: questions that end in a command and an edgekit.toml that repeats it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import files, profile
from edgekit.cli._ask import Ask
from edgekit.cli._output import say, say_json
from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.backends import SourceModel
    from edgekit.build.settings import Value
    from edgekit.build.suggest import Guess

OBJECTIVES = ("latency", "size", "memory", "energy")


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "init",
        help="ask what to build, and write an edgekit.toml",
        description="Looks at the model, the data and this machine, asks what it cannot see, and ends in a "
        "command to copy and a settings file that `edgekit build` reads. Flags are not asked for again.",
    )
    parser.add_argument("model", type=Path, nargs="?", help="the trained model")
    parser.add_argument(
        "--profile",
        action="append",
        metavar="NAME",
        help="device profile; repeat for more (default: this machine's)",
    )
    parser.add_argument(
        "--data", metavar="DATA", help="one for both: its rows are split for calibration and evaluation"
    )
    parser.add_argument("--calibration", metavar="DATA", help="rows that int8 ranges are learnt from")
    parser.add_argument("--evaluate", metavar="DATA", help="rows with labels that accuracy is measured on")
    parser.add_argument("--labels", metavar="ARRAY", help="array or column with the labels")
    parser.add_argument("--image", metavar="WORDS", help="how pictures become pixels (docs/data.md)")
    parser.add_argument(
        "--affine",
        action="append",
        default=[],
        metavar="[INPUT:]SCALE,OFFSET",
        help="preprocessing real = (stored - OFFSET) * SCALE",
    )
    parser.add_argument("--objective", choices=OBJECTIVES, help="what matters most (default: latency)")
    parser.add_argument("-o", "--output", metavar="FILE", help="bundle that the build writes")
    parser.add_argument("--settings", type=Path, metavar="FILE", help="file to write (default: edgekit.toml)")
    parser.add_argument("--yes", action="store_true", help="ask nothing: take what is found")
    parser.add_argument("--force", action="store_true", help="replace an existing settings file")
    parser.add_argument(
        "--json", action="store_true", help="ask nothing; print the flags and the command as JSON"
    )


def run(args: argparse.Namespace) -> int:
    from edgekit.build import settings

    target = args.settings or Path(settings.FILE)
    if target.exists() and not args.force:
        raise InputError(f"{target} exists", "give --force to replace it, or --settings OTHER.toml")
    ask = Ask(sys.stdin, sys.stderr, sys.stdin.isatty() and not (args.yes or args.json))
    flags = answers(args, ask)
    command = shlex.join(["edgekit", "build", *settings.words(flags)])
    note = ("Made by `edgekit init`. `edgekit build` in this folder does the same as:", command)
    files.write_bytes(target, settings.text(flags, [line.replace("\n", " ") for line in note]).encode())
    if args.json:
        say_json({"settings": str(target), "flags": flags, "command": command})
        return 0
    say(f"{target} written. `edgekit build` reads it; the same as a command:")
    say()
    say(command)
    return 0


def answers(args: argparse.Namespace, ask: Ask) -> dict[str, Value]:
    """The build's flags: given, found, or asked for. Raises InputError for what is missing or wrong."""
    path, model = _model(args, ask)
    flags: dict[str, Value] = {"model": str(path), "profile": _profiles(args, ask)}
    flags |= _data(args, ask, model)
    flags["objective"] = args.objective or ask.choice(
        "What matters most", OBJECTIVES, "latency", flag="--objective"
    )
    flags["output"] = args.output or ask.line(
        "Bundle to write", f"{path.stem or 'model'}.edgekit", flag="--output"
    )
    return flags


def _model(args: argparse.Namespace, ask: Ask) -> tuple[Path, SourceModel | None]:
    """The path, and the model where it can be looked at without a converter."""
    from edgekit.build import suggest

    here = suggest.models(Path())
    given = str(args.model or "") or ask.line(
        "Trained model", str(here[0]) if len(here) == 1 else "", flag="MODEL", check=_look
    )
    model = _look(given)
    if model:
        ports = ", ".join(f"{s.name} {s.datatype}{list(s.shape)}" for s in (*model.inputs, *model.outputs))
        ask.tell(f"  ONNX: {ports}")
    return Path(given), model


def _look(text: str) -> SourceModel | None:
    """ONNX is read and checked; of other formats only the head. Raises ModelError."""
    from edgekit.build import sources
    from edgekit.build.sources._detect import look_at, recognise

    form = recognise(look_at(Path(text)))
    return sources.load(Path(text)) if form is None else None


def _profiles(args: argparse.Namespace, ask: Ask) -> tuple[str, ...]:
    from edgekit import host

    if args.profile:
        return tuple(profile.get(name).name for name in args.profile)
    found = profile.detect(host.read()).name
    ask.tell(f"  Profiles: {', '.join(profile.all_profiles())}")
    text = ask.line("Devices to build for, with commas", found, flag="--profile", check=_known)
    return tuple(name.strip() for name in text.split(","))


def _known(text: str) -> None:
    for name in text.split(","):
        profile.get(name.strip())


def _data(args: argparse.Namespace, ask: Ask, model: SourceModel | None) -> dict[str, Value]:
    """Calibration, evaluation, labels and preprocessing."""
    from edgekit.build import suggest

    both = args.data or ""
    if not (both or args.calibration or args.evaluate):
        both = ask.line("Data with labels", flag="--data", check=suggest.look)
    file = both or args.calibration or args.evaluate
    seen = suggest.look(file, model.inputs) if model else None
    first, second = suggest.split(both, seen.rows) if both and seen else (both, both)
    flags: dict[str, Value] = {
        "calibration": args.calibration or ask.line("Rows to calibrate on", first, flag="--calibration"),
        "evaluate": args.evaluate or ask.line("Rows to evaluate on", second, flag="--evaluate"),
    }
    if seen and seen.pictures:
        flags |= _pictures(args, ask, model)
    guessed = seen.labels if seen else ""
    if not (seen and seen.pictures and not guessed):  # class folders name the labels themselves
        labels = args.labels or ask.line(
            "Array or column with the labels", guessed, flag="--labels", optional=True
        )
        flags |= {"labels": labels} if labels not in ("", "labels") else {}
    return flags | (_preprocessing(args, ask, seen) if seen else {})


def _pictures(args: argparse.Namespace, ask: Ask, model: SourceModel | None) -> dict[str, Value]:
    """How pictures become pixels; checked against the model's input."""
    from edgekit.build.data import images

    grey = model is not None and 1 in model.inputs[0].shape[1:]

    def check(text: str) -> None:
        spec = images.parse(text)
        if model:
            images.frame("--image", model.inputs, spec)

    ask.tell("  Pictures. Words: rgb bgr gray, stretch crop letterbox, raw, imagenet, mean=.. std=..")
    words = args.image or ask.line(
        "How they become pixels from 0 to 1",
        "gray stretch" if grey else "rgb stretch",
        flag="--image",
        check=check,
    )
    check(words)
    return {"image": words}


def _preprocessing(args: argparse.Namespace, ask: Ask, seen: Guess) -> dict[str, Value]:
    """Names of arrays, and how what is stored becomes what the model reads."""
    flags: dict[str, Value] = {}
    renamed = tuple(f"{name}={array}" for name, array in seen.inputs.items() if name != array)
    # A lone input finds the lone array that is not the labels by itself.
    if renamed and len(seen.inputs) > 1:
        flags["input"] = renamed
    steps = tuple(args.affine)
    for name, dtype in seen.stored.items() if not steps else ():
        ask.tell(f"  {name} is stored as {dtype}, the model reads real = (stored - OFFSET) * SCALE")
        answer = ask.line(f"SCALE,OFFSET of {name}", flag="--affine", check=_two_numbers)
        steps += (answer if len(seen.inputs) == 1 else f"{name}:{answer}",)
    return flags | ({"affine": steps} if steps else {})


def _two_numbers(text: str) -> None:
    try:
        _scale, _offset = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{text!r}: not SCALE,OFFSET", "two numbers, e.g. 0.0039215686,0") from None
