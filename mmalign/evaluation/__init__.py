"""Evaluation: pure metric functions, and evaluators that apply them to a model and a data set."""

from mmalign.evaluation.base import Evaluator, Moment
from mmalign.evaluation.retrieval import Retrieval

__all__ = ["Evaluator", "Moment", "Retrieval"]
