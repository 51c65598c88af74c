"""Drawing a scene: shaded shapes with soft shadows on a pale ground, and the exact mask of each."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

COLOURS_RGB = {
    "red": (224, 52, 48),
    "orange": (245, 140, 28),
    "yellow": (248, 212, 48),
    "green": (76, 170, 72),
    "turquoise": (48, 190, 188),
    "blue": (52, 96, 214),
    "purple": (134, 72, 198),
    "pink": (242, 128, 184),
}
RADII = {"small": 0.09, "big": 0.14}
"""Of the circle around a shape, in widths of the picture."""
_GROUNDS_RGB = ((250, 246, 238), (238, 244, 250), (243, 249, 240), (249, 240, 244), (242, 242, 242), (246, 243, 251))
GROUNDS = len(_GROUNDS_RGB)
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Outline:
    """The recipe of an object's mask, in pixels: a shape around a centre, turned clockwise."""

    shape: str
    x: float
    y: float
    radius: float
    rotation_degrees: float

    def polygon(self) -> NDArray[np.float64]:
        """Corners [corners, 2] as x and y; the picture's upper left corner is (0, 0), y grows downwards."""
        turn = math.radians(self.rotation_degrees)
        rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        return unit_polygon(self.shape) @ rotation * self.radius + (self.x, self.y)

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        corners = self.polygon()
        return (*corners.min(0).tolist(), *corners.max(0).tolist())

    def mask(self, width: int, height: int | None = None) -> NDArray[np.float32]:
        """Coverage [height, width] of every pixel of a picture, 0 to 1."""
        return _coverage(self.polygon(), width, height or width, inset=0.0)


def draw(outlines: list[Outline], colours: list[str], size: int, ground: int, shades: list[float]) -> Image.Image:
    """A picture of `size` × `size` pixels.

    Args:
        ground: which of the `GROUNDS` pale grounds.
        shades: brightness of each object's colour, about 1.
    """
    down = np.linspace(1.0, 0.94, size, dtype=np.float32)[:, None, None]
    canvas = np.broadcast_to(down * np.array(_GROUNDS_RGB[ground], dtype=np.float32), (size, size, 3)).copy()
    for outline, colour, shade in zip(outlines, colours, shades, strict=True):
        _paint(canvas, outline, np.array(COLOURS_RGB[colour], dtype=np.float32) * shade)
    return Image.fromarray(np.clip(canvas + 0.5, 0, 255).astype(np.uint8))


def _paint(canvas: NDArray[np.float32], outline: Outline, colour: NDArray[np.float32]) -> None:
    """Shadow, dark rim, and a body lit from the upper left, on the part of the canvas that the object touches."""
    size, radius = canvas.shape[0], outline.radius
    margin = 0.6 * radius + 1
    left, top, right, bottom = outline.box()
    x0, y0 = max(int(left - margin), 0), max(int(top - margin), 0)
    x1, y1 = min(int(right + margin) + 1, size), min(int(bottom + margin) + 1, size)
    patch, corners = canvas[y0:y1, x0:x1], outline.polygon() - (x0, y0)
    width, height = x1 - x0, y1 - y0

    drop = np.array([0.10, 0.18]) * radius
    shadow = _coverage(corners + drop, width, height, inset=0.0, blur=0.10 * radius)
    patch *= 1 - 0.30 * shadow[..., None]
    whole = _coverage(corners, width, height, inset=0.0)[..., None]
    patch += whole * (0.62 * colour - patch)
    columns = np.arange(x0, x1, dtype=np.float32) + 0.5 - (outline.x - 0.35 * radius)
    rows = np.arange(y0, y1, dtype=np.float32) + 0.5 - (outline.y - 0.45 * radius)
    distance = np.sqrt(columns[None, :] ** 2 + rows[:, None] ** 2) / (1.7 * radius)
    light = (0.42 * np.clip(1 - distance, 0, 1))[..., None]
    body = _coverage(corners, width, height, inset=0.09 * radius)[..., None]
    patch += body * (colour + light * (255 - colour) - patch)


def _coverage(
    corners: NDArray[np.float64], width: int, height: int, inset: float, blur: float = 0.0
) -> NDArray[np.float32]:
    scale = _SUPERSAMPLING
    image = Image.new("L", (width * scale, height * scale))
    points = [(x * scale - 0.5, y * scale - 0.5) for x, y in corners.tolist()]
    drawing = ImageDraw.Draw(image)
    drawing.polygon(points, fill=255)
    if inset:
        drawing.line([*points, points[0], points[1]], fill=0, width=max(round(2 * inset * scale), 1))
    image = image.reduce(scale)
    if blur:
        image = image.filter(ImageFilter.BoxBlur(blur))
    return np.asarray(image, dtype=np.float32) / np.float32(255)


@cache
def unit_polygon(shape: str) -> NDArray[np.float64]:
    """Corners [corners, 2] of a shape of about radius 1 around (0, 0), y downwards."""
    if shape == "circle":
        return _arc(0.0, 360.0, 48)[:-1] * 0.92
    if shape == "square":
        return _arc(45.0, 405.0, 5)[:-1] * 1.12
    if shape == "diamond":
        return _arc(0.0, 360.0, 5)[:-1] * (0.78, 1.08)
    if shape == "triangle":
        return _arc(-90.0, 270.0, 4)[:-1] * 1.12 + (0, 0.22)
    if shape == "star":
        radii = np.tile([1.12, 0.5], 5)[:, None]
        return _arc(-90.0, 270.0, 11)[:-1] * radii + (0, 0.05)
    if shape == "cross":
        quarter = np.array([[0.34, -0.34], [0.34, -0.98], [-0.34, -0.98]])
        return np.concatenate([quarter @ _quarter_turn(turns) for turns in range(4)])
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 49)[:-1]
        x = 16 * np.sin(t) ** 3
        y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
        return np.stack([x, y - 2.5], 1) / 15.5
    if shape == "crescent":
        outer, inner = _arc(48.0, 312.0, 40), _arc(285.0, 75.0, 30) * 0.72
        both = np.concatenate([outer, inner + (outer[-1] - inner[0])])
        return both + np.array([0.2, 0])
    raise ValueError(f"no shape {shape!r}")


def _arc(start_degrees: float, stop_degrees: float, corners: int) -> NDArray[np.float64]:
    angles = np.radians(np.linspace(start_degrees, stop_degrees, corners))
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _quarter_turn(turns: int) -> NDArray[np.float64]:
    cosine, sine = round(math.cos(turns * math.pi / 2)), round(math.sin(turns * math.pi / 2))
    return np.array([[cosine, -sine], [sine, cosine]], dtype=np.float64)
