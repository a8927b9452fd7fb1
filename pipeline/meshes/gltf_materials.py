"""Materials of a glTF document: what a surface looks like under this project's one light.

Read are base colour, alpha, emission and whether light matters at all. What needs more than that
light (roughness, normal maps, transmission, clear coat ...) is left out: ``docs/gltf.md`` tells
how each extension is treated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.meshes.gltf_data import Array, GltfData, item, whole
from pipeline.meshes.parts import Limits, Surface, Wrap, require
from pipeline.meshes.textures import decode_texture
from pipeline.scene import U8, AlphaMode, Material, MeshError, srgb_to_linear

_SPECULAR_GLOSSINESS = "KHR_materials_pbrSpecularGlossiness"
# Where the image of a texture may be, besides ``source``: in order, since ``source`` needs no
# optional decoder and says the same.
_IMAGE_EXTENSIONS = (
    "EXT_texture_webp",
    "EXT_texture_avif",
    "KHR_texture_basisu",
    "MSFT_texture_dds",
)
_WRAPS: dict[str, Wrap] = {"33648": "mirror", "33071": "clamp"}
_MOST_LIGHT = 1e6  # of emission: anything above 1 is white


@dataclass(frozen=True)
class Placing:
    """Which coordinates a texture takes, how they are moved first, what is outside of [0, 1]."""

    uv_set: int
    offset: tuple[float, float] = (0.0, 0.0)
    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    wrap: tuple[Wrap, Wrap] = ("repeat", "repeat")

    def apply(self, uv: Array) -> NDArray[np.float64]:
        """Coordinates (V, 2) of the file as those of ``pipeline.scene``, origin bottom left."""
        # KHR_texture_transform: translation * rotation * scale. Positive rotations turn the
        # coordinates clockwise in numbers, which is counter-clockwise with v pointing down: so in
        # the extension's text, its example and the sample renderer. The signs of the sine in the
        # extension's shader listing are the other way round (KhronosGroup/glTF issue 1563).
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        moved = (uv.astype(np.float64) * self.scale) @ np.array([[cos, -sin], [sin, cos]])
        moved += self.offset
        return np.stack([moved[:, 0], 1 - moved[:, 1]], axis=1)


class Materials:
    """Reads materials and the images that they show, each once."""

    def __init__(self, data: GltfData, limits: Limits) -> None:
        self._data, self._limits = data, limits
        self._document = data.document
        self._images: dict[int, U8] = {}
        self._surfaces: dict[int, tuple[Surface, Placing]] = {}

    def surface(self, index: int) -> tuple[Surface, Placing]:
        """A material, and where its textures lie."""
        if index not in self._surfaces:
            self._surfaces[index] = self._read(item(self._document, "materials", index), index)
        return self._surfaces[index]

    def _read(self, entry: dict[str, Any], index: int) -> tuple[Surface, Placing]:
        extensions = entry.get("extensions", {})
        pbr = entry.get("pbrMetallicRoughness", {})
        factor, info = pbr.get("baseColorFactor"), pbr.get("baseColorTexture")
        gloss = extensions.get(_SPECULAR_GLOSSINESS)
        if gloss is not None:  # its diffuse colour takes the place of the base colour
            factor, info = gloss.get("diffuseFactor"), gloss.get("diffuseTexture")
        rgba = _numbers([1, 1, 1, 1] if factor is None else factor, 4, f"materials[{index}]")
        mode = str(entry.get("alphaMode", "OPAQUE")).lower()
        require(mode in {"opaque", "mask", "blend"}, "bad_header", f"alphaMode is {mode!r}")
        red, green, blue, alpha = (min(max(value, 0.0), 1.0) for value in rgba)
        cutoff = _numbers([entry.get("alphaCutoff", 0.5)], 1, f"materials[{index}]")[0]

        texture = None if info is None else self._texture(whole(info, "index"))
        placing = self._placing(info)
        unlit = "KHR_materials_unlit" in extensions
        emissive, glow_info = (0.0, 0.0, 0.0), None
        if not unlit:  # an unlit material shows its base colour and nothing else
            emissive, glow_info = _emission(entry, extensions, index), entry.get("emissiveTexture")
        glow = None
        if any(emissive) and glow_info is not None:
            glow = self._texture(whole(glow_info, "index"))
            if texture is None:
                placing = self._placing(glow_info)
            elif _transform(glow_info) != _transform(info or {}):
                # A mesh has one set of coordinates: emission that asks for another becomes its
                # mean over the image. It wraps as the base colour does.
                mean = srgb_to_linear(glow[..., :3] / np.float32(255)).mean(axis=(0, 1))
                first, second, third = (
                    float(light * part) for light, part in zip(emissive, mean, strict=True)
                )
                emissive, glow = (first, second, third), None
        material = Material(
            base_color=(red, green, blue, alpha),
            texture=texture,
            alpha_mode=cast(AlphaMode, mode),
            alpha_cutoff=cutoff,
            double_sided=bool(entry.get("doubleSided", False)),
            unlit=unlit,
            emissive=emissive,
            emissive_texture=glow,
        )
        explicit = factor is not None or any(emissive)
        return Surface(material, explicit, placing.wrap), placing

    def _placing(self, info: dict[str, Any] | None) -> Placing:
        """Set, transform and wrapping of a texture info."""
        if info is None:
            return Placing(0)
        texture = item(self._document, "textures", whole(info, "index"))
        try:
            sampler = item(self._document, "samplers", texture.get("sampler"))
        except MeshError:  # none, or one that is not there: textures repeat
            sampler = {}
        across, down = (_WRAPS.get(str(sampler.get(key)), "repeat") for key in ("wrapS", "wrapT"))
        return replace(_transform(info), wrap=(across, down))

    def _texture(self, index: int) -> U8:
        entry = item(self._document, "textures", index)
        extensions = entry.get("extensions", {})
        sources = [entry.get("source")]
        sources += [extensions.get(name, {}).get("source") for name in _IMAGE_EXTENSIONS]
        source = next((number for number in sources if number is not None), None)
        if source is None:
            raise MeshError(
                "unsupported_texture",
                f"textures[{index}] has no image that can be read"
                + (f" ({', '.join(sorted(extensions))})" if extensions else ""),
            )
        if source not in self._images:
            image = item(self._document, "images", source)
            if "bufferView" in image:
                data = bytes(self._data.view(image["bufferView"]))
            else:
                data = self._data.resource(image.get("uri"), "missing_texture")
            self._images[source] = decode_texture(data, self._limits, f"images[{source}]")
        return self._images[source]


def _numbers(values: Any, count: int, what: str) -> tuple[float, ...]:
    """``count`` finite numbers, or ``bad_header`` and ``not_finite``."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    require(
        len(numbers) == count, "bad_header", f"{what} holds {values!r:.60}, not {count} numbers"
    )
    require(all(map(math.isfinite, numbers)), "not_finite", f"{what} holds NaN or infinity")
    return numbers


def _transform(info: dict[str, Any]) -> Placing:
    """Set and transform of a texture info."""
    uv_set = whole(info, "texCoord", 0)
    transform = info.get("extensions", {}).get("KHR_texture_transform")
    if transform is None:
        return Placing(uv_set)
    u, v = _numbers(transform.get("offset", [0, 0]), 2, "KHR_texture_transform")
    (turn,) = _numbers([transform.get("rotation", 0)], 1, "KHR_texture_transform")
    width, height = _numbers(transform.get("scale", [1, 1]), 2, "KHR_texture_transform")
    return Placing(whole(transform, "texCoord", uv_set), (u, v), turn, (width, height))


def _emission(
    entry: dict[str, Any], extensions: dict[str, Any], index: int
) -> tuple[float, float, float]:
    """Linear emission of a material without its texture, strength included."""
    what = f"the emission of materials[{index}]"
    factor = _numbers(entry.get("emissiveFactor", [0, 0, 0]), 3, what)
    strength = extensions.get("KHR_materials_emissive_strength", {}).get("emissiveStrength", 1)
    (power,) = _numbers([strength], 1, what)
    red, green, blue = (min(max(value * power, 0.0), _MOST_LIGHT) for value in factor)
    return red, green, blue
