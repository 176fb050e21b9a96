"""Two towers to one space, for pairs such as image and caption; and a tower that reads texts as bags of words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks import network

TEMPERATURE = 0.07
LARGEST_SCALE = 100.0


@network("bag-of-words")
class BagOfWords(nn.Module):
    """Mean of word vectors and ReLU; words outside the vocabulary are not read.

    Parameters
    ----------
    vocabulary : sequence of str
        Words in lower case without punctuation; see :func:`vocabulary_of`.
    width : int
    max_words : int
        Later words of a text are not read.

    Attributes
    ----------
    out_dim : int

    Examples
    --------
    >>> tower = BagOfWords(["a", "photo"], width=3)
    >>> tower.tokens(["A photo!", "unheard"]).tolist()
    [[1, 2], [0, 0]]
    """

    def __init__(self, vocabulary: Sequence[str], width: int = 64, max_words: int = 256) -> None:
        super().__init__()
        self.places = {word: place for place, word in enumerate(vocabulary, 1)}
        self.max_words = max_words
        self.vectors = nn.EmbeddingBag(len(self.places) + 1, width, mode="mean", padding_idx=0)
        self.out_dim = width

    def tokens(self, texts: Iterable[str]) -> Tensor:
        """Numbers of the known words of each text, (n, longest text), filled up with 0."""
        known = [[self.places[w] for w in words_of(text) if w in self.places][: self.max_words] for text in texts]
        longest = max([1, *map(len, known)])
        return torch.tensor([row + [0] * (longest - len(row)) for row in known], dtype=torch.int64).reshape(-1, longest)

    def forward(self, tokens: Tensor) -> Tensor:
        """Word numbers (B, L) -> (B, width)."""
        return F.relu(self.vectors(tokens))


def words_of(text: str) -> list[str]:
    """Words of a text in lower case, punctuation aside."""
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def vocabulary_of(texts: Iterable[str], most: int = 20_000) -> list[str]:
    """The most frequent words, those equally frequent in the order of the alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    return sorted(counts, key=lambda word: (-counts[word], word))[:most]


@network("contrastive-pair-encoder")
class ContrastivePairEncoder(nn.Module):
    """Two towers, each a network and a linear layer to a joint space, and a learnt scale of their cosine.

    Parameters
    ----------
    encoder_a, encoder_b : nn.Module
        Networks with ``out_dim``: rows -> (B, out_dim). One with a method ``tokens`` reads texts.
    embed_dim : int

    Attributes
    ----------
    log_scale : Parameter
        theta; the scale exp(theta) starts at 1 / 0.07.

    References
    ----------
    A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
    arXiv:2103.00020, section 2.3.

    Examples
    --------
    >>> import numpy as np
    >>> from models.networks.mlp import MLPEncoder
    >>> encoder = ContrastivePairEncoder(MLPEncoder(4, (8,), batch_norm=False), BagOfWords(["red", "blue"]), 16)
    >>> encoder.score(np.ones((2, 4), dtype=np.float32), ["red", "a blue one"]).shape
    torch.Size([2])
    """

    def __init__(self, encoder_a: nn.Module, encoder_b: nn.Module, embed_dim: int = 512) -> None:
        super().__init__()
        self.encoder_a, self.encoder_b = encoder_a, encoder_b
        self.project_a = nn.Linear(int(encoder_a.out_dim), embed_dim, bias=False)  # type: ignore[arg-type]
        self.project_b = nn.Linear(int(encoder_b.out_dim), embed_dim, bias=False)  # type: ignore[arg-type]
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    @property
    def scale(self) -> Tensor:
        """What the cosine is multiplied by in the loss, at most 100."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def read(self, batch: Any, side: str) -> Tensor:
        """A batch of side "a" or "b" as the tensor its tower takes: word numbers of texts, else float32."""
        tower = self.encoder_a if side == "a" else self.encoder_b
        if hasattr(tower, "tokens"):
            return tower.tokens(batch)  # type: ignore[operator]
        values = batch if isinstance(batch, Tensor) else torch.from_numpy(np.array(batch))
        return values.float() / 255 if values.dtype == torch.uint8 else values.float()

    def towers(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of both towers, not normalised, (B, embed_dim) each."""
        return self.project_a(self.encoder_a(a)), self.project_b(self.encoder_b(b))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What :meth:`read` made of both sides -> unit vectors u and v, (B, embed_dim) each, and the scale."""
        u, v = self.towers(a, b)
        return F.normalize(u, dim=1), F.normalize(v, dim=1), self.scale

    def encode_a(self, batch: Any) -> Tensor:
        """Unit vectors of side a, (B, embed_dim)."""
        return self._encode(batch, "a")

    def encode_b(self, batch: Any) -> Tensor:
        """Unit vectors of side b, (B, embed_dim)."""
        return self._encode(batch, "b")

    def score(self, a: Any, b: Any) -> Tensor:
        """Cosine of each pair, (B,)."""
        return F.cosine_similarity(self.encode_a(a), self.encode_b(b))

    def _encode(self, batch: Any, side: str) -> Tensor:
        encoder, project = (self.encoder_a, self.project_a) if side == "a" else (self.encoder_b, self.project_b)
        device = self.log_scale.device
        with torch.no_grad():
            return F.normalize(project(encoder(self.read(batch, side).to(device))), dim=1).cpu()
