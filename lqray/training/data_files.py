"""Which files a trial's data are read from, and a digest of what is in them. Imports no torch.

The digest is recorded beside a run (`lqray.store.tags.DATA`): a trial's id has the options of its data, and not what
lies in their files. It is of the files' contents, decompressed where their names end in .gz, and of their names below
the dataset's folder, not of where that is.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from lqray.experiment.digests import as_tag
from lqray.experiment.errors import PartError
from lqray.experiment.options.data import DataOptions, FileOptions, TextOptions
from lqray.experiment.part_options import chosen_part
from lqray.experiment.parts import call
from lqray.experiment.user_cache import kept
from lqray.training.corpus import corpus_files
from lqray.training.files import folder

KIND = "1"
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
IDX_KINDS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
"""torchvision's names of datasets in files of the MNIST format."""
OWN = "data_files"
"""What a dataset of a user's own may have beside it: data_files(options) -> the files and folders that it reads."""

_CIFAR = {
    "cifar10": ("cifar-10-batches-py", (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")),
    "cifar100": ("cifar-100-python", ("train", "test")),
}
_CACHE = "data-digests-1.json"
_BLOCK = 2**20
_SETTLED_SECONDS = 2.0
"""A file that was written more recently may be written again without another time of modification."""
_known: dict[str, list[Any]] = {}


def data_digest(options: DataOptions) -> str | None:
    """The digest of the files that the data are read from, as they are now; None where there are none, where that is
    not known, and where they are not on this machine. A file is read once as long as its size and time stay."""
    with suppress(OSError, EOFError, zlib.error, PartError):
        if found := data_files(options):
            digest = hashlib.sha256()
            for name, content in sorted(contents(found).items()):
                digest.update(f"{name}\0{content}\0".encode())
            return as_tag(KIND, digest)
    return None


def data_files(options: DataOptions) -> dict[str, Path] | None:
    """Name below the dataset's folder to file, for what is read from files and names them; None otherwise: synthetic
    data, those of installed packages, folders of images (imagenet), and a user's own without `data_files`.

    Raises PartError where a user's own does not list paths; OSError where it cannot for want of them, and for a folder
    that has no name.
    """
    if chosen := chosen_part("data", options):
        part, given = chosen.load()
        listing = getattr(part, OWN, None) or getattr(sys.modules.get(chosen.reference.partition(":")[0]), OWN, None)
        return None if listing is None else _listed(f"{OWN} of {chosen.what}", listing, given)
    if isinstance(options, TextOptions):
        return corpus_files(options)
    if not isinstance(options, FileOptions):
        return None
    place, name = folder(options).path, options.name
    if name in IDX_KINDS:
        found = idx_files(place, IDX_KINDS[name])
        return None if found is None else dict(zip(IDX_FILES, found, strict=True))
    if name in _CIFAR:
        below, names = _CIFAR[name]
        return {one: place / below / one for one in names}
    if name == "svhn":
        splits = ("train", "extra", "test") if options.model_dump()["extra"] else ("train", "test")
        return {f"{split}_32x32.mat": place / f"{split}_32x32.mat" for split in splits}
    return None


def idx_files(place: Path, kind: str) -> list[Path] | None:
    """IDX_FILES, each as it is or with .gz, in `place` or else in <place>/<kind>/raw: where all of them are."""
    for each in (place, place / kind / "raw"):
        found = [next((p for p in (each / name, each / f"{name}.gz") if p.is_file()), None) for name in IDX_FILES]
        paths = [path for path in found if path is not None]
        if len(paths) == len(IDX_FILES):
            return paths
    return None


def _listed(what: str, listing: Any, options: Any) -> dict[str, Path]:
    """Every file that a user's function lists, or that lies in a folder which it lists, by its name below the folder
    that holds them all."""
    try:
        given: Any = call(what, listing, options=options)
        listed: list[Any] = [given] if isinstance(given, str | os.PathLike) else list(given)
    except (OSError, PartError):
        raise
    except Exception as error:
        raise PartError(f"{what}: it raised {type(error).__name__}: {error}; allowed: one that lists paths") from error
    if wrong := [one for one in listed if not isinstance(one, str | os.PathLike)]:
        raise PartError(f"{what}: found {wrong[0]!r:.80}; allowed: a list of paths, each str or pathlib.Path")
    paths = [Path(one).expanduser().absolute() for one in listed]
    files = [file for path in paths for file in ([path] if not path.is_dir() else path.rglob("*")) if not file.is_dir()]
    if not files:
        return {}
    common = Path(os.path.commonpath([file.parent for file in files]))
    return {file.relative_to(common).as_posix(): file for file in files}


def contents(files: dict[str, Path]) -> dict[str, str]:
    """The SHA-256 of what is in each, decompressed where its name ends in .gz; from the cache where it is there. Raises
    OSError, and EOFError or zlib.error for a damaged archive."""
    cache = kept(_CACHE)
    if cache and not _known:
        with suppress(OSError, ValueError, TypeError, AttributeError):
            _known.update({key: entry for key, entry in json.loads(cache.read_bytes()).items() if len(entry) == 3})
    found, new = {}, False
    for name, file in files.items():
        status = file.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        entry = _known.get(str(file))
        if entry is None or entry[:2] != stamp:
            entry = [*stamp, _sha256(file)]
            if time.time() - status.st_mtime > _SETTLED_SECONDS:
                _known[str(file)], new = entry, True
        found[name] = str(entry[2])
    if cache and new:
        _keep(cache)
    return found


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _keep(cache: Path) -> None:
    new = cache.with_name(f"{cache.name}.{os.getpid()}")
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(_known))
        new.replace(cache)
