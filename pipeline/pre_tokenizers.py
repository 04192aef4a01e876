"""What finds the words before WordPiece does: part of the contract with `modeling`."""

from enum import StrEnum

from pipeline.errors import UserError


class PreTokenizer(StrEnum):
    """The pre-tokenizers of Japanese text, as transformers' `BertJapaneseTokenizer` has them."""

    MECAB = "mecab"
    """MeCab with the dictionary unidic-lite, as in tohoku-nlp's second and third models."""
    MECAB_IPADIC = "mecab_ipadic"
    """MeCab with the dictionary IPAdic, as in tohoku-nlp's first models."""
    SUDACHI = "sudachi"
    """Sudachi with its core dictionary, in its shortest units."""

    @property
    def packages(self) -> tuple[str, str]:
        """The packages that it needs: that of the code, and that of the dictionary."""
        return _PACKAGES[self]


_PACKAGES = {
    PreTokenizer.MECAB: ("fugashi", "unidic-lite"),
    PreTokenizer.MECAB_IPADIC: ("fugashi", "ipadic"),
    PreTokenizer.SUDACHI: ("sudachipy", "sudachidict-core"),
}


def accents_with(pre_tokenizer: PreTokenizer | None, strip_accents: bool | None) -> bool | None:
    """What becomes of the option `strip_accents`, because pre-tokenizers always keep accents.

    Raises:
      UserError: they are to be stripped.
    """
    if pre_tokenizer is None:
        return strip_accents
    if strip_accents:
        raise UserError(
            f"leave out --strip_accents: with --pre_tokenizer={pre_tokenizer}, accents are kept"
        )
    return False
