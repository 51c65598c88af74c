import math
import xml.etree.ElementTree as ET

import pytest

from mmalign.report.forgetting_plots import Tradeoff, heat_map, share_of_best, stability_plasticity
from mmalign.report.plots import Curve, Interval, curves, intervals, modality_gap
from mmalign.report.style import DARK, LIGHT, number, png, svg, theme_css

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "best", "higher", "share"),
    [
        (0.5, 1.0, True, 0.5),
        (3.0, 1.5, False, 0.5),
        (1.5, 1.5, False, 1.0),
        (-0.2, 1.0, True, 0.0),
        (0.0, 0.0, True, 1.0),
        (0.1, 0.0, False, 0.0),
        (NAN, 1.0, True, NAN),
        (1.0, NAN, True, NAN),
    ],
)
def test_share_of_best(value: float, best: float, higher: bool, share: float) -> None:
    assert share_of_best(value, best, higher) == pytest.approx(share, nan_ok=True)


def patches(figure: object) -> list:
    return list(figure.axes[0].patches)  # type: ignore[attr-defined]


def test_heat_map_shades_goodness_whichever_way_is_up() -> None:
    figure = heat_map([[0.2, 2.0], [0.8, 4.0], [NAN, 1.0]], ["start", "a", "b"], ["up", "down"], [True, False])
    up, down = patches(figure)[:3], patches(figure)[3:]
    assert up[0].get_alpha() < up[1].get_alpha()
    assert down[1].get_alpha() < down[0].get_alpha() < down[2].get_alpha()
    assert up[2].get_hatch()
    assert not up[1].get_hatch()
    assert all(patch.get_width() > 0 for patch in up + down)


def test_heat_map_leaves_a_column_at_chance_empty() -> None:
    values = [[0.01, 50.0, 0.01], [0.01, 50.0, 0.1]]
    figure = heat_map(
        values, ["start", "a"], ["up", "down", "learned"], [True, False, True], chances=[0.01, 50.0, 0.01]
    )
    shades = [patch.get_alpha() for patch in patches(figure)]
    assert shades[:5] == [min(shades)] * 5
    assert shades[5] > 0.7


def test_heat_map_says_what_was_lost() -> None:
    figure = heat_map([[0.2, 2.0], [0.8, 2.5], [0.5, 3.0]], ["start", "a", "b"], ["up", "down"], [True, False])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [text for text in texts if text.startswith("lost")] == ["lost 0.300", "lost 1.000"]


def test_a_long_legend_covers_no_curve() -> None:
    figure = curves([Curve(f"group {i}", [1.0, 2.0], [1.0, float(i)]) for i in range(19)], "learning rate")
    figure.draw_without_rendering()
    (legend,), axes = figure.legends, figure.axes[0]
    assert axes.get_legend() is None
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    assert axes.bbox.height > 1.5 * figure.dpi


def figures() -> dict[str, object]:
    evil = "<b>&\"' --> $x_1$"
    steps = [float(step) for step in range(1, 200)]
    points = [
        Tradeoff(evil, 60.0, 0.5, 1.0, 0.1, 5.0),
        Tradeoff("lost", NAN, 0.2),
        Tradeoff("α=0", 90.0, 0.1, curve="w"),
    ]
    return {
        "curves": curves(
            [Curve(evil, steps, [1 / s for s in steps])], evil, [(1.0, "a"), (100.0, evil)], logarithmic=True
        ),
        "one point": curves([Curve("x", [1.0], [2.0])], "x"),
        "nothing": curves([], "x"),
        "intervals": intervals([Interval(evil, 0.5, 0.4, 0.6, 0.1, "s", True), Interval("x", NAN)], evil),
        "heat map": heat_map([[1.0], [NAN]], ["start", evil], [evil], [True], evil, boxed=[(0, 0)]),
        "trade-off": stability_plasticity(points, evil),
        "no trade-off": stability_plasticity([], evil),
        "gap": modality_gap({"image": [[0.0, 1.0], [1.0, 0.0]], evil: [], "text": [[0.5, 0.5]]}, [0.5, 0.2]),
    }


@pytest.mark.parametrize("name", list(figures()))
def test_svg_is_well_formed_themed_and_keeps_names_as_text(name: str) -> None:
    text = svg(figures()[name], "a <title>")  # type: ignore[arg-type]
    root = ET.fromstring(text)
    assert root.attrib["aria-label"] == "a <title>"
    assert "var(--" in text
    assert "<!--" not in text
    left = [colour for colour in LIGHT.values() if f": {colour}" in text]
    assert left == []
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not tags & {"b", "script", "image"}
    shown = "".join(root.itertext())
    if name in ("curves", "intervals", "heat map"):
        assert "$x_1$" in "".join(shown.split("\n"))


def test_png_has_light_colours() -> None:
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(png(heat_map([[1.0]], ["start"], ["c"], [True]), 72)))
    assert image.convert("RGB").getpixel((0, 0)) == (0xFE, 0xFE, 0xFF)


def test_both_themes_name_the_same_colours_and_text_can_be_read() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert list(LIGHT) == list(DARK)
    for theme in (LIGHT, DARK):
        for ground in ("surface", "page"):
            for name, least in (("ink", 7), ("muted", 4.5), *((f"series-{i}", 2.7) for i in range(8))):
                low, high = sorted([luminance(theme[name]), luminance(theme[ground])])
                assert (high + 0.05) / (low + 0.05) >= least, (name, ground)
        assert f"--ink: {theme['ink']}" in theme_css()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (NAN, "–"),
        (-0.25, "−0.250"),
        (87.04, "87.0"),
        (12345.0, "12,345"),
        (2e7, "2.00e7"),
        (1e-5, "1.00e−5"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text
