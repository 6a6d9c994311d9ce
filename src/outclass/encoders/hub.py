"""Finding a Hugging Face checkpoint: a folder, the hub's cache, or a download into it. Nothing is ever deleted.

Weights are read from safetensors; where a repository has none, from the conversion that the hub's own bot offers as a
pull request; else from a ``.bin``, tensors only. No code from a checkpoint is run. A conversion is taken from the cache
only where its author and parent were checked when it came, which a note in outclass's own cache says.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from outclass import atomic
from outclass.errors import EncoderError, UsageError
from outclass.stored import cache_folder

log = logging.getLogger("outclass")

HUB_PATIENCE_S = 10  # the hub client itself waits for ever on a network that swallows packets
CONVERTER, CONVERSION = "SFconvertbot", "Adding `safetensors` variant of this model"

SAFE, OLD = "model.safetensors", "pytorch_model.bin"
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
HUB_FILES = ["*.json", "*.txt", "*.model", SAFE, "model-*-of-*.safetensors"]
HUB_FILES_OLD = [OLD, "pytorch_model-*-of-*.bin"]
TENSORS_ONLY = (2, 6)  # the torch from which on `weights_only` keeps its word: CVE-2025-32434
TOP: dict[str, Any] = {"ignore_patterns": "*/*"}  # sub-folders hold other formats


def find_checkpoint(model: str) -> Path:
    """The folder of a checkpoint: the one named, else the hub's cache without asking the network, else a download.

    Args:
        model: a folder, or a hub id, OWNER/NAME.

    Raises:
        EncoderError: it is nowhere, or not whole.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if missing := lacking(folder):
            raise EncoderError(f"{folder} is no whole checkpoint: {', '.join(missing)} missing; copy it again")
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or "\\" in model or model.count("/") > 1:
        raise EncoderError(f"there is no checkpoint folder {model!r}; expected a folder or a hub id, OWNER/NAME")
    return find_cached(model) or _download(model)


def find_cached(model: str) -> Path | None:
    """The whole checkpoint in the hub's cache, found without the network; None = not there, or parts are missing."""
    import huggingface_hub as hub

    checked = _checked_conversion(model)
    whole = []
    for revision in (None, checked) if checked else (None,):
        known = {"revision": revision, "local_files_only": True, **TOP}
        with contextlib.suppress(OSError, ValueError):  # not cached, or no valid id: the hub's own answer says more
            found = Path(hub.snapshot_download(model, allow_patterns=HUB_FILES, **known))
            if not lacking(found) and (revision is None or is_safe(found)):
                whole.append(found)
    return next((folder for folder in whole if is_safe(folder)), whole[0] if whole else None)


def _download(model: str) -> Path:
    import huggingface_hub as hub
    import huggingface_hub.constants

    cache, offline = hub.constants.HF_HUB_CACHE, hub.constants.HF_HUB_OFFLINE
    try:
        api = hub.HfApi()
        about = api.model_info(model, timeout=HUB_PATIENCE_S, files_metadata=True)
        revision, commit, wanted = None, "", HUB_FILES
        if not {file.rfilename for file in about.siblings or []} & {SAFE, f"{SAFE}.index.json"}:
            revision, commit = _conversion(api, model, about.sha) or (None, "")
            wanted = HUB_FILES if revision else HUB_FILES + HUB_FILES_OLD
        if revision:
            about = api.model_info(model, revision=revision, timeout=HUB_PATIENCE_S, files_metadata=True)
        announce(model, about.siblings or [], wanted)
        folder = Path(hub.snapshot_download(model, revision=revision, allow_patterns=wanted, **TOP))
        if revision and folder.name != commit:
            raise OSError(f"{revision} is no longer the conversion that was checked; try again")
    except Exception as error:  # the client lets its HTTP library's own errors through
        raise EncoderError(
            f"encoder {model!r} is no folder here, is not whole in the cache {cache}, and could not be downloaded: "
            f"{reason(error)}. Check the name, the network and HF_HUB_OFFLINE (it forbids downloads; now "
            f"{'on' if offline else 'off'}); --encoder lite needs no download"
        ) from error
    if missing := lacking(folder):
        raise EncoderError(
            f"the hub's {model!r} is no checkpoint that outclass reads: it lacks {', '.join(missing)}; expected "
            "safetensors or a tensors-only .bin of transformers (a model of open_clip is openclip:NAME/PRETRAINED)"
        )
    if revision:
        _note_conversion(model, revision, commit)
    return folder


def announce(model: str, files: Iterable[Any], wanted: list[str]) -> None:
    """Say what is downloaded, before it takes its time.

    Args:
        model: the repository.
        files: all that it holds, as the hub describes them, with sizes.
        wanted: patterns of those that are fetched; sub-folders never are.
    """
    import huggingface_hub.constants

    names = [(file.rfilename, file.size or 0) for file in files if "/" not in file.rfilename]
    size = sum(size for name, size in names if any(fnmatch(name, pattern) for pattern in wanted))
    log.warning("downloading %s, %.0f MB, once, into %s", model, size / 1e6, huggingface_hub.constants.HF_HUB_CACHE)


def _conversion(api: Any, model: str, head: str | None) -> tuple[str, str] | None:
    """Revision and commit of the bot's open pull request with safetensors made from the newest weights; None = none.

    Anybody can open a pull request of that title, so the author is checked; and weights that changed since would be
    others than those of the repository.
    """
    kind = {"author": CONVERTER, "discussion_type": "pull_request", "discussion_status": "open"}
    try:
        for request in api.get_repo_discussions(model, **kind):
            if request.author == CONVERTER and request.title == CONVERSION:
                revision = f"refs/pr/{request.num}"
                commits = [commit.commit_id for commit in api.list_repo_commits(model, revision=revision)]
                if head in commits[1:2]:
                    return revision, commits[0]
    except Exception as error:  # discussions may be closed to us: the .bin is still there
        log.debug("no safetensors conversion of %s found: %s", model, reason(error))
    return None


def _note(model: str) -> Path:
    return cache_folder() / "conversions" / f"{model.replace('/', '--')}.json"


def _note_conversion(model: str, revision: str, commit: str) -> None:
    try:
        with atomic.write(_note(model)) as file:
            file.write(json.dumps({"model": model, "revision": revision, "commit": commit}) + "\n")
    except UsageError as error:  # a read-only home is no reason to stop
        log.warning("the conversion of %s will be checked again, which needs the network: %s", model, error)


def _checked_conversion(model: str) -> str | None:
    """The commit of the conversion that was accepted when it was downloaded."""
    try:
        commit = str(json.loads(_note(model).read_text(encoding="utf-8"))["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def weight_files(folder: Path) -> list[Path]:
    """The weight files that are read, safetensors first; empty = none is named."""
    for name in (SAFE, OLD):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / part for part in sorted(set(parts))]
    return []


def is_safe(folder: Path) -> bool:
    """Whether the weights that are read are safetensors."""
    return all(file.suffix == ".safetensors" for file in weight_files(folder))


def lacking(folder: Path) -> list[str]:
    """Files that a whole checkpoint has and this folder has not."""
    choices = [("config.json",), ("preprocessor_config.json", "processor_config.json"), TOKENIZERS]
    missing = [names[0] for names in choices if not any((folder / name).is_file() for name in names)]
    return missing + [file.name for file in weight_files(folder) or [folder / SAFE] if not file.is_file()]


def weights_hash(folder: Path, config: Any) -> str:
    """Hash of the weight files, and of what the same weights can be run with: activation, heads, epsilon."""
    maker: list[Any] = []
    for file in weight_files(folder):
        maker.append(file_hash(file))
    for key in ("hidden_act", "num_attention_heads", "layer_norm_eps"):
        maker += [getattr(tower, key, None) for tower in (config.vision_config, config.text_config)]
    return hashlib.sha256(json.dumps(maker).encode()).hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file; in the hub's cache a large one is a link to a blob that is named by it, and is not read."""
    digest = file.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", digest):
        return digest
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """One line that names an error and its message, for an error of ours to quote."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"


def check_torch_reads_tensors_only(what: str) -> None:
    """Refuse a ``.bin`` where torch could be made to run code by it.

    Args:
        what: whose weights it holds.

    Raises:
        EncoderError: torch is too old.
    """
    import torch

    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < TENSORS_ONLY:
        raise EncoderError(
            f"{what} has no safetensors, and torch {torch.__version__} can be made to run code by a .bin even when it "
            'reads tensors only (CVE-2025-32434); pip install "torch>=2.6"'
        )


def holds_more(error: BaseException | None) -> bool:
    """Whether an error of reading a ``.bin`` says that it holds more than tensors; a damaged file is another thing."""
    while error is not None:
        if "Unpickling" in type(error).__name__ or "TorchScript" in str(error):
            return True
        error = error.__cause__ or error.__context__  # transformers wraps what torch raises
    return False
