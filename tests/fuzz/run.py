"""Mutate a target's inputs for some time with atheris: `python -m fuzz.run requests 600 DIR`.

Run from tests/. DIR keeps the corpus, the figures and, as DIR/found-*, the input of a finding,
which ends the run with a status other than 0. An input may take `CPU_SECONDS` of computing and,
since other processes may hold this one up, `HANG_SECONDS` by the clock; the process may take
`MAX_BYTES` of memory: the images' limit is 64 million pixels, up to 1 GB while one is decoded.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["convserve", "convserve_client", "tomllib", "zipfile"]):
    from fuzz.fuzz_targets import TARGETS

CPU_SECONDS = 10
HANG_SECONDS = 300
MAX_BYTES = 4 << 30
MAX_INPUT = 1 << 14


def main(name: str, seconds: str, folder: Path) -> None:
    target = TARGETS[name]
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in target.seeds().values():
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
        target.run(data)

    def run(data: bytes) -> None:
        before = time.process_time()
        target.run(data)
        assert time.process_time() - before < CPU_SECONDS

    words = folder / "words"
    words.write_text("".join(f'"{word}"\n' for word in target.words))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    options = {
        "max_total_time": seconds, "timeout": HANG_SECONDS, "max_len": MAX_INPUT, "dict": words,
        "artifact_prefix": folder / "found-", "print_final_stats": 1,
        "rss_limit_mb": MAX_BYTES >> 20,
        "verbosity": 1,
    }  # fmt: skip
    atheris.Setup(
        [sys.argv[0], *(f"-{key}={value}" for key, value in options.items()), str(corpus)],
        run,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
