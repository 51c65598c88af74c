"""Memory of the contrastive losses, as the peak of a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
import torch.nn.functional as F
from mmalign import losses
from mmalign.batch import Embeddings

def peak_mib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

torch.set_num_threads(1)
loss = getattr(losses, sys.argv[1])("a", "b")
def run(batch, dim):
    a, b = (F.normalize(torch.randn(batch, dim), dim=1).requires_grad_() for _ in "ab")
    everywhere = torch.ones(batch, dtype=torch.bool)
    group = torch.arange(batch) // int(sys.argv[2])
    before = peak_mib()
    loss(Embeddings({"a": a, "b": b}, {"a": everywhere, "b": everywhere}, group)).backward()
    return peak_mib() - before
run(64, 64)
print(run(8192, 64))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("name", ["InfoNCE", "SigLIP"])
def test_batch_of_8192_stays_far_below_its_matrix(name, repeats):
    """The matrix alone would take 256 MiB; the plain losses hold four to five of it."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, name, str(repeats)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 80
