"""Running text to sentences, for English-like and Chinese punctuation.

One regular expression finds the candidates; each is then checked in Python against abbreviations
and initials. Decimals never match: a candidate needs white space after the stop, or a CJK stop.
"""

import re

# Common English abbreviations that a capital or a digit may follow within a sentence.
_ABBREVIATIONS = frozenset(
    "adm al approx apr aug ave bros c ca capt cf co col corp dec dept dr ed eds eq esp est etc feb fr "
    "gen gov hon inc jan jr jul jun lt ltd maj mar mr mrs ms mt mts nov oct op prof pt rep rev sen "
    "sep sept sgt sr st ste trans v viz vs".split()
)
# These are abbreviations only before a number ("No. 5"); "No." is a sentence otherwise.
_ABBREVIATIONS_BEFORE_NUMBER = frozenset("art ch figs fig no nos p pl pp sec vol vols".split())
_OPENERS = "([{\"'“‘«"
_LONGEST_OPENING = 4
_LONGEST_WORD_BEFORE = 64
_STOPS = ".!?…"
_CJK_STOPS = "。！？｡"
_CLOSERS = r"\"'”’»)\]"
_CJK_CLOSERS = "”’」』）》】〉〕"

# No alternation here: it would cost half the speed. Every stop is in a match, also where no white
# space follows, or a long run of stops would be looked at once for each of them.
_CANDIDATE = re.compile(rf"[{_STOPS}][{_STOPS}{_CLOSERS}]*+\s*")
_CANDIDATE_WITH_CJK = re.compile(
    rf"[{_CJK_STOPS}{_STOPS}][{_CJK_STOPS}{_STOPS}{_CJK_CLOSERS}{_CLOSERS}]*+\s*"
)
_CJK_STOP = re.compile(f"[{_CJK_STOPS}]")


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of a paragraph, in order, without white space around them.

    A stop ends a sentence when white space follows and what comes next does not begin with a
    lower-case letter; a CJK stop always does. Closing quotes and brackets stay with the sentence
    they close. Joined with a space (with nothing after a CJK stop), the sentences are the paragraph.
    """
    has_cjk_stop = not paragraph.isascii() and _CJK_STOP.search(paragraph) is not None
    candidates = (_CANDIDATE_WITH_CJK if has_cjk_stop else _CANDIDATE).finditer(paragraph)
    sentences = []
    start = 0
    for candidate in candidates:
        stop, end = candidate.span()
        if (has_cjk_stop and _CJK_STOP.search(paragraph, stop, end)) or (
            paragraph[end - 1].isspace() and _ends_sentence(paragraph, stop, end)
        ):
            sentences.append(paragraph[start:end].strip())
            start = end
    sentences.append(paragraph[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(paragraph: str, stop: int, next_start: int) -> bool:
    """Whether the stop at `stop` ends a sentence, when the following text begins at `next_start`."""
    following = paragraph[next_start : next_start + _LONGEST_OPENING].lstrip(_OPENERS)
    if following[:1].islower():
        return False
    if paragraph[stop] != "." or paragraph[stop + 1] == ".":
        return True
    before = paragraph[max(0, stop - _LONGEST_WORD_BEFORE) : stop]
    word = before.rpartition(" ")[2].lstrip(_OPENERS)
    if len(word) == 1 and word.isalpha() and word.isupper() and word != "I":
        return False  # an initial, as in "J. Smith"
    if "." in word and not any(map(str.isdigit, word)):
        return False  # "U.S.", "e.g."
    word = word.lower()
    if word in _ABBREVIATIONS_BEFORE_NUMBER:
        return not following[:1].isdigit()
    return word not in _ABBREVIATIONS
