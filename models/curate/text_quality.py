"""Utilities learned from trusted text: a classifier of quality, perplexity, and the difference of two entropies.

- Quality classifier: T. Brown et al., "Language Models are Few-Shot Learners", 2020, arXiv 2005.14165, appendix A.
- Perplexity: G. Wenzek et al., "CCNet", LREC 2020, arXiv 1911.00359, section 5.
- Difference of entropies: R. Moore and W. Lewis, "Intelligent Selection of Language Model Training Data", ACL 2010.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.curate.text_documents import Decision, Document, TextFilter, as_documents, words
from models.curate.text_hashing import uniform_of
from models.curate.text_resampling import over_pareto, over_threshold
from models.selection import Budget, Selector, kept_rows

Floats = NDArray[np.float64]
START, STOP, UNKNOWN = "\x02", "\x03", "\x00"
PARTS = ("head", "middle", "tail")


class KneserNey:
    """An n-gram language model with interpolated Kneser-Ney smoothing.

    Parameters
    ----------
    order : int, default=3
    discount : float, default=0.75

    References
    ----------
    Chen and Goodman, "An empirical study of smoothing techniques for language modeling", Computer Speech and Language
    13, 1999, section 2.7.

    Examples
    --------
    >>> model = KneserNey(2).fit([["a", "cat"], ["a", "dog"]])
    >>> model.entropy(["a", "cat"]) < model.entropy(["cat", "a"])
    True
    """

    def __init__(self, order: int = 3, discount: float = 0.75) -> None:
        self.order, self.discount = order, discount

    def fit(self, texts: Iterable[Sequence[str]]) -> Self:
        """Count; a lower order counts the distinct words before each of its n-grams."""
        full: Counter[tuple[str, ...]] = Counter()
        for tokens in texts:
            padded = [START] * (self.order - 1) + list(tokens) + [STOP]
            full.update(tuple(padded[i : i + self.order]) for i in range(len(padded) - self.order + 1))
        self.counts: list[dict[tuple[str, ...], int]] = [dict(full)]
        for _ in range(self.order - 1):
            self.counts.insert(0, dict(Counter(gram[1:] for gram in self.counts[0])))
        self.totals: list[dict[tuple[str, ...], int]] = []
        self.followers: list[dict[tuple[str, ...], int]] = []
        for counts in self.counts:
            totals: defaultdict[tuple[str, ...], int] = defaultdict(int)
            followers: defaultdict[tuple[str, ...], int] = defaultdict(int)
            for gram, count in counts.items():
                totals[gram[:-1]] += count
                followers[gram[:-1]] += 1
            self.totals.append(dict(totals))
            self.followers.append(dict(followers))
        self.vocabulary = len(self.counts[0]) + 1  # one more for all words never seen
        return self

    def probability(self, gram: tuple[str, ...]) -> float:
        """Of the last word after the others."""
        found = 1.0 / self.vocabulary
        for length in range(1, len(gram) + 1):
            part = gram[len(gram) - length :]
            total = self.totals[length - 1].get(part[:-1], 0)
            if not total:
                break
            seen = max(self.counts[length - 1].get(part, 0) - self.discount, 0.0)
            found = (seen + self.discount * self.followers[length - 1][part[:-1]] * found) / total
        return found

    def entropy(self, tokens: Sequence[str]) -> float:
        """Nats a token, the end of the text counted as one."""
        padded = [START] * (self.order - 1) + list(tokens) + [STOP]
        grams = [tuple(padded[i : i + self.order]) for i in range(len(padded) - self.order + 1)]
        return -sum(math.log(self.probability(gram)) for gram in grams) / len(grams)


def lower_words(text: str) -> list[str]:
    """:func:`~models.curate.text_documents.words` in lower case."""
    return words(text.lower())


class QualityClassifier(TextFilter):
    """Keeps what looks like trusted text to a logistic regression on hashed words.

    Parameters
    ----------
    keep : {"threshold", "pareto"}, default="pareto"
        "pareto" keeps a document if a Pareto draw is above 1 - score, as for GPT-3: some of what scores low stays.
    threshold : float, default=0.5
    alpha : float, default=9
        Shape of the Pareto draw.
    n_features : int, default=2**18
    random_state : int, default=0
        Of the draw, which depends on it and the document's id alone.

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Probability of being trusted.
    indices_ : array of int64, (kept,)
    decisions_ : list of Decision

    References
    ----------
    Brown et al., arXiv 2005.14165, appendix A.

    Examples
    --------
    >>> raw = ["buy now", "a tool that sorts files", "buy cheap now", "a library that draws"]
    >>> model = QualityClassifier(keep="threshold").fit(raw, trusted=["a program that reads", "a tool for files"])
    >>> int(model.scores_.argmax()), model.check(Document("a", "buy now")).rule
    (1, 'quality')
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "keep": [StrOptions({"threshold", "pareto"})],
        "threshold": [Interval(Real, 0, 1, closed="both")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "n_features": [Interval(Integral, 1, None, closed="left")],
        "random_state": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        keep: str = "pareto",
        threshold: float = 0.5,
        alpha: float = 9.0,
        n_features: int = 2**18,
        random_state: int = 0,
    ) -> None:
        self.keep = keep
        self.threshold = threshold
        self.alpha = alpha
        self.n_features = n_features
        self.random_state = random_state

    def fit(self, X: Iterable[Any], y: Any = None, *, trusted: Iterable[Any] | None = None) -> Self:
        """Learn trusted text from the raw documents `X`, and decide about these."""
        self._validate_params()
        if trusted is None:
            raise ValueError("trusted is missing: give texts of the quality you want.")
        raw, good = as_documents(X), as_documents(trusted)
        labels = np.repeat([0, 1], [len(raw), len(good)])
        self.model_ = LogisticRegression(class_weight="balanced", max_iter=1000).fit(self._features(raw + good), labels)
        self.scores_ = self.score(raw)
        return self._decide([self._decision(d, float(score)) for d, score in zip(raw, self.scores_, strict=True)])

    def score(self, X: Iterable[Any]) -> Floats:
        """Probability of being trusted, (n,)."""
        check_is_fitted(self, "model_")
        return self.model_.predict_proba(self._features(as_documents(X)))[:, 1]

    def check(self, document: Document) -> Decision:
        """Keep or drop by the score, which is the value."""
        return self._decision(document, float(self.score([document])[0]))

    def _features(self, documents: list[Document]) -> Any:
        hashed = HashingVectorizer(
            tokenizer=lower_words, token_pattern=None, lowercase=False, n_features=self.n_features
        )
        return hashed.transform([document.text.encode("utf-8", "replace").decode() for document in documents])

    def _decision(self, document: Document, score: float) -> Decision:
        if self.keep == "threshold":
            kept = over_threshold([score], self.threshold)
        else:
            kept = over_pareto([score], uniform_of([document.id], self.random_state), self.alpha)
        return Decision(bool(len(kept)), "" if len(kept) else "quality", score)


class PerplexityFilter(TextFilter):
    """Keeps documents that a language model of trusted text finds likely: by default the better third.

    Parameters
    ----------
    keep : tuple of {"head", "middle", "tail"}, default=("head",)
        Thirds of the documents given to ``fit``, by perplexity, language by language (``meta["language"]``).
    order : int, default=3
    discount : float, default=0.75

    Attributes
    ----------
    scores_ : array of float64, (n,)
        Nats a word.
    terciles_ : dict of str to tuple of float
        Language -> the borders between its thirds.
    indices_ : array of int64, (kept,)
    decisions_ : list of Decision

    References
    ----------
    Wenzek et al., arXiv 1911.00359, section 5.

    Examples
    --------
    >>> raw = ["a tool that reads files", "qq zz xx", "files a reads that"]
    >>> PerplexityFilter().fit(raw, trusted=["a tool that reads mail", "a tool that reads files"]).indices_
    array([0])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "keep": [tuple, list],
        "order": [Interval(Integral, 1, None, closed="left")],
        "discount": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(self, keep: Sequence[str] = ("head",), order: int = 3, discount: float = 0.75) -> None:
        self.keep = keep
        self.order = order
        self.discount = discount

    def fit(self, X: Iterable[Any], y: Any = None, *, trusted: Iterable[Any] | None = None) -> Self:
        """Learn from trusted text, find the thirds of the documents `X`, and decide about these."""
        self._validate_params()
        if not set(self.keep) <= set(PARTS):
            raise ValueError(f"keep must name some of {', '.join(PARTS)}, got {tuple(self.keep)}.")
        if trusted is None:
            raise ValueError("trusted is missing: give texts of the quality you want.")
        documents = as_documents(X)
        self.model_ = KneserNey(self.order, self.discount).fit(lower_words(d.text) for d in as_documents(trusted))
        self.scores_ = np.array([self._entropy(document) for document in documents])
        languages = np.array([_language(document) for document in documents])
        self.terciles_ = {
            str(language): tuple(np.quantile(self.scores_[languages == language], [1 / 3, 2 / 3]).tolist())
            for language in np.unique(languages)
        }
        return self._decide([self._decision(d, s) for d, s in zip(documents, self.scores_.tolist(), strict=True)])

    def check(self, document: Document) -> Decision:
        """Keep or drop by the third the document falls into; the value is its entropy."""
        check_is_fitted(self, "model_")
        return self._decision(document, self._entropy(document))

    def _entropy(self, document: Document) -> float:
        return self.model_.entropy(lower_words(document.text))

    def _decision(self, document: Document, score: float) -> Decision:
        borders = self.terciles_.get(_language(document))
        if borders is None:
            raise ValueError(f"No document of the language {_language(document)!r} was given to fit. Fit on some.")
        part = PARTS[sum(score > border for border in borders)]
        return Decision(part in self.keep, "" if part in self.keep else part, score)


def _language(document: Document) -> str:
    return str(document.meta.get("language", ""))


class MooreLewis(Selector):
    """Keeps the documents that a language model of the target likes better than one of the raw corpus does.

    Parameters
    ----------
    budget : int or float, default=0.1
    order : int, default=2
    discount : float, default=0.75

    Attributes
    ----------
    scores_ : array of float64, (n,)
        H_target(x) - H_raw(x) in nats a word; the lowest are kept.
    indices_ : array of int64, (kept,)

    References
    ----------
    Moore and Lewis, ACL 2010, section 2.

    Examples
    --------
    >>> raw = ["a game of chess", "a library for parsing", "a parsing library", "a chess game"]
    >>> MooreLewis(budget=2).fit(raw, target=["a game with dragons", "a game of cards"]).indices_
    array([0, 3])
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "budget": [Real],
        "order": [Interval(Integral, 1, None, closed="left")],
        "discount": [Interval(Real, 0, 1, closed="neither")],
    }

    def __init__(self, budget: Budget = 0.1, order: int = 2, discount: float = 0.75) -> None:
        self.budget = budget
        self.order = order
        self.discount = discount

    def fit(self, X: Iterable[Any], y: Any = None, *, target: Iterable[Any] | None = None) -> Self:
        """Compare both models on the raw documents `X`."""
        self._validate_params()
        if target is None:
            raise ValueError("target is missing: give texts that are as you want the selection to be.")
        raw = [lower_words(document.text) for document in as_documents(X)]
        wanted = [lower_words(document.text) for document in as_documents(target)]
        own, other = KneserNey(self.order, self.discount).fit(wanted), KneserNey(self.order, self.discount).fit(raw)
        scores = [own.entropy(tokens) - other.entropy(tokens) for tokens in raw]
        return self._keep_top(scores, kept_rows(self.budget, len(raw)), largest=False)
