"""Every rule trips on a document made for it and on no other; ratios are those of slow, literal counting."""

from __future__ import annotations

import pytest
from sklearn.exceptions import NotFittedError

from models.curate.text_documents import Document, as_documents, invalid_utf8_at, sentences, simplified, words
from models.curate.text_filters import (
    C4Filter,
    FineWebFilter,
    GopherQuality,
    GopherRepetition,
    LanguageFilter,
    repeated_ngram_characters,
    top_ngram_characters,
)

TOPICS = (
    "river", "engine", "garden", "letter", "window", "market", "island", "doctor", "violin", "planet", "basket",
    "copper", "dragon", "forest", "harbor", "jacket", "kettle", "ladder", "mirror", "needle", "orange", "pepper",
    "quarry", "ribbon", "saddle", "temple", "urchin", "velvet", "walnut", "yellow", "zipper", "anchor", "bottle",
    "candle", "desert", "eleven", "figure", "guitar", "hammer", "insect", "jungle", "kidney", "lizard", "magnet",
)  # fmt: skip
GOOD = (
    "The river runs to the harbor, and every engine of the market waits for that letter. "
    "Doctors have walked with a violin past the garden window. "
    "An island grows copper, pepper, oranges and velvet under yellow planets. "
    "Nobody knew why dragons carry kettles into forests. "
    "Ladders lean against a mirror; needles, ribbons, saddles lie below."
)


def rule(step, text):
    return step.check(Document("a", text)).rule


def tripped(text):
    """Rules of Gopher's quality filter that a document breaks, each asked alone."""
    off = dict.fromkeys(
        ("min_words", "max_words", "min_mean_length", "max_mean_length", "max_symbol_ratio", "max_bullet_lines",
         "max_ellipsis_lines", "min_letter_words", "min_stop_words")
    )  # fmt: skip
    defaults = GopherQuality().get_params()
    return {name for name in off if rule(GopherQuality(**(off | {name: defaults[name]})), text)}


QUALITY = {
    "min_words": "The river runs to the harbor, and that is all.",
    "max_words": "the and " + "river " * 100_001,
    "min_mean_length": "the and " + "ab a of " * 40,
    "max_mean_length": "the and " + "extraordinarily " * 60,
    "max_symbol_ratio": " ".join(word for word in words(GOOD) if word.isalpha()) + " #" * 8,
    "max_bullet_lines": "\n".join(f"- {sentence}" for sentence in GOOD.split(". ") * 2),
    "max_ellipsis_lines": "\n".join(sentence + " ..." for sentence in (GOOD + " " + GOOD).split(". ")[:8]),
    "min_letter_words": GOOD + " ; 12345" * 20,
    "min_stop_words": " ".join(TOPICS) + " " + " ".join(TOPICS),
}


@pytest.mark.parametrize("name", QUALITY)
def test_gopher_quality_each_rule_alone(name):
    assert tripped(QUALITY[name]) == {name}


def test_gopher_quality_good_prose_passes():
    assert GopherQuality().check(Document("a", GOOD)).keep
    assert GopherQuality(stop_words="de").check(Document("a", GOOD)).rule == "stop_words"
    assert GopherQuality(stop_words=["river", "harbor"]).check(Document("a", GOOD)).keep


def test_gopher_quality_values_are_counted():
    decision = GopherQuality().check(Document("a", "One two three."))
    assert (decision.keep, decision.rule, decision.value) == (False, "min_words", 3.0)
    decision = GopherQuality(min_words=None).check(Document("a", "## of the be"))
    assert (decision.rule, decision.value) == ("min_mean_length", pytest.approx(7 / 3))


REPETITION = {
    "duplicate_lines": "a b\na b\na b\n" + "\n".join(f"{word} {word}s" for word in TOPICS[:5]) + "\na b",
    "duplicate_line_characters": "\n".join([GOOD, " ".join(TOPICS[:40]), GOOD, *TOPICS[:8]]),
    "duplicate_paragraphs": "\n\n".join(["x\ny", "x\nz", "x\ny", "x\ny", "q\nr", " ".join(TOPICS)]),
    "duplicate_paragraph_characters": "\n\n".join([GOOD.replace(". ", ".\n"), *TOPICS[:20], GOOD.replace(". ", ".\n")]),
}  # fmt: skip


def test_gopher_repetition_lines_and_paragraphs():
    assert GopherRepetition().check(Document("a", GOOD)).keep
    for name in ("duplicate_lines", "duplicate_line_characters"):
        only = GopherRepetition(max_top_ngram=(), max_repeated_ngrams=())
        assert rule(only, REPETITION[name]) == name
    lines_off = GopherRepetition(None, 0.3, None, 0.2, (), ())
    assert rule(lines_off, REPETITION["duplicate_paragraphs"]) == "duplicate_paragraphs"
    assert rule(lines_off, REPETITION["duplicate_paragraph_characters"]) == "duplicate_paragraph_characters"


def test_ngram_characters_as_counted_by_hand():
    tokens = ["a", "bb", "a", "bb", "ccc", "a", "bb"]
    assert top_ngram_characters(tokens, 2) == 3 * len("a bb")
    assert repeated_ngram_characters(tokens, 2) == 2 * len("abb")  # places 2 and 5; each is jumped over
    assert repeated_ngram_characters(tokens, 3) == 0
    assert top_ngram_characters(["one"], 2) == 0


@pytest.mark.parametrize("n", [2, 3, 4])
def test_top_ngram_rule(n):
    unit = " ".join(TOPICS[:n])
    text = " ".join(f"{unit} {TOPICS[10 + i]}" for i in range(20))
    limits = GopherRepetition(max_repeated_ngrams=(), max_top_ngram=[(n, 0.2)])
    assert rule(limits, text) == f"top_{n}_gram"
    assert rule(limits, " ".join(TOPICS)) == ""


@pytest.mark.parametrize("n", range(5, 11))
def test_repeated_ngram_rule(n):
    text = " ".join([*TOPICS[:n], *TOPICS[20:24], *TOPICS[:n]])
    limit = dict(GopherRepetition().max_repeated_ngrams)[n]
    limits = GopherRepetition(None, None, None, None, (), [(n, limit)])
    assert rule(limits, text) == f"repeated_{n}_grams"
    assert rule(GopherRepetition(None, None, None, None, (), [(n + 1, limit)]), text) == ""


FIVE = 'One line with words.\nTwo lines with it!\nThree lines with it?\nFour "quoted words here"\nFive lines of words.'


def test_c4_keeps_a_good_document_as_it_is():
    decision = C4Filter().check(Document("a", FIVE))
    assert decision.keep
    assert decision.replacement_text is None


@pytest.mark.parametrize(
    "line",
    [
        "Word " + "x" * 1001 + " is too long.",
        "This one ends in nothing",
        "This one ends in dots...",
        "Too short.",
        "Please enable JavaScript to see this.",
        "Read our Terms of Use before that.",
        "See the privacy policy for that.",
        "This site uses cookies to work.",
        "By the use of cookies you agree.",
    ],
)
def test_c4_cuts_each_kind_of_line(line):
    decision = C4Filter().check(Document("a", FIVE + "\n" + line))
    assert (decision.keep, decision.rule, decision.value) == (True, "lines_cut", 1.0)
    assert decision.replacement_text == FIVE


def test_c4_drops_documents():
    assert rule(C4Filter(), FIVE + "\nLorem ipsum dolor sit amet.") == "lorem_ipsum"
    assert rule(C4Filter(), FIVE + "\nif (x) { return a b c; }.") == "curly_bracket"
    assert rule(C4Filter(), FIVE.rsplit("\n", 1)[0]) == "min_sentences"
    assert rule(C4Filter(min_long_lines=3), FIVE) == "min_long_lines"
    assert rule(C4Filter(min_long_lines=3, long_line=15), FIVE) == ""
    assert rule(C4Filter(bad_words=["QUOTED"]), FIVE) == "bad_words"
    assert rule(C4Filter(terminal_punctuation=False), FIVE + "\nno stop at the end") == ""


def test_c4_citations_are_taken_out_and_bad_words_kept_by_chance():
    text = C4Filter().check(Document("a", FIVE.replace("words.", "words [12].", 1))).replacement_text
    assert text is not None
    assert text.startswith("One line with words .")
    lenient = C4Filter(bad_words=["quoted"], bad_word_keep=0.3, random_state=3)
    kept = sum(lenient.check(Document(str(i), FIVE)).keep for i in range(2000)) / 2000
    assert kept == pytest.approx(0.3, abs=3 * (0.3 * 0.7 / 2000) ** 0.5)


LONG = "This is a line of more than thirty characters"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("terminal_lines", "\n".join(f"{LONG} {word}" for word in TOPICS[:10])),
        ("short_lines", "\n".join([*(f"{word} and it." for word in TOPICS[:9]), f"{LONG}.", f"{LONG} too."])),
        ("duplicate_characters", "\n".join([f"{LONG}.", *(f"{LONG} {word}." for word in TOPICS[:5]), f"{LONG}."])),
        ("newlines_per_word", "\n\n\n".join(f"Incomprehensibilities-{word}-{word}-{word}." for word in TOPICS[:9])),
    ],
)  # fmt: skip
def test_fineweb_each_rule_alone(name, text):
    off = dict.fromkeys(("min_terminal_lines", "max_short_lines", "max_duplicate_characters", "max_newlines_per_word"))
    defaults = FineWebFilter().get_params()
    broken = {rule(FineWebFilter(**(off | {key: defaults[key]})), text) for key in off} - {""}
    assert broken == {name}
    assert rule(FineWebFilter(), text) == name


SPOKEN = {
    "en": ["the cat sat on the mat", "what is the name of this", "they have been with us", "we think that it works"],
    "de": ["der Hund und die Katze", "das ist nicht gut genug", "wir haben keine Zeit", "ich weiß es nicht mehr"],
    "fr": [
        "le chat est dans la maison",
        "nous ne savons pas encore",
        "il y a beaucoup de gens",
        "je suis très content",
    ],
}


def test_language_by_character_ngrams():
    texts = [text for group in SPOKEN.values() for text in group]
    labels = [name for name, group in SPOKEN.items() for _ in group]
    kept = LanguageFilter(("en", "fr")).fit(texts, labels)
    assert kept.indices_.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert kept.check(Document("x", "die Katze ist nicht da")).rule == "language"
    assert kept.check(Document("x", "they think that the cat is here")).keep


def test_language_by_a_classifier_of_the_users_and_errors():
    class Sure:
        def scores(self, text):
            return {"en": 0.66 if "x" in text else 0.64}

    assert LanguageFilter(classifier=Sure()).fit(["x", "y"]).indices_.tolist() == [0]
    with pytest.raises(NotFittedError, match="not fitted"):
        LanguageFilter().check(Document("a", "text"))
    with pytest.raises(ValueError, match="y must name the language of each of the 2 texts, got 1"):
        LanguageFilter().fit(["a", "b"], ["en"])
    with pytest.raises(ValueError, match=r"names none of the languages to keep \(en\)"):
        LanguageFilter().fit(["a", "b"], ["de", "fr"])


def test_documents_of_one_token_ten_megabytes_and_other_scripts():
    steps = [GopherQuality(), GopherRepetition(), C4Filter(), FineWebFilter()]
    for text in ("one", "!", "\n", "猫", "one\n" * 3):
        for step in steps:
            assert isinstance(step.check(Document("a", text)).keep, bool)
    large = "the word and others have come with that\n" * 250_000
    assert rule(GopherRepetition(), large) == "duplicate_lines"
    assert rule(GopherQuality(), large) == "max_words"
    chinese = "我们今天去公园看花。天气很好,人很多。" * 3
    lenient = GopherQuality(min_mean_length=None, min_stop_words=None)
    assert rule(lenient, chinese + "a b") == ""


def test_words_sentences_and_one_form():
    assert words("Don't stop... 5 %") == ["Don't", "stop", "...", "5", "%"]
    assert sentences('He said "no." Then he left!\nGood。 好') == ['He said "no."', "Then he left!", "Good。", "好"]
    assert simplified("Ｆull  Width: CAFÉ, café!") == "full width café café"


def test_documents_are_made_of_texts_bytes_and_mappings():
    found = as_documents(["a", b"b", {"id": 7, "text": "c", "url": "u"}, Document("d", "e")])
    assert [(one.id, one.text, dict(one.meta)) for one in found] == [
        ("0", "a", {}), ("1", "b", {}), ("7", "c", {"url": "u"}), ("d", "e", {}),
    ]  # fmt: skip
    spoiled = as_documents([b"caf\xe9 au lait"])[0].text
    assert invalid_utf8_at(spoiled) == 3
    assert spoiled.encode("utf-8", "surrogateescape") == b"caf\xe9 au lait"
    assert LanguageFilter(("en",)).fit([spoiled, "b"], ["en", "de"]).indices_.tolist() == [0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"X is empty: there is no document in the corpus \(n_samples=0\)"),
        (["a", 5], "X must hold texts .*got int at row 1"),
        ([None], "got NoneType at row 0"),
        ("a text", "got one str. Put it in a list"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "X holds the id 'a' twice"),
    ],
)
def test_what_is_no_corpus_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        GopherQuality().fit(given)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="'min_words' parameter of GopherQuality"):
        GopherQuality(min_words=-1).fit(["a"])
    with pytest.raises(ValueError, match="'stop_words' parameter"):
        GopherQuality(stop_words="xx").fit(["a"])
    with pytest.raises(ValueError, match="'bad_word_keep' parameter"):
        C4Filter(bad_word_keep=2).fit(["a"])
