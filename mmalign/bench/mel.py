"""Log-mel spectrograms against librosa's."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np

from mmalign.bench.base import Benchmark, Ceilings, Outcome, Quantity
from mmalign.bench.ratios import verdict

_CLIPS = 32
_SECONDS = 10
_PEER = "librosa"


class MelAgainstLibrosa(Benchmark):
    """The same window, hop, filters and padding; librosa gets one clip at a time, as its users do."""

    name = "log-mel"
    title = "log-mel of 32 clips of 10 s at 16 kHz, 400/160/64"
    sides = ("librosa", "mmalign")
    needs: ClassVar = {"librosa": ("librosa",)}
    quantities = (
        Quantity("clips per second", "rate", "mmalign", "librosa", _PEER, ">= 5", unit="clips/s"),
        Quantity("error of the power mel", "power", "mmalign", "librosa", _PEER, "<= 1e-4", "elementwise"),
    )

    def load(self, side: str) -> Callable[[], Outcome]:
        generator = np.random.default_rng(0)
        clips = self.settings.size(_CLIPS, least=2)
        time = np.arange(_SECONDS * 16000) / 16000
        tones = np.sin(2 * np.pi * generator.uniform(100, 4000, (clips, 1)) * time)
        waveforms = (0.3 * tones + 0.05 * generator.standard_normal(tones.shape)).astype(np.float32)
        run = self._mmalign(waveforms) if side == "mmalign" else self._librosa(waveforms)
        for _ in range(3):  # the allocator asks for memory in its first calls
            run()
        if side == "librosa":
            return lambda: self._timed(run)

        def with_floor() -> Outcome:
            outcome = self._timed(run)
            outcome.values["floor"] = clips * _floor_seconds(waveforms[0])
            return outcome

        return with_floor

    def roofline(self, quantity: Quantity, medians: Mapping[str, Mapping[str, float]], ceilings: Ceilings) -> str:
        if quantity.measure != "rate":
            return ""
        floor, peer = medians["mmalign"]["floor"], medians["librosa"]["seconds"]
        return (
            f"windows, Fourier transforms, squares, sums over frequencies and logarithms, torch's own, each alone and "
            f"clip by clip in the cache, take {1000 * floor:.1f} ms, librosa as a whole {1000 * peer:.1f} ms: with "
            f"them no factor above {peer / floor:.1f} is possible; "
            f"reached {peer / medians['mmalign']['seconds']:.1f}"
            f"{verdict(peer / floor, quantity.bar)}"
        )

    @staticmethod
    def _timed(run: Callable[[], np.ndarray]) -> Outcome:
        from time import perf_counter

        times, repeats = [], 9
        for _ in range(repeats):
            started = perf_counter()
            run()  # and dropped, as in training
            times.append(perf_counter() - started)
        logs, seconds = run(), sorted(times)[repeats // 2]
        power = np.exp(logs[:4].astype(np.float64))
        return Outcome(seconds, {"rate": len(logs) / seconds}, {"power": power})

    @staticmethod
    def _mmalign(waveforms: np.ndarray) -> Callable[[], np.ndarray]:
        import torch

        from mmalign.encoders.mel import LogMel, MelSettings

        model = LogMel(MelSettings(mean=0.0, std=1.0))
        values = torch.from_numpy(waveforms)

        def run() -> np.ndarray:
            with torch.inference_mode():
                return model(values)[0].numpy()

        return run

    @staticmethod
    def _librosa(waveforms: np.ndarray) -> Callable[[], np.ndarray]:
        import librosa

        def one(waveform: np.ndarray) -> np.ndarray:
            power = librosa.feature.melspectrogram(
                y=waveform, sr=16000, n_fft=400, hop_length=160, n_mels=64, power=2.0, pad_mode="constant"
            )
            return np.log(power + np.float32(1e-6)).T

        def run() -> np.ndarray:
            return np.stack([one(waveform) for waveform in waveforms])

        return run


def _floor_seconds(waveform: np.ndarray) -> float:
    """Of the steps that one clip has to go through, each with its input in the cache; the sum of each one's least."""
    from time import perf_counter

    import torch

    from mmalign.encoders.mel import LogMel, MelSettings

    model = LogMel(MelSettings())
    frames = torch.from_numpy(waveform).unfold(0, 400, 160)
    windowed = frames * model.hann
    spectrum = torch.view_as_real(torch.fft.rfft(windowed)).flatten(1)
    mel = torch.ones(len(frames), 64)
    bands = [(spectrum[:, rows], model.weights[rows, bins].contiguous()) for rows, bins in model.bands]
    steps = [
        lambda: torch.mul(frames, model.hann, out=windowed),
        lambda: torch.fft.rfft(windowed),
        lambda: spectrum.square_(),
        lambda: [torch.mm(power, weights) for power, weights in bands],
        lambda: torch.log(mel),
    ]
    total = 0.0
    with torch.inference_mode():
        for step in steps:
            times = []
            for _ in range(50):
                spectrum.fill_(0.5)
                started = perf_counter()
                step()
                times.append(perf_counter() - started)
            total += min(times)
    return total
