"""One run from configuration to report."""

import json
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from mmalign import assets
from mmalign.data.bound import check_members
from mmalign.data.card import read_card
from mmalign.data.config import ShardData, suggestion
from mmalign.data.faults import Limits
from mmalign.data.shards import build
from mmalign.data.sources.base import Source
from mmalign.training.config import build_experiment, build_part
from mmalign.training.curriculum import Curriculum
from mmalign.training.device import check_runtime
from mmalign.training.experiment import Runtime
from mmalign.training.load import find_weights
from mmalign.training.logging import make_loggers
from mmalign.training.run_files import describe_run, holds_run, locked, open_run, write_json
from mmalign.training.yaml_config import ConfigError


def train(config: dict[str, Any], directory: Path, resume: bool = False) -> Path:
    """Build missing data, run every stage, evaluate, log, write the report.

    Args:
        config: as `check_config` returns it.
        directory: of the run.
        resume: go on with the run that is there; without one, start it.

    Returns:
        The path of the report.

    Raises:
        ConfigError: the directory holds a run and `resume` is False, or it was started with another configuration, or
            another process trains in it, or a data set is not there or was built with other settings. Nothing was built
            or loaded by then.
        FileNotFoundError: weights that it begins with are not there; nothing was built by then.
        FloatingPointError: a loss is not finite; names step, loss and keys.
    """
    from lightning.pytorch.utilities import rank_zero_only

    # what Lightning says at every start of a Trainer (hardware, advertisements) hides what mmalign says
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")  # frozen towers are
    check_runtime(build_part(config["runtime"], Runtime))
    rank = getattr(rank_zero_only, "rank", 0) or 0
    with locked(directory) if rank == 0 else nullcontext():
        return _train(config, directory, resume, rank)


def _train(config: dict[str, Any], directory: Path, resume: bool, rank: int) -> Path:
    import lightning as L

    if rank == 0:
        check_built_data(config)
        check_weights(config, directory)
        open_run(directory, config, resume)
        build_missing_data(config)
    else:
        _wait_for_data(config)
    check_data(config)
    runtime = config["runtime"]
    if runtime["threads"] is not None:
        torch.set_num_threads(runtime["threads"])
    torch.set_flush_denormal(True)
    L.seed_everything(config["seed"], verbose=False)
    experiment = build_experiment(config)
    curriculum = Curriculum(experiment, config, directory, rank)
    loggers = make_loggers(directory, config, experiment.logging, config["name"], curriculum.steps_done())
    exit_code = 1
    try:
        curriculum.run(loggers)
        report = finish(curriculum, directory, loggers)
        exit_code = 0
    finally:
        loggers.close(exit_code)
    return report


def finish(curriculum: Curriculum, directory: Path, loggers: Any) -> Path:
    """Facts, examples, diagnostics, the report, and all of it to W&B: by rank 0, but all ranks evaluate the sweep."""
    from mmalign.report.commands import report
    from mmalign.training.showcase import save_diagnostics, save_examples
    from mmalign.training.sweep import evaluate_sweep

    experiment = curriculum.experiment
    step = curriculum.rows[-1].step if curriculum.rows else 0
    if curriculum.rank == 0:
        write_json(directory / "run.json", describe_run(curriculum.config, curriculum.stage_facts))
        if curriculum.evaluated:  # in this process; else the files of the last process are there
            stage = curriculum.rows[-1].stage
            save_examples(directory, experiment, stage, curriculum.evaluated)
            save_diagnostics(directory, experiment, stage, curriculum.evaluated)
    evaluate_sweep(curriculum, directory)
    if curriculum.rank != 0:
        return directory / "report.html"
    page = report([directory], None)
    loggers.log_examples(directory, step)
    loggers.log_matrix(curriculum.rows, step)
    loggers.log_report(page)
    print(f"{directory}: metrics.jsonl, {page.name}", flush=True)
    return page


def check_built_data(config: dict[str, Any]) -> None:
    """The directories of the configuration's sources that are built already were built with the same settings.

    A card without settings is not compared, nor a source whose raw material is no longer there.

    Raises:
        ConfigError: names the directory, the setting, and both values.
    """
    for path, given in config["sources"].items():
        card = read_card(path) if (Path(path) / "card.json").exists() else {}
        if not card.get("settings"):
            continue
        try:
            source = build_part(given, Source)
        except (OSError, ImportError):
            continue
        built = {"name": card["name"], **card["settings"]}
        wanted = json.loads(json.dumps({"name": source.name, **source.settings()}))
        for key, value in wanted.items():
            if built.get(key, value) != value:
                raise ConfigError(
                    f"sources.{path}: {key} is {json.dumps(value)}, but the directory was built with "
                    f"{json.dumps(built[key])}; delete {path}, or name another directory"
                )


def check_weights(config: dict[str, Any], directory: Path) -> None:
    """What a run begins with is on this machine: assets that the model names, and the checkpoint of a new run.

    Raises:
        FileNotFoundError: names the asset and the command that fetches it, or the checkpoint.
    """
    for value in _texts(config["model"]):
        if value in assets.ASSETS:
            assets.path(value)
    origin = config["initial_checkpoint"]
    if origin is not None and not holds_run(directory):
        try:
            find_weights(Path(origin))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"initial_checkpoint: {error}") from None


def _texts(value: Any) -> Iterator[str]:
    """Every text in a part of a configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def build_missing_data(config: dict[str, Any]) -> None:
    """Build the configuration's sources whose directories have no card yet."""
    missing = {path: source for path, source in config["sources"].items() if not (Path(path) / "card.json").exists()}
    for path, source in build_part(missing, dict[str, Source]).items():
        print(f"building {source.name} in {path}", flush=True)
        build(source, Path(path))


def _wait_for_data(config: dict[str, Any]) -> None:
    """Rank 0 builds; should it fail, whoever launched the processes ends the others."""
    while any(not (Path(path) / "card.json").exists() for path in config["sources"]):
        time.sleep(0.5)


def check_data(config: dict[str, Any]) -> None:
    """Every data set that the configuration names exists, with its split, its members, and encoders for them.

    Raises:
        ConfigError: names the key.
    """
    encoders = list(config["model"]["init_args"]["encoders"])
    limits = build_part(config.get("limits", {}), Limits)
    for key in ("stages", "evaluation", "retention"):
        for path, given in _shard_data(config[key], key):
            try:
                data = ShardData(**given)
                for name in data.modalities or {}:
                    if name not in encoders:
                        raise ValueError(f"modalities: the model has no encoder {name!r}{suggestion(name, encoders)}")
                check_members(data, limits)
            except (ValueError, OSError) as error:
                raise ConfigError(f"{path}: {error}") from None


def _shard_data(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "shards" in value and "split" in value:
            yield path, value
            return
        for key, item in value.items():
            yield from _shard_data(item, f"{path}.{key}")
