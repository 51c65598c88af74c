"""Joint training: nothing is past. The upper bound."""

from dataclasses import replace
from typing import Literal

from mmalign.data.config import ShardData
from mmalign.data.index import ShardSet
from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan


class Joint(Retention):
    """Every stage trains on the data and the losses of all stages so far.

    Loss: those of all stages up to this one, with their weights. Stored: nothing by itself, but all earlier data must
    still be there. Cost: none a step; the batch is divided among the stages.

    It is the usual upper bound of continual learning (for instance in De Lange et al. 2022, "A Continual Learning
    Survey: Defying Forgetting in Classification Tasks", IEEE TPAMI 44(7)). Language text is no data of a stage: list a
    TextReplay beside this to keep language as well.

    Example:
        retention:
          joint: {class_path: mmalign.retention.Joint}
    """

    def __init__(self, shares: Literal["stages", "samples"] = "stages") -> None:
        """
        Args:
            shares: how the batch is divided: equally among stages, or among all data in proportion to their samples
                (then the weights within a stage do not count).
        """
        self.shares = shares

    @property
    def acts_at_once(self) -> bool:
        return False

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        stages = [*plan.past, plan]
        weighted: dict[str, ShardData] = {}
        for stage in stages:
            total = sum(data.weight for data in stage.data.values())
            for name, data in stage.data.items():
                if self.shares == "samples":
                    size = len(ShardSet.open(data.shards, data.split))
                    weight = float(size if data.limit is None else min(size, data.limit))
                else:
                    weight = data.weight / total
                _add(weighted, name, replace(data, weight=weight), stage.name, self.shares == "stages")
        plan.data = weighted
        for past in plan.past:
            for loss, value in past.losses.items():
                plan.losses.setdefault(loss, value)
                if loss in past.pairs:
                    plan.pairs.setdefault(loss, past.pairs[loss])


def _add(weighted: dict[str, ShardData], name: str, data: ShardData, stage: str, sum_weights: bool) -> None:
    """Add a data set; the same one again adds its weight, another one of that name gets the stage's before it."""
    known = weighted.get(name)
    if known is None:
        weighted[name] = data
    elif replace(known, weight=data.weight) == data:
        weighted[name] = replace(known, weight=known.weight + data.weight if sum_weights else data.weight)
    else:
        weighted[f"{stage}-{name}"] = data
