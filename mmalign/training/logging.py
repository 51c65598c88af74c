"""Where a run's numbers go: W&B, and files in the run directory on which every result depends instead.

    train.csv     training metrics, one line a logged step (TrainCsv)
    wandb.json    {"id": …}: the W&B run that a resumed run goes on with
    wandb/        what W&B writes; `wandb sync` uploads an offline run

W&B is a copy for looking at. Whatever happens to it (nobody logged in, no network, a server that hangs up) costs a
warning and a few seconds, never the run.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.evaluation.table import Row
from mmalign.training.wandb_connection import STEP, LoggerSettings, connect, harmless

__all__ = ["LoggerSettings", "RunLoggers", "make_loggers"]

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger, WandbLogger
    from matplotlib.figure import Figure

    from mmalign.report.compare import Comparison


class RunLoggers:
    """All loggers of one run; on ranks other than the first there are none, and every method does nothing.

    `loggers` are Lightning's, for a Trainer. `log` is the shortest way to all of them.
    """

    def __init__(self, loggers: list["Logger"], settings: LoggerSettings) -> None:
        self.loggers = loggers
        self.settings = settings

    @property
    def wandb(self) -> "WandbLogger | None":
        from lightning.pytorch.loggers import WandbLogger

        return next((logger for logger in self.loggers if isinstance(logger, WandbLogger)), None)

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Numbers (and the name of the stage) of one step; `step` counts optimizer steps over all stages, from 1."""
        for logger in self.loggers:
            if logger is not self.wandb:
                logger.log_metrics(dict(values), step)
        self._to_wandb(lambda logger: logger.log_metrics(dict(values), step))

    def log_rows(self, rows: Iterable[Row]) -> None:
        """Rows of the table of metrics as `eval/COLUMN/DIRECTION/METRIC` at their step; what is NaN is left out."""
        steps: dict[int, dict[str, float]] = {}
        for row in rows:
            if math.isfinite(row.value):
                steps.setdefault(row.step, {})[f"eval/{row.column}/{row.direction}/{row.metric}"] = row.value

        def send(logger: "WandbLogger") -> None:
            for step in sorted(steps):
                logger.log_metrics(steps[step], step)

        self._to_wandb(send)

    def log_examples(self, run_dir: Path, step: int) -> None:
        """The run's retrieval examples as a table with pictures and playable sounds."""
        from mmalign.report.examples import read_examples
        from mmalign.report.wandb_media import examples_table

        examples = read_examples(run_dir)[: self.settings.examples]
        if examples:
            self._to_wandb(lambda logger: _log_media(logger, "examples", examples_table(run_dir, examples), step))

    def log_table(self, name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        """A plain table, such as the comparison of arms."""
        self._to_wandb(lambda logger: logger.log_table(name, columns=columns, data=rows, step=step))

    def log_figure(self, name: str, figure: "Figure", step: int) -> None:
        """A figure (the forgetting matrix, the stability-plasticity plot) as a picture."""
        from mmalign.report.wandb_media import figure_image

        self._to_wandb(lambda logger: _log_media(logger, name, figure_image(figure), step))

    def log_matrix(self, rows: Sequence[Row], step: int) -> None:
        """The forgetting matrix of these rows as a heat map."""
        from mmalign.evaluation.forgetting import matrix_from_rows
        from mmalign.report.forgetting_plots import matrix_heat_map

        if self.wandb is not None and any(row.main for row in rows):
            self.log_figure("forgetting_matrix", matrix_heat_map(matrix_from_rows(rows)), step)

    def log_comparison(self, comparison: "Comparison", step: int = 0) -> None:
        """Arms side by side: the summary as a table, a heat map an arm, the stability-plasticity plot."""
        from mmalign.report.compare import tradeoff_figure
        from mmalign.report.forgetting_plots import matrix_heat_map

        if self.wandb is None:
            return
        rows = [[arm, metric, s.mean, s.std, s.n_seeds] for (arm, metric), s in comparison.summary.items()]
        self.log_table("comparison", ["arm", "metric", "mean", "std", "n_seeds"], rows, step)
        for arm, matrix in comparison.matrices.items():
            self.log_figure(f"forgetting_matrix/{arm}", matrix_heat_map(matrix), step)
        if (figure := tradeoff_figure(comparison)) is not None:
            self.log_figure("stability_plasticity", figure, step)

    def log_report(self, path: Path) -> None:
        """The report as an artifact of type "report"."""
        from mmalign.report.wandb_media import report_artifact

        self._to_wandb(lambda logger: logger.experiment.log_artifact(report_artifact(path, str(logger.version))))

    def close(self, exit_code: int = 0) -> None:
        """Finish; call it also when the run fails, with an exit code other than 0."""
        self._to_wandb(lambda logger: logger.experiment.finish(exit_code=exit_code))
        self.loggers = []

    def _to_wandb(self, action: Callable[["WandbLogger"], Any]) -> None:
        if (logger := self.wandb) is not None:
            with harmless():
                action(logger)


def make_loggers(
    run_dir: Path,
    config: Mapping[str, Any],
    settings: LoggerSettings,
    name: str | None = None,
    resume_step: int | None = None,
) -> RunLoggers:
    """The loggers of a run; call it once a run, on every rank.

    Args:
        run_dir: gets the files named above.
        config: the full configuration, for W&B.
        name: of the run; None takes the directory's.
        resume_step: None for a new run; else the optimizer steps that the run goes on from: later lines of train.csv
            are dropped (these steps will be taken again), and the W&B run is the same.
    """
    from lightning.pytorch.utilities import rank_zero_only

    if getattr(rank_zero_only, "rank", 0) not in (0, None):
        return RunLoggers([], settings)
    from mmalign.training.train_csv import TrainCsv

    loggers: list[Logger] = [TrainCsv(run_dir / "train.csv", resume_step)]
    run_id = _wandb_id(run_dir, resume_step)
    with harmless():
        wandb_logger = connect(run_dir, config, settings, name or run_dir.resolve().name, run_id)
        if wandb_logger is not None:
            loggers.append(wandb_logger)
    return RunLoggers(loggers, settings)


def _wandb_id(run_dir: Path, resume_step: int | None) -> str:
    """The id of the run: the stored one when it is resumed, else a new one, which is stored."""
    import secrets

    path = run_dir / "wandb.json"
    if resume_step is not None and path.is_file():
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["id"])
        except (ValueError, KeyError, TypeError):
            warnings.warn(f"{path} is damaged; W&B gets a new run", stacklevel=3)
    run_dir.mkdir(parents=True, exist_ok=True)
    run_id = secrets.token_hex(4)
    path.write_text(json.dumps({"id": run_id}) + "\n", encoding="utf-8")
    return run_id


def _log_media(logger: "WandbLogger", name: str, value: Any, step: int) -> None:
    logger.experiment.log({name: value, STEP: step})
