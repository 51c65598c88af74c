"""Arms and seeds: train what is missing, then lay the runs side by side."""

import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from mmalign.evaluation.table import read_rows, write_rows
from mmalign.retention.base import Retention
from mmalign.training.config import build_part, check_config
from mmalign.training.run_files import check_stored, holds_run, write_text
from mmalign.training.yaml_config import ConfigError, differences, load_yaml, read_config


@dataclass
class Arms:
    """The runs that a file with `arms` and `seeds` asks for.

    Attributes:
        configs: checked configurations by (arm, seed), in the file's order.
    """

    configs: dict[tuple[str, int], dict[str, Any]]
    _children: "_Children" = field(default_factory=lambda: _Children(), init=False, repr=False, compare=False)

    def train_missing(self, out: Path, jobs: int) -> list[Path]:
        """Train every run that is not finished, `jobs` at a time, each in a process of its own; returns the runs.

        Runs of one seed that do the same up to some stage do it once (see shared_stages).

        Raises:
            ConfigError: a run that is there was started with another configuration, or data were built with other
                settings; nothing was trained by then.
            FileNotFoundError: weights that a run begins with are not there.
            RuntimeError: a run failed; names its folder. The finished ones stay.
        """
        from mmalign.training.run import build_missing_data, check_built_data, check_weights

        directories = {key: out / key[0] / f"seed-{key[1]}" for key in self.configs}
        for key, config in self.configs.items():
            check_stored(directories[key], config)
            if not _is_finished(directories[key], config):
                check_built_data(config)
                check_weights(config, directories[key])
        for config in self.configs.values():  # here, because two runs at a time would build the same directory
            build_missing_data(config)
        seeds: dict[int, list[tuple[str, int]]] = {}
        for key in self.configs:
            seeds.setdefault(key[1], []).append(key)

        # the arm that shares its first stages with most others goes first
        leaders = {seed: max(keys, key=lambda key: self._followers(key, keys)) for seed, keys in seeds.items()}

        def follow(key: tuple[str, int]) -> None:
            leader = leaders[key[1]]
            started[leader].result()
            shared = shared_stages(self.configs[leader], self.configs[key])
            if shared and not holds_run(directories[key]):
                adopt(directories[leader], directories[key], self.configs[key], shared)
            self._train(directories[key], key, jobs)

        with ThreadPoolExecutor(max(1, jobs)) as pool:
            try:
                # the pool starts them in this order, so that a follower that waits never keeps its leader from starting
                started = {key: pool.submit(self._train, directories[key], key, jobs) for key in leaders.values()}
                followers = [pool.submit(follow, key) for key in self.configs if key not in started]
                for run in [*started.values(), *followers]:
                    run.result()
            except (KeyboardInterrupt, SystemExit):
                pool.shutdown(wait=False, cancel_futures=True)
                self._children.stop()
                raise
        return list(directories.values())

    def _followers(self, leader: tuple[str, int], keys: list[tuple[str, int]]) -> int:
        return sum(shared_stages(self.configs[leader], self.configs[key]) for key in keys if key != leader)

    def _train(self, directory: Path, key: tuple[str, int], jobs: int) -> None:
        if _is_finished(directory, self.configs[key]):
            return
        (directory / "report.html").unlink(missing_ok=True)
        directory.mkdir(parents=True, exist_ok=True)
        config = directory.parent / f"{directory.name}.yaml"
        write_text(config, yaml.safe_dump(self.configs[key], sort_keys=False, allow_unicode=True))
        environment = dict(os.environ)
        if jobs > 1:
            # two processes of two threads each crawl on two cores
            environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        print(f"{directory}: training; its log is {directory}.log", flush=True)
        with open(directory.parent / f"{directory.name}.log", "a", encoding="utf-8") as log:
            command = [sys.executable, "-m", "mmalign", "train", "--config", str(config), "--out", str(directory)]
            status = self._children.run([*command, "--resume"], stdout=log, stderr=log, env=environment)
        if status != 0:
            raise RuntimeError(f"{directory}: training ended with status {status}; see {directory}.log")
        print(f"{directory}: done", flush=True)


def _is_finished(directory: Path, config: dict[str, Any]) -> bool:
    """Whether the run has ended, with all that this configuration evaluates."""
    stored = directory / "config.yaml"
    return (
        (directory / "report.html").exists()
        and stored.exists()
        and load_yaml(stored)["evaluation"] == config["evaluation"]
    )


class _Children:
    """Processes that threads start and wait for, and that end with this one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def run(self, command: list[str], **settings: Any) -> int:
        """The exit status; that of SIGTERM, and no process, after `stop`."""
        with self.lock:
            if self.stopped:
                return -signal.SIGTERM
            process = subprocess.Popen(command, **settings)
            self.running.add(process)
        status = process.wait()
        with self.lock:
            self.running.remove(process)
        return status

    def stop(self) -> None:
        """SIGTERM to all: a training saves and ends. Does not wait for them."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


def read_arms(file: Path, overrides: dict[str, Any], names: list[str] | None = None) -> Arms:
    """The arms and seeds of a YAML, every configuration checked before anything is trained.

    Raises:
        ConfigError: the file names no arms or no seeds, or one of its configurations is wrong, or a single `seed` is
            given.
    """
    if "seed" in overrides:
        raise ConfigError(f"--seed: a comparison takes its seeds from --seeds, here --seeds=[{overrides['seed']}]")
    content = load_yaml(file)
    arms, seeds = content.get("arms"), overrides.pop("seeds", None) or content.get("seeds")
    if not isinstance(arms, dict) or not arms or not isinstance(seeds, list) or not seeds:
        raise ConfigError(f"{file}: to compare, give `arms` (by name) and `seeds` (a list)")
    configs = {}
    for seed in seeds:
        for arm in names or arms:
            config = read_config(file, {**overrides, "seed": seed}, arm)
            logging = config.setdefault("logging", {})
            logging["group"] = logging.get("group") or config["name"]
            config["name"] = f"{config['name']}/{arm}/seed-{seed}"
            configs[arm, int(seed)] = check_config(config)
    return Arms(configs)


def shared_stages(leader: dict[str, Any], follower: dict[str, Any]) -> int:
    """How many first stages two configurations do alike, so that the follower can start from the leader's run.

    Nothing but retention may differ in them. A stage is done alike when neither has active methods. The first stage is
    also when no method of the leader acts before there is a past (see Retention.acts_at_once), and the follower has
    none: what a method has seen by the end of the stage is not handed over.
    """
    differing = differences(leader, follower)
    if any(key.split(".")[0] not in ("arm", "name", "retention", "stages", "sweep") for key in differing):
        return 0
    for count, name in enumerate(leader["stages"]):
        others = [key for key in differing if f"{key}.".startswith(f"stages.{name}.")]
        if any(not f"{key}.".startswith(f"stages.{name}.retention.") for key in others):
            return count
        leading, following = _active(leader, name), _active(follower, name)
        idle = count == 0 and not following and not any(map(_acts_at_once, leading.values()))
        if (leading or following) and not idle:
            return count
    return len(leader["stages"])


def _active(config: dict[str, Any], stage: str) -> dict[str, str]:
    """The methods of a stage by name, as JSON."""
    wanted = config["stages"][stage]["retention"]
    methods = {name: json.dumps(method, sort_keys=True) for name, method in config["retention"].items()}
    return methods if wanted is None else {name: f"{weight}{methods[name]}" for name, weight in wanted.items()}


def _acts_at_once(method: str) -> bool:
    built: Retention = build_part(json.loads(method[method.index("{") :]), Retention)
    return built.acts_at_once


def adopt(source: Path, target: Path, config: dict[str, Any], stages: int) -> None:
    """Start the run `target` from the first stages of the finished run `source`, which did the same up to there."""
    from mmalign.training.checkpoints import CheckpointFolder, load_checkpoint, save_atomically

    rows = [row for row in read_rows(source / "metrics.jsonl") if row.stage_index <= stages]
    for index in range(stages + 1):
        content = load_checkpoint(CheckpointFolder(source / "checkpoints", 1).end_of(index))
        content["mmalign"]["config"] = config
        content["mmalign"]["retention"] = {}
        save_atomically(content, CheckpointFolder(target / "checkpoints", 1).end_of(index))
    write_rows(target / "metrics.jsonl", [replace(row, run=config["name"]) for row in rows])


def compare_runs(runs: list[Path], out: Path, results: Path | None) -> None:
    """Tables, heat maps and plots of finished runs: OUT/report.html, OUT/comparison.json and .csv, and `results`.

    The same goes to W&B as a run of its own, with the settings of the first run, whose group it joins.
    """
    from mmalign.report.commands import report
    from mmalign.report.compare import write_comparison
    from mmalign.training.logging import LoggerSettings, make_loggers

    out.mkdir(parents=True, exist_ok=True)
    comparison = write_comparison(runs, out, results)
    page = report(runs, out / "report.html")
    first = load_yaml(runs[0] / "config.yaml") if (runs[0] / "config.yaml").exists() else {}
    settings = LoggerSettings(**first.get("logging", {}))
    described = {"runs": [str(run) for run in runs], "arms": list(comparison.arms)}
    loggers = make_loggers(out, described, settings, f"{settings.group or out.name}/comparison")
    loggers.log_comparison(comparison)
    loggers.log_report(page)
    loggers.close()
    print(page)
