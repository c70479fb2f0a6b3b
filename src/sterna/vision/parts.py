"""Where the bytes of a message's image or video part are: in the part itself, as bytes or base64. Nothing is fetched."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from sterna.errors import UsageError
from sterna.vision.media import Kind
from sterna.vision.settings import VisionLimits

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_KEYS = ("image", "image_url", "input_image", "video", "video_url", "input_video")


def media_source(kind: Kind, part: Mapping[str, Any], limits: VisionLimits | None = None) -> bytes:
    """The encoded file of a part.

    Understood are ``data`` (bytes, as commands put them), ``image_url``/``video_url``/``image``/``video`` as a data URL or an
    object with ``url``, and ``source`` with ``type: base64``. The declared media type must be of the right kind; which
    format of that kind it is, the bytes decide.

    Raises `UsageError` for a link, a path, damaged base64, or more bytes than allowed.
    """
    limits = limits or VisionLimits()
    most = limits.max_image_bytes if kind == "image" else limits.max_video_bytes
    value = _value(kind, part)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise UsageError(f"the {kind} part holds no data", hint=f"give a data URL: data:{kind}/...;base64,...")
    match = _DATA_URL.match(value)
    if match is None:
        raise UsageError(
            f"the {kind} is given as {value[:40]!r}, allowed are data URLs: nothing is fetched from elsewhere",
            hint=f"send the file itself: data:{kind}/...;base64,...",
        )
    if match[1] and not match[1].lower().startswith(f"{kind}/"):
        raise UsageError(f"the {kind}'s media type is {match[1][:60]!r}, allowed is {kind}/...")
    if match[3] is None:
        raise UsageError(f"the {kind}'s data URL is not base64", hint=f"data:{kind}/...;base64,...")
    return _decode_base64(kind, value[match.end() :], most)


def _value(kind: Kind, part: Mapping[str, Any]) -> Any:
    if "data" in part:
        return part["data"]
    source = part.get("source")
    if isinstance(source, Mapping):
        if source.get("type") != "base64" or not isinstance(source.get("data"), str):
            raise UsageError(
                f"the {kind}'s source is of type {str(source.get('type'))[:40]!r}, allowed is 'base64' with data"
            )
        return f"data:{source.get('media_type') or kind + '/*'};base64,{source['data']}".replace("/*", "/any")
    value = next((part[key] for key in _KEYS if part.get(key) is not None), None)
    return value.get("url") if isinstance(value, Mapping) else value


def _decode_base64(kind: Kind, text: str, most: int) -> bytes:
    if len(text) > most // 3 * 4 + 4 + most // 32:
        raise UsageError(f"the {kind} has about {len(text) * 3 // 4:,} bytes, allowed are {most:,}")
    try:
        # Some encoders break lines.
        return base64.b64decode(text.translate({10: None, 13: None, 32: None}), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"the {kind}'s base64 is damaged ({error})") from error
