"""Hashes of words, n-grams and documents, and MinHash signatures of sets of them: compiled, and alike everywhere.

A set's signature holds, for each j, the least (a_j h + b_j) mod (2^61 - 1) over the hashes h of its members. The
product of two such numbers does not fit in 64 bits: it is taken in halves of 32.

A. Broder, "On the resemblance and containment of documents", SEQUENCES 1997.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numba import njit
from numpy.typing import NDArray

from models.curate.text_documents import simplified, simplified_words

Hashes = NDArray[np.uint64]
PRIME = (1 << 61) - 1
_P, _HALF = np.uint64(PRIME), np.uint64(0xFFFFFFFF)
_LOW29 = np.uint64((1 << 29) - 1)
_GOLDEN, _MIX1, _MIX2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def hash_of(text: str, seed: int = 0) -> int:
    """64 bits of a text; lone surrogates, which stand for bytes that were no UTF-8, count as themselves."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"), seed)


def hashes_of(texts: Iterable[str], seed: int = 0) -> Hashes:
    """:func:`hash_of` each text, (n,)."""
    return np.array([hash_of(text, seed) for text in texts], dtype=np.uint64)


def uniform_of(keys: Sequence[str], seed: int) -> NDArray[np.float64]:
    """A number in (0, 1) for each key: the same for the key and seed wherever and in whatever order it is drawn."""
    hashes = hashes_of(keys, seed % 2**64)
    return ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


@njit(inline="always")
def _mixed(h: Any) -> Any:
    """Finaliser of splitmix64: every bit of `h` changes about half of the others."""
    h = (h ^ (h >> np.uint64(30))) * _MIX1
    h = (h ^ (h >> np.uint64(27))) * _MIX2
    return h ^ (h >> np.uint64(31))


@njit(cache=True)
def ngram_hashes(items: Hashes, n: int, start: Any) -> Hashes:
    """Hashes of all runs of `n` items, or of the one run there is when they are fewer; (max(1, len - n + 1),)."""
    width = min(n, len(items))
    out = np.empty(len(items) - width + 1 if len(items) else 0, dtype=np.uint64)
    for place in range(len(out)):
        h = np.uint64(start)
        for k in range(width):
            h = _mixed(h + _GOLDEN) ^ _mixed(items[place + k] + _GOLDEN * np.uint64(k + 2))
        out[place] = _mixed(h)
    return out


@njit(inline="always")
def _reduced(h: Any) -> Any:
    h = (h & _P) + (h >> np.uint64(61))
    return h - _P if h >= _P else h


@njit(inline="always")
def _affine(a: Any, h: Any, b: Any) -> Any:
    """(a h + b) mod (2^61 - 1) for a, h, b below the prime; 2^61 = 1 and 2^64 = 8 there."""
    a1, a0, h1, h0 = a >> np.uint64(32), a & _HALF, h >> np.uint64(32), h & _HALF
    middle, low = a1 * h0 + a0 * h1, a0 * h0
    total = ((a1 * h1) << np.uint64(3)) + (middle >> np.uint64(29)) + ((middle & _LOW29) << np.uint64(32))
    return _reduced(total + (low & _P) + (low >> np.uint64(61)) + b)


@njit(cache=True)
def signatures(members: Hashes, offsets: NDArray[np.int64], a: Hashes, b: Hashes) -> Hashes:
    """MinHash signatures (n, k) of n sets; set i is ``members[offsets[i]:offsets[i + 1]]``, k the length of `a`."""
    out = np.full((len(offsets) - 1, len(a)), _P, dtype=np.uint64)
    for i in range(len(offsets) - 1):
        for place in range(offsets[i], offsets[i + 1]):
            h = _reduced(members[place])
            for j in range(len(a)):
                value = _affine(a[j], h, b[j])
                if value < out[i, j]:
                    out[i, j] = value
    return out


@njit(cache=True)
def band_keys(signature: Hashes, bands: int) -> Hashes:
    """A key (n, bands) for each band of each signature; sets are candidates where two of the keys agree."""
    n, k = signature.shape
    rows = k // bands
    out = np.empty((n, bands), dtype=np.uint64)
    for i in range(n):
        for band in range(bands):
            h = np.uint64(band + 1)
            for j in range(band * rows, (band + 1) * rows):
                h = _mixed(h + _GOLDEN) ^ _mixed(signature[i, j])
            out[i, band] = _mixed(h)
    return out


@njit(cache=True)
def jaccard(first: Hashes, second: Hashes) -> float:
    """Jaccard similarity of two sets given as ascending, distinct hashes."""
    i = j = common = 0
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            common, i, j = common + 1, i + 1, j + 1
        elif first[i] < second[j]:
            i += 1
        else:
            j += 1
    union = len(first) + len(second) - common
    return common / union if union else 1.0


class Permutations(NamedTuple):
    """The numbers a (1..p-1) and b (0..p-1) of a signature's permutations, both (k,)."""

    a: Hashes
    b: Hashes


def permutations(k: int, seed: int) -> Permutations:
    """`k` permutations; the same seed gives the same ones on every worker."""
    random = np.random.default_rng(seed)
    return Permutations(
        random.integers(1, PRIME, size=k, dtype=np.uint64), random.integers(0, PRIME, size=k, dtype=np.uint64)
    )


def shingles(text: str, ngram: int = 5, min_words: int = 20) -> Hashes:
    """Distinct hashes, ascending, of the n-grams of words; of characters below `min_words`, where words are too few.

    Parameters
    ----------
    text : str
    ngram : int
    min_words : int
        Texts of fewer words have only one or two n-grams of words, whose similarity says next to nothing.

    Returns
    -------
    array of uint64
        Empty if there is neither letter nor digit.
    """
    tokens = simplified_words(text)
    if len(tokens) >= min_words:
        return np.unique(ngram_hashes(hashes_of(tokens), ngram, 1))
    characters = np.frombuffer(" ".join(tokens).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.unique(ngram_hashes(characters.astype(np.uint64), ngram, 2))


def signatures_of(sets: Sequence[Hashes], chosen: Permutations) -> Hashes:
    """:func:`signatures` of sets of hashes, (n, k)."""
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in sets])]).astype(np.int64)
    members = np.concatenate(sets) if len(sets) else np.empty(0, dtype=np.uint64)
    return signatures(members, offsets, chosen.a, chosen.b)


def text_key(text: str) -> int:
    """64 bits that texts share when they differ in case, white space, punctuation or Unicode form alone.

    Texts of neither letters nor digits are told apart by all their characters.
    """
    simple = simplified(text)
    return hash_of(simple) if simple else hash_of(text, 1)
