"""What `mmalign assets …` does; the command line itself is in `mmalign.cli`."""

import sys

from mmalign.assets import cache
from mmalign.assets.registry import ASSETS


def list_assets() -> None:
    """Print every known asset: what it is, licence, size, where it stands in the cache, and its sources."""
    print(f"cache: {cache.cache_folder()}")
    for row in cache.describe():
        print(f"\n{row['name']}  ({row['licence']}, {row['download']} to download)")
        print(f"    {row['description']}")
        print(f"    cached:  {row['cached']}")
        print(f"    sources: {row['sources']}")


def fetch(names: list[str]) -> None:
    """Fetch assets into the cache and verify them; `all` stands for every asset.

    Args:
        names: names as `mmalign assets list` shows them. An asset that is cached already is only checked.
    """
    wanted = list(ASSETS) if names == ["all"] else names
    unknown = [name for name in wanted if name not in ASSETS]
    if unknown or not wanted:
        raise ValueError(f"no asset {', '.join(unknown) or 'named'}; there are {', '.join(ASSETS)}")
    for name in wanted:
        print(f"{name}: fetching or checking …", file=sys.stderr, flush=True)
        print(f"{name}: {cache.fetch(name)}", flush=True)


def path(name: str) -> None:
    """Print where a fetched asset lies; an error names the command that fetches it."""
    print(cache.path(name))
