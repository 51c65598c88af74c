"""No run mixes tensors of a GPU with tensors of the CPU, as far as that can be told without a GPU.

Within `PretendGpu` the device "cpu:0" stands for a GPU, and "cpu" for the CPU. Every storage is marked by where it
would lie: moved by `.to`, made with a `device`, or computed from what is marked. What CUDA would refuse is collected in
`mixed`. Only calls from Python are seen. What autograd makes by itself has no mark, and may stand beside anything.
"""

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import LlamaConfig

from mmalign.bench.material import write_clip
from mmalign.encoders import Encoder, ImageOpenClip, ImageTimm, TextBytePatches, TextCausalHF, TextOpenClip
from mmalign.training import curriculum
from mmalign.training.config import check_config
from mmalign.training.run import train
from mmalign.training.yaml_config import read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
DOCSTRINGS = {"shards": "data/debug-docstrings", "modalities": {"text": "txt"}}
QUICK = {
    "sources.data/debug.init_args": {"train": 64, "val": 8, "test": 8, "test_compositional": 8, "workers": 1},
    "evaluation.language.init_args.data.limit": 4,
    **{f"stages.{stage}.steps": 2 for stage in ("image_text", "audio_text")},
    **{f"stages.{stage}.optimization.warmup_steps": 1 for stage in ("image_text", "audio_text")},
    "runtime": {"accelerator": "cpu", "workers": 0, "threads": 1, "progress_bar": False},
    "logging.mode": "disabled",
}
METHODS = {
    "memory": {
        "memory": ("Replay", {"share": 0.25, "capacity": 20, "text": DOCSTRINGS}),
        "similarity": ("ZSCL", {}),
        "fisher": ("EWC", {"batches": 2, "batch_size": 8}),
        "wise": ("WiSE", {}),
    },
    "teachers": {
        "lora": ("LoRA", {"components": ["encoder.text"]}),
        "frozen": ("Frozen", {"components": ["encoder.image"]}),
        "lwf": ("LwF", {}),
        "distillation": ("TowerDistillation", {"towers": ["text"], "text": DOCSTRINGS}),
        "ema": ("EMA", {}),
    },
    "joint": {"joint": ("Joint", {})},
}
DRIFT = {"class_path": "mmalign.evaluation.TowerDrift"}
SIGLIP = {"class_path": "mmalign.losses.SigLIP", "init_args": {"a": "image", "b": "text"}}
MORE = {
    "memory": {"runtime.chunk_size": 8, "evaluation.drift": DRIFT},
    "teachers": {"cached": ["image"]},
    "joint": {"losses.image_text": SIGLIP},
}

CPU, GPU = torch.device("cpu"), torch.device("cpu", 0)
_ANYWHERE = ("copy_", "set_data", "_has_compatible_shallow_copy_type", "_fused_adamw_")
"""Between devices these copy; the optimizer's scalars may lie on either."""


class PretendGpu(TorchFunctionMode):
    """
    Attributes:
        mixed: how often, by function and by the place in mmalign that called it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mixed: Counter[str] = Counter()
        self._places = WeakIdKeyDictionary()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name == "__get__":
            known = function == Tensor.device.__get__ and self._place(args[0])
            return known or function(*args, **kwargs)
        if name == "__set__":
            return function(*args, **kwargs)
        if name in ("to", "cpu"):
            return self._moved(function, args, kwargs, name)
        self._check(name, args, kwargs, tensors)
        result = function(*args, **kwargs)
        if tensors and not name.endswith("_like") and not name.startswith("new_"):
            places = {self._place(tensor) for tensor in tensors} - {None}
            place = GPU if GPU in places else next(iter(places), None)
        else:
            place = kwargs.get("device") or (self._place(tensors[0]) if tensors else CPU)
        given = {id(tensor.untyped_storage()) for tensor in tensors}
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and place is not None and id(made.untyped_storage()) not in given:
                self._mark(made, place)
        return result

    def _moved(self, function: Any, args: Any, kwargs: Any, name: str) -> Tensor:
        named = [value for value in (kwargs.get("device"), *args[1:]) if isinstance(value, torch.device | str)]
        like = [self._place(value) for value in args[1:] if isinstance(value, Tensor)]
        place = CPU if name == "cpu" else (named or like or [self._place(args[0])])[0]
        result: Tensor = function(*args, **kwargs)
        if place is None:
            return result
        there = isinstance(result, torch.nn.Parameter) or self._place(args[0]) in (None, torch.device(place))
        if not there and result.untyped_storage() is args[0].untyped_storage():
            result = result.clone()  # a move is a copy
        self._mark(result, place)
        return result

    def _check(self, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        places = {self._place(tensor) for tensor in tensors if tensor.dim()} - {None}
        first = self._place(tensors[0]) if tensors else None
        if name in ("numpy", "__array__"):
            refused = first == GPU
        elif name == "__getitem__":  # an index may lie on the CPU in any case
            refused = len(places) > 1 and first == CPU
        elif name == "__setitem__":
            value = args[2]
            far = isinstance(value, Tensor) and value.dim() and self._place(value) not in (None, first)
            refused = len(places) > 1 and (first == CPU or bool(far))
        else:
            refused = len(places) > 1 and name not in _ANYWHERE
        if refused:
            frames = [f for f in traceback.extract_stack() if "/mmalign/" in f.filename]
            where = f"{frames[-1].filename.rpartition('/mmalign/')[2]}:{frames[-1].lineno}" if frames else "a test"
            self.mixed[f"{name} at {where}"] += 1

    def _place(self, tensor: Tensor) -> torch.device | None:
        found: torch.device | None = self._places.get(tensor.untyped_storage())
        return found

    def _mark(self, tensor: Tensor, place: torch.device | str) -> None:
        self._places[tensor.untyped_storage()] = torch.device(place)


def test_what_cuda_would_refuse_is_found():
    with PretendGpu() as mode:
        there, here = torch.ones(3, 2, device=GPU), torch.ones(3, 2)
        assert [str(tensor.device) for tensor in (there, here, there.cpu())] == ["cpu:0", "cpu", "cpu"]
        allowed = [
            there + torch.tensor(2.0),
            there[torch.arange(2)],
            there.copy_(here),
            torch.zeros_like(there) + there,
        ]
        allowed += [there.sum(0).to(here) + here, here.to(GPU) * there, torch.full_like(here, 2) + here]
        assert there.cpu().numpy().shape == (3, 2)
        assert not mode.mixed
        for refused in (
            lambda: there + here,
            lambda: torch.cat([there.exp(), torch.zeros(1, 2)]),
            lambda: here[torch.arange(2, device=there.device)],
            lambda: there.numpy(),
            lambda: there.__setitem__(0, here[0]),
        ):
            before = mode.mixed.total()
            refused()
            assert mode.mixed.total() == before + 1


@pytest.mark.parametrize("name", METHODS)
def test_a_run_on_a_gpu_mixes_no_devices(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(curriculum, "root_device", lambda runtime: GPU)
    monkeypatch.setattr(SingleDeviceStrategy, "root_device", property(lambda self: GPU, lambda self, device: None))
    methods = {
        key: {"class_path": f"mmalign.retention.{kind}", "init_args": settings}
        for key, (kind, settings) in METHODS[name].items()
    }
    config = check_config(read_config(DEBUG, QUICK | {"retention": methods} | MORE[name]))
    with PretendGpu() as mode:
        train(config, tmp_path / "run")
    assert dict(mode.mixed) == {}


def _llama(folder: Path) -> Encoder:
    LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder / "llama")  # fmt: skip
    tower = TextCausalHF(str(folder / "llama"), pretrained=False, max_length=16, prefix_cache_bytes=10**7)
    for layer in tower.layers()[:-1]:
        layer.requires_grad_(False)
    return tower


TOWERS = {
    "timm": (lambda folder: ImageTimm("vit_tiny_patch16_224", pretrained=False, size=64, patch_dropout=0.25), "image"),
    "open_clip": (lambda folder: ImageOpenClip(write_clip(folder / "clip", 64, 2, 64, 2), patch_dropout=0.5), "image"),
    "open_clip text": (lambda folder: TextOpenClip(write_clip(folder / "clip", 64, 2, 64, 2)), "text"),
    "byte patches": (lambda folder: TextBytePatches(32, 2, 2, pooler_depth=1), "text"),
    "a language model with a remembered prefix": (_llama, "text"),
}


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_on_a_gpu_mixes_no_devices(tmp_path, name):
    make, kind = TOWERS[name]
    tower = make(tmp_path)
    values = torch.randint(1, 99, (4, 24)) if kind == "text" else torch.randn(4, 3, 64, 64)
    mask = torch.arange(24) < torch.tensor([[4], [24], [0], [9]]) if kind == "text" else None
    with PretendGpu() as mode:
        tower.to(GPU)
        for training in (True, True, False):  # in the second step, what is remembered is read
            pooled = tower.train(training)(values.to(GPU), None if mask is None else mask.to(GPU)).pooled
            assert pooled.device == GPU
            pooled.sum().backward()
    assert dict(mode.mixed) == {}
