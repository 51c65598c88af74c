"""Towers, one per modality. A YAML names them by `class_path`: mmalign.encoders.ImageTimm, …"""

from mmalign.encoders.audio import AudioPreprocess, AudioTimm
from mmalign.encoders.audio_aisfx import AudioAISFX
from mmalign.encoders.audio_transformer import AudioTransformer
from mmalign.encoders.base import Axis, Encoder, Preprocess, SeriesPreprocess
from mmalign.encoders.image import ImagePreprocess, ImageTimm
from mmalign.encoders.image_open_clip import ImageOpenClip
from mmalign.encoders.mel import LogMel, MelSettings
from mmalign.encoders.text_byte_patches import TextBytePatches
from mmalign.encoders.text_bytes import TextBytes
from mmalign.encoders.text_causal import CausalLanguageModel, TextPreprocess
from mmalign.encoders.text_hf import TextCausalHF, TextHF
from mmalign.encoders.text_open_clip import TextOpenClip

__all__ = [
    "AudioAISFX",
    "AudioPreprocess",
    "AudioTimm",
    "AudioTransformer",
    "Axis",
    "CausalLanguageModel",
    "Encoder",
    "ImageOpenClip",
    "ImagePreprocess",
    "ImageTimm",
    "LogMel",
    "MelSettings",
    "Preprocess",
    "SeriesPreprocess",
    "TextBytePatches",
    "TextBytes",
    "TextCausalHF",
    "TextHF",
    "TextOpenClip",
    "TextPreprocess",
]
