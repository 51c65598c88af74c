"""A whole training, both towers, with open_clip's own trainer and with mmalign's."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmalign.bench.base import Benchmark, Ceilings, Outcome, Quantity
from mmalign.bench.machine import matrix_extension, physical_cores
from mmalign.bench.material import Shape, clip_name, write_pictures, write_towers
from mmalign.bench.ratios import verdict
from mmalign.bench.steps import RecordedInfoNCE, step_seconds, step_times

_STEPS = 10
_PEER = "open_clip_train.main"
_RATE = 5e-4
_RECOMMENDED = "precision bf16-mixed where the processor has it, half of the patches dropped (arXiv:2212.00794)"


class TrainingStep(Benchmark):
    """Same weights, pictures, captions and batches, AdamW at a constant rate; time from one step's end to the next.

    The peer reads its csv in the order of mmalign's stream; all else is its own.
    """

    name = "training"
    title = "10 steps of ViT-S/16 at 64 pixels and a text tower of 6 layers, batch 32, both trained, fp32"
    sides: ClassVar[tuple[str, ...]] = ("open_clip", "mmalign", "recommended", "bf16")
    needs: ClassVar = {"open_clip": ("open_clip_train", "pandas")}
    full: ClassVar = Shape(batch=32, image=64, width=384, layers=12)
    quantities: ClassVar[tuple[Quantity, ...]] = (
        Quantity("difference of the loss curve", "losses", "mmalign", "open_clip", _PEER, "<= 1e-5", "absolute"),
        Quantity("samples per second", "rate", "mmalign", "open_clip", _PEER, ">= 1", unit="/s"),
        Quantity(
            "samples per second, recommended settings", "rate", "recommended", "open_clip", _PEER, ">= 1.3", unit="/s",
            note=_RECOMMENDED,
        ),
        Quantity("samples per second with bf16", "rate", "bf16", "mmalign", "itself in fp32", ">= 1.5", unit="/s"),
    )  # fmt: skip

    @property
    def batch(self) -> int:
        return self.settings.size(self.full.batch, least=8)

    @property
    def workers(self) -> int:
        """Processes that decode: one, and on a GPU's machine all but one core's."""
        return 1 if self.settings.device == "cpu" else max(1, physical_cores() - 1)

    @property
    def model(self) -> str:
        return clip_name(self.folder / "model")

    def prepare(self) -> None:
        write_towers(self.folder / "model", self.full, self.settings.scale)
        write_pictures(self.folder / "shards", self.batch * _STEPS, self.full.image)
        self._write_csv()

    def _write_csv(self) -> None:
        """Pictures as files, in the order in which mmalign's stream draws them."""
        from mmalign.data.shardset import ShardSet

        shards = ShardSet.open(self.folder / "shards", "train")
        by_key = {sample.key: sample for sample in (shards.read(i) for i in range(len(shards)))}
        stream = stream_of(self.folder / "shards", self.model, self.batch, _STEPS)
        (self.folder / "pictures").mkdir()
        lines = ["filepath\ttitle"]
        for step in range(_STEPS):
            for key in stream[step].keys:
                sample = by_key[key.rpartition("/")[2]]
                path = self.folder / "pictures" / f"{sample.key}.png"
                path.write_bytes(sample.members["png"])
                lines.append(f"{path}\t{sample.members['txt'].decode()}")
        (self.folder / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def load(self, side: str) -> Callable[[], Outcome]:
        if side.startswith("open_clip"):
            return lambda: self._open_clip("amp_bf16" if side.endswith("bf16") else "fp32")
        fast = self.settings.device != "cpu" or matrix_extension()
        mixed = "bf16-mixed" if side == "bf16" or (side == "recommended" and fast) else "32-true"
        dropped = 0.5 if side == "recommended" else None
        return lambda: self._mmalign(mixed, dropped)

    def _open_clip(self, precision: str) -> Outcome:
        from open_clip import ClipLoss
        from open_clip_train import data, main

        recorded: list[float] = []

        class Recorded(ClipLoss):
            def forward(self, *arguments: Any, **keywords: Any) -> Any:
                found = super().forward(*arguments, **keywords)
                recorded.append(float(found["contrastive_loss"].detach()))
                return found

        loader = data.DataLoader
        main.create_loss = lambda _: Recorded()
        data.DataLoader = lambda *arguments, **keywords: loader(*arguments, **(keywords | {"shuffle": False}))
        options = {
            "model": self.model, "train-data": self.folder / "train.csv", "dataset-type": "csv", "precision": precision,
            "device": self.settings.device, "batch-size": self.batch, "epochs": 1, "workers": self.workers,
            "lr": _RATE, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "wd": 0, "warmup": 0,
            "lr-scheduler": "const", "log-every-n-steps": 1, "save-frequency": 0, "aug-cfg": "scale=(1.0,1.0)",
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as logs, step_times() as times:
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            sys.argv = ["open_clip_train", *words, "--logs", logs]
            main.main(sys.argv[1:])
        return self._outcome(times, recorded)

    def _mmalign(self, precision: Any, dropped: float | None) -> Outcome:
        from mmalign.training.experiment import Runtime

        encoders = towers(self.model, dropped)
        runtime = Runtime(
            self.settings.device, precision=precision,
            matmul_precision="highest" if self.settings.device == "cpu" else "high",  # as open_clip's trainer
            workers=self.workers, log_every_steps=1, progress_bar=False,
        )  # fmt: skip
        with step_times() as times:
            losses = train(self.folder / "shards", encoders, self.batch, _STEPS, runtime)
        return self._outcome(times, losses)

    def _outcome(self, times: list[float], losses: list[float]) -> Outcome:
        seconds = step_seconds(times)
        return Outcome(seconds, {"rate": self.batch / seconds}, {"losses": np.array(losses)})

    def note(self, quantity: Quantity) -> str:
        if quantity.side == "bf16" and self.settings.device == "cpu":
            return f"attention is in float32; this machine has {matrix_extension() or 'no bfloat16 instructions'}"
        return quantity.note

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.side != "bf16":
            return ""
        most = ceilings.bf16_matmul_flops / ceilings.matmul_flops
        return (
            f"matrix products run at {ceilings.bf16_matmul_flops / 1e9:.0f} GFLOP/s in bf16 and at "
            f"{ceilings.matmul_flops / 1e9:.0f} in fp32: even a step of nothing else would gain a factor of {most:.2f}"
            f"{verdict(most, quantity.bar)}"
        )


def towers(model: str, dropped: float | None = None) -> dict[str, Any]:
    """Both halves of an open_clip model."""
    from mmalign.encoders.image_open_clip import ImageOpenClip
    from mmalign.encoders.text_open_clip import TextOpenClip

    return {"image": ImageOpenClip(model, patch_dropout=dropped), "text": TextOpenClip(model)}


def pictures(shards: Path) -> Any:
    from mmalign.data.config import ShardData

    return ShardData(str(shards), modalities={"image": "png", "text": "txt"})


def stream_of(shards: Path, model: str, batch: int, steps: int) -> Any:
    """What stage "main" sees."""
    from mmalign.data.stream import Stream

    preprocess = {name: tower.preprocess for name, tower in towers(model).items()}
    return Stream({"pictures": (pictures(shards), 1.0)}, preprocess, batch, 0, "main", steps)


def train(shards: Path, encoders: dict[str, Any], batch: int, steps: int, runtime: Any) -> list[float]:
    """One stage as `mmalign train` runs it, without evaluation; returns the losses.

    The towers' own projections are the last layer, as in the peer: mmalign's are the identity and stay so.
    """
    import torch

    from mmalign.bench.experiments import run_stages
    from mmalign.model import Aligner
    from mmalign.training.experiment import Experiment, Stage
    from mmalign.training.optim import Optimization

    dim = next(iter(encoders.values())).width
    model = Aligner(encoders, dim=dim)
    for projection in model.projections.values():
        torch.nn.init.eye_(projection.linear.weight)  # type: ignore[union-attr, arg-type]
        torch.nn.init.zeros_(projection.linear.bias)  # type: ignore[union-attr, arg-type]
    loss = RecordedInfoNCE("image", "text")
    optimization = Optimization(_RATE, weight_decay=0.0, gradient_clip=None, schedule="constant")
    stage = Stage(
        {"pictures": pictures(shards)}, {"main": 1.0}, batch, steps, None, {"projection.*": "none"}, optimization
    )
    run_stages(Experiment("bench", model, {"main": loss}, {"main": stage}, {}, runtime=runtime))
    return loss.recorded
