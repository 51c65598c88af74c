"""Evaluation: pure metric functions, and evaluators that apply them to a model and a data set."""

from mmalign.evaluation.base import Evaluator, Moment
from mmalign.evaluation.classification import ZeroShotClassification
from mmalign.evaluation.drift import TowerDrift, TranslationRetrieval
from mmalign.evaluation.language import Cloze, LanguageModeling, MinimalPairs
from mmalign.evaluation.linear_map import LinearMap
from mmalign.evaluation.retrieval import Retrieval

__all__ = [
    "Cloze",
    "Evaluator",
    "LanguageModeling",
    "LinearMap",
    "MinimalPairs",
    "Moment",
    "Retrieval",
    "TowerDrift",
    "TranslationRetrieval",
    "ZeroShotClassification",
]
