"""Items that share a key, directly or through others, are connected, and no others."""

from hypothesis import given
from hypothesis import strategies as st

from mmalign.data.sources.near_duplicates import connected, plain_english, plain_text


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.lists(st.integers(0, 12), max_size=3)))
def test_connected_equals_the_naive_closure(keys: dict[str, list[int]]) -> None:
    groups = [{item} for item in keys]
    merged = True
    while merged:
        merged = False
        for first in groups:
            for second in groups:
                if first is not second and {k for i in first for k in keys[i]} & {k for i in second for k in keys[i]}:
                    groups.remove(second)
                    first |= second
                    merged = True
                    break
            if merged:
                break
    assert connected(keys) == {item: min(group) for group in groups for item in group}


def test_plain_captions() -> None:
    assert plain_text(" L’oiseau,  BLEU! ") == "loiseau bleu"
    assert plain_english("A frog.") == plain_english("the  Frog") == "frog"
    assert plain_english("An a") == "a"
    assert plain_english("A.") == "a", "an article alone is a word"
    assert plain_english("Thermos") == "thermos"
