"""CPU seconds to build the atlas of 200 claims that have been run, beside those that gnomon carries.

Run alone: OMP_NUM_THREADS=1 python benchmarks/atlas.py > benchmarks/atlas.md
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import atlas_claims

from gnomon.atlas.write import build_atlas

COUNT, LIMIT = 200, 10.0


def main():
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        results = atlas_claims.make(root, COUNT)
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        print("# The atlas of many claims\n\nCPU seconds, one thread (`benchmarks/atlas.py`).\n")
        print(f"| build | claims | files | MiB | CPU s (at most {LIMIT:g}) |\n|---|---|---|---|---|")
        for name in ("first, with imports", "again, over the old one"):
            start = time.process_time()
            made = build_atlas(root / "site", [results])
            seconds = time.process_time() - start
            size = sum((root / "site" / name).stat().st_size for name in made["files"]) / 2**20
            print(f"| {name} | {len(made['claims'])} | {len(made['files'])} | {size:.1f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
