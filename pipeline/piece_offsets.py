"""The places of WordPiece tokens in the text that they were made of."""

import sys

import numpy as np

from pipeline.tokenization import BasicTokenizer, FullTokenizer


class PieceOffsets:
    """Finds where in a text each of its pieces begins, for many sentences at once.

    Args:
      tokenizer: the tokenizer that made the pieces.
    """

    def __init__(self, tokenizer: FullTokenizer):
        vocabulary = tokenizer.vocabulary
        self._begins_token = vocabulary.begins_word
        self._lengths = np.array([len(piece.removeprefix("##")) for piece in vocabulary.tokens])
        self._characters = _Characters(tokenizer.basic_tokenizer)

    def __call__(self, text: str, ids: np.ndarray) -> np.ndarray:
        """Returns where each piece begins: int64 [T], offsets in the text, ascending.

        Each basic token has one piece without `##`, its first. So its pieces are known, though the
        length of an `[UNK]` is not.

        Args:
          text: the sentences, with a line end between them.
          ids: the ids of their pieces, [T].
        """
        origins, token_starts = self._characters.tokens_of(text)
        begins_token, lengths = self._begins_token[ids], self._lengths[ids]
        token = np.cumsum(begins_token) - 1
        starts = np.cumsum(lengths) - lengths
        places_in_token = starts - starts[begins_token][token]
        return origins[token_starts[token] + places_in_token]


class _Characters:
    """What the basic tokenizer makes of each character, which is the same beside any other one.

    For example, the uncased "é" becomes an "e"; "." becomes a token, so that one token ends before
    it and another begins after it; and a space becomes nothing, but a token ends there.
    """

    def __init__(self, tokenizer: BasicTokenizer):
        self._tokenizer = tokenizer
        # By code point: how many characters it becomes (-1: not known yet), and whether a token
        # begins with the first of them, or with whatever follows the last.
        self._counts = np.full(sys.maxunicode + 1, -1, np.int8)
        self._begins_token = np.zeros(sys.maxunicode + 1, bool)
        self._ends_token = np.zeros(sys.maxunicode + 1, bool)
        # Where tokens begin inside of what a character becomes. Few have such places.
        self._inner: dict[int, list[int]] = {}

    def tokens_of(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """The characters of all basic tokens of a text, laid end to end.

        Returns:
          int64 [N], the offset in the text where each of them comes from; int64, the places among
          them where a token begins.
        """
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        for code in np.unique(codes[self._counts[codes] < 0]).tolist():
            self._learn(code)
        counts = self._counts[codes].astype(np.int64)
        ends = np.cumsum(counts)
        starts = ends - counts
        num_characters = int(counts.sum())
        begins = np.zeros(num_characters + 1, bool)
        begins[0] = True
        begins[starts[self._begins_token[codes]]] = True
        begins[ends[self._ends_token[codes]]] = True
        for code, places in self._inner.items():
            for start in starts[codes == code].tolist():
                begins[[start + place for place in places]] = True
        origins = np.repeat(np.arange(len(codes)), counts)
        return origins, np.flatnonzero(begins[:num_characters])

    def _learn(self, code: int) -> None:
        tokens = self._tokenizer.tokenize(f"x{chr(code)}x")
        ends = np.cumsum([len(token) for token in tokens])
        count = int(ends[-1]) - 2  # without each x
        places = {int(end) - 1 for end in ends[:-1]}
        self._counts[code] = count
        self._begins_token[code] = count > 0 and 0 in places
        self._ends_token[code] = count in places
        if inner := sorted(places - {0, count}):
            self._inner[code] = inner
