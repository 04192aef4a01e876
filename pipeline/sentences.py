"""Splits running text into sentences, for English-like and Chinese punctuation.

One regular expression finds the candidates. Python code then checks each of them for abbreviations
and initials. Decimals never end a sentence, because white space must follow a stop that is not CJK.
"""

import re

# Common English abbreviations that a capital letter or a digit can follow within a sentence.
_ABBREVIATIONS = frozenset(
    "adm al approx apr aug ave bros c ca capt cf co col corp dec dept dr ed eds eq esp est etc feb "
    "fr gen gov hon inc jan jr jul jun lt ltd maj mar mr mrs ms mt mts nov oct op prof pt rep rev "
    "sen sep sept sgt sr st ste trans v viz vs".split()
)
# These are abbreviations only before a number ("No. 5"); otherwise "No." is a sentence.
_ABBREVIATIONS_BEFORE_NUMBER = frozenset("art ch figs fig no nos p pl pp sec vol vols".split())
_OPENERS = "([{\"'“‘«"
_LONGEST_OPENING = 4
_LONGEST_WORD_BEFORE = 64
_STOPS = ".!?…"
_CJK_STOPS = "。！？｡"
_CLOSERS = r"\"'”’»)\]"
_CJK_CLOSERS = "”’」』）》】〉〕"

# No alternation here, because it would halve the speed. A match includes all consecutive stops,
# even if no white space follows; otherwise a long run of stops would be scanned once per stop.
_CANDIDATE = re.compile(rf"[{_STOPS}][{_STOPS}{_CLOSERS}]*+\s*")
_CANDIDATE_WITH_CJK = re.compile(
    rf"[{_CJK_STOPS}{_STOPS}][{_CJK_STOPS}{_STOPS}{_CJK_CLOSERS}{_CLOSERS}]*+\s*"
)
_CJK_STOP = re.compile(f"[{_CJK_STOPS}]")


def split_sentences(paragraph: str) -> list[str]:
    """Returns the sentences of a paragraph, in order, without surrounding white space.

    A stop ends a sentence if white space follows and the next text does not begin with a lower-case
    letter. A CJK stop always ends a sentence. Closing quotes and brackets stay with the sentence
    that they close. Joining the sentences with spaces (with nothing after a CJK stop) restores the
    paragraph.
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
    """Whether the stop at `stop` ends a sentence; the following text begins at `next_start`."""
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
