"""What keeps a model from forgetting: methods that compose, one file each.

A configuration lists them by name under `retention:`; combining two is a list of two. An empty list is the naive
baseline: stage after stage, with nothing against forgetting. See `Retention` for what a method may do.
"""

from mmalign.retention.base import Retention, StagePlan
from mmalign.retention.der import DER
from mmalign.retention.distill import ZSCL, LwF, TowerDistillation
from mmalign.retention.ema import EMA
from mmalign.retention.ewc import EWC
from mmalign.retention.frozen import Frozen
from mmalign.retention.joint import Joint
from mmalign.retention.lora import LoRA
from mmalign.retention.policies import (
    BalancedByData,
    BalancedByModalities,
    BalancedByStage,
    HardestK,
    Policy,
    Ring,
    Uniform,
)
from mmalign.retention.replay import Replay
from mmalign.retention.text_replay import TextReplay
from mmalign.retention.wise import WiSE

__all__ = [
    "DER",
    "EMA",
    "EWC",
    "ZSCL",
    "BalancedByData",
    "BalancedByModalities",
    "BalancedByStage",
    "Frozen",
    "HardestK",
    "Joint",
    "LoRA",
    "LwF",
    "Policy",
    "Replay",
    "Retention",
    "Ring",
    "StagePlan",
    "TextReplay",
    "TowerDistillation",
    "Uniform",
    "WiSE",
]
