"""The curve of WiSE over alpha, for a run that was trained without it: evaluations only, no training."""

from pathlib import Path

from mmalign.evaluation.run import evaluate_all
from mmalign.evaluation.table import write_rows
from mmalign.retention import ranks
from mmalign.retention.wise import of_modalities, sweep
from mmalign.training.checkpoints import load_checkpoint
from mmalign.training.curriculum import Curriculum


def evaluate_sweep(curriculum: Curriculum, directory: Path) -> None:
    """Every column for the weights (1 − alpha) · before + alpha · after the last stage -> RUN/sweep/ALPHA.jsonl.

    What is not shared with the stages before (a new tower) stays as it is after the stage. Files that are there already
    are not made again; the model ends with the weights that it had. All ranks take part, rank 0 writes.
    """
    experiment = curriculum.experiment
    last = len(experiment.stages)
    paths = {alpha: directory / "sweep" / f"{alpha:.2f}.jsonl" for alpha in experiment.sweep}
    missing = ranks.from_first([alpha for alpha, path in paths.items() if not path.exists()])
    if not missing or last < 2:
        return
    before, after = (
        {
            key.removeprefix("model."): value
            for key, value in load_checkpoint(curriculum.checkpoints.end_of(index))["state_dict"].items()
            if key.startswith("model.")
        }
        for index in (last - 1, last)
    )
    shared = of_modalities({name for pair in curriculum.trained_pairs(last - 1) for name in pair})
    for alpha, weights in sweep(before, after, missing, shared):
        experiment.model.load_state_dict(weights)
        rows = evaluate_all(experiment.model, experiment.evaluation, curriculum.moment(last))
        if curriculum.rank == 0:
            paths[alpha].parent.mkdir(exist_ok=True)
            write_rows(paths[alpha], rows)
    experiment.model.load_state_dict(after)
