"""What `mmalign evaluate` does."""

from pathlib import Path

from mmalign.data.bound import check_members
from mmalign.data.config import ShardData
from mmalign.evaluation.base import Moment
from mmalign.evaluation.retrieval import Retrieval
from mmalign.evaluation.run import evaluate_all
from mmalign.evaluation.table import Row, write_rows


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
        device: as `named_device` takes it.

    Raises:
        FileNotFoundError, ValueError: data, checkpoint or device are not there or not usable; said before long work.
    """
    data = ShardData(str(shards), split, patterns or None)
    check_members(data)
    from mmalign.training.device import named_device
    from mmalign.training.load import load_model

    place = named_device(device)
    model, facts = load_model(checkpoint)
    model.to(place)
    column = Retrieval(data, gallery=gallery)
    moment = Moment(
        run=facts["config"]["name"],
        stage=f"stage-{facts['stage_index']}",
        stage_index=facts["stage_index"],
        step=facts["total_step"],
        seed=facts["config"]["seed"],
        trained_pairs=frozenset(frozenset(pair) for pair in facts["trained_pairs"]),
    )
    rows = evaluate_all(model, {shards.name: column}, moment)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_rows(out, rows)
    print(as_table(rows))
    return 0


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
