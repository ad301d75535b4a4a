"""Does a remedy keep its contract, and which way does it push? ``python -m bench.check FILE.py:CLASS``.

A correction of anyone's, a subclass of :class:`bench.diffusion.corrections.Correction`, is walked with every solver in
every frame: switched off it must be the plain sampler bit for bit, and at work it must write to none of its inputs,
stay finite, treat an image alike in any batch, and work or say in one line why not. Then a bias of known sign and size
is put into the exact denoiser of Gaussian data, and the law of the samples shows whether the correction moves the error
towards zero, and at which constants it is best. Its constructor is given ``levels``, ``grid`` and ``clip`` of the walk
and what is measured on the data (``data_variance``, ``std``, ``reference``), by these names, and its constants.
"""

from __future__ import annotations

import inspect
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.check.rules import RULES, CheckError, Findings, Subject, check
from bench.check.walks import measured
from bench.diffusion import corrections
from bench.diffusion.corrections import Correction, InOrder
from bench.runtime.errors import OneLineParser, UserError, one_line, reason
from bench.runtime.signals import exit_with


def report(subject: Subject, findings: Findings) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"{subject.name}({_constants(subject.typical)})"
    for rule in RULES:
        broken, unknown = findings.broken.get(rule, []), findings.unknown.get(rule)
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        holds = f"not known: {unknown}" if unknown else "holds"
        yield f"  {rule:18} " + (f"BROKEN  {broken[0]}{more}" if broken else holds)
    for why in dict.fromkeys(findings.refusals.values()):
        places = ", ".join(f"{name} ({frame})" for (frame, name), text in findings.refusals.items() if text == why)
        yield f"  refuses {places}: {why}"
    yield f"  cost: {findings.calls:.2f} times the network calls, {findings.seconds:.2f} times the time of these walks"
    yield f"  {'bias':20} {'walk':14} {'error':>8} {'with it':>8} {'best':>8}  at"
    for (bias, frame, name), errors in findings.errors.items():
        walked, (u, best) = f"{name} ({frame})", errors.best
        at = _constants(subject.typical if u == 1 else subject.between(u) or {})
        yield f"  {bias:20} {walked:14} {errors.plain:8.4f} {errors.treated:8.4f} {best:8.4f}  {at}"


def _constants(constants: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in constants.items())


def _class(spec: str) -> Any:
    """Execute ``FILE.py`` of ``FILE.py:CLASS`` and return the class.

    Raises:
        CheckError: no such file or class, or the file raises.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise CheckError(f"name a file and a class as in my_remedy.py:MyRemedy, not {spec!r}")
    sys.path.append(str(Path(file).parent))  # what it imports from beside it
    try:
        found = runpy.run_path(file).get(name)
    except OSError as error:
        raise CheckError(f"{file}: {reason(error)}; check the path") from None
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise CheckError(f"{file} raised {type(error).__name__}: {reason(error)}; mend it") from None
    if not callable(found):
        raise CheckError(f"{file} has no class {name!r}; check its name")
    return found


def subject_of(name: str, make: Any, given: Mapping[str, float], neutral: Mapping[str, float] | None) -> Subject:
    """Return a class with its constants: those given, else its own ``typical``, else its constructor's defaults.

    Raises:
        CheckError: a constant without a value, or one that the constructor does not take.
    """
    parameters = inspect.signature(make).parameters
    own = {"levels", "grid", "clip", *measured("vp")}
    for constant in {**given, **(neutral or {})}:
        if constant not in parameters or constant in own:
            known = ", ".join(name for name in parameters if name not in own) or "none"
            raise CheckError(f"{name} has no constant {constant!r}; it has {known}")
    typical = dict(getattr(make, "typical", {})) | dict(given)
    for constant, parameter in parameters.items():
        if constant in own | typical.keys() or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            raise CheckError(f"{name} needs a value of {constant!r}; give --set {constant}=VALUE")
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            typical[constant] = float(parameter.default)
    return Subject(name, make, typical, neutral or getattr(make, "neutral", None))


def ours() -> Iterator[Subject]:
    """Yield every correction of the suite at its typical constants."""
    for name in corrections.__all__:
        kind = getattr(corrections, name)
        if isinstance(kind, type) and issubclass(kind, Correction) and kind not in (Correction, InOrder):
            yield subject_of(name, kind, {}, None)


def constant(text: str) -> tuple[str, float]:
    """Read ``NAME=VALUE``."""
    name, _, value = text.partition("=")
    return name, float(value)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 where a rule is broken."""
    parser = OneLineParser(prog="python -m bench.check", description="Does a remedy keep its contract?")
    parser.add_argument("spec", nargs="?", metavar="FILE.py:CLASS", help="a correction (default: all of the suite's)")
    parser.add_argument(
        "--set", type=constant, action="append", default=[], metavar="NAME=VALUE", help="a constant at work"
    )
    parser.add_argument(
        "--neutral", type=constant, action="append", metavar="NAME=VALUE", help="a constant that switches it off"
    )
    args = parser.parse_args(argv)
    if args.spec is None and (args.set or args.neutral):
        parser.error("--set and --neutral are for one correction; name it as FILE.py:CLASS")
    torch.set_num_threads(1)  # the images are tiny
    try:
        neutral = None if args.neutral is None else dict(args.neutral)
        named = args.spec and [subject_of(args.spec.rpartition(":")[2], _class(args.spec), dict(args.set), neutral)]
        results = []
        for subject in named or ours():
            findings = check(subject)
            print("\n".join(map(one_line, report(subject, findings))), flush=True)
            results.append(findings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(any(findings.broken for findings in results))


if __name__ == "__main__":
    exit_with(main)
