"""The models a run can name: the embedded family, entries of a TOML file, and weights given on the command line."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.data import DATASETS, EMBEDDED_DATASETS, Dataset, Preprocessing, load, load_path
from bench.latent.autoencoder import check_decoder
from bench.latent.networks import describe_conditional
from bench.measure.quality.embedded_statistics import WITH_STATISTICS, unseen
from bench.models.checkpoints.adapter import describe_adapter
from bench.models.checkpoints.formats import describe, located, with_table
from bench.models.checkpoints.guided_diffusion import PRESETS, describe_entry, fitting_presets
from bench.models.checkpoints.state_dicts import file_hash, require_torch
from bench.models.interface import Description
from bench.runtime.errors import CheckpointError
from bench.suite.registry.config_file import read_config_files, read_remedies
from bench.suite.registry.constants import constants_of
from bench.suite.registry.model import GUIDANCE_KEYS, Guidance, LatentFiles, Model, read_guidance
from bench.suite.registry.names import Names, member_of, weights_file
from bench.suite.registry.remedies import SUFFIXES, Remedy
from bench.suite.settings import ConfigError, check_name, nearest

_LATENT = {"latents", "embeddings", "vae"}
_OF_ADAPTERS = ("in_channels", "image_size", "num_classes", "learn_sigma")
_OF_PLAIN_FILES = ("network", "schedule", "T", "preset", "prediction", "rescale_timesteps", "alphas_cumprod")


@dataclass(frozen=True)
class Registry(Names):
    """Every model and dataset a run may name.

    ``folders`` holds the folder of each entry's config file, where its relative paths start.
    """

    datasets: Mapping[str, Mapping[str, Any]]
    folders: Mapping[str, Path] = field(default_factory=dict)

    def model(self, name: str, path: Path | None = None) -> Model:
        """Look a model up, with ``path`` in place of its own weights if given.

        Names of models may be followed by those of remedies, as in ``adm-ts``. A config file's entry comes first.
        ``adm@2`` is the second training of ``adm``, and named ``adm-t2`` in results.

        Raises:
            ConfigError: unknown name, or no weights.
            CheckpointError: the weights cannot be described.
        """
        results_name = self.training_name(name, path is None)
        return replace(self._model(results_name, None if path is None else located(path), name), given=path)

    def _model(self, name: str, path: Path | None, request: str) -> Model:
        """Look up ``name``, a part of the user's ``request``."""
        entry = self.entries.get(name)
        if entry is not None:
            return self._configured(name, entry, path)
        is_embedded = member_of(name) is not None
        if not is_embedded and (split := self.split(name)):
            model = self._model(split[0], path, request)
            return _with(replace(model, name=name), model, self._remedy(name, split[1], model))
        if not is_embedded and path is None:
            raise self.unknown(name)
        weights = path or weights_file(self.dataset, name)
        if path is None and not weights.exists():
            raise ConfigError(f"no embedded weights of {request!r} for dataset {self.dataset!r}; give {request}=PATH")
        return Model(name, weights, self._unnamed(name, weights))

    def _unnamed(self, name: str, path: Path) -> Description:
        """Describe a file under a name without an entry: one that describes itself, or fits the dataset's preset."""
        description = describe(path)
        if description is not None:
            return description
        require_torch(path)  # a missing file, or another kind of file, is the first thing to report
        if self.dataset not in PRESETS:
            presets = " or ".join(f"preset = {preset!r}" for preset in fitting_presets(path))
            key = presets or "'preset' or 'network'"
            raise ConfigError(f"{path} does not describe itself; give {name!r} an entry with {key} in a --config file")
        return PRESETS[self.dataset].description()

    def _remedy(self, name: str, suffix: str, model: Model) -> Remedy:
        """Return a remedy with its constants.

        Constants that were tuned on embedded weights hold for the trainings of that recipe. Published ones belong to
        released files, of which there are no checksums: any other file of that dataset has them, unless it says that it
        was trained here.

        Args:
            name: of the model with the remedy; its constants are filed under this name, or under that of the remedy
                alone.
            suffix: of the remedy.
            model: without the remedy.
        """
        remedy, training = Remedy(SUFFIXES[suffix]), model.description.training
        if name == "ddpm-y-es" and training.get("gamma"):
            return remedy.overridden({"b": math.sqrt(1 + float(training["gamma"]) ** 2)})
        plain = model.base or model.name
        member = member_of(plain) if plain not in self.entries else None
        embedded = weights_file(self.dataset, plain)
        is_embedded = bool(member) and embedded.exists() and _is_same_file(embedded, model.weights)
        if not is_embedded and (self.dataset == "digits" or training):
            return remedy
        # Constants published for a dataset are not those tuned on the weights that are embedded for it.
        table = f"{self.dataset}-embedded" if is_embedded and self.dataset != "digits" else self.dataset
        member, conditional = member or plain, model.description.classes is not None
        full_name = name.replace(plain, member, 1)  # without the training's number
        tables = (constants_of(table, key, conditional) for key in (full_name, f"{member}-{suffix}"))
        return replace(remedy, constants=next(filter(None, tables), {}))

    def _configured(self, name: str, entry: Mapping[str, Any], path: Path | None) -> Model:
        if "base" in entry:
            if ignored := [key for key in entry if key not in ("base", "weights", "corrections", *GUIDANCE_KEYS)]:
                raise ConfigError(f"model {name!r} has both 'base' and {ignored[0]!r} in the config file; keep one")
            self._refuse_circle(name)
            weights = path or self._weights(name, entry)
            base = self._model(self.training_name(str(entry["base"]), weights is None), weights, str(entry["base"]))
            model = replace(base, name=name, base=base.base if base.remedies else base.base or base.name)
        elif "adapter" in entry:
            model = self._adapted(name, entry, path)
        elif _LATENT & entry.keys():
            model = self._latent(name, entry, path)
        else:
            weights = path or self._weights(name, entry)
            if weights is None:
                raise ConfigError(f"model {name!r} needs 'weights', 'adapter' or 'base' in the config file")
            model = Model(name, weights, self._describe(weights, entry, self.folders[name]))
        model = replace(model, guidance_keys={**model.guidance_keys, **read_guidance(name, entry)})
        remedies = read_remedies(name, entry.get("corrections", ()))
        treated = _with(model, model, *remedies)
        # A network whose own entry treats it has no name of its own.
        return replace(treated, base="") if remedies and "base" not in entry else treated

    def _latent(self, name: str, entry: Mapping[str, Any], path: Path | None) -> Model:
        """Return a conditional latent model in diffusers format."""
        for key in ("latents", "weights"):
            if key not in entry and not (key == "weights" and path):
                raise ConfigError(f"model {name!r} needs {key!r} in the config file, as latent models do")
        if idle := [key for key in (*_OF_ADAPTERS, *_OF_PLAIN_FILES) if key in entry]:
            raise ConfigError(f"latent model {name!r} describes itself; drop {idle[0]!r} from its entry")
        weights = path or located(Path(str(entry["weights"])), self.folders[name])
        embeddings, vae = (
            self.folders[name] / str(entry[key]) if key in entry else None for key in ("embeddings", "vae")
        )
        description, null = describe_conditional(weights, embeddings)
        if vae is not None:
            check_decoder(vae, description.channels)
        keys = {} if null is None else {"null_class": null}
        files = LatentFiles(self.folders[name] / str(entry["latents"]), vae)
        return Model(name, weights, description, latent=files, guidance_keys=keys)

    def _weights(self, name: str, entry: Mapping[str, Any]) -> Path | None:
        """Return where an entry's weights are, None where it names none."""
        weights = str(entry.get("weights", ""))
        return located(Path(weights), self.folders[name]) if weights else None

    def _adapted(self, name: str, entry: Mapping[str, Any], path: Path | None) -> Model:
        for key in ("network", "preset"):
            if key in entry:
                raise ConfigError(f"model {name!r} has both 'adapter' and {key!r} in the config file; keep one")
        file = Path(str(entry["adapter"]).rpartition(":")[0])
        folder, arguments = self.folders[name], dict(entry)
        if path is not None:  # of the command line; as an entry would give it, and absolute if the adapter's is
            full = path.resolve()
            arguments["weights"] = str(full) if file.is_absolute() else os.path.relpath(full, folder.resolve())
        return Model(name, folder / file, describe_adapter(with_table(arguments, folder), folder))

    def _refuse_circle(self, name: str) -> None:
        chain, entry = [name], self.entries[name]
        while "base" in entry:
            base = str(entry["base"])
            while base not in self.entries and (split := self.split(base)):
                base = split[0]
            if base in chain:
                raise ConfigError(f"model {name!r} is based on itself ({' -> '.join([*chain, base])})")
            chain.append(base)
            entry = self.entries.get(base, {})

    def _describe(self, weights: Path, entry: Mapping[str, Any], folder: Path) -> Description:
        """Describe weights by themselves, by a TOML entry of a config file in a folder, or by a preset."""
        if idle := [key for key in _OF_ADAPTERS if key in entry]:
            raise ConfigError(f"{idle[0]!r} in the config file is for models with an 'adapter'; use 'network'")
        given = [key for key in _OF_PLAIN_FILES if key in entry]
        description = describe(weights)
        if description is not None:
            if given:
                raise ConfigError(f"{weights} describes itself; drop {given[0]!r} from its entry in the config file")
            return description
        file_hash(weights)  # a missing file is the first thing to report
        if "preset" in entry and entry["preset"] not in PRESETS:
            raise nearest("preset", str(entry["preset"]), PRESETS)
        try:
            return describe_entry(with_table(entry, folder), self.dataset if self.dataset in PRESETS else None)
        except CheckpointError as error:
            raise ConfigError(f"{weights}: {error} in the config file") from None

    @staticmethod
    def guidance(classifier: Path, scale: float | None, model: Model) -> Guidance:
        """Return the guidance of a model by the classifier of its preset, by default at the published strength.

        Raises:
            ConfigError: no classifier was released with the model's network.
        """
        guided = {name: preset for name, preset in PRESETS.items() if preset.classifier is not None}
        for preset in guided.values():
            if preset.classifier is not None and preset.description() == model.description:
                return Guidance(classifier, preset.classifier, scale or preset.guidance_scale or 1.0)
        raise ConfigError(f"--classifier guides models of the presets {', '.join(guided)}, which {model.name!r} is not")

    def load_dataset(self, data_dir: Path | None, flags: Mapping[str, Any]) -> Dataset:
        """Load the run's dataset.

        Args:
            data_dir: where known datasets lie; where it is given, relative paths of the config file's datasets start
                there and not in the file's folder.
            flags: ``resize``, ``crop`` and ``resize_filter`` of the command line, those that were given; they replace
                the config file's.

        Returns:
            The images; without ``data_dir``, of a dataset whose statistics the package keeps, those.

        Raises:
            ConfigError: fewer than 2 training images.
            DataError: the images cannot be read.
        """
        if self.dataset in EMBEDDED_DATASETS and flags:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in flags)
            raise ConfigError(f"the embedded digits are 8x8 as they are; leave out {given}")
        entry = self.datasets.get(self.dataset, {})
        chosen = {name: entry[name] for name in ("resize", "crop", "resize_filter") if name in entry} | dict(flags)
        preprocessing = Preprocessing(
            chosen.get("resize"), str(chosen.get("crop", "none")), chosen.get("resize_filter")
        )
        every = int(entry.get("heldout_every", 0))
        if not entry and data_dir is None and self.dataset in WITH_STATISTICS and not chosen:
            return unseen(self.dataset)
        if not entry:
            return load(self.dataset, data_dir, heldout_every=every, preprocessing=preprocessing)
        full = (data_dir or Path(str(entry["folder"]))) / str(entry["path"])
        data = load_path(self.dataset, full, every, preprocessing)
        if len(data.part("train")) < 2:
            raise ConfigError(f"dataset {self.dataset!r} has fewer than 2 training images in {full}")
        return data


def _is_same_file(first: Path, second: Path) -> bool:
    return second.is_file() and file_hash(first) == file_hash(second)


def _with(model: Model, old: Model, *remedies: Remedy) -> Model:
    """Return a model with remedies after those that the old one has."""
    base = old.base if old.remedies else old.base or old.name
    return replace(model, remedies=(*old.remedies, *remedies), base=base) if remedies else model


def load_registry(configs: Sequence[Path], dataset: str) -> Registry:
    """Read TOML files and return the registry of a dataset.

    Args:
        configs: the files.
        dataset: its name, or ``NAME=PATH`` for images that no file has an entry of.

    Raises:
        ConfigError: a file is missing or wrong, two files name one model or dataset, or the dataset is unknown.
    """
    entries = read_config_files(configs)
    for name in entries.datasets:
        if name in EMBEDDED_DATASETS:
            raise ConfigError(f"datasets.{name} of the config file has the name of an embedded dataset; choose another")
    name, is_path, path = dataset.partition("=")
    if is_path:
        _refuse_taken(name, path, entries.datasets)
        entries.datasets[name] = {"path": os.path.expanduser(path), "folder": "."}
    elif dataset not in entries.datasets and dataset not in DATASETS:
        raise nearest("dataset", dataset, [*DATASETS, *entries.datasets], "images of your own are --dataset NAME=PATH")
    dataset = name
    return Registry(dataset, entries.models, entries.datasets, entries.folders)


def _refuse_taken(name: str, path: str, datasets: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse ``--dataset NAME=PATH`` without a path, or with a name that is known."""
    check_name(name, "--dataset")
    if not path:
        raise ConfigError(f"--dataset {name}= names no path; write --dataset {name}=PATH")
    if name in DATASETS:
        advice = "choose another name" if name in EMBEDDED_DATASETS else f"write --dataset {name} --data-dir {path}"
        raise ConfigError(f"--dataset {name}={path}: {name} is a known dataset; {advice}")
    if name in datasets:
        raise ConfigError(f"--dataset {name}={path}: the config file has a dataset {name}; choose another name")
