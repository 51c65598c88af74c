"""A step with a replay memory at a quarter of the batch against the same step without."""

from collections.abc import Callable

from mmalign.bench.base import Benchmark, Outcome, Quantity
from mmalign.bench.material import clip_name, write_clip, write_pictures
from mmalign.bench.training import towers

_BATCH = 64
_FIRST_STEPS = 6
_STEPS = 14


class ReplayStep(Benchmark):
    """The second of two stages; the batch is as large with replay as without."""

    name = "replay"
    title = "steps of a second stage, batch 64, ViT and text tower of width 256, 6 layers, replay of 25 %"
    sides = ("without", "replay")
    quantities = (
        Quantity("time of a step", "seconds", "replay", "without", "the same step without", "<= 1.05"),
    )  # fmt: skip

    @property
    def batch(self) -> int:
        return self.settings.size(_BATCH, 4, 16)

    def prepare(self) -> None:
        width, layers = (256, 6) if self.settings.scale >= 0.5 else (64, 2)
        write_clip(self.folder / "model", width, layers, width, layers)
        write_pictures(self.folder / "first", self.batch * _FIRST_STEPS, 64)
        write_pictures(self.folder / "second", self.batch * _STEPS, 64, sound_seconds=0.01)

    def load(self, side: str) -> Callable[[], Outcome]:
        from mmalign.retention.replay import Replay

        methods = {"memory": Replay(share=0.25, capacity=1000)} if side == "replay" else {}
        encoders = towers(clip_name(self.folder / "model"))
        return lambda: self._train(encoders, methods)

    def _train(self, encoders: dict, methods: dict) -> Outcome:
        from mmalign.bench.experiments import run_stages
        from mmalign.bench.steps import step_seconds, step_times
        from mmalign.bench.training import pictures
        from mmalign.losses.infonce import InfoNCE
        from mmalign.model import Aligner
        from mmalign.training.experiment import Experiment, Runtime, Stage

        stages = {
            name: Stage({name: pictures(self.folder / name)}, {"main": 1.0}, self.batch, steps)
            for name, steps in (("first", _FIRST_STEPS), ("second", _STEPS))
        }
        runtime = Runtime("cpu", workers=1, progress_bar=False)
        model = Aligner(encoders, dim=128)
        with step_times() as times:
            run_stages(
                Experiment("bench", model, {"main": InfoNCE("image", "text")}, stages, {}, methods, runtime=runtime)
            )
        return Outcome(step_seconds(times[_FIRST_STEPS:]))
