"""Copy the arrays that the tests compare, and the names and tolerances of all, from the reference runs.

python tests/golden/copy_numbers.py ../shared/golden
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from test_golden_table import TABLE, entry  # noqa: E402


def main(source: Path) -> None:
    names = {}
    for run in TABLE:
        about = json.loads((source / f"{run}.json").read_text())["arrays"]
        arrays = np.load(source / f"{run}.npz")
        names[run] = {
            key: [
                about.get(key, {}).get("recommended_atol_for_float32"),
                about.get(key, {}).get("recommended_atol_for_float64"),
                about.get(key, {}).get("sign"),
            ]
            for key in arrays.files
            if not key.endswith("__f64")
        }
        compared = [key for key in arrays.files if not isinstance(entry(run, key.removesuffix("__f64")), str)]
        np.savez_compressed(HERE / f"{run}.npz", **{key: arrays[key] for key in compared})
    lines = ",\n".join(
        f'"{run}": {{\n' + ",\n".join(f" {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items()) + "\n}"
        for run, rows in names.items()
    )
    (HERE / "arrays.json").write_text("{\n" + lines + "\n}\n")
    inputs = np.load(source / "inputs.npz")
    np.savez_compressed(HERE / "words.npz", **{key: inputs[key] for key in ("neg_candidates", "t_templates_raw")})
    np.savez_compressed(HERE / "known.npz", **{key: inputs[key] for key in ("bank_feats", "bank_labels")})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
