"""A whole training, both towers, with open_clip's own trainer and with mmalign's."""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmalign.bench.base import Benchmark, Ceilings, Outcome, Quantity, Settings
from mmalign.bench.machine import matrix_extension
from mmalign.bench.material import clip_name, write_clip, write_pictures
from mmalign.bench.ratios import verdict
from mmalign.bench.steps import RecordedInfoNCE, step_seconds, step_times

_BATCH = 32
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
    sides = ("open_clip", "mmalign", "recommended", "bf16")
    needs: ClassVar = {"open_clip": ("open_clip_train", "pandas")}
    quantities = (
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
        return self.settings.size(_BATCH, least=8)

    @property
    def model(self) -> str:
        return clip_name(self.folder / "model")

    def prepare(self) -> None:
        width, layers = (384, 12) if self.settings.scale >= 0.5 else (128, 2)
        write_clip(self.folder / "model", width, layers, width * 2 // 3 // 64 * 64, max(1, layers // 2))
        write_pictures(self.folder / "shards", self.batch * _STEPS, 64)
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
        if side == "open_clip":
            return self._open_clip
        mixed = "bf16-mixed" if side == "bf16" or (side == "recommended" and matrix_extension()) else "32-true"
        dropped = 0.5 if side == "recommended" else None
        return lambda: self._mmalign(mixed, dropped)

    def _open_clip(self) -> Outcome:
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
            "model": self.model, "train-data": self.folder / "train.csv", "dataset-type": "csv", "precision": "fp32",
            "device": "cpu", "batch-size": self.batch, "epochs": 1, "workers": 1, "lr": _RATE, "beta1": 0.9,
            "beta2": 0.98, "eps": 1e-6, "wd": 0, "warmup": 0, "lr-scheduler": "const", "log-every-n-steps": 1,
            "save-frequency": 0, "aug-cfg": "scale=(1.0,1.0)",
        }  # fmt: skip
        with tempfile.TemporaryDirectory() as logs, step_times() as times:
            words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
            sys.argv = ["open_clip_train", *words, "--logs", logs]
            main.main(sys.argv[1:])
        return self._outcome(times, recorded)

    def _mmalign(self, precision: str, dropped: float | None) -> Outcome:
        encoders = towers(self.model, dropped)
        with step_times() as times:
            losses = train(self.folder / "shards", encoders, self.batch, _STEPS, self.settings, precision)
        return self._outcome(times, losses)

    def _outcome(self, times: list[float], losses: list[float]) -> Outcome:
        seconds = step_seconds(times)
        return Outcome(seconds, {"rate": self.batch / seconds}, {"losses": np.array(losses)})

    def note(self, quantity: Quantity) -> str:
        if quantity.side == "bf16":
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


def train(
    shards: Path, encoders: dict[str, Any], batch: int, steps: int, settings: Settings, precision: str = "32-true"
) -> list[float]:
    """One stage as `mmalign train` runs it, without evaluation; returns the losses.

    The towers' own projections are the last layer, as in the peer: mmalign's are the identity and stay so.
    """
    import torch

    from mmalign.bench.experiments import run_stages
    from mmalign.model import Aligner
    from mmalign.training.experiment import Experiment, Runtime, Stage
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
    runtime = Runtime("cpu", precision=precision, workers=1, log_every_steps=1, progress_bar=False)  # type: ignore[arg-type]
    run_stages(Experiment("bench", model, {"main": loss}, {"main": stage}, {}, runtime=runtime))
    return loss.recorded
