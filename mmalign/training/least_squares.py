"""Fitting the heads of a model that are computed, not trained."""

import torch

from mmalign.data.config import ShardData
from mmalign.evaluation.linear_map import fit_ridge
from mmalign.model import Aligner


def fit_least_squares(model: Aligner, train: list[ShardData]) -> None:
    """Set the computed heads of a model (see `Aligner`) to the map between its towers as they are now.

    Args:
        train: on the pairs of these together; the penalty is chosen as in `mmalign.evaluation.linear_map.LinearMap`.

    Raises:
        ValueError: the model has no such heads.
    """
    if model.least_squares is None:
        raise ValueError("model.least_squares: the model has no computed heads")
    source, target = model.least_squares
    training = model.training
    model.eval()
    fitted, _ = fit_ridge(model, train, source, target)
    model.train(training)
    model.computed_head(source).set(fitted.source_mean, fitted.weights)
    model.computed_head(target).set(fitted.target_mean, torch.eye(len(fitted.target_mean)))
