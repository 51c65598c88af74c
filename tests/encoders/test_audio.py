"""Audio towers: clips of any length, alone or in a batch."""

import io
import math

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.data.collate import prepare
from mmalign.data.decode import decode
from mmalign.data.faults import Limits
from mmalign.data.sample import Variant
from mmalign.encoders.audio import AudioPreprocess, AudioTimm
from mmalign.encoders.audio_aisfx import AISFX_MEL, AudioAISFX
from mmalign.encoders.audio_transformer import AudioTransformer
from mmalign.encoders.mel import LogMel, MelSettings

SMALL = MelSettings(sample_rate_hz=8000, window=128, hop=80, bins=16)
TOWERS = {
    "transformer": lambda: AudioTransformer(width=16, depth=2, heads=2, mel=SMALL),
    "cnn": lambda: AudioTimm("resnet10t", mel=SMALL, window_frames=64, options={"drop_path_rate": 0.1}),
    "head-after-pooling": lambda: AudioTimm("mobilenetv3_small_050", mel=SMALL, window_frames=64),
    "vit": lambda: AudioTimm(
        "vit_tiny_patch16_224", mel=SMALL, window_frames=64, options={"depth": 2, "embed_dim": 16, "num_heads": 2}
    ),
    "aisfx": lambda: AudioAISFX(weights=None),
}


def noise(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, generator=generator) * 0.3 for length in lengths]


@pytest.mark.parametrize("name", TOWERS)
def test_alone_equals_in_a_batch(name, tower_check):
    torch.manual_seed(0)
    encoder = TOWERS[name]()
    rate = encoder.preprocess.sample_rate_hz
    tower_check(encoder, noise(1, 79, rate // 3, 2 * rate + 13, 3 * rate))


@pytest.mark.parametrize("name", TOWERS)
def test_positions_come_at_the_rate_that_the_axis_states(name):
    encoder = TOWERS[name]().eval()
    with torch.no_grad():
        tokens = encoder(*encoder.preprocess.collate(noise(10 * encoder.preprocess.sample_rate_hz)))
    assert encoder.axis.kind == "frames"
    assert tokens.mask.sum() == pytest.approx(10 * encoder.axis.hertz, abs=1.5)


def test_a_minute_long_clip_fits():
    encoder = AudioTransformer(width=16, depth=1, heads=2, mel=SMALL, max_seconds=60.0).eval()
    row = encoder.preprocess.prepare((np.zeros(8000 * 70, np.float32), 8000), None)
    with torch.no_grad():
        assert encoder(*encoder.preprocess.collate([row])).mask.sum() == 1501  # 60 s × 25 Hz, both ends


def test_training_reaches_every_parameter():
    for make in TOWERS.values():
        encoder = make().train()
        values, mask = encoder.preprocess.collate([*noise(9000, 26000), None])
        encoder(values, mask).pooled.square().sum().backward()
        missing = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing


def test_mel_settings_stand_in_the_spec():
    assert TOWERS["cnn"]().spec["mel"]["hop"] == 80
    assert TOWERS["cnn"]().spec["preprocess"]["sample_rate_hz"] == 8000


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 5000),
    rate_hz=st.sampled_from([8000, 11025, 16000, 44100, 48000]),
    stereo=st.booleans(),
    training=st.booleans(),
)
def test_any_clip_becomes_mono_at_the_rate(samples, rate_hz, stereo, training):
    preprocess = AudioPreprocess(16000, max_seconds=0.1, gain_db=6.0)
    wave = np.random.default_rng(samples).uniform(-1, 1, (samples, 2) if stereo else samples).astype(np.float32)
    row = preprocess.prepare((wave, rate_hz), np.random.default_rng(1) if training else None)
    assert row.dtype == torch.float32
    assert row.ndim == 1
    assert len(row) == pytest.approx(max(1, min(samples * 16000 / rate_hz, 1600)), abs=1.01)


@pytest.mark.parametrize("form", ["FLAC", "WAV", "OGG"])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_reading_an_excerpt_changes_neither_values_nor_draws(form, seconds):
    file = io.BytesIO()
    soundfile.write(file, noise(22050)[0].numpy() * 0.3, 22050, format=form)
    preprocess = AudioPreprocess(16000, max_seconds=seconds, gain_db=6.0)
    variant = Variant(form.lower(), "", file.getvalue())
    whole = decode("audio", variant.name, variant.data, Limits())
    for seed in (None, *range(5)):
        generators = [None if seed is None else np.random.default_rng(seed) for _ in range(2)]
        expected = preprocess.prepare(whole, generators[0])
        torch.testing.assert_close(prepare(preprocess, variant, Limits(), generators[1]), expected, rtol=0, atol=0)
        if seed is not None:
            assert generators[0].random() == generators[1].random()


def test_only_the_excerpt_is_read(monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, noise(16000)[0].numpy() * 0.3, 16000, format="FLAC")
    read, read_all = [], soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda f, n, **k: read.append(n) or read_all(f, n, **k))
    for generator in (None, np.random.default_rng(0)):
        prepare(AudioPreprocess(16000, max_seconds=0.25), Variant("flac", "", file.getvalue()), Limits(), generator)
    assert read == [4000, 4000]


def test_resampling_keeps_a_tone():
    wave = np.sin(2 * np.pi * 440 * np.arange(44100) / 44100).astype(np.float32)
    row = AudioPreprocess(16000).prepare((wave, 44100), None).numpy()
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(row - expected)[200:-200].max() < 1e-3


def test_evaluation_takes_the_start_and_training_any_place():
    preprocess = AudioPreprocess(100, max_seconds=1.0)
    wave = np.arange(1000, dtype=np.float32)
    assert preprocess.prepare((wave, 100), None)[0] == 0
    starts = {preprocess.prepare((wave, 100), np.random.default_rng(seed))[0].item() for seed in range(20)}
    assert len(starts) > 10
    assert len(wave) == 1000  # the caller's array is untouched


@pytest.mark.parametrize("wave", [np.zeros(0, np.float32), np.array([0.0, np.nan], np.float32)])
def test_empty_and_nan_clips_are_refused(wave):
    with pytest.raises(ValueError, match="waveform"):
        AudioPreprocess(16000).prepare((wave, 16000), None)


def test_aisfx_front_end_is_the_published_formula():
    wave = noise(44100)[0][None]
    mel = LogMel(AISFX_MEL)
    expected = torch.log10(1 + 1e4 * mel.power_mel(wave)) / 9.457798957824707
    torch.testing.assert_close(mel(wave)[0], expected, atol=1e-5, rtol=0)
    assert mel.settings.silence == pytest.approx(0.0, abs=1e-12)
    assert mel.weights[::2].sum(0).allclose(torch.ones(96), atol=1e-5)


@pytest.mark.assets
def test_aisfx_weights_load_and_tell_sounds_apart(cached_asset):
    encoder = AudioAISFX(str(cached_asset("aisfx"))).eval()
    time = torch.arange(2 * 44100) / 44100
    tone = [torch.sin(2 * math.pi * hertz * time) * 0.5 for hertz in (440.0, 450.0)]
    with torch.no_grad():
        pooled = encoder(*encoder.preprocess.collate([*tone, *noise(88200)])).pooled
    similarity = torch.nn.functional.cosine_similarity(pooled[:, None], pooled[None], dim=-1)
    assert similarity[0, 1] > 0.9 > similarity[0, 2]
