"""Stage after stage: train, save, evaluate everything. A killed run goes on where its last checkpoint stands."""

import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from torch import nn

from mmalign.data.config import Reading
from mmalign.data.faults import QuarantineLog
from mmalign.data.index import ShardSet
from mmalign.data.loader import StageLoader
from mmalign.data.workers import workers_per_process
from mmalign.evaluation.base import Evaluator, Moment
from mmalign.evaluation.run import evaluate_all
from mmalign.evaluation.table import Row, read_rows, write_rows
from mmalign.retention.base import Retention, StagePlan
from mmalign.training.callbacks import Checkpoints, Journal, StepsBar, stop, stop_unless_finite
from mmalign.training.checkpoints import AtomicCheckpointIO, CheckpointFolder, load_checkpoint, save_atomically
from mmalign.training.cost import CostMeter, StageCost
from mmalign.training.device import matmul_precision, root_device, trainer_settings
from mmalign.training.experiment import Experiment, Stage
from mmalign.training.initial import take_over
from mmalign.training.least_squares import fit_least_squares
from mmalign.training.load import read_weights
from mmalign.training.logging import RunLoggers
from mmalign.training.module import AlignmentModule
from mmalign.training.run_files import write_json
from mmalign.training.stage_data import never_trained, stage_stream
from mmalign.training.towers import compile_towers, recompute_layers
from mmalign.training.trainable import describe_trainable, parameter_counts, warn_of_batch_norm


class Curriculum:
    """Runs all stages of an experiment in a run's folder.

    Args:
        experiment: built from `config`.
        config: the checked configuration as plain data; it travels in every checkpoint.
        directory: of the run.
        rank: of this process; only 0 writes.
    """

    def __init__(
        self,
        experiment: Experiment,
        config: dict[str, Any],
        directory: Path,
        rank: int = 0,
    ) -> None:
        if experiment.runtime.precision == "64-true":
            # as Lightning does when a stage begins; here already, because a checkpoint of such a stage is loaded before
            for module in (experiment.model, *experiment.losses.values()):
                module.double()
        recompute_layers(experiment.model, experiment.runtime.gradient_checkpointing)
        compile_towers(experiment.model, experiment.runtime.compile)
        self.experiment = experiment
        self.config = config
        self.directory = directory
        self.rank = rank
        self.checkpoints = CheckpointFolder(directory / "checkpoints", experiment.runtime.keep_checkpoints)
        self.quarantine = QuarantineLog(directory / "quarantine.jsonl")
        self.rows: list[Row] = []
        self.costs: list[StageCost] = []
        self.stage_facts: list[dict[str, Any]] = []
        self.initial_pairs: list[list[str]] = []
        self.device = root_device(experiment.runtime)
        self.evaluated: set[str] = set()  # the columns that this process has measured on the weights that it holds
        self.new_columns: set[str] = set()  # those that the restored checkpoint does not know, or knows otherwise
        self.ended_by: dict[str, bool] = {}  # signals that came while a stage's last step was under way
        workers = experiment.runtime.workers
        workers = workers_per_process(experiment.runtime.devices) if workers is None else workers
        plans = [self.plan(index) for index in range(1, len(experiment.stages) + 1)] if experiment.cached else []
        self.reading = Reading(experiment.limits, workers, never_trained(experiment.cached, plans))
        experiment.model.reading = self.reading

    def run(self, loggers: RunLoggers) -> list[Row]:
        """All stages that are not done yet, each followed by an evaluation of every column."""
        self.loggers = loggers
        names = list(self.experiment.stages)
        start = self._restore()
        self._to_device()
        self._evaluate_lost(start)
        if self._missing(start) or not self.rows:
            self._evaluate_missing(start)
            if start == 0 or self.new_columns:
                self._save_end(start)  # with the references that evaluators took at the start
        for index, name in enumerate(names, 1):
            if index > start:
                self._train(index, name)
                self._save_end(index)
                if any(self.ended_by.values()):
                    stop(self.ended_by["interrupted"])
                self._evaluate_missing(index)
        return self.rows

    def steps_done(self) -> int | None:
        """Optimizer steps up to the run's newest checkpoint, over all stages; None for a new run."""
        position = self.checkpoints.position()
        return None if position is None else self._steps_before(position[0]) + position[1]

    # --- state ---------------------------------------------------------------------------------------------------

    def _restore(self) -> int:
        """Load the end of the last stage that ended, or save the start; returns that stage's index."""
        last = self.checkpoints.last_end()
        self.rows = self._rows_until(-1 if last is None else last)
        if last is None:
            if self.experiment.initial_checkpoint is not None:
                self._start_from(self.experiment.initial_checkpoint)
            self._save_end(0)
            return 0
        facts = self._load_end(last)
        self._find_new_columns(facts["config"]["evaluation"])
        for name, method in self.experiment.retention.items():
            method.load_state_dict(facts["retention"].get(name, {}))
        self.initial_pairs = facts["initial_pairs"]
        self.costs = [StageCost(**cost) for cost in facts["costs"]]
        self.stage_facts = list(facts["stages"])
        return last

    def _start_from(self, origin: str) -> None:
        state, facts = read_weights(Path(origin))
        taken = take_over(self._holder(), state, facts, f"initial_checkpoint: {origin}")
        self.initial_pairs = taken.pairs
        if self.rank == 0 and str(taken):
            print(f"initial_checkpoint: {origin}: {taken}", flush=True)

    def _load_end(self, index: int) -> dict[str, Any]:
        """Weights and evaluators as they were at the end of a stage; returns its facts."""
        path = self.checkpoints.end_of(index)
        state = load_checkpoint(path)
        self._load_weights(state["state_dict"], str(path))
        facts: dict[str, Any] = state["mmalign"]
        for name, evaluator in self.experiment.evaluation.items():
            if name not in self.new_columns:
                evaluator.load_state_dict(facts["evaluators"].get(name, {}))
        return facts

    def _find_new_columns(self, known: dict[str, Any]) -> None:
        """Forget what columns of the same name but with other settings have measured and kept."""
        wanted = self.config["evaluation"]
        self.new_columns = {name for name in wanted if known.get(name) != wanted[name]}
        for name in self.new_columns:
            self.experiment.evaluation[name].load_state_dict({})
        self.rows = [row for row in self.rows if row.column not in self.new_columns]
        if self.new_columns:
            self._forget_sweep()

    def _rows_until(self, last: int) -> list[Row]:
        """What was measured up to that stage; figures of a stage whose checkpoint is gone are of other weights."""
        metrics = self.directory / "metrics.jsonl"
        lost = list(self.experiment.stages)[max(last, 0) :] + (["start"] if last < 0 else [])
        if lost:
            self._forget_sweep()
        return [row for row in read_rows(metrics) if row.stage not in lost] if metrics.exists() else []

    def _forget_sweep(self) -> None:
        """What was measured around the last stage's weights."""
        if self.rank == 0:
            for path in (self.directory / "sweep").glob("*.jsonl"):
                path.unlink()

    def _holder(self) -> nn.Module:
        """Model and losses under the names that their weights have in a checkpoint."""
        return nn.ModuleDict({"model": self.experiment.model, "losses": nn.ModuleDict(self.experiment.losses)})

    def _load_weights(self, state: dict[str, Any], origin: str) -> None:
        try:
            self._holder().load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{origin}: does not fit this configuration's model and losses: {error}") from None

    def _to_device(self) -> None:
        for module in (self.experiment.model, *self.experiment.losses.values()):
            module.to(self.device)

    def _facts(self, index: int, within: StagePlan | None = None) -> dict[str, Any]:
        """Of a checkpoint at the end of stage `index`, or within it; then `total_step` is that of its beginning."""
        pairs = self.trained_pairs(index) | {frozenset(pair) for pair in (within.pairs.values() if within else ())}
        return {
            "version": 1,
            "config": self.config,
            "stage_index": index,
            "total_step": self._steps_before(index if within else index + 1),
            "spec": {name: encoder.spec for name, encoder in self.experiment.model.encoders.items()},
            "trained_pairs": sorted(sorted(pair) for pair in pairs),
            "initial_pairs": self.initial_pairs,
            "evaluators": {name: e.state_dict() for name, e in self.experiment.evaluation.items()},
            "costs": [asdict(cost) for cost in self.costs],
            "stages": self.stage_facts,
        }

    def _save_end(self, index: int) -> None:
        """Weights, methods and facts at the end of a stage (0: the start); the next has an optimizer of its own."""
        if self.rank != 0:
            return
        retention = {name: method.state_dict() for name, method in self.experiment.retention.items()}
        content = {"state_dict": self._holder().state_dict(), "mmalign": self._facts(index) | {"retention": retention}}
        save_atomically(content, self.checkpoints.end_of(index))
        self.checkpoints.prune(index + 1)

    def _steps_before(self, index: int) -> int:
        return sum(stage.total_steps for stage in list(self.experiment.stages.values())[: index - 1])

    def trained_pairs(self, index: int) -> frozenset[frozenset[str]]:
        """Pairs aligned by stages 1 … index, also those that a method added (see Joint), and before the run."""
        stages = list(self.experiment.stages.values())[:index]
        pairs = [self.experiment.losses[name].pair for stage in stages for name in stage.losses]
        added = [pair for facts in self.stage_facts[:index] for pair in facts.get("pairs", [])]
        return frozenset(frozenset(pair) for pair in [*self.initial_pairs, *pairs, *added])

    # --- evaluation ----------------------------------------------------------------------------------------------

    def _evaluate_lost(self, restored: int) -> None:
        """What metrics.jsonl lacks of the stages before the restored one, each with the weights at its own end."""
        lost = [index for index in range(restored) if self._missing(index)]
        for index in lost:
            path = self.checkpoints.end_of(index)
            if not path.exists():
                stage, columns = self.moment(index).stage, ", ".join(self._missing(index))
                warnings.warn(
                    f"{self.directory / 'metrics.jsonl'} has no figures of {stage!r} for {columns}, and {path} is "
                    "gone, too",
                    stacklevel=2,
                )
                continue
            self._load_end(index)
            self._evaluate_missing(index)
        if lost:
            self._load_end(restored)
            self.evaluated = set()

    def _missing(self, index: int) -> dict[str, Evaluator]:
        """The columns without figures of the end of that stage; 0 is the start."""
        stage = self.moment(index).stage
        known = {row.column for row in self.rows if row.stage == stage}
        return {name: evaluator for name, evaluator in self.experiment.evaluation.items() if name not in known}

    def _evaluate_missing(self, index: int) -> None:
        """All columns that have no figures of that moment yet, with the weights as they are."""
        missing = self._missing(index)
        with self.quarantine.reported():
            rows = evaluate_all(self.experiment.model, missing, self.moment(index))
        self.evaluated = set(missing)
        order = {name: number for number, name in enumerate(self.experiment.evaluation)}
        self.rows += rows
        self.rows.sort(key=lambda row: (row.stage_index, order.get(row.column, len(order))))
        if self.rank == 0:
            write_rows(self.directory / "metrics.jsonl", self.rows)
            self.loggers.log_rows(rows)

    def moment(self, index: int) -> Moment:
        """The end of stage `index`; 0 is the start."""
        names = ["start", *self.experiment.stages]
        step = self._steps_before(index + 1)
        experiment = self.experiment
        return Moment(experiment.name, names[index], index, step, experiment.seed, self.trained_pairs(index))

    # --- training ------------------------------------------------------------------------------------------------

    def _active(self, stage: Stage) -> dict[str, Retention]:
        names = self.experiment.retention if stage.retention is None else stage.retention
        return {name: self.experiment.retention[name] for name in names}

    def plan(self, index: int) -> StagePlan:
        """The stage as its methods make it."""
        plans = [
            StagePlan(
                index=number,
                name=name,
                steps=stage.total_steps,
                batch_size=stage.batch_size,
                data=dict(stage.data),
                losses=dict(stage.losses),
                trainable=dict(stage.trainable),
                seed=self.experiment.seed,
                directory=self.directory,
                initial_pairs=[(a, b) for a, b in self.initial_pairs],
                pairs={loss: self.experiment.losses[loss].pair for loss in stage.losses},
                chunk_size=self.experiment.runtime.chunk_size,
                limits=self.experiment.limits,
            )
            for number, (name, stage) in enumerate(self.experiment.stages.items(), 1)
        ]
        plan = plans[index - 1]
        plan.past, plan.future = plans[: index - 1], plans[index:]
        plan = plan.clone()
        for method in self._active(self.experiment.stages[plan.name]).values():
            method.prepare(plan, self.experiment.model)
        return plan

    def _train(self, index: int, name: str) -> None:
        experiment, runtime = self.experiment, self.experiment.runtime
        stage = experiment.stages[name]
        methods = self._active(stage)
        plan = self.plan(index)
        facts = self._facts(index, within=plan)
        module = AlignmentModule(experiment.model, experiment.losses, methods, stage, plan, runtime, facts)
        if self.rank == 0:
            print(
                f"stage {index} of {len(experiment.stages)}, {name}: {plan.steps} steps of {plan.batch_size}; "
                f"{describe_trainable(experiment.model)}",
                flush=True,
            )
        mid_stage = self.checkpoints.last_within(index)
        if stage.least_squares:  # also on resume: methods begin with the model as it was before the first step
            with self.quarantine.reported():
                fit_least_squares(experiment.model, [stage.data[source] for source in stage.least_squares])
        for method in methods.values():
            method.begin(plan, experiment.model, dict(experiment.losses))
        sizes = ((len(ShardSet.open(data.shards, data.split)), data.limit) for data in plan.data.values())
        samples = sum(size if limit is None else min(size, limit) for size, limit in sizes)
        checkpoints = Checkpoints(self.checkpoints, runtime.checkpoint_every_steps, runtime.checkpoint_every_minutes)
        trainer, cost = self._trainer(plan, stage, experiment.max_fault_share * samples, checkpoints)
        with self.quarantine.reported():
            stream = stage_stream(
                plan, experiment.model, experiment.cached, self.reading, trainer.global_rank, trainer.world_size
            )
        loader = StageLoader(stream, workers=self.reading.workers, pin_memory=self.device.type == "cuda")
        module.train()  # Lightning leaves the modes as they are
        if self.rank == 0:
            warn_of_batch_norm(experiment.model, trainer.world_size)
        started = time.perf_counter()
        try:
            with matmul_precision(runtime.matmul_precision):
                trainer.fit(module, loader, ckpt_path=None if mid_stage is None else str(mid_stage), weights_only=True)
        except SystemExit as ended:
            if isinstance(ended.__context__, KeyboardInterrupt):  # which Lightning makes an exit with status 1
                raise KeyboardInterrupt from None
            raise
        stop_unless_finite(module, f"stage {name!r}, its last step")
        self._to_device()  # Lightning has taken all back to the CPU
        self.ended_by = {
            name: trainer.strategy.reduce_boolean_decision(event.is_set(), all=False)
            for name, event in (("terminated", checkpoints.terminated), ("interrupted", checkpoints.interrupted))
        }
        with self.quarantine.reported():
            for method in reversed(methods.values()):
                method.end(plan, experiment.model, dict(experiment.losses))
            for method in methods.values():
                method.after_end(plan, experiment.model, dict(experiment.losses))
        stored = sum(method.bytes_stored() for method in experiment.retention.values())
        self.costs.append(cost.result(name, time.perf_counter() - started, stored))
        counts = parameter_counts(experiment.model)
        done = {"name": name, "steps": plan.steps, "batch_size": plan.batch_size, "trainable": counts}
        self.stage_facts.append(done | {"pairs": sorted(sorted(pair) for pair in plan.pairs.values())})
        if self.rank == 0:
            write_json(self.directory / "cost.json", [asdict(cost) for cost in self.costs])

    def _trainer(
        self, plan: StagePlan, stage: Stage, allowed_faults: float, checkpoints: Checkpoints
    ) -> tuple[L.Trainer, CostMeter]:
        runtime = self.experiment.runtime
        offset = self._steps_before(plan.index)
        cost = CostMeter(runtime.price_per_hour * runtime.num_nodes)
        splits = {(name, data.split) for name, data in plan.data.items()}
        journal = Journal(self.loggers.log, offset, runtime.log_every_steps, self.quarantine, splits, allowed_faults)
        return L.Trainer(
            default_root_dir=self.directory,
            **trainer_settings(runtime),
            precision=runtime.precision,
            max_steps=plan.steps,
            max_epochs=-1,
            gradient_clip_val=stage.optimization.gradient_clip,
            callbacks=[journal, cost, checkpoints, *([StepsBar()] if runtime.progress_bar else [])],
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=runtime.progress_bar,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
        ), cost
