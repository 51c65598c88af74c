"""A configuration is refused before anything is built, with the key that is wrong."""

from pathlib import Path

import pytest

from mmalign.data.shards import build
from mmalign.data.sources.scenes import Scenes
from mmalign.model import Aligner
from mmalign.training.config import build_experiment, build_part, check_config, check_part
from mmalign.training.curriculum import Curriculum
from mmalign.training.module import AlignmentModule
from mmalign.training.run import check_built_data, check_data
from mmalign.training.yaml_config import ConfigError, differences, override, parse_overrides, read_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_configuration_is_valid(file):
    config = check_config(read_config(file))
    assert check_config(config) == config  # complete: what is written into a run reads back as the same


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("modle", 1, "modle: unknown key; did you mean 'model'"),
        ("stages.image_text.stepz", 3, "stages.image_text.stepz: unknown key; did you mean 'steps'"),
        ("stages.image_text.steps", "many", "stages.image_text.steps: 'many' is not a valid"),
        ("stages.image_text.data.scenes.spilt", "x", "stages.image_text.data.scenes.spilt: unknown key"),
        ("stages.image_text.optimization.warmup_steps", 999, "stages.image_text: warm-up takes 999 steps"),
        ("model.init_args.encoders.image.init_args.sise", 3, "encoders.image.init_args.sise: unknown key"),
        ("model.init_args.encoders.image.class_path", "mmalign.encoders.ImageTim", "did you mean 'ImageTimm'"),
        ("model.init_args.encoders.image.class_path", "mmalign.losses.InfoNCE", "is not a Encoder"),
        ("losses.image_text.init_args.initial_temperature", "x", "init_args.initial_temperature: 'x' is not a valid"),
        ("evaluation.scenes.init_args.gallery", "big", "evaluation.scenes.init_args.gallery: 'big'"),
        ("runtime.precision", "int4", "runtime.precision: 'int4' is not a valid"),
    ],
)
def test_a_mistake_is_named(key, value, message):
    with pytest.raises(ConfigError) as error:
        check_config(read_config(DEBUG, {key: value}))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "stages", "message"),
    [
        ([], {"image_text": ["scenes"]}, "need each other"),
        (["image", "text"], {}, "need each other"),
        (["image", "text"], {"image_text": ["scene"]}, "stages.image_text.least_squares: 'scene' is none of"),
        (["image", "text"], {"audio_text": ["scenes"]}, "stages.audio_text.least_squares: 'scenes' has"),
    ],
)
def test_a_least_squares_head_needs_pairs_to_be_fitted_on(model, stages, message):
    changes = {f"stages.{name}.least_squares": value for name, value in stages.items()}
    if model:
        changes |= {f"model.init_args.{key}": value for key, value in
                    {"dim": 96, "projection_heads": 2, "least_squares": model}.items()}  # fmt: skip
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        build_experiment(check_config(read_config(DEBUG, changes)))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"losses.image_text.init_args.a": "imag"},
            "losses.image_text: the model has no 'imag'; there are image, audio, text, fused",
        ),
        ({"model.init_args.fusion": None}, "losses.fused_text: the model has no 'fused'"),
        (
            {"stages.audio_text.trainable": {"encoder.adio": "none"}},
            "stages.audio_text.trainable: 'encoder.adio' matches none of the components encoder.image, ",
        ),
        ({"stages.audio_text.trainable": {"encoder.audio": 99}}, "stages.audio_text.trainable: encoder.audio has "),
        (
            {"stages.audio_text.optimization.learning_rates": {"loss.image_txt": 0.1}},
            "stages.audio_text.optimization.learning_rates: 'loss.image_txt' matches none of",
        ),
        (
            {"stages.audio_text.losses": {"image_text": 1.0}, "retention": {}},
            "stages.audio_text.losses: 'image_text' needs samples with image and text, but scenes has audio, text",
        ),
        (
            {"stages.image_text.losses": {"audio_text": 1.0}},  # there is a Replay, but nothing to be remembered yet
            "stages.image_text.losses: 'audio_text' needs samples with audio and text, but scenes has image, text",
        ),
        (
            {"evaluation.scenes.init_args.main_direction": "imag->text"},
            "evaluation.scenes.main_direction: 'imag->text': model and data have no 'imag'; did you mean 'image'?",
        ),
        (
            {"evaluation.scenes.init_args.directions": ["image->text", "image+adio->text"]},
            "evaluation.scenes.directions: 'image+adio->text': model and data have no 'adio'; did you mean 'audio'?",
        ),
        (
            {"model.init_args.encoders.image.init_args.model": "vit_tny_patch16_224"},
            "did you mean vit_tiny_patch16_224",
        ),
    ],
)
def test_a_mistake_of_a_later_stage_is_named_before_the_first(changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        build_experiment(check_config(read_config(DEBUG, changes)))
    assert message in str(error.value)


SHARDS = {"shards": "data/any", "split": "test", "modalities": {"image": "jpg", "text": "txt"}}


@pytest.mark.parametrize(
    ("name", "settings", "key", "unknown"),
    [
        ("LanguageModeling", {"data": SHARDS, "modality": "txt"}, "modality", "txt"),
        ("MinimalPairs", {"modality": "txt"}, "modality", "txt"),
        ("Cloze", {"modality": "txt"}, "modality", "txt"),
        ("TowerDrift", {"modality": "txt"}, "modality", "txt"),
        ("TranslationRetrieval", {"data": SHARDS, "modality": "audio"}, "modality", "audio"),
        ("ZeroShotClassification", {"data": SHARDS, "label": "shape", "modality": "imag"}, "modality", "imag"),
        ("ZeroShotClassification", {"data": SHARDS, "label": "shape", "text_modality": "txt"}, "text_modality", "txt"),
        ("LinearMap", {"data": SHARDS, "train": [SHARDS], "source": "imag"}, "source (data/any)", "imag"),
    ],
)
def test_a_column_that_could_never_have_a_score_is_named_before_the_first_stage(name, settings, key, unknown):
    column = {"class_path": f"mmalign.evaluation.{name}", "init_args": settings}
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        build_experiment(check_config(read_config(DEBUG, {"evaluation.more": column})))
    assert f"evaluation.more.{key}: model and data have no {unknown!r}" in str(error.value)


def test_data_of_stages_before_and_with_joint_also_of_those_to_come_may_be_needed():
    joint = {"joint": {"class_path": "mmalign.retention.Joint", "init_args": {"future": True}}}
    first = {"stages.image_text.losses": {"audio_text": 1.0}, "retention": joint}
    for changes in ({"stages.audio_text.losses": {"image_text": 1.0}}, first):
        build_experiment(check_config(read_config(DEBUG, changes)))


ENCODERS = "model.init_args.encoders"
TIMM = f"{ENCODERS}.image.init_args.options"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model.init_args.dim", -3, None),
        ("model.init_args.dim", 0, None),
        ("stages.image_text.data.scenes.weight", 0, None),
        *[(f"runtime.{key}", 0, None) for key in ("checkpoint_every_steps", "log_every_steps", "threads", "devices")],
        ("runtime.chunk_size", 0, None),
        ("runtime.workers", -1, None),
        ("runtime.keep_checkpoints", -3, None),
        ("runtime.checkpoint_every_minutes", -1, None),
        ("limits.max_pixels", 0, None),
        ("evaluation.scenes.init_args.batch_size", 0, None),
        (f"{ENCODERS}.audio.init_args.mel.bins", 0, None),
        *[(f"{ENCODERS}.text.init_args.{key}", 0, None) for key in ("width", "max_length", "depth", "heads")],
        (TIMM, {"embed_dmi": 3}, None),
        *[("stages.image_text.optimization.learning_rate", rate, None) for rate in (0, -1, float("nan"))],
        ("stages.image_text.optimization.weight_decay", -1, None),
        ("stages.image_text.optimization.warmup_steps", -1, None),
        *[("stages.image_text.losses", {"image_text": x}, "stages.image_text.losses.image_text") for x in (0, -1)],
        ("stages.image_text.retention", {"memory": -5}, "stages.image_text.retention.memory"),
        ("stages.image_text.trainable", {"*": "none"}, None),
        ("max_fault_share", 1.5, None),
        ("seed", -1, None),
        ("name", "", None),
        ("retention.memory.init_args.share", 1.5, None),
    ],
)
def test_a_value_that_makes_no_sense_is_named_in_one_line(key, value, named):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        build_experiment(check_config(read_config(DEBUG, {key: value})))
    assert str(error.value).startswith(f"{named or key}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("stages.image_txt.steps", "there is no stages.image_txt; did you mean 'image_text'?"),
        ("stages.image_text.data.scene.limit", "there is no stages.image_text.data.scene; did you mean 'scenes'?"),
        ("evaluation.scene.init_args.gallery", "there is no evaluation.scene; did you mean 'scenes'?"),
        ("losses.image_txt.init_args.a", "there is no losses.image_txt; did you mean 'image_text'?"),
        (f"{ENCODERS}.txt.init_args.width", f"there is no {ENCODERS}.txt; did you mean 'text'?"),
    ],
)
def test_an_override_below_a_misspelt_name_is_refused(key, message):
    with pytest.raises(ConfigError) as error:
        read_config(DEBUG, {key: 5})
    assert str(error.value) == f"{key}: {message}"


@pytest.mark.parametrize(("content", "message"), [(b"name: \xff", "not UTF-8"), (b"a: [1,\nb: }", "not valid YAML")])
def test_a_damaged_file_is_named_in_one_line(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert str(error.value).startswith(f"{file}: {message}")
    assert "\n" not in str(error.value)


CNN = {
    "model.init_args.encoders.image.init_args": {
        "model": "resnet10t",
        "size": 32,
        "options": {"channels": [8, 8, 16, 16], "stem_width": 8},
    }
}
FROZEN = {"class_path": "mmalign.retention.Frozen", "init_args": {"components": ["encoder.image"]}}


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, "image_text"),
        ({"stages.image_text.trainable": {"encoder.image": "none"}}, "audio_text"),
        ({"stages.image_text.trainable": {"encoder.image": 1}}, "image_text"),
        ({"runtime.devices": 2, "runtime.chunk_size": 15}, "image_text"),
    ],
)
def test_chunks_are_refused_where_batch_normalisation_is_trained(changes, stage):
    changes = CNN | {"runtime.chunk_size": 4} | changes
    message = rf"^runtime.chunk_size: stage '{stage}' trains encoder.image, which holds batch normalisation"
    with pytest.raises(ValueError, match=message):
        build_experiment(check_config(read_config(DEBUG, changes)))


@pytest.mark.parametrize(
    "changes",
    [
        {f"stages.{stage}.trainable": {"encoder.image": "none"} for stage in ("image_text", "audio_text")},
        {"stages.image_text.trainable": {"encoder.image": "none"}, "retention": {}},  # no loss of the other reaches it
        {"runtime.devices": 2, "runtime.chunk_size": 16},
        {"retention": {"frozen": FROZEN}},
    ],
)
def test_chunks_are_allowed_where_batch_normalisation_is_frozen_or_sees_all_rows(changes):
    changes = CNN | {"runtime.chunk_size": 4} | changes
    model = build_experiment(check_config(read_config(DEBUG, changes))).model
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_chunks_are_refused_when_a_stage_begins_that_frozen_leaves_batch_normalisation_to_train(tmp_path):
    frozen = FROZEN | {"init_args": {"components": ["encoder.text"]}}
    config = check_config(read_config(DEBUG, CNN | {"runtime.chunk_size": 4, "retention": {"frozen": frozen}}))
    experiment = build_experiment(config)
    stage, plan = experiment.stages["image_text"], Curriculum(experiment, config, tmp_path).plan(1)
    with pytest.raises(ValueError, match=r"^runtime.chunk_size: stage 'image_text' trains encoder.image, "):
        AlignmentModule(experiment.model, experiment.losses, experiment.retention, stage, plan, experiment.runtime, {})


def test_a_retention_method_may_bring_the_pairs_of_a_loss():
    changes = {"stages.audio_text.losses": {"audio_text": 1.0, "image_text": 1.0}}
    assert set(build_experiment(check_config(read_config(DEBUG, changes))).stages) == {"image_text", "audio_text"}


def test_members_that_do_not_exist_are_named(tmp_path):
    build(Scenes(train=3, val=1, test=1, test_compositional=0), tmp_path)
    keys = ("stages.image_text.data.scenes", "stages.audio_text.data.scenes", "evaluation.scenes.init_args.data")
    config = check_config(read_config(DEBUG, {f"{key}.shards": str(tmp_path) for key in keys}))
    del config["stages"]["image_text"]["data"]["docstrings"], config["evaluation"]["language"]
    check_data(config)
    for modalities, message in (
        ({"imag": "png", "text": "txt"}, "modalities: the model has no encoder 'imag'; did you mean 'image'?"),
        ({"audio": "mp3", "text": "txt"}, "modalities.audio: 'mp3' is in none of 3 samples of "),
    ):
        config["stages"]["audio_text"]["data"]["scenes"]["modalities"] = modalities
        with pytest.raises(ConfigError) as error:
            check_data(config)
        assert str(error.value).startswith(f"stages.audio_text.data.scenes: {message}")


def test_settings_other_than_those_that_built_the_directory_are_refused(tmp_path):
    def sources(**settings):
        scenes = {"class_path": "mmalign.data.sources.scenes.Scenes", "init_args": settings}
        return {"sources": {str(tmp_path / "scenes"): scenes}}

    built = {"train": 1, "val": 1, "test": 1, "test_compositional": 1}
    check_built_data(sources(**built))  # not built yet
    build(Scenes(**built), tmp_path / "scenes")
    check_built_data(sources(**built, workers=2))  # changes no byte
    with pytest.raises(ConfigError, match=r"scenes: train is 4000, but the directory was built with 1; delete "):
        check_built_data(sources(**built | {"train": 4000}))
    card = tmp_path / "scenes" / "card.json"
    card.write_text('{"name": "scenes", "settings": {}}')
    check_built_data(sources(train=4000))


def test_a_missing_key_is_named():
    config = read_config(DEBUG)
    del config["losses"]["image_text"]["init_args"]["b"]
    with pytest.raises(ConfigError, match=r"losses\.image_text\.init_args\.b: is missing"):
        check_config(config)


def test_a_checkpoint_may_not_name_any_class():
    config = read_config(DEBUG, {"model.init_args.encoders.image.class_path": "subprocess.Popen"})
    with pytest.raises(ConfigError, match=r"subprocess\.Popen.*outside of mmalign"):
        check_part(config["model"], Aligner, "model", trusted_only=True)


def test_overrides():
    assert parse_overrides(["--a.b", "3", "c=[1, 2]", "--d=x"]) == {"a.b": 3, "c": [1, 2], "d": "x"}
    with pytest.raises(ConfigError, match="the value is missing"):
        parse_overrides(["--a"])
    config = {"a": {"x.y": {"b": 1}}, "n": None}
    assert override(config, {"a.x.y.b": 2, "n.k": 3}) == {"a": {"x.y": {"b": 2}}, "n": {"k": 3}}
    assert config == {"a": {"x.y": {"b": 1}}, "n": None}
    with pytest.raises(ConfigError, match="'b' is no mapping"):
        override({"a": {"b": 1}}, {"a.b.c": 2})


def test_differences_are_dotted_keys():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c", "d"]


def test_a_part_is_built_with_its_defaults():
    from mmalign.losses import InfoNCE
    from mmalign.losses.base import Loss

    config = check_config(read_config(DEBUG))
    loss = build_part(config["losses"]["image_text"], Loss)
    assert isinstance(loss, InfoNCE)
    assert loss.pair == ("image", "text")
