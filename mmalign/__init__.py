"""mmalign: multimodal alignment that does not forget.

Importing the package is cheap on purpose: torch and everything heavier is imported by the modules that need it.
"""

from typing import TYPE_CHECKING

from mmalign.floors import check_floors

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mmalign.model import Aligner

__version__ = "0.1.0"

check_floors()  # here, before any of these packages is imported: importing malware runs it


def load(path: "Path | str", trust: "Iterable[str]" = ()) -> "Aligner":
    """A trained model in evaluation mode, with its preprocessing, out of an export, a run or a checkpoint.

    Nothing in these files is run: weights are tensors, and only classes of mmalign may be named.
    `model.encoders[NAME].preprocess` prepares a modality's values, `model.embed(NAME, values)` gives their unit vectors
    [batch, dim].

    Args:
        path: the folder that `mmalign export` wrote, a run's folder (its newest state), or a `.ckpt` file.
        trust: packages of yours whose classes may be named, too.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or asks for more than may be given.
    """
    from pathlib import Path

    from mmalign.training.load import load_model
    from mmalign.training.trust import trusting

    with trusting(trust):
        return load_model(Path(path))[0]
