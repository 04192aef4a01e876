"""New words for an old vocabulary: those that shorten the text of a domain most.

A trained BERT keeps its ids if its vocabulary only grows. This module looks for the words and `##`
pieces that are worth it, one after the other: each is the one that saves most pieces of the text,
given all before it.

WordPiece always takes the longest piece that fits. So a new token changes each word in which it
fits where a piece begins, if it is longer than that piece. Where it ends between two old pieces, it
joins pieces. Elsewhere it cuts an old piece, and what is left may take more pieces than before. For
example, `##ab` makes `x ##a ##bc` into `x ##ab ##c`, and `x ##a ##b` into `x ##ab`. Both count: a
token's savings are those of all words, less what other words lose. Whoever adds a word like `covid`
must accept that a rare `covidien` is split in another way; no rule about single words could avoid
that, because the next text has other words.

Savings are exact. From a place inside a word, WordPiece goes on in the same way, however it got
there. So if each place knows how many pieces are left from it on, what a token saves is a
difference: the pieces left where it begins, less itself, less the pieces left where it ends. This
gives the savings of every string of the text at once. After each choice, only the words that hold
the chosen string are looked at again.

Of a word that is [UNK], some characters are in no piece. Each of them counts as two pieces, so that
a token for it alone saves one, and a token for the whole word saves more. For example, `a☃b` counts
four: `a`, two, and `##b`. The figures of `extend_vocabulary` know nothing of this: there, [UNK] is
one token, as for the tokenizer.
"""

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np
from absl import logging

from pipeline.errors import UserError
from pipeline.tokenization import (
    BasicTokenizer,
    WordpieceTokenizer,
    drop_control_whitespace,
    split_at_ideographs,
)
from pipeline.vocabulary import MAX_CHARACTERS_PER_WORD

MIN_SAVING = 2
"""The fewest pieces that a new token must save in the text."""
LONGEST_NEW_TOKEN = 32
"""The number of characters of the longest new token, without `##`."""

_UNUSED = re.compile(r"\[unused\d+\]")
_COST_OF_UNKNOWN_CHARACTER = 2
# The words that the search looks at: the most frequent ones. So its memory is bounded, also for
# scripts without spaces, whose words are long.
_MOST_WORDS = 1 << 18
_MOST_CHARACTERS = 1 << 22
# So many strings are looked at at a time. All others are looked at again when none of these saves
# as much any more.
_FEWEST_CANDIDATES = 1 << 15
_CANDIDATES_PER_TOKEN = 16
# Words between white space are remembered until there are so many, and then split further.
_MOST_RAW_WORDS = 1 << 20
_SECONDS_BETWEEN_LINES = 10.0
_BITS_OF_CHARACTER = 21
_HEAD = 3
_SURROGATE = re.compile("[\ud800-\udfff]")


def extend_vocabulary(
    tokens: Collection[str],
    texts: Iterable[str],
    num_new_tokens: int,
    do_lower_case: bool,
    strip_accents: bool | None,
) -> tuple[list[str], dict[str, int]]:
    """Extends a vocabulary by the tokens that shorten a text most.

    They come in the order in which `new_tokens` chooses them, first in the rows of `[unused…]`
    tokens, then behind all others. All other ids stay.

    Args:
      tokens: the old vocabulary, in the order of its ids.
      texts: the text, in any order.
      num_new_tokens: the number of tokens to add; fewer if no other is worth it.
      do_lower_case: option of `pipeline.tokenization.BasicTokenizer`.
      strip_accents: option of `pipeline.tokenization.BasicTokenizer`.

    Returns:
      The new vocabulary, in the order of its ids.
      Figures: new_tokens, in_place_of_unused; the text's words and marks; the tokens that these
        become, tokens_before and tokens_after; and how many of them are `[UNK]`, unknown_before
        and unknown_after. A mark is a single character that is neither a letter nor a digit, and
        always one token. So words take `tokens - marks` pieces.

    Raises:
      UserError: there is no text.
    """
    words = count_words(texts, BasicTokenizer(do_lower_case, strip_accents))
    if not words:
        raise UserError("there is no text to take new tokens from")
    logging.info("%s words and marks, %s different", f"{words.total():,}", f"{len(words):,}")
    new = new_tokens(tokens, words, num_new_tokens)
    if len(new) < num_new_tokens:
        logging.info(
            "%s tokens are added, not %s: no other saves %d pieces of the text",
            f"{len(new):,}",
            f"{num_new_tokens:,}",
            MIN_SAVING,
        )
    extended = with_new_tokens(tokens, new)
    marks = sum(count for word, count in words.items() if len(word) == 1 and not word.isalnum())
    tokens_before, unknown_before = tokens_and_unknown(tokens, words)
    tokens_after, unknown_after = tokens_and_unknown(extended, words)
    return extended, {
        "new_tokens": len(new),
        "in_place_of_unused": len(new) - (len(extended) - len(tokens)),
        "words": words.total() - marks,
        "marks": marks,
        "tokens_before": tokens_before,
        "tokens_after": tokens_after,
        "unknown_before": unknown_before,
        "unknown_after": unknown_after,
    }


def count_words(texts: Iterable[str], tokenizer: BasicTokenizer) -> Counter[str]:
    """Counts the words of texts, as `BasicTokenizer.tokenize` finds them.

    Its memory grows with the number of different words, not with the length of the texts.
    """
    words: Counter[str] = Counter()
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(split_at_ideographs(drop_control_whitespace(text)))
        if len(raw) >= _MOST_RAW_WORDS:
            _add_words(words, raw, tokenizer)
            raw.clear()
    _add_words(words, raw, tokenizer)
    return words


def tokens_and_unknown(tokens: Iterable[str], words: Mapping[str, int]) -> tuple[int, int]:
    """How many tokens words become, and how many of these words are `[UNK]`.

    Both are exactly what `FullTokenizer` makes of their text.

    Args:
      tokens: the vocabulary.
      words: the number of occurrences of each word.
    """
    tokenizer = WordpieceTokenizer({token: number for number, token in enumerate(tokens)})
    all_pieces = unknown = 0
    for word, count in words.items():
        pieces = tokenizer.pieces_of_word(word)
        all_pieces += count * len(pieces)
        unknown += count * (pieces == [tokenizer.unk_token])
    return all_pieces, unknown


def new_tokens(tokens: Collection[str], words: Mapping[str, int], num_new_tokens: int) -> list[str]:
    """Chooses the tokens that shorten a text most, one by one, the best first.

    Among equally good ones, the first in the order of code points is chosen. The same words, in any
    order, give the same tokens.

    Args:
      tokens: the old vocabulary.
      words: the number of occurrences of each word of the text.
      num_new_tokens: the number of tokens to choose.

    Returns:
      The tokens; fewer if no other saves `MIN_SAVING` pieces.
    """
    search = _Search(tokens, words)
    number = max(_CANDIDATES_PER_TOKEN * num_new_tokens, _FEWEST_CANDIDATES)
    chosen: list[str] = []
    while len(chosen) < num_new_tokens:
        is_complete, before = search.find_candidates(number), len(chosen)
        search.choose(chosen, num_new_tokens)
        if is_complete and len(chosen) == before:
            break
        number *= 2
    return chosen


def with_new_tokens(tokens: Iterable[str], new: Iterable[str]) -> list[str]:
    """A vocabulary with new tokens: in the rows of its `[unused…]` tokens, then behind all others.

    Args:
      tokens: the old vocabulary, in the order of its ids, which all its other tokens keep.
      new: the tokens to add.
    """
    left = iter(new)
    # The old token is what is left for an [unused…] one if there is no other new token.
    in_place = [next(left, each) if _UNUSED.fullmatch(each) else each for each in tokens]
    return [*in_place, *left]


def _add_words(words: Counter[str], raw: Counter[str], tokenizer: BasicTokenizer) -> None:
    for each, count in raw.items():
        for word in tokenizer.tokenize(each):
            words[word] += count


class _Pieces:
    """The pieces of a vocabulary that grows, found in words as WordPiece finds them."""

    def __init__(self, tokens: Iterable[str]):
        # At the beginning of a word and inside: the pieces, and, for the first characters of a
        # place, the length of the longest piece that begins so.
        self._begin: tuple[set[str], dict[str, int]] = (set(), {})
        self._inside: tuple[set[str], dict[str, int]] = (set(), {})
        for token in tokens:
            self.add(token)

    def add(self, token: str) -> None:
        piece, (pieces, longest) = self._side_of(token)
        pieces.add(piece)
        head = piece[:_HEAD]
        longest[head] = max(longest.get(head, 0), len(piece))

    def read(self, word: str) -> tuple[list[int], list[int]]:
        """What WordPiece does at each place of a word.

        Returns:
          [L] the length of the longest piece that fits at the place; 0 if none does.
          [L + 1] the number of pieces that the word takes from the place on, if one begins there.
            A character that no piece begins with counts as `_COST_OF_UNKNOWN_CHARACTER`.
        """
        size = len(word)
        lengths, left = [0] * size, [0] * (size + 1)
        pieces, longest = self._inside
        for start in range(size - 1, -1, -1):
            if not start:
                pieces, longest = self._begin
            end = min(size, start + longest.get(word[start : start + _HEAD], _HEAD - 1))
            while end > start and word[start:end] not in pieces:
                end -= 1
            lengths[start] = end - start
            left[start] = (
                1 + left[end] if end > start else _COST_OF_UNKNOWN_CHARACTER + left[start + 1]
            )
        return lengths, left

    def _side_of(self, token: str) -> tuple[str, tuple[set[str], dict[str, int]]]:
        is_inside = token.startswith("##")
        return (token[2:], self._inside) if is_inside else (token, self._begin)


class _Search:
    """The words of a text, and what each string in them would save as a new token."""

    def __init__(self, tokens: Collection[str], words: Mapping[str, int]):
        known = set(tokens)
        improvable = [
            (word, count)
            for word, count in words.items()
            if word not in known
            and len(word) <= MAX_CHARACTERS_PER_WORD
            and not _SURROGATE.search(word)
        ]
        improvable.sort(key=lambda item: (-item[1], item[0]))
        ends = np.cumsum([len(word) for word, _ in improvable])
        del improvable[min(_MOST_WORDS, int(np.searchsorted(ends, _MOST_CHARACTERS, "right"))) :]
        self._words = [word for word, _ in improvable]
        self._counts = [count for _, count in improvable]
        self._pieces = _Pieces(tokens)
        self._savings: dict[str, int] = {}  # of each candidate
        self._words_with: dict[str, np.ndarray] = {}  # the numbers of the words that hold it
        self._floor = MIN_SAVING

    def find_candidates(self, number: int) -> bool:
        """Finds the strings that may save most, now or after other choices, about `number` of them.

        Returns:
          Whether these are all that may save `MIN_SAVING` pieces.
        """
        places = _Places(self._words, self._counts, self._pieces)
        found, self._floor = _strings_that_save(places, number)
        self._savings = {token: saving for token, saving, _ in found}
        self._words_with = {token: numbers for token, _, numbers in found}
        return self._floor == MIN_SAVING

    def choose(self, chosen: list[str], number: int) -> None:
        """Chooses candidates, while they save as much as any other string may.

        Only if a choice made other words longer, a string in these may come to save more.

        Args:
          chosen: the tokens that were chosen before; those that are chosen now are added.
          number: the number of tokens to choose in all.
        """
        shown = time.monotonic()
        # Savings that have fallen are noticed when their entry comes to the top.
        queue = [(-saving, token) for token, saving in self._savings.items()]
        heapify(queue)
        while queue and len(chosen) < number:
            negative, token = heappop(queue)
            saving = self._savings.get(token, 0)
            if saving < self._floor or saving > -negative:
                continue  # too little; or another entry has the saving
            if saving < -negative:
                heappush(queue, (-saving, token))
                continue
            chosen.append(token)
            for grown in self._add(token):
                heappush(queue, (-self._savings[grown], grown))
            if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                logging.info("%s of %s new tokens are chosen", f"{len(chosen):,}", f"{number:,}")

    def _add(self, token: str) -> list[str]:
        """Adds a token; returns the candidates that save more than before."""
        del self._savings[token]
        numbers = self._words_with.pop(token).tolist()
        before = [self._savings_in(self._words[number]) for number in numbers]
        self._pieces.add(token)
        grown = set()
        for number, old in zip(numbers, before, strict=True):
            new = self._savings_in(self._words[number])
            if new == old:
                continue
            for each in old.keys() | new.keys():
                change = self._counts[number] * (new.get(each, 0) - old.get(each, 0))
                if change:
                    self._savings[each] += change
                if change > 0:
                    grown.add(each)
        return list(grown)

    def _savings_in(self, word: str) -> dict[str, int]:
        """What each candidate would save in a word, if it changes it."""
        lengths, left = self._pieces.read(word)
        found: dict[str, int] = {}
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(
                start + lengths[start] + 1, min(len(word), start + LONGEST_NEW_TOKEN) + 1
            ):
                token = prefix + word[start:end]
                if token not in self._savings or token in found:
                    continue
                found[token] = left[start] - _left_with(word, start, end, lengths, left)
            start += lengths[start] or 1
        return found


def _left_with(word: str, start: int, end: int, lengths: list[int], left: list[int]) -> int:
    """The pieces from a place to the end of a word, if the string there were a piece, too.

    Args:
      word: the word.
      start: the place, where a piece begins that is shorter than the string.
      end: the end of the string.
      lengths: see `_Pieces.read`.
      left: see `_Pieces.read`.
    """
    string, pieces, here = word[start:end], 0, start
    # The string may stand there again.
    while start >= 0:
        while here < start:
            pieces += 1 if lengths[here] else _COST_OF_UNKNOWN_CHARACTER
            here += lengths[here] or 1
        if here == start and lengths[here] < len(string):
            pieces += 1
            here += len(string)
        start = word.find(string, max(here, start + 1)) if start else -1
    return pieces + left[here]


class _Places:
    """The characters of all words, one after the other, each word with one more place at its end.

    Attributes:
      words: the words.
      counts: int64 [W], how often each occurs.
      characters: int64 [C], code points; 0 at the end of a word.
      word: int64 [C], the number of the word.
      is_inside: bool [C], whether it is not the first of its word.
      is_start: bool [C], whether a piece begins there now.
      length: int64 [C], of the longest piece that fits there, see `_Pieces.read`.
      left: int64 [C], the number of pieces from there to the end of the word.
    """

    def __init__(self, words: list[str], counts: list[int], pieces: _Pieces):
        self.words = words
        self.counts = np.array(counts, np.int64)
        text = "".join(f"{word}\0" for word in words)
        self.characters = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64)
        self.length = np.zeros(len(text), np.int64)
        self.left = np.zeros(len(text), np.int64)
        sizes = np.array([len(word) + 1 for word in words], np.int64)
        firsts = np.cumsum(sizes) - sizes
        for word, first in zip(words, firsts.tolist(), strict=True):
            length, left = pieces.read(word)
            self.length[first : first + len(length)] = length
            self.left[first : first + len(left)] = left
        self.word = np.repeat(np.arange(len(words)), sizes)
        self.is_inside = np.ones(len(text), bool)
        self.is_inside[firsts] = False
        self.is_start = np.zeros(len(text), bool)
        starts = firsts
        while starts.size:
            self.is_start[starts] = True
            starts = starts + np.maximum(self.length[starts], 1)
            starts = starts[self.characters[starts] > 0]

    def token_at(self, place: int, length: int) -> str:
        """The token that the characters at a place would be."""
        return ("##" if self.is_inside[place] else "") + "".join(
            map(chr, self.characters[place : place + length].tolist())
        )


class _Found(NamedTuple):
    """Strings of one length that may save enough.

    Attributes:
      number: int64 [N], their numbers, in ascending order.
      saving: int64 [N], what they save now.
      potential: int64 [N], what they would save if a piece began wherever they fit, and the rest of
        the word were a single piece.
      example: int64 [N], a place of each.
      string: int64 [M], for each of their places, the number of the string.
      word: int64 [M], for each of their places, the number of the word.
    """

    number: np.ndarray
    saving: np.ndarray
    potential: np.ndarray
    example: np.ndarray
    string: np.ndarray
    word: np.ndarray


def _strings_that_save(
    places: _Places, number: int
) -> tuple[list[tuple[str, int, np.ndarray]], int]:
    """The strings that would save most as new tokens.

    It goes through all strings of one character, of two, and so on: those of the same length that
    are equal have the same number, which is that of the string without its last character, and that
    character. It forgets strings that only begin what saves too little.

    Args:
      places: the words.
      number: the number of strings to find; more if the last ones may save the same.

    Returns:
      Tokens, the pieces that each saves now, and the numbers of the words that hold it.
      The fewest pieces that one of these may save; all others may save less.
    """
    floor = MIN_SAVING
    found: list[_Found] = []  # for each length
    place = np.flatnonzero(places.characters)
    string = places.is_inside[place].astype(np.int64)
    for length in range(1, LONGEST_NEW_TOKEN + 1):
        last = places.characters[place + length - 1]
        place, key = place[last > 0], (string << _BITS_OF_CHARACTER | last)[last > 0]
        if not place.size:
            break
        _, example, string = np.unique(key, return_index=True, return_inverse=True)
        example = place[example]
        word = places.word[place]
        count = places.counts[word]
        fits = places.length[place] < length
        starts = fits & places.is_start[place]
        saving = np.where(starts, places.left[place] - 1 - places.left[place + length], 0)
        repeated, first = _repeated(word, string, starts)
        saving[repeated] = 0
        saving[first] = places.left[place[first]] - _left_with_repeated(
            places, place, string, first, length
        )
        # Below 2^53, sums in float64 are exact.
        savings = np.bincount(string, saving * count).astype(np.int64)
        rest = places.characters[place + length] > 0
        possible = np.where(fits, places.left[place] - 1 - rest, 0)
        potential = np.bincount(string, possible * count).astype(np.int64)
        good = potential >= floor
        is_good = good[string]
        found.append(
            _Found(
                np.flatnonzero(good),
                savings[good],
                potential[good],
                example[good],
                string[is_good],
                word[is_good],
            )
        )
        every = np.concatenate([each.potential for each in found])
        if len(every) > number:
            floor = int(np.partition(every, -number)[-number])
        most = places.left[place] - 1
        promising = (np.bincount(string, most * count) >= floor)[string]
        place, string = place[promising], string[promising]
    return list(_described(places, found, floor)), floor


def _repeated(
    word: np.ndarray, string: np.ndarray, starts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The strings that a word has several times, once at least where a token for them would begin.

    Args:
      word: int64 [N], the word of each place, in ascending order.
      string: int64 [N], the string there.
      starts: bool [N], whether a token for the string would begin there.

    Returns:
      The indices of all such places; and, for each word and string, that of the first place where a
      token would begin.
    """
    has_start = np.zeros(word.max() + 1, bool)
    has_start[word[starts]] = True
    starts_somewhere = np.zeros(string.max() + 1, bool)
    starts_somewhere[string[starts]] = True
    index = np.flatnonzero(has_start[word] & starts_somewhere[string])
    pair = word[index] * len(starts_somewhere) + string[index]
    _, pair, count = np.unique(pair, return_inverse=True, return_counts=True)
    is_repeated = (count > 1) & (np.bincount(pair, starts[index]) > 0)
    repeated = is_repeated[pair]
    begins = repeated & starts[index]
    _, first = np.unique(pair[begins], return_index=True)
    return index[repeated], index[begins][first]


def _left_with_repeated(
    places: _Places, place: np.ndarray, string: np.ndarray, first: np.ndarray, length: int
) -> np.ndarray:
    """The pieces from places to the end of their words, if the string there were a piece, too.

    Args:
      places: the words.
      place: int64 [N], the places of all strings of this length.
      string: int64 [N], the string there.
      first: int64 [M], indices of places where a token for the string would begin.
      length: the length of the strings.
    """
    string_at = np.full(len(places.characters), -1, np.int32)
    string_at[place] = string
    here, wanted = place[first], string[first]
    left = np.zeros(len(first), np.int64)
    index = np.arange(len(first))
    while index.size:
        fits = (string_at[here] == wanted) & (places.length[here] < length)
        step = np.where(fits, length, places.length[here])
        left[index] += np.where(step > 0, 1, _COST_OF_UNKNOWN_CHARACTER)
        here = here + np.maximum(step, 1)
        is_inside = places.characters[here] > 0
        here, wanted, index = here[is_inside], wanted[is_inside], index[is_inside]
    return left


def _described(
    places: _Places, found: list[_Found], floor: int
) -> Iterator[tuple[str, int, np.ndarray]]:
    """Token, saving and words of each string that may save enough."""
    for length, each in enumerate(found, 1):
        order = np.argsort(each.string, kind="stable")
        bounds = np.searchsorted(each.string[order], [each.number, each.number + 1])
        for i in np.flatnonzero(each.potential >= floor).tolist():
            start, end = bounds[:, i].tolist()
            token = places.token_at(each.example[i], length)
            yield token, int(each.saving[i]), np.unique(each.word[order[start:end]])
