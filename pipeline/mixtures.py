"""Mixtures: several corpora in one data set, each with a share of the training tokens.

Shares follow from weights, or from a temperature t: each corpus gets a share in proportion to the
number of its tokens to the power of t. With t = 1 the corpora stay as they are, with t = 0 all get
the same share. Multilingual BERT took 0.7 for its languages
(https://github.com/google-research/bert/blob/master/multilingual.md, where it is the exponent S);
mmBERT took 0.7, 0.5 and 0.3, one in each phase of training (https://arxiv.org/abs/2509.06888).
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from pipeline.documents import ReadOptions
from pipeline.errors import UserError
from pipeline.inputs import InputFile, InputFormat, match_files

_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Corpus:
    """One corpus of a mixture.

    Attributes:
      name: its name in reports, and the first part of its documents' ids.
      input_patterns: paths, URLs and globs of its files.
      input_format: how its documents and sentences are laid out.
      reading: how its documents are read.
      weight: its share of the training tokens, relative to the other weights; None: the mixture
        has a temperature.

    Raises:
      UserError: the name or the weight is out of range.
    """

    name: str
    input_patterns: list[str]
    input_format: InputFormat = InputFormat.AUTO
    reading: ReadOptions = field(default_factory=ReadOptions)
    weight: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"the name {self.name!r} of a corpus must be letters, digits, and _ - . after the "
                "first"
            )
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise UserError(
                f"the weight {self.weight} of the corpus {self.name} must be above 0, and finite"
            )


@dataclass(frozen=True)
class Mixture:
    """Several corpora, and how large the share of each is. Their order has no effect.

    Attributes:
      corpora: the corpora; they become sorted by name.
      temperatures: the exponent of all passes, or one for each pass; empty: each corpus has a
        weight.

    Raises:
      UserError: there is no corpus, two have one name, a temperature is out of range, or the shares
        follow from nothing or from two things.
    """

    corpora: tuple[Corpus, ...]
    temperatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.corpora:
            raise UserError("a mixture needs a corpus: write a table [[corpus]] for each")
        counts = Counter(corpus.name for corpus in self.corpora)
        for name, count in counts.items():
            if count > 1:
                raise UserError(f"{count} corpora have the name {name}: give each its own")
        for corpus in self.corpora:
            if self.temperatures and corpus.weight is not None:
                raise UserError(
                    f"the corpus {corpus.name} has a weight, but the mixture has a temperature: "
                    "remove one of the two"
                )
            if not self.temperatures and corpus.weight is None:
                raise UserError(
                    f"the corpus {corpus.name} has no weight: give each corpus one, or give a "
                    "temperature instead of weights"
                )
        for temperature in self.temperatures:
            if not 0 <= temperature <= 1:
                raise UserError(
                    f"the temperature {temperature} must lie between 0 and 1: it is the exponent "
                    "of the corpora's sizes (for T of p^(1/T), give 1/T)"
                )
        by_name = sorted(self.corpora, key=lambda corpus: corpus.name)
        object.__setattr__(self, "corpora", tuple(by_name))

    @property
    def names(self) -> list[str]:
        """The names of the corpora, sorted."""
        return [corpus.name for corpus in self.corpora]

    def shares(self, tokens: np.ndarray, num_passes: int) -> np.ndarray:
        """The share of the training tokens that each corpus shall have, float64 [passes, corpora].

        Args:
          tokens: int64 [corpora], the sizes of the corpora, sorted by name; at least 1.
          num_passes: the number of passes over the mixture.
        """
        if self.temperatures:
            exponents = np.broadcast_to(self.temperatures, num_passes)
            weights = (tokens / tokens.sum()) ** exponents[:, np.newaxis]
        else:
            row = np.array([corpus.weight for corpus in self.corpora], np.float64)
            weights = np.tile(row / row.max(), (num_passes, 1))
        return weights / weights.sum(axis=1, keepdims=True)

    def as_options(self) -> dict[str, Any]:
        """What decides the shares, as JSON values."""
        if self.temperatures:
            return {"temperature": list(self.temperatures)}
        return {"weights": {corpus.name: corpus.weight for corpus in self.corpora}}

    def reading_options(self) -> Mapping[str, Any]:
        """How the documents of each corpus are read, as JSON values."""
        return {
            corpus.name: {"input_format": corpus.input_format, **asdict(corpus.reading)}
            for corpus in self.corpora
        }


def match_corpora(mixture: Mixture) -> list[InputFile]:
    """Finds the files of all corpora, as `match_files`, corpus by corpus.

    The name of a corpus is the first part of the names of its files, so moving one corpus changes
    nothing.

    Raises:
      UserError: two corpora share a file, or as of `match_files`.
    """
    files: list[InputFile] = []
    corpus_of: dict[str, str] = {}
    corpus_offset = 0
    for corpus in mixture.corpora:
        try:
            found = match_files(corpus.input_patterns, corpus.input_format, corpus.reading.encoding)
        except UserError as error:
            raise UserError(f"the corpus {corpus.name}: {error}") from error
        for file in found:
            if (other := corpus_of.setdefault(file.path, corpus.name)) != corpus.name:
                raise UserError(
                    f"{file.path} is a file of the corpora {other} and {corpus.name}: leave it out "
                    "of one of them"
                )
            files.append(
                replace(
                    file,
                    name=f"{corpus.name}/{file.name}",
                    corpus_offset=corpus_offset,
                    corpus=corpus.name,
                )
            )
            corpus_offset += file.text_bytes
    return files
