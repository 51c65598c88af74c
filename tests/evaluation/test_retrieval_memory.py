"""Memory of ranking grows with queries and gallery, not with their product."""

import subprocess
import sys

PROGRAM = """
import resource, torch
torch.set_num_threads(1)
from mmalign.evaluation.retrieval_metrics import rank_queries
n, dim = {n}, 32
queries, groups = torch.randn(n, dim), torch.arange(n) // 2
rank_queries(queries[:256], queries[:256], groups[:256], groups[:256])  # what torch itself takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rank_queries(queries, queries, groups, groups)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def peak_mebibytes(n: int) -> float:
    command = [sys.executable, "-c", PROGRAM.format(n=n)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_peak_is_a_tile_and_a_copy() -> None:
    """16,000 × 16,000 scores would take 977 MiB; a tile takes 16, the copies of the vectors 4."""
    assert peak_mebibytes(16_000) < 80
