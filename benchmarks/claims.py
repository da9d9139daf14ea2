"""CPU seconds of every claim at `smoke`, sabotage included: python benchmarks/claims.py [id ...]"""

import sys
import tempfile
import time
from pathlib import Path

from gnomon.core.catalogue import catalogue
from gnomon.run.claims import run_claims

MOST = 5.0


def main():
    known, total = catalogue(), 0.0
    for name in sys.argv[1:] or known:
        with tempfile.TemporaryDirectory() as folder:
            before = time.process_time()
            (document,) = run_claims([known[name]], store=Path(folder))
            seconds = time.process_time() - before
        total += seconds
        print(f"{name:50} {seconds:6.2f} s  {document['verdict']}{'' if document['as_expected'] else ', not as expected'}{'  OVER' if seconds > MOST else ''}", flush=True)
    print(f"{'all':50} {total:6.1f} s")


if __name__ == "__main__":
    main()
