"""Picking a modality's members out of a sample whose json may hold anything."""

from mmalign.data.faults import Limits, SampleError
from mmalign.data.sample import RawSample, Variant


def variants_in(sample: RawSample, pattern: str, limits: Limits) -> list[Variant]:
    """`sample.variants(pattern)`.

    Raises:
        SampleError: the json member that it needs is too long or not what mmalign expects.
    """
    if "captions[" in pattern:
        metadata = _metadata(sample, limits)
        captions = metadata.get("captions", {})
        if not isinstance(captions, dict) or not all(_is_texts(texts) for texts in captions.values()):
            raise SampleError("'json': its captions are no object of lists of texts by language")
    return sample.variants(pattern)


def group_of(sample: RawSample, limits: Limits) -> str:
    """Samples with the same group are positives of each other.

    Raises:
        SampleError: as in `variants_in`.
    """
    return str(_metadata(sample, limits).get("group", sample.key))


def has_captions(sample: RawSample, limits: Limits) -> bool:
    """Whether the json holds captions by language; what others keep under that name is their own matter."""
    return isinstance(_metadata(sample, limits).get("captions"), dict)


def _metadata(sample: RawSample, limits: Limits) -> dict:
    size = len(sample.members.get("json", b""))
    if size > limits.max_text_bytes:
        raise SampleError(f"'json': {size} bytes, the limit is {limits.max_text_bytes}")
    try:
        return sample.metadata
    except (ValueError, RecursionError) as error:
        raise SampleError(f"'json': {type(error).__name__}: {error}") from error


def _is_texts(texts: object) -> bool:
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts)
