"""A plug-in with claims, made in a temporary folder."""

import itertools
import os
from pathlib import Path

from gnomon.core.environment import code_hash

COUNT = itertools.count()

CLAIM = '''"""The number {slug} is one, $x = 1$.

Why it is so.
"""
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gnomon.core.claim import Claim, Sabotage, Tolerance
from gnomon.core.errors import OutOfScope
from gnomon.core.reading import Reading
from gnomon.core.source import Source


def count(what):
    if "CLAIM_COUNTS" in os.environ:
        with open(os.environ["CLAIM_COUNTS"], "a") as file:
            file.write(what + "\\n")


@dataclass(frozen=True)
class Settings:
    replicates: int = 4
    shift: float = 0.0


def predict(s):
    count("predict")
    return Reading.predicted("x", 1.0, unit="m")


def measure(s, *, rng):
    count("measure")
    return 1.0 + s.shift + 0.01 * float(torch.randn(400, generator=rng).mean())

{body}

settings = dict(
    source=Source("schuirmann1987", "section 2"), relation="equal", scales={{"smoke": Settings()}}, predict=predict, measure=measure,
    tolerance=Tolerance(lambda s: 0.1, because="a tenth: as good as any"), sabotage=Sabotage("another number", shift=0.5),
)
CLAIM = Claim(version=1, entry="{entry}", **settings | dict({options}))
'''


def claim(slug="one", body="", options="", entry="B1"):
    return CLAIM.format(slug=slug, body=body, options=options, entry=entry)


def make(root: Path, claims, *, name=None):
    """Write a plug-in's package and its entry point; `claims` maps `topic/slug` to a file's text.  Returns its name."""
    name = name or f"claims_plugin_{os.getpid()}_{next(COUNT)}"
    for folder in (root / name, root / name / "claims"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    for place, text in claims.items():
        topic, slug = place.split("/")
        (root / name / "claims" / topic).mkdir(exist_ok=True)
        (root / name / "claims" / topic / "__init__.py").touch()
        (root / name / "claims" / topic / f"{slug.replace('-', '_')}.py").write_text(text)
    info = root / f"{name}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[gnomon.plugins]\n{name} = {name}\n")
    code_hash.cache_clear()  # a real plug-in is there before the process
    return name
