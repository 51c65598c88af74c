"""Runs an experiment that was built in Python, as `mmalign train` does, in a folder that is thrown away."""

import logging
import tempfile
import warnings
from pathlib import Path

import torch

from mmalign.training.curriculum import Curriculum
from mmalign.training.experiment import Experiment
from mmalign.training.logging import RunLoggers


def run_stages(experiment: Experiment) -> None:
    """All stages, with journal, costs, checkpoints and evaluation; W&B is left out."""
    from lightning.pytorch.loggers import Logger

    from mmalign.training.train_csv import TrainCsv

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory(prefix="mmalign-run-") as text:
        directory = Path(text)
        loggers: list[Logger] = [TrainCsv(directory / "train.csv", None)]
        Curriculum(experiment, {}, directory).run(RunLoggers(loggers, experiment.logging))
