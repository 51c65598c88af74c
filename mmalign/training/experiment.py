"""What a YAML says: the experiment, its stages, where it runs. These classes are the schema and the only defaults."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mmalign.checks import at_least, positive, share
from mmalign.data.config import ShardData
from mmalign.data.faults import Limits
from mmalign.data.sources.base import Source
from mmalign.evaluation.base import Evaluator
from mmalign.losses.base import Loss
from mmalign.model import FUSED, Aligner
from mmalign.retention.base import Retention
from mmalign.retention.frozen import Frozen
from mmalign.retention.joint import Joint
from mmalign.training.chunking import check_chunks
from mmalign.training.logging import LoggerSettings
from mmalign.training.optim import Optimization
from mmalign.training.trainable import check_globs, check_trainable, freeze_all_but, freeze_unreached


@dataclass
class Stage:
    """One stage of the curriculum.

    Attributes:
        data: what it draws from, by name; with several, their weights say how often.
        losses: names of the experiment's losses, each with its weight.
        batch_size: samples of a global batch, over all ranks.
        steps: optimizer steps; either this or `samples`.
        samples: samples drawn; rounded up to whole steps.
        trainable: component glob -> "all", "none", or how many of its last layers are trained. Components are
            "encoder.NAME", "projection.NAME" and "fusion"; the last glob that matches counts; without one, all is
            trained. 0 layers are "none".
        optimization: learning rates, weight decay, warm-up, schedule, clipping.
        retention: the methods that are active, each with the weight of its penalties; None means all, at weight 1.
        least_squares: before its first step the model's computed heads (see Aligner) are fitted on these of its data.
    """

    data: dict[str, ShardData]
    losses: dict[str, float]
    batch_size: int = 256
    steps: int | None = None
    samples: int | None = None
    trainable: dict[str, Literal["all", "none"] | int] = field(default_factory=dict)
    optimization: Optimization = field(default_factory=Optimization)
    retention: dict[str, float] | None = None
    least_squares: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.samples is None):
            raise ValueError("give either steps or samples")
        if self.total_steps < 1 or self.batch_size < 2:
            raise ValueError("a stage needs at least one step, and a batch_size of at least 2")
        if not self.data:
            raise ValueError("data is empty")
        for name, weight in self.losses.items():
            positive(**{f"losses.{name}": weight})
        for name, weight in (self.retention or {}).items():
            at_least(0, **{f"retention.{name}": weight})
        self.optimization.check(self.total_steps)

    @property
    def total_steps(self) -> int:
        return self.steps if self.steps is not None else math.ceil((self.samples or 0) / self.batch_size)


@dataclass
class Runtime:
    """Where and how it runs; changing these between a run and its resumption is allowed.

    Attributes:
        accelerator, devices, num_nodes, precision: as in lightning.Trainer. Only training steps compute in mixed
            precision: evaluations, least-squares fits and feature caches are exact, in the type of the weights. Loss
            and gradients are the same on any number of ranks, except where batch norm is trained: its statistics are
            those of a rank's own rows.
        matmul_precision: of float32 matrix products in training steps, losses included, as in
            torch.set_float32_matmul_precision: "highest" is float32, "high" lets a GPU use TF32, "medium" bfloat16.
        workers: processes that read and decode, per rank, for stages, evaluations and feature caches; 0 decodes in the
            training process. None takes the cores that it may use, divided by `devices`, less one: from 1 to 8. Each
            keeps up to two batches in memory.
        threads: of torch, in the training process; None leaves torch's choice.
        chunk_size: gradient caching: the towers see this many samples at a time, the loss sees the whole batch, and
            the gradients are those of the whole batch. None turns it off. This is also how to accumulate gradients:
            Lightning's accumulate_grad_batches would change a contrastive loss: it shrinks its set of negatives. Towers
            whose batch normalisation is trained are refused: it would see a chunk at a time. On a CPU under glibc,
            start mmalign with MALLOC_MMAP_THRESHOLD_=1000000, or much of what is freed is kept.
        recompute: embed chunks again in the backward pass (memory of one chunk), or keep their graphs.
        gradient_checkpointing: modalities whose towers run again in the backward pass, block by block, and keep little.
        compile: modalities whose towers go through `torch.compile`.
        checkpoint_every_steps, checkpoint_every_minutes: whichever comes first.
        keep_checkpoints: how many of the current stage's checkpoints stay; those at the ends of stages always stay.
        log_every_steps: how often losses, rates and norms are logged.
        progress_bar: whether to show one.
        price_per_hour: of one machine (node), in any currency; turns the run's hours into an estimate of cost.
    """

    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    workers: int | None = None
    threads: int | None = None
    chunk_size: int | None = None
    recompute: bool = True
    gradient_checkpointing: list[str] = field(default_factory=list)
    compile: list[str] = field(default_factory=list)
    checkpoint_every_steps: int = 500
    checkpoint_every_minutes: float = 15.0
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    progress_bar: bool = True
    price_per_hour: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, devices=self.devices, num_nodes=self.num_nodes, threads=self.threads, chunk_size=self.chunk_size)
        at_least(1, checkpoint_every_steps=self.checkpoint_every_steps, keep_checkpoints=self.keep_checkpoints)
        at_least(1, log_every_steps=self.log_every_steps)
        at_least(0, workers=self.workers, checkpoint_every_minutes=self.checkpoint_every_minutes)
        at_least(0, price_per_hour=self.price_per_hour)

    def rows_per_process(self, batch_size: int) -> int:
        return batch_size // max(1, self.devices * self.num_nodes)


def check_run(name: str, seed: int, max_fault_share: float) -> None:
    """Raise a ValueError for a value of the experiment itself that makes no sense, before its folder is made."""
    if not name.strip():
        raise ValueError("name: is empty")
    at_least(0, seed=seed)
    share(max_fault_share=max_fault_share)


@dataclass
class Experiment:
    """One experiment, complete in one YAML.

    Attributes:
        name: of the run; W&B, tables and the report show it.
        model: encoders, projections, fusion.
        losses: all losses of all stages, by name; each keeps its learned scale from stage to stage.
        stages: by name, in order; the names stand in every row of metrics.
        evaluation: the columns of the forgetting matrix, by name; each runs before stage 1 and after every stage.
        retention: methods against forgetting, by name; they compose. Empty is the naive baseline.
        sweep: alphas at which the weights before and after the last stage are interpolated and evaluated at the end of
            the run, which costs no training (see WiSE).
        sources: by directory, the data sets that are built first where their directory does not exist.
        cached: modalities whose tower's outputs are computed once and kept beside the shards, in every stage that does
            not train the tower. Their inputs are then not augmented. Evaluators use them, too, where no stage trains
            the tower. A modality whose tower every stage trains is refused.
        arm: what is compared: runs of one arm differ in their seed only. `mmalign compare` sets it.
        seed: of everything that is random.
        initial_checkpoint: a run's folder, a checkpoint or an export that this run starts from. Components and losses
            of the same name are taken over whole; what it lacks starts as the YAML says, a fusion for another set of
            modalities, too; what does not fit is refused.
        runtime, logging, limits: where it runs, where it logs, what counts as an unusable sample.
        max_fault_share: above this share of unusable samples the run stops.
    """

    name: str
    model: Aligner
    losses: dict[str, Loss]
    stages: dict[str, Stage]
    evaluation: dict[str, Evaluator]
    retention: dict[str, Retention] = field(default_factory=dict)
    sweep: list[float] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    cached: list[str] = field(default_factory=list)
    arm: str = ""
    seed: int = 0
    initial_checkpoint: str | None = None
    runtime: Runtime = field(default_factory=Runtime)
    logging: LoggerSettings = field(default_factory=LoggerSettings)
    limits: Limits = field(default_factory=Limits)
    max_fault_share: float = 0.05

    def __post_init__(self) -> None:
        check_run(self.name, self.seed, self.max_fault_share)
        if "start" in self.stages or not self.stages:
            raise ValueError("stages: there must be at least one, and none may be called 'start'")
        for name, method in self.retention.items():
            method.name = name
        for name in self.cached:
            if name not in self.model.encoders:
                raise ValueError(f"cached: {name!r} is none of the modalities {self.model.modalities}")
        vectors = [*self.model.encoders, *([FUSED] if self.model.fusion is not None else [])]
        for name, loss in self.losses.items():
            for modality in loss.pair:
                if modality not in vectors:
                    raise ValueError(f"losses.{name}: the model has no {modality!r}; there are {', '.join(vectors)}")
        if any(stage.least_squares for stage in self.stages.values()) != (self.model.least_squares is not None):
            raise ValueError("model.least_squares and a stage's least_squares, on which it is fitted, need each other")
        for name, evaluator in self.evaluation.items():
            try:
                evaluator.check(self.model)
            except ValueError as error:
                raise ValueError(f"evaluation.{name}.{error}") from None
        for position, (stage_name, stage) in enumerate(self.stages.items()):
            if not stage.losses:
                raise ValueError(f"stages.{stage_name}.losses is empty")
            for kind, used, known in (
                ("losses", stage.losses, self.losses),
                ("retention", stage.retention or {}, self.retention),
                ("least_squares", stage.least_squares, stage.data),
            ):
                for name in used:
                    if name not in known:
                        raise ValueError(f"stages.{stage_name}.{kind}: {name!r} is none of {list(known)}")
            for name in stage.least_squares:
                bound = stage.data[name].modalities
                if bound is not None and not set(self.model.least_squares or ()) <= set(bound):
                    raise ValueError(
                        f"stages.{stage_name}.least_squares: {name!r} has {list(bound)}, not both of "
                        f"{list(self.model.least_squares or ())}"
                    )
            try:
                self._check_stage(stage, list(self.stages.values())[:position])
            except ValueError as error:
                raise ValueError(f"stages.{stage_name}.{error}") from None
            self._check_trained(stage_name, stage)

    def _check_trained(self, name: str, stage: Stage) -> None:
        """What else would be found when the stage begins. What Frozen leaves to train is known only then."""
        rows = self.runtime.rows_per_process(stage.batch_size)
        methods = self.retention if stage.retention is None else stage.retention
        before = [parameter.requires_grad for parameter in self.model.parameters()]
        freeze_all_but(self.model, stage.trainable)
        if not methods:  # they may bring losses of other stages along
            freeze_unreached(self.model, set().union(*(self.losses[loss].reaches() for loss in stage.losses)))
        try:
            if not stage.least_squares and not any(p.requires_grad for p in self.model.parameters()):
                raise ValueError(f"stages.{name}.trainable: {stage.trainable} leaves nothing of the model to train")
            if not any(isinstance(self.retention[method], Frozen) for method in methods):
                check_chunks(self.model, self.runtime.chunk_size, rows, name)
        finally:
            for parameter, trained in zip(self.model.parameters(), before, strict=True):
                parameter.requires_grad_(trained)

    def _check_stage(self, stage: Stage, past: list[Stage]) -> None:
        """What would otherwise be found when the stage begins, after those before it have been trained."""
        check_trainable(self.model, stage.trainable)
        parts = [*self.model.components(), *(f"loss.{name}" for name in self.losses)]
        check_globs("optimization.learning_rates", stage.optimization.learning_rates, parts)
        methods = [self.retention[name] for name in (self.retention if stage.retention is None else stage.retention)]
        stages = [*past, stage] if methods else [stage]  # a method may bring the data of other stages along
        if any(isinstance(method, Joint) and method.future for method in methods):
            stages = list(self.stages.values())
        data = [item for some in stages for item in some.data.items()]
        held = [(name, list(self.model.encoders if d.modalities is None else d.modalities)) for name, d in data]
        for name in stage.losses:
            pair = {modality for modality in self.losses[name].pair if modality != FUSED}
            if not any(pair <= set(modalities) for _, modalities in held):
                found = "; ".join(f"{source} has {', '.join(modalities)}" for source, modalities in held)
                raise ValueError(f"losses: {name!r} needs samples with {' and '.join(sorted(pair))}, but {found}")
