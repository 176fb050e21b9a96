"""Quality heuristics for text: the published rules of Gopher, C4 and FineWeb, and a language filter.

Every rule is a parameter and None switches it off. Rules that speak of letters, lines, repetition and punctuation hold
in any language; what is English among the defaults (stop words, the phrases of C4) is a parameter, too.

- Gopher: J. Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021,
  arXiv 2112.11446, tables A1 and A2.
- C4: C. Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020,
  arXiv 1910.10683, section 2.2.
- FineWeb: G. Penedo et al., "The FineWeb Datasets", 2024, arXiv 2406.17557, section 3.6.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.naive_bayes import MultinomialNB
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from models.curate.text_documents import (
    KEEP,
    Decision,
    Document,
    TextFilter,
    as_documents,
    is_symbol,
    lines,
    paragraphs,
    sentences,
    words,
)
from models.curate.text_hashing import uniform_of

ENGLISH = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
STOP_WORDS: Mapping[str, frozenset[str]] = {
    "en": ENGLISH,
    "de": frozenset({"der", "die", "das", "und", "ist", "nicht", "mit", "zu"}),
    "fr": frozenset({"le", "la", "les", "et", "de", "est", "que", "dans"}),
    "es": frozenset({"el", "la", "los", "de", "que", "y", "en", "con"}),
    "it": frozenset({"il", "la", "di", "che", "e", "non", "con", "per"}),
    "nl": frozenset({"de", "het", "een", "van", "en", "is", "niet", "met"}),
    "pt": frozenset({"o", "a", "os", "de", "que", "e", "não", "com"}),
}
"""Eight function words a language, as many as Gopher's rule has for English."""

TERMINAL = (".", "?", "!", '"', "'")
ELLIPSES = ("...", "…")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_LIMIT = [Interval(Real, 0, None, closed="left"), None]


# ---- what is measured ----------------------------------------------------------------------------------------


def repeats(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts came before, and their characters."""
    seen: set[str] = set()
    number = characters = 0
    for part in parts:
        if part in seen:
            number, characters = number + 1, characters + len(part)
        seen.add(part)
    return number, characters


def top_ngram_characters(tokens: Sequence[str], n: int) -> int:
    """Characters that the most frequent n-gram covers: its count times its length, single spaces included."""
    grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    if not grams:
        return 0
    most = max(grams.values())
    return max(most * (sum(map(len, gram)) + n - 1) for gram, count in grams.items() if count == most)


def repeated_ngram_characters(tokens: Sequence[str], n: int) -> int:
    """Characters in n-grams that came before, read from left to right; a repeated one is jumped over."""
    seen: set[tuple[str, ...]] = set()
    place = characters = 0
    while place <= len(tokens) - n:
        gram = tuple(tokens[place : place + n])
        if gram in seen:
            characters, place = characters + sum(map(len, gram)), place + n
        else:
            seen.add(gram)
            place += 1
    return characters


def share(part: float, whole: float) -> float:
    """`part` of `whole`, 0 of nothing."""
    return part / whole if whole else 0.0


def first_broken(checks: Iterable[tuple[str, float, float | None, float | None]]) -> Decision:
    """The first rule (name, value, at least, at most) that does not hold, as a decision; computed no further."""
    for rule, value, least, most in checks:
        if (least is not None and value < least) or (most is not None and value > most):
            return Decision(False, rule, float(value))
    return KEEP


# ---- the filters ---------------------------------------------------------------------------------------------


class GopherQuality(TextFilter):
    """Gopher's rules for prose: enough words, of ordinary length, few symbols, few lists, some function words.

    Parameters
    ----------
    min_words, max_words : int or None, default=50, 100_000
        Words that are no symbols.
    min_mean_length, max_mean_length : float or None, default=3, 10
        Mean characters of these words.
    max_symbol_ratio : float or None, default=0.1
        Of "#" to words, and of ellipses to words.
    max_bullet_lines : float or None, default=0.9
        Share of lines that start with a bullet or "-".
    max_ellipsis_lines : float or None, default=0.3
        Share of lines that end in an ellipsis.
    min_letter_words : float or None, default=0.8
        Share of words, symbols among them, that hold a letter.
    min_stop_words : int or None, default=2
        Distinct stop words, in upper or lower case.
    stop_words : str or collection of str, default="en"
        A language of :data:`STOP_WORDS`, or words.

    Attributes
    ----------
    decisions_ : list of Decision
    indices_ : array of int64, (kept,)

    References
    ----------
    Rae et al., arXiv 2112.11446, table A1.

    Examples
    --------
    >>> GopherQuality(min_words=3).check(Document("a", "Some of the words that people have."))
    Decision(keep=True, rule='', value=0.0, replacement_text=None)
    >>> GopherQuality(min_words=3).check(Document("a", "# of the #")).rule
    'min_words'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{
            name: _LIMIT
            for name in (
                "min_words",
                "max_words",
                "min_mean_length",
                "max_mean_length",
                "max_symbol_ratio",
                "min_stop_words",
            )
        },
        **{name: _LIMIT for name in ("max_bullet_lines", "max_ellipsis_lines", "min_letter_words")},
        "stop_words": [StrOptions(set(STOP_WORDS)), set, frozenset, list, tuple],
    }

    def __init__(
        self,
        min_words: int | None = 50,
        max_words: int | None = 100_000,
        min_mean_length: float | None = 3,
        max_mean_length: float | None = 10,
        max_symbol_ratio: float | None = 0.1,
        max_bullet_lines: float | None = 0.9,
        max_ellipsis_lines: float | None = 0.3,
        min_letter_words: float | None = 0.8,
        min_stop_words: int | None = 2,
        stop_words: str | Iterable[str] = "en",
    ) -> None:
        self.min_words = min_words
        self.max_words = max_words
        self.min_mean_length = min_mean_length
        self.max_mean_length = max_mean_length
        self.max_symbol_ratio = max_symbol_ratio
        self.max_bullet_lines = max_bullet_lines
        self.max_ellipsis_lines = max_ellipsis_lines
        self.min_letter_words = min_letter_words
        self.min_stop_words = min_stop_words
        self.stop_words = stop_words

    def check(self, document: Document) -> Decision:
        """The first rule that the document breaks."""
        return first_broken(self._measure(document.text))

    def _measure(self, text: str) -> Iterable[tuple[str, float, float | None, float | None]]:
        tokens = words(text)
        plain = [word for word in tokens if not is_symbol(word)]
        yield "min_words", len(plain), self.min_words, None
        yield "max_words", len(plain), None, self.max_words
        mean = share(sum(map(len, plain)), len(plain))
        yield "min_mean_length", mean, self.min_mean_length, None
        yield "max_mean_length", mean, None, self.max_mean_length
        yield "hash_ratio", share(text.count("#"), len(tokens)), None, self.max_symbol_ratio
        ellipses = sum(text.count(sign) for sign in ELLIPSES)
        yield "ellipsis_ratio", share(ellipses, len(tokens)), None, self.max_symbol_ratio
        rows = text.splitlines()
        bullets = sum(row.lstrip().startswith(("•", "-")) for row in rows)
        yield "bullet_lines", share(bullets, len(rows)), None, self.max_bullet_lines
        trailing = sum(row.rstrip().endswith(ELLIPSES) for row in rows)
        yield "ellipsis_lines", share(trailing, len(rows)), None, self.max_ellipsis_lines
        letters = sum(any(c.isalpha() for c in word) for word in tokens)
        yield "letter_words", share(letters, len(tokens)), self.min_letter_words, None
        listed = STOP_WORDS[self.stop_words] if isinstance(self.stop_words, str) else frozenset(self.stop_words)
        yield "stop_words", len(listed.intersection(word.lower() for word in plain)), self.min_stop_words, None


class GopherRepetition(TextFilter):
    r"""Gopher's rules against text that repeats itself, in any language.

    Parameters
    ----------
    max_duplicate_lines, max_duplicate_paragraphs : float or None, default=0.3
        Share of lines (paragraphs) that came before.
    max_duplicate_line_characters, max_duplicate_paragraph_characters : float or None, default=0.2
        Their characters, as a share of the text.
    max_top_ngram : tuple of (int, float), default=((2, 0.20), (3, 0.18), (4, 0.16))
        Share of characters in the most frequent n-gram, for each n.
    max_repeated_ngrams : tuple of (int, float), default=((5, 0.15), ..., (10, 0.10))
        Share of characters in n-grams that came before, for each n.

    Attributes
    ----------
    decisions_ : list of Decision
    indices_ : array of int64, (kept,)

    References
    ----------
    Rae et al., arXiv 2112.11446, table A2.

    Examples
    --------
    >>> GopherRepetition().check(Document("a", "one line\n" * 5)).rule
    'duplicate_lines'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: _LIMIT for name in ("max_duplicate_lines", "max_duplicate_paragraphs")},
        **{name: _LIMIT for name in ("max_duplicate_line_characters", "max_duplicate_paragraph_characters")},
        **{name: [list, tuple] for name in ("max_top_ngram", "max_repeated_ngrams")},
    }

    def __init__(
        self,
        max_duplicate_lines: float | None = 0.3,
        max_duplicate_paragraphs: float | None = 0.3,
        max_duplicate_line_characters: float | None = 0.2,
        max_duplicate_paragraph_characters: float | None = 0.2,
        max_top_ngram: Sequence[tuple[int, float]] = ((2, 0.20), (3, 0.18), (4, 0.16)),
        max_repeated_ngrams: Sequence[tuple[int, float]] = (
            (5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10),
        ),
    ) -> None:  # fmt: skip
        self.max_duplicate_lines = max_duplicate_lines
        self.max_duplicate_paragraphs = max_duplicate_paragraphs
        self.max_duplicate_line_characters = max_duplicate_line_characters
        self.max_duplicate_paragraph_characters = max_duplicate_paragraph_characters
        self.max_top_ngram = max_top_ngram
        self.max_repeated_ngrams = max_repeated_ngrams

    def check(self, document: Document) -> Decision:
        """The first rule that the document breaks."""
        return first_broken(self._measure(document.text))

    def _measure(self, text: str) -> Iterable[tuple[str, float, float | None, float | None]]:
        for name, parts, most, most_characters in (
            ("lines", lines(text), self.max_duplicate_lines, self.max_duplicate_line_characters),
            ("paragraphs", paragraphs(text), self.max_duplicate_paragraphs, self.max_duplicate_paragraph_characters),
        ):
            number, characters = repeats(parts)
            yield f"duplicate_{name}", share(number, len(parts)), None, most
            yield f"duplicate_{name[:-1]}_characters", share(characters, len(text)), None, most_characters
        tokens = words(text)
        for n, limit in self.max_top_ngram:
            yield f"top_{n}_gram", share(top_ngram_characters(tokens, n), len(text)), None, limit
        for n, limit in self.max_repeated_ngrams:
            yield f"repeated_{n}_grams", share(repeated_ngram_characters(tokens, n), len(text)), None, limit


class C4Filter(TextFilter):
    r"""C4's rules: boilerplate lines are cut out, and what is code, filler or too short without them is dropped.

    Parameters
    ----------
    max_word_length : int or None, default=1000
        A line with a longer word is cut.
    terminal_punctuation : bool, default=True
        Cut lines that do not end in . ? ! " or ', or end in an ellipsis. FineWeb leaves this rule out.
    min_words_per_line : int or None, default=3
    line_phrases : tuple of str, default=("javascript", "terms of use", ...)
        Lines that hold one of these, in upper or lower case, are cut.
    remove_citations : bool, default=True
        Take marks such as [1] out of the text.
    document_phrases : tuple of str, default=("lorem ipsum", "{")
        A document that holds one in a line that was not cut is dropped.
    min_sentences : int or None, default=5
        Left after the cuts.
    min_long_lines : int or None, default=None
        Lines of at least `long_line` characters a document needs; 3 is published.
    long_line : int, default=200
    bad_words : collection of str, default=()
        A document that holds one as a word is dropped,
    bad_word_keep : float, default=0.0
        but for this share of them, drawn by the document's id and `random_state`. Such lists take minority dialects
        and medical texts with them: look at what they drop.
    random_state : int, default=0

    Attributes
    ----------
    decisions_ : list of Decision
    indices_ : array of int64, (kept,)

    References
    ----------
    Raffel et al., arXiv 1910.10683, section 2.2.

    Examples
    --------
    >>> text = "This line stays [1].\nMenu\nPlease read our privacy policy.\nThis one stays as well."
    >>> C4Filter(min_sentences=2).check(Document("a", text)).replacement_text
    'This line stays .\nThis one stays as well.'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: _LIMIT for name in ("max_word_length", "min_words_per_line", "min_sentences", "min_long_lines")},
        **{name: ["boolean"] for name in ("terminal_punctuation", "remove_citations")},
        **{name: [tuple, list] for name in ("line_phrases", "document_phrases")},
        "long_line": _LIMIT[:1],
        "bad_words": [tuple, list, set, frozenset],
        "bad_word_keep": [Interval(Real, 0, 1, closed="both")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        max_word_length: int | None = 1000,
        terminal_punctuation: bool = True,
        min_words_per_line: int | None = 3,
        line_phrases: Sequence[str] = ("javascript", *POLICIES),
        remove_citations: bool = True,
        document_phrases: Sequence[str] = ("lorem ipsum", "{"),
        min_sentences: int | None = 5,
        min_long_lines: int | None = None,
        long_line: int = 200,
        bad_words: Iterable[str] = (),
        bad_word_keep: float = 0.0,
        random_state: int = 0,
    ) -> None:
        self.max_word_length = max_word_length
        self.terminal_punctuation = terminal_punctuation
        self.min_words_per_line = min_words_per_line
        self.line_phrases = line_phrases
        self.remove_citations = remove_citations
        self.document_phrases = document_phrases
        self.min_sentences = min_sentences
        self.min_long_lines = min_long_lines
        self.long_line = long_line
        self.bad_words = bad_words
        self.bad_word_keep = bad_word_keep
        self.random_state = random_state

    def check(self, document: Document) -> Decision:
        """The rule that drops the document, or its text without the lines that were cut."""
        kept: list[str] = []
        cut = 0
        for given in document.text.splitlines():
            line = _CITATION.sub("", given) if self.remove_citations else given
            line, lower = line.strip(), line.lower()
            if self._is_cut(given, line, lower):
                cut += bool(given.strip())
                continue
            for phrase in self.document_phrases:
                if phrase in lower:
                    return Decision(False, phrase.replace(" ", "_") if phrase != "{" else "curly_bracket", len(kept))
            kept.append(line)
        text = "\n".join(kept)
        decision = first_broken(self._measure(text, kept))
        if not decision.keep or self._is_bad(document.id, text):
            return decision if not decision.keep else Decision(False, "bad_words", 1.0)
        return KEEP if text == document.text else Decision(True, "lines_cut", float(cut), text)

    def _is_cut(self, given: str, line: str, lower: str) -> bool:
        tokens = given.split()
        return (
            (self.max_word_length is not None and any(len(token) > self.max_word_length for token in tokens))
            or (self.terminal_punctuation and (not line.endswith(TERMINAL) or line.endswith(ELLIPSES)))
            or (self.min_words_per_line is not None and len(tokens) < self.min_words_per_line)
            or any(phrase in lower for phrase in self.line_phrases)
        )

    def _measure(self, text: str, kept: list[str]) -> Iterable[tuple[str, float, float | None, float | None]]:
        if self.min_sentences is not None:
            yield "min_sentences", len(sentences(text)), self.min_sentences, None
        if self.min_long_lines is not None:
            yield "min_long_lines", sum(len(line) >= self.long_line for line in kept), self.min_long_lines, None

    def _is_bad(self, key: str, text: str) -> bool:
        listed = {word.lower() for word in self.bad_words}
        if not listed or listed.isdisjoint(word.lower() for word in words(text)):
            return False
        return uniform_of([key], self.random_state)[0] >= self.bad_word_keep


class FineWebFilter(TextFilter):
    r"""FineWeb's three additions (and its limit of line breaks): against lists, and lines that repeat.

    Parameters
    ----------
    min_terminal_lines : float or None, default=0.12
        Share of lines that end in terminal punctuation.
    max_short_lines : float or None, default=0.67
        Share of lines of at most `short_line` characters.
    short_line : int, default=30
    max_duplicate_characters : float or None, default=0.01
        Share of characters in lines that came before.
    max_newlines_per_word : float or None, default=0.3
    terminal : tuple of str, default=(".", "?", "!", '"', "'", "。", "！", "？")

    Attributes
    ----------
    decisions_ : list of Decision
    indices_ : array of int64, (kept,)

    References
    ----------
    Penedo et al., arXiv 2406.17557, section 3.6.

    Examples
    --------
    >>> FineWebFilter().check(Document("a", "milk\nbread\nbutter")).rule
    'terminal_lines'
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{name: _LIMIT for name in ("min_terminal_lines", "max_short_lines", "max_duplicate_characters")},
        "max_newlines_per_word": _LIMIT,
        "short_line": _LIMIT[:1],
        "terminal": [tuple],
    }

    def __init__(
        self,
        min_terminal_lines: float | None = 0.12,
        max_short_lines: float | None = 0.67,
        short_line: int = 30,
        max_duplicate_characters: float | None = 0.01,
        max_newlines_per_word: float | None = 0.3,
        terminal: tuple[str, ...] = (*TERMINAL, "。", "！", "？"),
    ) -> None:
        self.min_terminal_lines = min_terminal_lines
        self.max_short_lines = max_short_lines
        self.short_line = short_line
        self.max_duplicate_characters = max_duplicate_characters
        self.max_newlines_per_word = max_newlines_per_word
        self.terminal = terminal

    def check(self, document: Document) -> Decision:
        """The first rule that the document breaks."""
        return first_broken(self._measure(document.text))

    def _measure(self, text: str) -> Iterable[tuple[str, float, float | None, float | None]]:
        rows = [row for row in text.split("\n") if row.strip()]
        ending = sum(row.rstrip().endswith(self.terminal) for row in rows)
        yield "terminal_lines", share(ending, len(rows)), self.min_terminal_lines, None
        short = sum(len(row) <= self.short_line for row in rows)
        yield "short_lines", share(short, len(rows)), None, self.max_short_lines
        duplicate = repeats(rows)[1]
        yield (
            "duplicate_characters",
            share(duplicate, len(text) - text.count("\n")),
            None,
            self.max_duplicate_characters,
        )
        yield "newlines_per_word", share(text.count("\n"), len(words(text))), None, self.max_newlines_per_word


class LanguageClassifier(Protocol):
    """What :class:`LanguageFilter` takes instead of its own: fastText's identifier behind this method, for one."""

    def scores(self, text: str) -> Mapping[str, float]:
        """Language -> probability."""


class LanguageFilter(TextFilter):
    """Keeps documents in some languages, told by a classifier or by a naive Bayes over character n-grams.

    Fit it on texts whose language is known; a few dozen sentences of each language are enough for whole documents.

    Parameters
    ----------
    languages : tuple of str, default=("en",)
    threshold : float, default=0.65
        Least probability of these languages together.
    classifier : LanguageClassifier, optional
        Used instead of the naive Bayes; nothing has to be fitted then.

    Attributes
    ----------
    classes_ : array of str
        Languages seen in ``fit``.

    References
    ----------
    The threshold is FineWeb's: Penedo et al., arXiv 2406.17557, section 3.2.

    Examples
    --------
    >>> known = ["the cat sat on the mat", "der Hund und die Katze", "what is that", "das ist nicht gut"]
    >>> german = LanguageFilter(("de",)).fit(known, ["en", "de", "en", "de"])
    >>> german.check(Document("a", "die Katze ist nicht da")).keep, german.check(Document("b", "that is the cat")).keep
    (True, False)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "languages": [tuple, list],
        "threshold": [Interval(Real, 0, 1, closed="both")],
        "classifier": [None, object],
    }
    _grams: ClassVar[HashingVectorizer] = HashingVectorizer(
        analyzer="char_wb", ngram_range=(1, 3), n_features=2**16, alternate_sign=False, norm=None
    )

    def __init__(
        self,
        languages: Sequence[str] = ("en",),
        threshold: float = 0.65,
        classifier: LanguageClassifier | None = None,
    ) -> None:
        self.languages = languages
        self.threshold = threshold
        self.classifier = classifier

    def fit(self, X: Iterable[Any], y: Any = None) -> Self:
        """Learn from texts `X` and their languages `y` (n,); with a `classifier`, decide about `X` as other filters do.

        Raises
        ------
        ValueError
            If languages are missing or of another number than texts, or none of them is to be kept.
        """
        self._validate_params()
        if self.classifier is not None:
            return super().fit(X)
        documents = as_documents(X)
        known = [] if y is None else list(y)
        if len(known) != len(documents):
            raise ValueError(f"y must name the language of each of the {len(documents)} texts, got {len(known)}.")
        if not set(self.languages) & set(known):
            raise ValueError(f"y names none of the languages to keep ({', '.join(self.languages)}). Add such texts.")
        counts = self._grams.transform([_encodable(document.text) for document in documents])
        bayes = MultinomialNB(fit_prior=False).fit(counts, known)
        self.classes_, self.log_probabilities_ = bayes.classes_, bayes.feature_log_prob_
        return self._decide([self.check(document) for document in documents])

    def check(self, document: Document) -> Decision:
        """Keep or drop by the probability of the languages wanted, which is the value."""
        if self.classifier is not None:
            found: Mapping[str, float] = self.classifier.scores(document.text)
        else:
            check_is_fitted(self, "classes_")
            logs = (self._grams.transform([_encodable(document.text)]) @ self.log_probabilities_.T)[0]
            odds = np.exp(logs - logs.max())
            found = dict(zip(self.classes_.tolist(), (odds / odds.sum()).tolist(), strict=True))
        return first_broken([("language", sum(found.get(x, 0.0) for x in self.languages), self.threshold, None)])


def _encodable(text: str) -> str:
    """`text` with a question mark for each byte that was no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
