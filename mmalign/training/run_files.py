"""The plain files of a run: configuration, facts, costs."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mmalign import __version__
from mmalign.training.yaml_config import ConfigError, differences, load_yaml

FREE_KEYS = ("runtime", "logging", "evaluation", "sources", "sweep")
"""What may differ between a run and its resumption."""

_PACKAGES = ("torch", "lightning", "open_clip_torch", "timm", "transformers", "webdataset", "numpy", "wandb")


def write_text(path: Path, text: str) -> None:
    """Replace the file at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def open_run(directory: Path, config: dict[str, Any], resume: bool) -> None:
    """Claim a run's folder, or check that this configuration may go on with it.

    Raises:
        ConfigError: the folder holds a run and `resume` is False, or the configuration contradicts that run's.
    """
    stored = directory / "config.yaml"
    if stored.exists():
        if not resume:
            raise ConfigError(f"{directory}: holds a run already; go on with --resume, or choose another --out")
        check_same(load_yaml(stored), config, str(stored))
    directory.mkdir(parents=True, exist_ok=True)
    write_text(stored, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def check_same(old: dict[str, Any], new: dict[str, Any], origin: str) -> None:
    """Refuse a configuration that would change what a resumed run computes.

    Raises:
        ConfigError: names every differing key.
    """
    differing = [key for key in differences(old, new) if key.split(".")[0] not in FREE_KEYS]
    if differing:
        raise ConfigError(f"{origin}: the run was started with other values of {', '.join(differing)}")


def machine() -> dict[str, Any]:
    """What the run ran on, without names or paths."""
    import torch

    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": processor, "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}


def describe_run(config: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "name": config["name"],
        "arm": config["arm"] or None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config["seed"],
        "versions": {"mmalign": __version__, "python": platform.python_version()}
        | {package: version(package) for package in _PACKAGES},
        "machine": machine(),
        "stages": stages,
    }
