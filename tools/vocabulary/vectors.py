"""The vectors of the vocabulary's pool that ship with the bundled encoder: python -m tools.vocabulary.vectors

Run it after the encoder or the vocabulary was built again; the package checks that the file fits both.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from outclass.encoders.lite import load_lite
from outclass.words.pool import SHIPPED, word_pool
from outclass.words.prompts import DEFAULT_TEMPLATES


def main() -> None:
    SHIPPED.unlink(missing_ok=True)  # a generated file; or it would be read instead of made
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OUTCLASS_CACHE"] = folder
        pool = word_pool(load_lite(), DEFAULT_TEMPLATES)
        (made,) = Path(folder).rglob("*.safetensors")
        shutil.copy(made, SHIPPED)
    print(f"{SHIPPED}: {len(pool.words)} words, {SHIPPED.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
