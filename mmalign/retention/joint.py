"""Joint training: nothing is past. The upper bound."""

from dataclasses import replace
from typing import Literal

from mmalign.data.config import ShardData
from mmalign.data.index import ShardSet
from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan


class Joint(Retention):
    """Every stage trains on the data and the losses of all stages so far, or of all that there will be.

    Loss: those of these stages, with their weights. Stored: nothing by itself, but all their data must be there. Cost:
    none a step; the batch is divided among the stages.

    With `future` and shares by steps, each task gets as many samples as in the sequence, in another order: the bound
    at equal compute. Without, what comes last has to be learned from a part of its own stage.

    It is the usual upper bound of continual learning (for instance in De Lange et al. 2022, "A Continual Learning
    Survey: Defying Forgetting in Classification Tasks", IEEE TPAMI 44(7)). Language text is no data of a stage: list a
    TextReplay beside this to keep language as well.

    Example:
        retention:
          joint: {class_path: mmalign.retention.Joint}
    """

    def __init__(self, shares: Literal["stages", "steps", "samples"] = "stages", future: bool = False) -> None:
        """
        Args:
            shares: how the batch is divided: equally among stages, among stages in proportion to what they draw by
                themselves (steps times batch), or among all data in proportion to their samples (then the weights
                within a stage do not count).
            future: whether stages that are still to come take part. What is trained stays as each stage says.
        """
        self.shares = shares
        self.future = future

    @property
    def acts_at_once(self) -> bool:
        return self.future

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        future = plan.future if self.future else []
        stages = [*plan.past, plan, *future]
        weighted: dict[str, ShardData] = {}
        for stage in stages:
            total = sum(data.weight for data in stage.data.values())
            for name, data in stage.data.items():
                if self.shares == "samples":
                    size = len(ShardSet.open(data.shards, data.split))
                    weight = float(size if data.limit is None else min(size, data.limit))
                else:
                    drawn = stage.steps * stage.batch_size if self.shares == "steps" else 1
                    weight = drawn * data.weight / total
                _add(weighted, name, replace(data, weight=weight), stage.name, self.shares != "samples")
        plan.data = weighted
        for other in [*plan.past, *future]:
            for loss, value in other.losses.items():
                plan.losses.setdefault(loss, value)
                if loss in other.pairs:
                    plan.pairs.setdefault(loss, other.pairs[loss])


def _add(weighted: dict[str, ShardData], name: str, data: ShardData, stage: str, sum_weights: bool) -> None:
    """Add a data set; the same one again adds its weight, another one of that name gets the stage's before it."""
    known = weighted.get(name)
    if known is None:
        weighted[name] = data
    elif replace(known, weight=data.weight) == data:
        weighted[name] = replace(known, weight=known.weight + data.weight if sum_weights else data.weight)
    else:
        weighted[f"{stage}-{name}"] = data
