"""No configuration that comes with weights runs code, whatever it puts where."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.model import Aligner
from mmalign.training.config import build_part, check_config, check_part, class_of
from mmalign.training.load import load_model
from mmalign.training.trust import trusting
from mmalign.training.yaml_config import ConfigError, override, read_config

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
IMAGE = "model.init_args.encoders.image"
EVIL = {"class_path": "evil_module.Evil"}
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "canary"]}}
GADGET = {
    "class_path": "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler.SubprocessHandler",
    "init_args": {
        "entrypoint": "touch",
        "args": ["canary"],
        "env": {},
        "stdout": None,
        "stderr": None,
        "local_rank_id": 0,
    },
}
"""A class of a package that we depend on, whose constructor runs a command."""
OURS = {"class_path": "mmalign.evaluation.ranks.subprocess.Popen", "init_args": {"args": ["touch", "canary"]}}
HIDDEN = '{"class\\u005fpath": "evil_module.Evil"}'

PLACES: dict[str, tuple[str, Any]] = {
    "model": ("model", EVIL),
    "encoder": (IMAGE, EVIL),
    "encoder that is known": (IMAGE, POPEN),
    "encoder, as a text": (IMAGE, "evil_module.Evil"),
    "encoder, as JSON": (IMAGE, json.dumps(EVIL)),
    "encoders, as JSON": ("model.init_args.encoders", json.dumps({"image": EVIL})),
    "fusion, as a text": ("model.init_args.fusion", "evil_module.Evil"),
    "settings of a class of ours": ("model.init_args.encoders.audio.init_args.mel", json.dumps(EVIL)),
    "free settings": (f"{IMAGE}.init_args.options.x", POPEN),
    "a list in free settings": (f"{IMAGE}.init_args.options.x", [POPEN]),
    "a class of torch": (f"{IMAGE}.init_args.options.x", GADGET),
    "the same in a list of free settings": (f"{IMAGE}.init_args.options", {"x": [GADGET]}),
    "the same for all free settings": (f"{IMAGE}.init_args.options", GADGET),
    "the same in a number's place": (f"{IMAGE}.init_args.size", GADGET),
    "the same in a part's place": ("model.init_args.fusion", GADGET),
    "what a module of ours imported": (f"{IMAGE}.init_args.options.x", OURS),
    "with dots in the keys": (
        f"{IMAGE}.init_args.options",
        {f"x.{key}": value for key, value in GADGET.items()},
    ),
    "deep in free settings": (f"{IMAGE}.init_args.options.x", {"y": {"z": EVIL}}),
    "free settings, as JSON": (f"{IMAGE}.init_args.options.x", json.dumps(EVIL)),
    "free settings, as JSON with an escape": (f"{IMAGE}.init_args.options.x", HIDDEN),
    "the same in a list": (f"{IMAGE}.init_args.options.x", [HIDDEN]),
    "all free settings, as JSON": (f"{IMAGE}.init_args.options", HIDDEN),
    "remote code": ("model.init_args.encoders.text", {
        "class_path": "mmalign.encoders.TextHF", "init_args": {"model": "evil", "trust_remote_code": True}
    }),
}  # fmt: skip

UNUSED: dict[str, tuple[str, Any]] = {
    "a loss": ("losses.image_text", EVIL),
    "a loss, as a text": ("losses.image_text", "evil_module.Evil"),
    "data": ("stages.image_text.data.scenes", "evil_module.Evil"),
    "a source": ("sources.evil", EVIL),
    "a method": ("retention.memory", "evil_module.Evil"),
    "an evaluator": ("evaluation.scenes", "evil_module.Evil"),
}
"""Places outside of the model, which nobody needs to load it."""


@pytest.fixture
def evil_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The canary: a file that importing `evil_module`, which lies in the working directory, creates."""
    (tmp_path / "evil_module.py").write_text("open('canary', 'w')\nclass Evil: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil_module", raising=False)
    return tmp_path / "canary"


@pytest.mark.parametrize(("key", "value"), PLACES.values(), ids=PLACES)
def test_the_configuration_in_a_checkpoint(evil_module: Path, key: str, value: Any) -> None:
    config = override(check_config(read_config(DEBUG)), {key: value})
    torch.save({"mmalign": {"config": config}, "state_dict": {}}, "evil.ckpt")
    with pytest.raises(ConfigError):
        load_model(Path("evil.ckpt"))
    assert "evil_module" not in sys.modules
    assert not evil_module.exists()


@pytest.mark.parametrize(("key", "value"), UNUSED.values(), ids=UNUSED)
def test_what_the_model_does_not_need_is_left_alone(evil_module: Path, key: str, value: Any) -> None:
    config = check_config(read_config(DEBUG))
    built = build_part(config["model"], Aligner)
    state = {f"model.{name}": tensor for name, tensor in built.state_dict().items()}
    torch.save({"mmalign": {"config": override(config, {key: value})}, "state_dict": state}, "own.ckpt")
    model, _ = load_model(Path("own.ckpt"))
    assert all(torch.equal(weight, state[f"model.{name}"]) for name, weight in model.state_dict().items())
    assert "evil_module" not in sys.modules
    assert not evil_module.exists()


def test_the_canary_is_a_real_one(evil_module: Path) -> None:
    """The user's own file may name the user's own class, and so runs it."""
    with pytest.raises(ConfigError, match="is not a Encoder"):
        check_config(read_config(DEBUG, {IMAGE: EVIL}))
    assert evil_module.exists()


def test_a_class_that_a_trusted_module_imported() -> None:
    assert class_of("mmalign.training.compare.ThreadPoolExecutor").__module__.startswith("concurrent")
    with pytest.raises(ConfigError, match=r"'concurrent\.futures\.thread' is outside of mmalign"):
        class_of("mmalign.training.compare.ThreadPoolExecutor", "a", trusted_only=True)


def test_free_settings_may_be_nested() -> None:
    """The user's own files, and checkpoints of them."""
    key = f"{IMAGE}.init_args.options.nested"
    config = check_config(read_config(DEBUG, {key: {"a": {"b": 1}}}))
    assert config["model"]["init_args"]["encoders"]["image"]["init_args"]["options"]["nested"] == {"a": {"b": 1}}
    check_part(config["model"], Aligner, "model", trusted_only=True)


def test_a_package_that_one_trusts(evil_module: Path) -> None:
    (evil_module.parent / "my_package.py").write_text(
        "from mmalign.encoders import TextBytes\nclass Mine(TextBytes): pass\n"
    )
    key = "model.init_args.encoders.text.class_path"
    config = override(read_config(DEBUG), {key: "my_package.Mine"})
    with pytest.raises(ConfigError, match=r"text\.class_path: 'my_package.Mine' is outside.*--trust my_package"):
        check_part(config["model"], Aligner, "model", trusted_only=True)
    with trusting(["my_package"]):
        check_part(config["model"], Aligner, "model", trusted_only=True)
        with pytest.raises(ConfigError, match="evil_module"):
            check_part(override(config, {IMAGE: EVIL})["model"], Aligner, "model", trusted_only=True)
    with pytest.raises(ConfigError, match="my_package"):
        check_part(config["model"], Aligner, "model", trusted_only=True)
