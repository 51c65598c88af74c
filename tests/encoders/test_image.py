"""Image preprocessing against open_clip's, and image towers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmalign.encoders.image import ImagePreprocess, ImageTimm
from mmalign.encoders.image_open_clip import ImageOpenClip
from mmalign.encoders.weights import load_in_order

TINY_VIT = {"patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
TOWERS = {
    "cnn": lambda: ImageTimm("resnet10t", size=48),
    "nhwc": lambda: ImageTimm(
        "swin_tiny_patch4_window7_224", size=64, options={"depths": (1, 1, 1, 1), "window_size": 2}
    ),
    "head-after-pooling": lambda: ImageTimm("mobilenetv3_small_050", size=64),
    "vit": lambda: ImageTimm("vit_tiny_patch16_224", size=32, patch_dropout=0.5, options=TINY_VIT),
}


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (max(1, height // 4), max(1, width // 4), 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height)).convert(mode)


@pytest.mark.parametrize("name", TOWERS)
def test_alone_equals_in_a_batch(name, tower_check):
    torch.manual_seed(0)
    encoder = TOWERS[name]()
    rows = [encoder.preprocess.prepare(picture(50 + 9 * i, 70, seed=i), None) for i in range(3)]
    tower_check(encoder, rows)
    with torch.no_grad():
        tokens = encoder(*encoder.preprocess.collate(rows))
    assert tokens.sequence.shape[1] == encoder.axis.rows * encoder.axis.columns


@settings(max_examples=25, deadline=None)
@given(
    st.integers(5, 90),
    st.integers(5, 90),
    st.sampled_from(["crop", "squash"]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_preprocessing_equals_open_clip(width, height, resize_mode, interpolation):
    from open_clip.transform import image_transform

    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    theirs = image_transform(
        32, False, mean, std, {"crop": "shortest", "squash": "squash"}[resize_mode], interpolation
    )(picture(width, height))
    ours = ImagePreprocess(32, mean, std, interpolation, resize_mode).prepare(picture(width, height), None)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_padding_keeps_everything_in_the_middle():
    ours = ImagePreprocess(32, resize_mode="pad").prepare(Image.new("RGB", (64, 16), (0, 0, 0)), None)
    assert (ours[:, 12:20] == -1).all()
    assert (ours[:, :12] == 1).all()
    assert (ours[:, 20:] == 1).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "RGB"])
def test_every_mode_becomes_three_channels(mode):
    source = picture(20, 20).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        source = Image.fromarray(np.asarray(source).astype(np.uint16) * 257)
    row = ImagePreprocess(8).prepare(source, None)
    assert row.shape == (3, 8, 8)
    if mode != "1":
        grey = ImagePreprocess(8).prepare(picture(20, 20).convert("L"), None)
        assert (row.mean() - grey.mean()).abs() < 0.1


def test_transparency_shows_the_background():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (ImagePreprocess(4).prepare(clear, None) == 1).all()
    assert (ImagePreprocess(4, background=(0, 0, 0)).prepare(clear, None) == -1).all()


def test_augmentation_follows_its_generator_and_spares_evaluation():
    preprocess = ImagePreprocess(16, scale_min=0.3, flip=True, jitter=0.4)

    def rows(*seeds):
        return [preprocess.prepare(picture(40, 30), None if s is None else np.random.default_rng(s)) for s in seeds]

    first, again, other, plain = rows(1, 1, 2, None)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(plain, ImagePreprocess(16).prepare(picture(40, 30), None))


def test_patch_dropout_shortens_training_only():
    encoder = TOWERS["vit"]()
    values = torch.randn(2, 3, 32, 32)
    assert encoder.train()(values).sequence.shape == (2, 8, 16)
    assert encoder.eval()(values).sequence.shape == (2, 16, 16)


def test_layers_run_from_input_to_output():
    vit = TOWERS["vit"]()
    blocks = list(vit.trunk.model.blocks)
    assert vit.layers()[0] is vit.trunk.model.patch_embed
    assert vit.layers()[1] is blocks[0]
    assert blocks[1] in list(vit.layers()[2].children())  # together with the last norm
    cnn = TOWERS["cnn"]()
    assert cnn.layers()[-1] is cnn.trunk.model.layer4[-1]
    parameters = {id(p) for layer in cnn.layers() for p in layer.parameters()}
    assert parameters == {id(p) for p in cnn.parameters()}


def test_weights_come_by_name_or_in_order_and_nothing_else_is_taken(tmp_path):
    full = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = {name: torch.randn_like(t) if t.is_floating_point() else t for name, t in full.state_dict().items()}
    load_in_order(full, {f"other_{name}": tensor for name, tensor in state.items()}, tmp_path)
    assert all(torch.equal(full.state_dict()[name], tensor) for name, tensor in state.items())
    swapped = dict(sorted(state.items(), reverse=True))
    with pytest.raises(ValueError, match="does not fit"):
        load_in_order(full, {f"x.{name}": tensor for name, tensor in swapped.items()}, tmp_path)
    with pytest.raises(ValueError, match="holds 1 tensors"):
        load_in_order(full, {"weight": torch.zeros(1)}, tmp_path)


def test_a_checkpoint_of_a_classifier_gives_the_trunk(tmp_path):
    import timm

    torch.manual_seed(1)
    full = timm.create_model("resnet10t").eval()
    torch.save({"state_dict": full.state_dict()}, tmp_path / "weights.pth")
    encoder = ImageTimm("resnet10t", weights=str(tmp_path / "weights.pth"), size=64).eval()
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = full.forward_head(full.forward_features(pictures), pre_logits=True)
        torch.testing.assert_close(encoder(pictures).pooled, expected, atol=1e-5, rtol=1e-4)


def test_a_checkpoint_with_code_is_refused(tmp_path):
    class Danger:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    torch.save({"state_dict": Danger()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        ImageTimm("resnet10t", weights=str(tmp_path / "evil.pth"), size=64)
    assert not (tmp_path / "canary").exists()


def test_missing_weights_are_named():
    with pytest.raises(FileNotFoundError, match=r"'no-such-thing'"):
        ImageTimm("resnet10t", weights="no-such-thing", size=64)


@pytest.mark.parametrize(("vision", "positions"), [("vit", 16), ("timm", 4), ("resnet", 1)])
def test_open_clip_tower_equals_open_clip(open_clip_folder, tower_check, vision, positions):
    import open_clip

    name = f"local-dir:{open_clip_folder(vision=vision)}"
    encoder = ImageOpenClip(name)
    model, _, transform = open_clip.create_model_and_transforms(name)
    pictures = [picture(40, 60, seed=seed) for seed in range(3)]
    rows = [encoder.preprocess.prepare(p, None) for p in pictures]
    tower_check(encoder, rows)
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([transform(p) for p in pictures]))
        tokens = encoder(*encoder.preprocess.collate(rows))
    torch.testing.assert_close(tokens.pooled, expected, atol=1e-5, rtol=0)
    assert tokens.sequence.shape == (3, positions, 20)
    assert encoder.axis.rows == encoder.axis.columns
    kernels = [p for p in encoder.parameters() if p.ndim == 4 and p.shape[1] > 3 and p.shape[2] > 1]
    assert bool(kernels) == (vision != "vit")
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.assets
def test_efficientnet_lite0_weights_load(cached_asset):
    encoder = ImageTimm("efficientnet_lite0", weights=str(cached_asset("efficientnet-lite0")), size=128).eval()
    bright, dark = (encoder.preprocess.prepare(picture(128, 128, seed=s), None) for s in (1, 2))
    with torch.no_grad():
        pooled = encoder(torch.stack([bright, dark])).pooled
    assert pooled.shape == (2, 1280)
    assert 0.05 < pooled.mean() < 2  # activations of a trained network; a scrambled one explodes or dies


def test_names_that_open_clip_and_timm_do_not_know():
    with pytest.raises(ValueError, match=r"open_clip 'ViT-B-23'.* did you mean ViT-B-32"):
        ImageOpenClip("ViT-B-23")
    with pytest.raises(ValueError, match=r"open_clip 'ViT-B-32', weights 'opnai'.* did you mean openai"):
        ImageOpenClip("ViT-B-32", "opnai")
    with pytest.raises(ValueError, match="timm has no model 'vit_tny_patch16_224'; did you mean vit_tiny_patch16_224"):
        ImageTimm("vit_tny_patch16_224")


def test_patch_dropout_is_refused_where_there_are_no_patches(open_clip_folder):
    with pytest.raises(ValueError, match=r"^patch_dropout: 'resnet10t' has no patches to drop"):
        ImageTimm("resnet10t", size=64, patch_dropout=0.5)
    for kind in ("resnet", "timm"):
        with pytest.raises(ValueError, match=r"^patch_dropout: 'local-dir:.*' has no patches to drop"):
            ImageOpenClip(f"local-dir:{open_clip_folder(vision=kind)}", patch_dropout=0.5)
    with pytest.raises(ValueError, match=r"^options: .*no_such_option"):
        ImageTimm("resnet10t", size=64, options={"no_such_option": 1})


def test_open_clip_drops_patches_in_training(open_clip_folder):
    encoder = ImageOpenClip(f"local-dir:{open_clip_folder()}", patch_dropout=0.5)
    assert encoder.train()(torch.randn(2, 3, 32, 32)).sequence.shape[1] == 8
