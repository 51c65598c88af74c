"""Weights and data sets: fetched once into the user's cache, verified by SHA-256, then used without a network.

>>> from mmalign import assets
>>> assets.fetch("minilm")  # downloads when it is not there yet
>>> assets.path("minilm")   # never downloads
"""

from mmalign.assets.cache import cache_folder, describe, fetch, path, provenance
from mmalign.assets.registry import ASSETS

__all__ = ["ASSETS", "cache_folder", "describe", "fetch", "path", "provenance"]
