"""One look for every figure: colours that colour-blind readers tell apart, and SVG that follows the page's theme."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT = {
    "ink": "#1b2430",
    "muted": "#5d6b7c",
    "grid": "#dfe4ea",
    "surface": "#fefeff",
    "page": "#f4f6f8",
    "heat": "#1f5fa9",
    "series-0": "#0b6fb4",
    "series-1": "#d35a06",
    "series-2": "#069a72",
    "series-3": "#b5558f",
    "series-4": "#c48a04",
    "series-5": "#3a93d2",
    "series-6": "#6a4fb3",
    "series-7": "#6d7781",
}
"""Okabe and Ito's hues, darkened where they would be too pale for a thin line on white."""

DARK = {
    "ink": "#e8edf3",
    "muted": "#9aa7b6",
    "grid": "#2c3542",
    "surface": "#151b23",
    "page": "#0d1218",
    "heat": "#2f74c0",
    "series-0": "#56ade8",
    "series-1": "#ff8c46",
    "series-2": "#2fcb9c",
    "series-3": "#e493c6",
    "series-4": "#f0bf45",
    "series-5": "#9bd4f7",
    "series-6": "#ad98ec",
    "series-7": "#a8b2bd",
}

INK, MUTED, GRID, SURFACE, HEAT = (LIGHT[name] for name in ("ink", "muted", "grid", "surface", "heat"))
SERIES = [LIGHT[f"series-{i}"] for i in range(8)]
MARKERS = ["o", "s", "D", "^", "v", "P", "X", "h"]
DASHES = ["-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (7, 1.6, 1.4, 1.6))]

_RC: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a caption or a name is a dollar
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "hatch.color": GRID,
    "hatch.linewidth": 0.9,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and takes the page's font
}


@contextmanager
def drawing(width: float, height: float) -> Iterator["Figure"]:
    """A figure of this size in inches, in mmalign's look; independent of pyplot and of the user's settings."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def svg(figure: "Figure", title: str = "") -> str:
    """The figure as an `<svg>` element that takes its colours from the page's CSS variables (`theme_css`).

    Every text in it is escaped; the result can stand in HTML as it is.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # two figures of a page would share these
    for name, colour in LIGHT.items():
        text = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{name})", text)
    label = f' role="img" aria-label="{_attribute(title)}"' if title else ' role="img"'
    return text.replace("<svg", "<svg" + label, 1).strip()


def png(figure: "Figure", dots_per_inch: int = 144) -> bytes:
    """The figure as a PNG file in light colours."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(_RC):
        figure.savefig(file, format="png", dpi=dots_per_inch, facecolor=SURFACE)
    return file.getvalue()


def data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def theme_css() -> str:
    """The CSS variables of both themes, for the page and for the figures in it."""

    def block(colours: dict[str, str]) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in colours.items())

    return (
        f":root {{ color-scheme: light dark; {block(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ {block(DARK)} }} }}\n"
        f":root[data-theme=dark] {{ color-scheme: dark; {block(DARK)} }}\n"
        f":root[data-theme=light] {{ color-scheme: light; }}\n"
    )


def number(value: float) -> str:
    """A number as tables and figures show it: three digits that matter, no exponent where it can be avoided."""
    if value != value:
        return "–"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{value:.2e}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", "−")
    digits = 3 if size < 10 else 1 if size < 1000 else 0
    shown = f"{value:,.{digits}f}"
    return shown.replace("-", "−")


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
