"""What `mmalign evaluate` does."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmalign.data.bound import check_members
from mmalign.data.config import ShardData, suggestion
from mmalign.evaluation.base import Moment
from mmalign.evaluation.embed import bound_modalities
from mmalign.evaluation.retrieval import Retrieval
from mmalign.evaluation.run import evaluate_all
from mmalign.evaluation.table import Row, write_rows

if TYPE_CHECKING:
    from mmalign.model import Aligner


def evaluate(
    checkpoint: Path,
    shards: Path,
    split: str,
    patterns: dict[str, str],
    gallery: int | None,
    out: Path | None,
    device: str = "auto",
) -> int:
    """Retrieval of a trained model on a shard directory; prints a table, and writes rows when `out` is given.

    Args:
        checkpoint: a run or a checkpoint file.
        patterns: modality name -> members that stand for it; without one, all encoders with their default members.
        gallery: only the first so many samples; None means all.
        device: as `named_device` takes it.

    Raises:
        FileNotFoundError, ValueError: data, checkpoint or device are not there or not usable, or model and data do not
            share two modalities; said before long work. No item could be used; said after it.
    """
    data = ShardData(str(shards), split, patterns or None, limit=gallery)
    check_members(data)
    from mmalign.training.device import named_device
    from mmalign.training.load import load_model

    place = named_device(device)
    model, facts = load_model(checkpoint)
    refuse_unless_two(model, data)
    model.to(place)
    column = Retrieval(data)
    moment = Moment(
        run=facts["config"]["name"],
        stage=f"stage-{facts['stage_index']}",
        stage_index=facts["stage_index"],
        step=facts["total_step"],
        seed=facts["config"]["seed"],
        trained_pairs=frozenset(frozenset(pair) for pair in facts["trained_pairs"]),
    )
    rows = evaluate_all(model, {shards.name: column}, moment)
    if not any(row.n_queries for row in rows):
        raise ValueError(f"{shards}: no item of the split {split!r} has a usable partner in another modality")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_rows(out, rows)
    print(as_table(rows))
    return 0


def refuse_unless_two(model: "Aligner", data: ShardData) -> None:
    """Raise a ValueError where model and data do not share two modalities, before anything is embedded."""
    for name in data.modalities or {}:
        if name not in model.encoders:
            raise ValueError(f"--modalities: the model has no encoder {name!r}{suggestion(name, model.modalities)}")
    patterns, found = bound_modalities(model, data), []
    for name, members in patterns.items():
        try:
            check_members(replace(data, modalities={name: members}))
        except ValueError:
            continue  # only a default: what --modalities names has been looked for
        found.append(name)
    if len(found) < 2:
        looked_for = ", ".join(f"{name} ({members})" for name, members in patterns.items())
        raise ValueError(
            f"{data.shards}: retrieval needs two modalities; of {looked_for}, the split {data.split!r} has "
            f"{', '.join(found) or 'none'} (--modalities names other members)"
        )


def as_table(rows: list[Row]) -> str:
    """Rows for a terminal."""
    lines = [
        f"{'direction':28} {'metric':12} {'value':>8} {'95 % interval':>17} {'chance':>8} {'queries':>8} {'gallery':>8}"
    ]
    for row in rows:
        name = row.direction + (" *" if row.emergent else "")
        interval = f"{row.ci_low:.3f} to {row.ci_high:.3f}" if row.ci_low == row.ci_low else ""
        lines.append(
            f"{name:28} {row.metric:12} {row.value:8.3f} {interval:>17} {row.chance:8.3f}"
            f" {row.n_queries:8} {row.n_gallery:8}"
        )
    if any(row.emergent for row in rows):
        lines.append("* emergent: these two were never trained as a pair")
    return "\n".join(lines)
