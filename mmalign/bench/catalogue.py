"""All benchmarks by name, in the order of the table; nothing heavy is imported to list them."""

from importlib import import_module

from mmalign.bench.base import Benchmark

_PLACES = {
    "infonce": "contrastive.InfoNCEAgainstOpenClip",
    "infonce-32768": "contrastive.InfoNCEGrowth",
    "siglip": "contrastive.SigLIPAgainstOpenClip",
    "training": "training.TrainingStep",
    "frozen-towers": "frozen.FrozenTowers",
    "frozen-prefix": "frozen.FrozenPrefix",
    "gradient-caching": "chunks.GradientCaching",
    "retrieval": "retrieval.Captions",
    "retrieval-50000": "retrieval.Square",
    "search": "search.ApproximateSearch",
    "stream": "stream.StreamAgainstWebdataset",
    "log-mel": "mel.MelAgainstLibrosa",
    "replay": "replay.ReplayStep",
    "command": "command.CommandLine",
    "cuda-infonce-8192": "gpu.InfoNCE8192",
    "cuda-infonce-32768": "gpu.InfoNCE32768",
    "cuda-infonce-65536": "gpu.InfoNCE65536",
    "cuda-siglip-8192": "gpu.SigLIP8192",
    "cuda-siglip-65536": "gpu.SigLIP65536",
    "cuda-training": "gpu.TrainingOnGpu",
    "cuda-frozen-towers": "gpu.FrozenOnGpu",
}
NAMES = tuple(_PLACES)


def find(name: str) -> type[Benchmark]:
    """
    Raises:
        ValueError: there is no such benchmark; the message names those that there are.
    """
    place = name if ":" in name else _PLACES.get(name, "")
    if not place:
        raise ValueError(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    module, _, attribute = place.partition(":") if ":" in place else f"mmalign.bench.{place}".rpartition(".")
    found: type[Benchmark] = getattr(import_module(module), attribute)
    return found
