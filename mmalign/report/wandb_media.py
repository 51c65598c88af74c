"""The run's pictures, sounds, figures and report as W&B's own types."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmalign.report.examples import AUDIO_TYPES, IMAGE_TYPES, Example, Item, media_path
from mmalign.report.style import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS_SHOWN = 3


def examples_table(run_dir: Path, examples: Sequence[Example]) -> Any:
    """A `wandb.Table`: one row an example, with the query and the first results, seen and heard."""
    import wandb

    columns = ["column", "direction", "rank", "query text", "query image", "query audio"]
    for place in range(1, RESULTS_SHOWN + 1):
        columns += [f"{place}: relevant", f"{place}: score", f"{place}: text", f"{place}: image", f"{place}: audio"]
    table = wandb.Table(columns=columns)
    for example in examples:
        cells: list[Any] = [example.column, example.direction, example.rank, *_item(run_dir, example.query)]
        for place in range(RESULTS_SHOWN):
            if place < len(example.results):
                result = example.results[place]
                cells += [result.relevant, result.score, *_item(run_dir, result.item)]
            else:
                cells += [None] * 5
        table.add_data(*cells)
    return table


def figure_image(figure: "Figure") -> Any:
    """A `wandb.Image` of a figure."""
    import io

    import wandb
    from PIL import Image

    return wandb.Image(Image.open(io.BytesIO(png(figure))))


def report_artifact(path: Path, run_id: str) -> Any:
    """A `wandb.Artifact` of type "report" that holds the HTML file."""
    import wandb

    artifact = wandb.Artifact(name=f"report-{run_id}", type="report")
    artifact.add_file(str(path), name="report.html")
    return artifact


def _item(run_dir: Path, item: Item) -> tuple[str, Any, Any]:
    import wandb

    image = media_path(run_dir, item.image, IMAGE_TYPES)
    audio = media_path(run_dir, item.audio, AUDIO_TYPES)
    return (
        item.text or item.key,
        wandb.Image(str(image)) if image else None,
        wandb.Audio(str(audio)) if audio else None,
    )
