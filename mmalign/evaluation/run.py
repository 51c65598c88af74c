"""Every evaluator at one moment of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmalign.evaluation.base import Evaluator, Moment
from mmalign.evaluation.table import Row
from mmalign.model import Aligner


def evaluate_all(model: Aligner, evaluators: dict[str, Evaluator], moment: Moment) -> list[Row]:
    """The rows of all columns, in order. The model is as it was afterwards, its train flags and generators included.

    Raises:
        ValueError: an evaluator gave no main score or several; names the column.
        Exception: what an evaluator raised, with a note that names the column.
    """
    rows: list[Row] = []
    with _evaluating(model):
        for column, evaluator in evaluators.items():
            try:
                found = list(evaluator.evaluate(model, moment, column))
            except Exception as error:
                error.add_note(f"evaluation.{column}: failed at stage {moment.stage!r}, step {moment.step}")
                raise
            if (main := sum(row.main for row in found)) != 1:
                raise ValueError(f"evaluation.{column}: {main} main scores; there must be exactly one")
            rows += found
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; modules get their own flags back, since a frozen tower is in eval mode already."""
    flags = {module: module.training for module in model.modules()}
    devices = [p.device for p in model.parameters() if p.is_cuda][:1]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device.index or 0 for device in devices]):
            model.eval()
            yield
    finally:
        for module, training in flags.items():
            module.training = training
