"""The request: what the flags of ``run_bench.py`` ask for, each flag checked by itself.

This file imports torch only where a request is made, so that :func:`check_texts` answers before it is there.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.runtime.distributed import is_launched
from bench.suite.processes.ranks import Share, parse_share
from bench.suite.registry.config_file import read_config_files
from bench.suite.registry.names import Names
from bench.suite.settings import (
    IN_CELLS,
    MEASUREMENTS,
    RESERVED_SEEDS,
    SAMPLERS,
    SPACINGS,
    ConfigError,
    SamplerConfig,
    check_name,
    nearest,
    positive,
)

if TYPE_CHECKING:
    from bench.suite.registry.tuned_constant import TunedConstant

_MAX_COUNT = 10_000_000  # samples of a cell, images of a batch
_MAX_SEEDS = 10_000  # of one range
_PREPROCESSING = ("resize", "crop", "resize_filter")
_AS_GIVEN = (  # flags that a request has as they are
    "variance", "clip", "inception_weights", "classifier", "classifier_scale", "guidance", "eps_scale", "eps_slope",
    "reference", "data_dir", "out",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """The flags of a run, parsed but not yet checked against models and data."""

    models: tuple[tuple[str, Path | None], ...]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    samples: int
    sampler: SamplerConfig
    sampler_name: str | None
    variance: str | None
    clip: bool | None
    batch: int
    device: str
    measure: tuple[str, ...]
    features: str
    features_asked: bool
    inception_weights: Path | None
    classifier: Path | None
    classifier_scale: float | None
    guidance: float | None
    guidance_interval: tuple[float, float] | None
    eps_scale: float | None
    eps_slope: float | None
    reference: Path | None
    data_dir: Path | None
    preprocessing: Mapping[str, Any]
    out: Path | None
    tune: TunedConstant | None = None
    share: Share | None = None
    progress: bool = False
    arguments: tuple[str, ...] = ()
    compile: str = "auto"  # auto, on or off

    def in_cells(self) -> tuple[str, ...]:
        """Return the measurements made while cells are sampled."""
        return tuple(name for name in IN_CELLS if name in self.measure)

    @property
    def shares(self) -> int:
        """Return in how many parts ``--shard`` cuts the work."""
        return 1 if self.share is None else self.share.count


def check_texts(args: argparse.Namespace) -> None:
    """Check the flags that are mistaken most: what needs no torch, and so is answered at once.

    Raises:
        ConfigError: naming the flag that is wrong.
    """
    _check_numbers(args)
    parse_steps(args.steps)
    parse_seeds(args.seeds)
    _measurements(args)
    if args.sampler is not None:
        _choice("--sampler", args.sampler, SAMPLERS)
    names = Names(args.dataset.partition("=")[0], read_config_files(args.config).models)
    for name, path in parse_models(args.models):
        if path is None:
            names.check(name)


def make_request(args: argparse.Namespace, arguments: Sequence[str] = (), entries: Collection[str] = ()) -> Request:
    """Check every flag that can be checked by itself.

    Args:
        args: the parsed flags.
        arguments: the command line they were parsed from.
        entries: names of the config files' datasets.

    Raises:
        ConfigError: naming the flag that is wrong.
    """
    from bench.data import CROPS, EMBEDDED_DATASETS, FILTERS
    from bench.runtime.devices import DEVICES

    samples = args.samples if args.samples is not None else (256 if args.dataset in EMBEDDED_DATASETS else 1000)
    _check_numbers(args)
    if args.out is not None and str(args.out) == ".":
        raise ConfigError("--out is empty or the current folder; name a folder for the results")
    for flag, value, choices in (("--crop", args.crop, CROPS), ("--resize-filter", args.resize_filter, FILTERS)):
        if value is not None:
            _choice(flag, value, tuple(choices))
    if args.variance is not None:
        _choice("--variance", args.variance, ("learned", "fixed-small", "fixed-large"))
    return Request(
        models=parse_models(args.models),
        steps=parse_steps(args.steps),
        seeds=parse_seeds(args.seeds),
        samples=samples,
        sampler=_sampler(args),
        sampler_name=None if args.sampler is None else _choice("--sampler", args.sampler, SAMPLERS),
        batch=args.batch_size,
        device=_choice("--device", args.device, DEVICES),
        measure=_measurements(args),
        features=_features(args, entries),
        features_asked=args.features is not None,
        guidance_interval=None if args.guidance_interval is None else parse_interval(args.guidance_interval),
        preprocessing={name: value for name in _PREPROCESSING if (value := getattr(args, name)) is not None},
        tune=_tune(args),
        share=None if args.shard is None else parse_share(args.shard),
        progress=not args.quiet if args.progress is None else args.progress,
        arguments=tuple(arguments),
        compile=_choice("--compile", args.compile, ("auto", "on", "off")),
        **{name: getattr(args, name) for name in _AS_GIVEN},
    )


def _sampler(args: argparse.Namespace) -> SamplerConfig:
    """Return what the flags say by themselves of how samples are drawn."""
    from bench.models.acceleration import PRECISIONS

    return SamplerConfig(
        spacing=_choice("--spacing", args.spacing, SPACINGS),
        eta=args.eta,
        churn=args.churn,
        s_min=args.s_min,
        s_max=args.s_max,
        s_noise=args.s_noise,
        class_labels=_choice("--labels", args.labels, ("random", "balanced")),
        quantize=_choice("--quantize", args.quantize, ("round", "floor")),
        precision=_choice("--precision", args.precision, PRECISIONS),
    )


def _choice(flag: str, value: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise nearest(flag, value, choices)
    return value


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers out of range, and numbers of a flag that was not given."""
    samples = 1 if args.samples is None else args.samples
    positive("--samples", samples)
    positive("--batch-size", args.batch_size)
    if max(samples, args.batch_size) > _MAX_COUNT:
        raise ConfigError(f"--samples and --batch-size go up to {_MAX_COUNT:,}")
    if args.eps_scale is not None:
        positive("--eps-scale", args.eps_scale)
    if args.eps_slope is not None and not math.isfinite(args.eps_slope):
        raise ConfigError(f"--eps-slope must be a number, not {args.eps_slope}")
    if args.classifier_scale is not None:
        positive("--classifier-scale", args.classifier_scale)
        if args.classifier is None:
            raise ConfigError("--classifier-scale has no effect without --classifier; name the classifier's weights")
    if args.guidance is not None and not 0 <= args.guidance < math.inf:
        raise ConfigError(f"--guidance must be a finite number of at least 0, not {args.guidance}")
    if args.guidance is not None and args.classifier is not None:
        raise ConfigError("--guidance and --classifier guide in two ways; leave one out")
    if not 0 <= args.eta <= 1:
        raise ConfigError(f"--eta must lie between 0 and 1, not {args.eta}")
    if not 0 <= args.churn < math.inf:
        raise ConfigError(f"--churn must be a finite number of at least 0, not {args.churn}")
    if not 0 <= args.s_min < math.inf:
        raise ConfigError(f"--S-min must be a finite number of at least 0, not {args.s_min}")
    if args.s_max is not None and not args.s_min <= args.s_max < math.inf:
        raise ConfigError(f"--S-max must be a finite number of at least --S-min, {args.s_min:g}, not {args.s_max}")
    positive("--S-noise", args.s_noise)
    if args.s_max == 0:
        raise ConfigError("--S-max 0 churns no level; leave out --churn")
    if not args.churn and (args.s_min or args.s_max is not None or args.s_noise != 1):
        raise ConfigError("--S-min, --S-max and --S-noise have no effect without --churn")


def _measurements(args: argparse.Namespace) -> tuple[str, ...]:
    if args.probes:
        if args.measure is not None:
            return parse_measure(args.measure)
        return IN_CELLS if args.tune is None else ()  # the many cells of a grid of constants are only compared
    if args.measure is not None:
        raise ConfigError("--no-probes measures nothing; leave it out, or leave out --measure")
    return ()


def _features(args: argparse.Namespace, entries: Collection[str]) -> str:
    """Return the features to score with, and refuse files that they do not use."""
    from bench.measure.features.extractors import EXTRACTORS, INCEPTION_EXTRACTORS

    features = args.features or _default_features(args, entries)
    if args.reference is not None and features == "none":
        raise ConfigError("--reference has no effect with --features none")
    if args.inception_weights is not None and features not in INCEPTION_EXTRACTORS:
        raise ConfigError(f"--inception-weights has no effect with --features {features}")
    return _choice("--features", features, EXTRACTORS)


def _default_features(args: argparse.Namespace, entries: Collection[str]) -> str:
    """Return the features of a run that names none: an embedded classifier's where Inception's have no reference.

    Images of 8 or 16 pixels have no published distance, so that they have the classifier's with the images, too.
    """
    from bench.data import EMBEDDED_DATASETS
    from bench.measure.features.classifier import CLASSIFIERS

    own = "digits" if args.dataset in EMBEDDED_DATASETS else args.dataset
    if args.dataset in entries or own not in CLASSIFIERS:
        return "inception"
    published = own == "cifar10" and (args.data_dir is not None or args.reference is not None)
    return "inception" if published else own


def _tune(args: argparse.Namespace) -> TunedConstant | None:
    if args.tune is None:
        return None
    from bench.suite.registry.tuned_constant import parse_tune

    if args.features == "none":
        raise ConfigError("--tune compares distances on features; leave out --features none")
    tune = parse_tune(args.tune)
    if not tune.values and (args.shard is not None or is_launched()):
        raise ConfigError(f"--tune {tune.text} is one piece of work; run it without torchrun and --shard")
    if args.samples is not None and not tune.values:
        raise ConfigError(f"--samples has no effect with --tune {tune.text}, whose rule knows how many it needs")
    if args.eps_scale is not None and tune.constant == "b":
        raise ConfigError("--eps-scale has no effect with --tune b, which replaces it; leave one out")
    return tune


def _items(flag: str, pieces: Iterable[str]) -> list[str]:
    items = [item.strip() for item in pieces if item.strip()]
    if not items:
        raise ConfigError(f"{flag} is empty; give at least one value")
    twice = sorted({item for item in items if items.count(item) > 1})
    if twice:
        raise ConfigError(f"{flag} names {twice[0]} twice")
    return items


def _model_items(text: str) -> list[str]:
    """Split at commas; to a path belong as many pieces as make the longest one that exists.

    Raises:
        ConfigError: no file has a path, but it goes on after a comma like one.
    """
    pieces, items = text.split(","), list[str]()
    while pieces:
        name, given, path = pieces.pop(0).partition("=")
        path = os.path.expanduser(path)  # the shell leaves ~ alone behind =
        item = f"{name}{given}{path}"
        ends = [k for k in range(1, len(pieces) + 1) if path and os.path.exists(",".join([path, *pieces[:k]]))]
        count = max(ends, default=0)
        if pieces and not count and _is_cut(path, pieces[0]):
            raise ConfigError(
                f"--models: neither {path!r} nor {','.join([path, pieces[0]])!r} exists; commas separate models unless"
                " a file has the path that goes on"
            )
        items.append(",".join([item, *pieces[:count]]))
        del pieces[:count]
    return items


def _is_cut(path: str, rest: str) -> bool:
    """Tell whether a path without a file and what stands behind its comma look like one path."""
    from bench.models.checkpoints.formats import WEIGHT_SUFFIXES
    from bench.models.checkpoints.hub import is_hub_id

    is_id = is_hub_id(path) and not os.path.exists(path.partition("/")[0])
    if not path or is_id or os.path.exists(path):
        return False
    name, given, target = rest.partition("=")
    return "/" in name or Path(name).suffix.lower() in WEIGHT_SUFFIXES or (bool(given) and not os.path.exists(target))


def parse_models(text: str) -> tuple[tuple[str, Path | None], ...]:
    """Read ``NAME[=PATH],...`` into (name, path or None) pairs; a path that is there may hold commas."""
    pairs = []
    for item in _items("--models", _model_items(text)):
        name, given, path = item.partition("=")
        if not name or (given and not path):
            raise ConfigError(f"--models: {item!r} is not NAME or NAME=PATH")
        if "/" in name and not given:
            from bench.models.checkpoints.hub import refuse_address

            refuse_address(item)
            raise ConfigError(f"--models: weights of your own need a name, as in --models mine={item}")
        check_name(name, "--models")
        pairs.append((name, Path(path) if path else None))
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError("--models names a model twice; give each weights file a name of its own with --config")
    return tuple(pairs)


def parse_interval(text: str) -> tuple[float, float]:
    """Read ``LOW:HIGH``, two levels sigma / alpha of at least 0, HIGH perhaps ``inf``."""
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low < high:
        raise ConfigError(f"--guidance-interval must be LOW:HIGH with 0 <= LOW < HIGH, e.g. 0.2:5, not {text!r}")
    return low, high


def parse_steps(text: str) -> tuple[int, ...]:
    """Read ``80,100,...``; limits that depend on the model are checked with it."""
    steps = []
    for item in _items("--steps", text.split(",")):
        try:
            steps.append(int(item))
        except ValueError:
            raise ConfigError(f"--steps: {item!r} is not a whole number") from None
        if steps[-1] < 1:
            raise ConfigError(f"--steps: {item} is not positive; a sampler needs at least one step")
    if len(set(steps)) < len(steps):
        raise ConfigError("--steps names a number twice")
    return tuple(steps)


def parse_measure(text: str) -> tuple[str, ...]:
    """Read ``steps,chains,...`` or ``all`` into measurements, in the order they are made."""
    names = _items("--measure", text.split(","))
    for name in names:
        if name not in (*MEASUREMENTS, "all"):
            raise nearest("--measure", name, (*MEASUREMENTS, "all"))
    return tuple(name for name in MEASUREMENTS if name in names or "all" in names)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read ``0,3,7`` or ranges ``0-4`` (both ends included), mixed as wished."""
    seeds: list[int] = []
    for item in _items("--seeds", text.split(",")):
        first, dash, last = item.partition("-")
        try:
            low, high = int(first), int(last) if dash else int(first)
        except ValueError:
            raise ConfigError(f"--seeds: {item!r} is neither a seed (0, 1, ...) nor a range such as 0-4") from None
        if high < low or high - low >= _MAX_SEEDS or high >= RESERVED_SEEDS:
            raise ConfigError(
                f"--seeds: {item!r} is empty or too large (seeds from {RESERVED_SEEDS} on are for tuning)"
            )
        seeds.extend(range(low, high + 1))
    if len(set(seeds)) < len(seeds):
        raise ConfigError("--seeds names a seed twice")
    return tuple(seeds)
