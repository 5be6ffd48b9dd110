"""A builder, a catalog and a pull for the tests of the store; also run as a child process that can be killed."""

import hashlib
import logging
import sys
from pathlib import Path

from facesdk import builders
from facesdk.bundle import Bundle
from facesdk.catalog import Model, Source
from facesdk.errors import ConversionError
from facesdk.store import Store


class DemoBuilder:
    """Makes the bundle `demo` of *.demo files that begin with DEMO; counts its builds."""

    names = ("demo", "demo-own")

    def __init__(self) -> None:
        self.builds = 0

    def recognises(self, path: Path) -> str | None:
        return "demo-own" if path.suffix == ".demo" else None

    def build(self, source: Path, folder: Path) -> None:
        self.builds += 1
        content = source.read_bytes()
        (folder / "weights.bin").write_bytes(content)
        if not content.startswith(b"DEMO"):
            raise ConversionError(f"{source} is damaged", remedy="get it again")
        (folder / "bundle.toml").write_text(manifest({"weights.bin": digest(content)}))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def manifest(pinned: dict[str, str], name: str = "demo") -> str:
    lines = ["[bundle]", f'name = "{name}"', 'system = "demo"', 'licence = "MIT"', "[files]"]
    return "\n".join(lines + [f'"{file}" = "{sha256}"' for file, sha256 in pinned.items()])


def demo_model(url: str, content: bytes, **changes: object) -> Model:
    fields = {"licence": "MIT", "licence_url": "https://example.org/mit", "commercial": "yes"} | changes
    source = Source("url", "demo-1.demo", digest(content), len(content), urls=(url,))
    return Model("demo", about="a demo", system="demo", source=source, **fields)  # type: ignore[arg-type]


def pull(home: str, url: str, sha256: str, size: str) -> Bundle:
    """What a child process does."""
    builders.installed = lambda: (DemoBuilder(),)
    source = Source("url", "demo-1.demo", sha256, int(size), urls=(url,))
    model = Model("demo", "a demo", "demo", "MIT", "https://example.org/mit", "yes", source)
    return Store(Path(home), models={"demo": model}).pull("demo")


if __name__ == "__main__":
    logging.basicConfig()
    pull(*sys.argv[1:])
