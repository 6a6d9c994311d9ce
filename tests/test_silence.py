"""Nothing is told to anybody: a dependency that reports its use is asked not to before it is loaded."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = "from outclass import load_encoder; print(load_encoder('lite').encode_texts(['cat']).shape)"


def test_the_runtime_leaves_no_identity_behind(tmp_path):
    """ONNX Runtime makes an id of the device and a queue of events, in the user's cache, before it reports."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("CI", "ORT_", "GITHUB_"))}
    mine |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", CODE], env=mine, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in left if "Microsoft" in name or "onnxruntime" in name], left


def test_a_value_of_the_users_own_is_kept():
    code = "import os, outclass; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    mine = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    assert subprocess.run([sys.executable, "-c", code], env=mine, capture_output=True, text=True).stdout.strip() == "0"
