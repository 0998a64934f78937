"""What has come for one choice since its last event, where that is more than the first choice's text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.base import Piece
from workers.extra_fields import gather, size_of


class GatheredChoice:
    """Gathers the pieces of one choice for its next event."""

    __slots__ = ("extra", "reasonings", "texts", "tool_calls")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasonings: list[str] = []
        self.tool_calls: list[Mapping[str, Any]] = []
        self.extra: dict[str, Any] = {}

    def add(self, piece: Piece) -> int:
        """Add a piece; returns about how many bytes it has."""
        self.texts.append(piece.text)
        self.reasonings.append(piece.reasoning)
        self.tool_calls += piece.tool_calls
        size = len(piece.text) + len(piece.reasoning) + 100 * len(piece.tool_calls)
        if not piece.extra:
            return size
        extra = _without_data(piece.extra)
        gather(self.extra, extra)
        return size + size_of(extra)


def _without_data(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields without the bytes of sound and images, which are in the result alone."""
    light = dict(extra)
    audio, images = extra.get("audio"), extra.get("images")
    if isinstance(audio, Mapping):
        light["audio"] = {name: value for name, value in audio.items() if name != "data"}
    if isinstance(images, list):
        light["images"] = [_without_data_url(image) for image in images]
    return light


def _without_data_url(image: Any) -> Any:
    url = image.get("image_url") if isinstance(image, Mapping) else None
    address = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(address, str) or not address.startswith("data:"):
        return image
    return {name: value for name, value in image.items() if name != "image_url"}
