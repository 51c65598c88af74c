"""How a run finds W&B: online when the user is logged in and the server answers, offline otherwise, without a stall."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

STEP = "trainer/global_step"
"""The name under which Lightning's WandbLogger stores the step; every plot in W&B has it as its x axis."""


@dataclass
class LoggerSettings:
    """Logging of a run.

    Attributes:
        project, entity, group, tags: as in W&B. `group` gathers runs there; compare uses the experiment's name.
        mode: "auto" obeys WANDB_MODE where it is set; else it is online when the user is logged in and the server
            answers, offline otherwise. "disabled" keeps to the files of the run directory.
        connect_seconds: how long to wait for the server before going offline.
        finish_seconds: how long to wait, at the end, for what is not uploaded yet; `wandb sync` uploads the rest.
        examples: how many retrieval examples with pictures and sounds go into W&B's table.
    """

    project: str = "mmalign"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    connect_seconds: float = 10.0
    finish_seconds: float = 60.0
    examples: int = 32


def connect(
    run_dir: Path, config: Mapping[str, Any], settings: LoggerSettings, name: str, run_id: str
) -> "WandbLogger | None":
    """Start a W&B run, or go on with the one of this id; offline when it cannot be online; None when disabled."""
    mode = _wandb_mode(settings)
    if mode == "disabled":
        return None
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    def start(mode: Literal["online", "offline"]) -> Any:
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags or None,
            name=name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            mode=mode,
            config=json.loads(json.dumps(dict(config), default=str)),
            reinit="create_new",  # several runs of one process (the arms of a comparison) stay apart
            settings=wandb.Settings(
                init_timeout=settings.connect_seconds, finish_timeout=settings.finish_seconds, quiet=True
            ),
        )

    try:
        experiment = start(mode)
    except Exception as error:  # wandb's errors share no base class with those of the network below it
        if mode == "offline":
            raise
        warnings.warn(f"W&B cannot be used online ({_first_line(error)}); this run is logged offline", stacklevel=2)
        experiment = start("offline")
    experiment.define_metric(STEP)
    experiment.define_metric("*", step_metric=STEP, step_sync=True)
    # Lightning's offline=True would switch the whole process to offline; the run itself knows its mode.
    return WandbLogger(experiment=experiment, id=run_id, project=settings.project, save_dir=str(run_dir))


def _wandb_mode(settings: LoggerSettings) -> Literal["online", "offline", "disabled"]:
    mode = settings.mode
    if mode == "auto":
        wanted = os.environ.get("WANDB_MODE", "")
        if wanted in ("disabled", "offline", "dryrun"):
            return "disabled" if wanted == "disabled" else "offline"
        if not wanted and not _logged_in():
            return "offline"
        mode = "online"
    if mode == "online" and not _server_answers(min(settings.connect_seconds, 3.0)):
        warnings.warn("the W&B server cannot be reached; this run is logged offline", stacklevel=2)
        return "offline"
    return mode


def _base_url() -> str:
    import wandb

    return str(wandb.setup().settings.base_url)


def _logged_in() -> bool:
    """Whether W&B would find an API key, without asking for one."""
    import netrc
    from urllib.parse import urlsplit

    import wandb

    if wandb.setup().settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(_base_url()).hostname or ""
    for name in filter(None, [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]):
        path = Path(name).expanduser()
        try:
            if path.is_file() and netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _server_answers(seconds: float) -> bool:
    """Whether the server takes a connection; True where that cannot be told from here (behind a proxy)."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    address = urlsplit(_base_url())
    if address.scheme in getproxies() or "all" in getproxies():
        return True
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=seconds).close()
    except OSError:
        return False
    return True


@contextmanager
def harmless() -> Iterator[None]:
    """Turn any error of W&B into a warning."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"W&B: {_first_line(error)}; the run goes on without it", stacklevel=3)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
