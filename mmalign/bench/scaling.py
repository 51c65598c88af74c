"""On paper: what a step costs in bytes at 400 million pairs on 64 GPUs, and which limit is met first.

python -m mmalign.bench.scaling
"""

from dataclasses import dataclass

_FLOAT = 4


@dataclass(frozen=True)
class Training:
    """A large training of two towers.

    Attributes:
        pairs: samples of the data set.
        batch: global.
        gpus: one process each.
        dim: of the shared space.
        width: of each tower's pooled output.
        parameters: of both towers.
        picture_bytes, text_bytes: of a sample as it is stored, tar headers included.
        forward_flops: of one pair through both towers; a step costs three times as much.
    """

    pairs: int = 400_000_000
    batch: int = 32_768
    gpus: int = 64
    dim: int = 512
    width: int = 768
    parameters: int = 150_000_000
    picture_bytes: int = 30_000
    text_bytes: int = 1_500
    forward_flops: float = 4.1e10  # ViT-B/16 at 224 pixels and its text tower


@dataclass(frozen=True)
class Cluster:
    """What each GPU can count on.

    Attributes:
        flops: of the towers, in bfloat16; reached, not promised.
        float32_flops: of the loss, whose products are in float32 without TF32, likewise: an H100 promises 6.7e13.
        network_bytes_per_second: in and out of a GPU.
        reads_per_second: random reads of one sample from storage.
        storage_bytes_per_second: of such reads.
        decoded_per_second: pictures of a core; cores of a GPU.
        memory_bytes: of the GPU that a loss may take.
        disk_bytes: of the shared storage for caches, over all GPUs.
    """

    flops: float = 3e14
    float32_flops: float = 5e13
    network_bytes_per_second: float = 2.5e10
    reads_per_second: float = 1_000
    storage_bytes_per_second: float = 2e8
    decoded_per_second: float = 200
    cores: int = 12
    memory_bytes: float = 8e9
    disk_bytes: float = 1e13


def bytes_per_step(t: Training) -> dict[str, float]:
    """Per GPU and step, as mmalign does it.

    read: each rank reads its own rows, every sample by its place in the index.
    gathered: vectors [batch, dim] of two modalities and their likelihoods come in from the other ranks; their gradients
        go back by the same way (reduce-scatter).
    gradients: a ring's all-reduce of all parameters sends and receives each about twice.
    loss: what the loss holds at a time: all rows and their gradients, a tile of up to 256 MB in each direction.
    """
    share = t.batch / t.gpus
    others = t.batch * (t.gpus - 1) / t.gpus
    row = 2 * (t.dim + 2) * _FLOAT
    return {
        "read": share * (t.picture_bytes + t.text_bytes),
        "gathered": 2 * others * row,
        "gradients": 2 * t.parameters * _FLOAT * (t.gpus - 1) / t.gpus,
        "loss": t.batch * (row + 4 * t.dim * _FLOAT) + 2 * 256e6,
    }


def bytes_stored(t: Training) -> dict[str, float]:
    """On disk, once.

    index: an entry of 24 bytes a sample, mapped and not loaded; orders are computed, not stored.
    cache: float32 pooled outputs of two frozen towers, one variant a sample.
    checkpoint: parameters and AdamW's two means.
    """
    return {
        "data": float(t.pairs * (t.picture_bytes + t.text_bytes)),
        "index": 24.0 * t.pairs,
        "cache": float(t.pairs * 2 * t.width * _FLOAT),
        "checkpoint": 3.0 * t.parameters * _FLOAT,
    }


def flops_per_step(t: Training) -> dict[str, float]:
    """Per GPU: towers, forward and backward; the loss, two passes (rows, columns) of at most four products each."""
    share = t.batch / t.gpus
    return {"towers": 3 * t.forward_flops * share, "loss": 2 * 4 * 2 * share * t.batch * t.dim}


def loads(t: Training, c: Cluster) -> dict[str, float]:
    """How much of each resource one step asks for, as a share of the time that the towers' arithmetic takes (or of the
    room there is). What is above 1 sets the pace; the largest is what breaks first."""
    share = t.batch / t.gpus
    moved, stored, flops = bytes_per_step(t), bytes_stored(t), flops_per_step(t)
    seconds = flops["towers"] / c.flops
    return {
        "random reads of samples": share / c.reads_per_second / seconds,
        "bytes read": moved["read"] / c.storage_bytes_per_second / seconds,
        "decoding": share / (c.decoded_per_second * c.cores) / seconds,
        "network: embeddings": moved["gathered"] / c.network_bytes_per_second / seconds,
        "network: gradients": moved["gradients"] / c.network_bytes_per_second / seconds,
        "arithmetic of the loss": flops["loss"] / c.float32_flops / seconds,
        "memory of the loss": moved["loss"] / c.memory_bytes,
        "disk for cached features": stored["cache"] / c.disk_bytes,
    }


def key_collision(t: Training) -> float:
    """Chance that any two of the samples share their 64-bit key in the index."""
    return t.pairs**2 / 2 / 2**64


def describe(t: Training, c: Cluster) -> str:
    """A few lines of plain text."""
    moved, stored, used = bytes_per_step(t), bytes_stored(t), loads(t, c)
    seconds = flops_per_step(t)["towers"] / c.flops
    lines = [
        f"{t.pairs / 1e6:.0f} M pairs, batch {t.batch:,}, {t.gpus} GPUs, {t.parameters / 1e6:.0f} M parameters; "
        f"the towers' arithmetic takes {seconds:.2f} s a step, an epoch {t.pairs / t.batch * seconds / 3600:.1f} h",
        "per GPU and step: " + ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in moved.items()),
        "stored: " + ", ".join(f"{name} {size / 1e9:,.1f} GB" for name, size in stored.items()),
        f"chance of two equal keys: {key_collision(t):.1%}",
        "load, relative to the towers' time or to the room there is:",
    ]
    lines += [f"    {name:<26} {load:6.2f}" for name, load in sorted(used.items(), key=lambda item: -item[1])]
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe(Training(), Cluster()))
    print()
    print(describe(Training(batch=262_144), Cluster()))
