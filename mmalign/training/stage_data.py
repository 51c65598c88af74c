"""What a stage reads: its stream, and the outputs of towers that need not run."""

from collections.abc import Sequence

from mmalign.data.config import Reading, ShardData
from mmalign.data.features import FeatureCache
from mmalign.data.precompute import open_or_build, weights_hash
from mmalign.data.stream import Stream
from mmalign.model import Aligner
from mmalign.retention.base import StagePlan, preprocess_of
from mmalign.training.trainable import wanted_of


def never_trained(cached: Sequence[str], plans: Sequence[StagePlan]) -> frozenset[str]:
    """The modalities of `cached` whose towers none of a run's stages trains.

    Raises:
        ValueError: every stage trains one of the towers, so that its outputs could never be kept.
    """
    for name in cached:
        if all(_trains(plan, name) for plan in plans):
            raise ValueError(
                f"cached: every stage trains the {name} tower; its outputs can only be kept where a stage's "
                f'trainable says "encoder.{name}: none", or a retention method freezes it'
            )
    return frozenset(name for name in cached if not any(_trains(plan, name) for plan in plans))


def stage_stream(
    plan: StagePlan, model: Aligner, cached: Sequence[str], reading: Reading, rank: int = 0, world: int = 1
) -> Stream:
    """The stream of a stage: its own data in what replay leaves of the batch, and the caches that it can use.

    Args:
        cached: modalities whose towers' outputs may be kept; those that the stage trains are left out.

    Raises:
        FileNotFoundError, ValueError: the data or the settings do not allow it; before anything is decoded.
    """
    new_share = 1.0 - sum(share for _, share in plan.replay.values())
    if new_share <= 0:
        raise ValueError(f"stages.{plan.name}: replay takes the whole batch")
    total = sum(data.weight for data in plan.data.values())
    sources = {name: (data, new_share * data.weight / total) for name, data in plan.data.items()} | plan.replay
    return Stream(
        sources,
        preprocess_of(model),
        batch_size=plan.batch_size,
        seed=plan.seed,
        stage=plan.name,
        steps=plan.steps,
        rank=rank,
        world=world,
        limits=reading.limits,
        features=stage_features(plan, model, cached, reading, {name: data for name, (data, _) in sources.items()}),
    )


def stage_features(
    plan: StagePlan, model: Aligner, cached: Sequence[str], reading: Reading, sources: dict[str, ShardData]
) -> dict[str, dict[str, FeatureCache]]:
    """By data set and modality, the outputs of the towers that a stage leaves as they are."""
    towers = {name: model.tower(name) for name in cached if not _trains(plan, name)}
    hashes = {name: weights_hash(tower) for name, tower in towers.items()}
    return {
        source: {
            name: open_or_build(data, name, tower, hashes[name], reading.limits, num_workers=reading.workers)
            for name, tower in towers.items()
            if data.modalities is None or name in data.modalities
        }
        for source, data in sources.items()
    }


def _trains(plan: StagePlan, modality: str) -> bool:
    return wanted_of(plan.trainable, f"encoder.{modality}") != "none"
