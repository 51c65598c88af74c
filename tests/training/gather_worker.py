"""One rank of test_gather.py: `python gather_worker.py RANK WORLD FOLDER`; writes loss and gradients of each case."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmalign.batch import Embeddings
from mmalign.losses import InfoNCE, NextToken, SigLIP, blockwise
from mmalign.training.gather import ddp_scale, gather

BATCH = 12


class TwoTowers(nn.Module):
    """Towers, a head that predicts tokens, and the losses: everything with a parameter is under one DDP."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 5))
        self.text = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
        self.head = nn.Linear(16, 9)
        self.case = case
        self.losses = nn.ModuleDict({
            "infonce": InfoNCE("image", "text"), "siglip": SigLIP("text", "image"), "language": NextToken()
        })  # fmt: skip

    def embed(self, data: dict[str, Tensor]) -> Embeddings:
        image, text = F.normalize(self.image(data["x"]), dim=1), F.normalize(self.text(data["y"]), dim=1)
        nll = F.cross_entropy(self.head(self.text[:2](data["y"])), data["token"], reduction="none")
        table = torch.stack([nll * data["language"], data["language"] * 1.0], dim=1)
        present = {"text": data["has_text"], "image": data["has_image"]}
        likelihoods = {"text": table} if data["language"].any() else {}  # a rank may have no language rows
        vectors = {"image": image * data["has_image"][:, None], "text": text * data["has_text"][:, None]}
        replayed = data["replayed"] if data["replayed"].any() else None
        return Embeddings(vectors, present, data["group"], likelihoods, {"text": text.float()}, replayed=replayed)

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        own = self.embed(data)
        embeddings = gather(own)
        assert embeddings.pooled is own.pooled  # wide, and nobody needs the other ranks' rows
        terms = [loss(embeddings) for loss in self.losses.values()]
        if embeddings.replayed is not None:
            terms.append(blockwise(self.losses["infonce"], embeddings, embeddings.replayed.long()))
        terms.append(0.1 * embeddings.pooled["text"].double().square().sum())
        unused = sum(parameter.sum() for parameter in self.head.parameters())  # DDP waits for every parameter
        return torch.stack(terms).sum() + 0 * unused


def make_data(case: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def chance(p: float) -> Tensor:
        return torch.rand(BATCH, generator=generator) < p

    data = {
        "x": torch.randn(BATCH, 7, generator=generator, dtype=torch.float64),
        "y": torch.randn(BATCH, 6, generator=generator, dtype=torch.float64),
        "token": torch.randint(9, (BATCH,), generator=generator),
        "has_image": chance(0.8),
        "has_text": chance(0.8),
        "language": torch.arange(BATCH) % 12 < 2,  # on the first rank only
        "replayed": torch.arange(BATCH) % 3 == 0,
        "group": torch.randint(8, (BATCH,), generator=generator),
    }
    if case == "plain":
        data |= {"has_image": torch.ones(BATCH, dtype=torch.bool), "has_text": torch.ones(BATCH, dtype=torch.bool)}
        data["group"] = torch.arange(BATCH)
    if case == "empty":  # no sample has both
        data["has_image"] = ~data["has_text"]
    return data


def step(rank: int, world: int, case: str) -> dict[str, Any]:
    torch.manual_seed(3)
    model = TwoTowers(case).double()
    share = BATCH // world
    rows = slice(rank * share, (rank + 1) * share - (case == "uneven" and rank == 1))
    data = {name: values[rows] for name, values in make_data(case).items()}
    wrapped = DistributedDataParallel(model)  # its hooks live as long as it does
    loss = wrapped(data)
    ddp_scale(loss).backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    return {"loss": total, "gradients": {name: parameter.grad for name, parameter in model.named_parameters()}}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / f'meet{world}'}", rank=rank, world_size=world)
    results: dict[str, Any] = {case: step(rank, world, case) for case in ("plain", "ragged", "empty")}
    if world == 2:
        try:
            step(rank, world, "uneven")
        except ValueError as error:
            results["uneven"] = str(error)
    torch.save(results, folder / f"{world}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
