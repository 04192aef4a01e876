"""The health check: the shares of a data set that are out of bounds, and what mends each.

Each line gives the share, what is usual, and the flag that helps in this very case.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.manifest import CORPORA
from pipeline.pre_tokenization import make_tokenizer
from pipeline.sentence_pairs import SentencePairs
from pipeline.sentences import split_sentences
from pipeline.statistics import num_sequences
from pipeline.tokenization import FullTokenizer
from pipeline.vocabulary import MAX_CHARACTERS_PER_WORD

if TYPE_CHECKING:  # these load Beam, which `adopt` does without
    from pipeline.options import GenerateOptions, InstanceOptions
    from pipeline.sample import Sample

_MOST_UNKNOWN = 0.05
_LEAST_OF_MASKED_LM_PROB = 0.5
_MOST_WITHOUT_MASK = 0.05
_LEAST_RANDOM_NEXT, _MOST_RANDOM_NEXT = 0.1, 0.9  # and of swapped pairs
_MOST_WITHOUT_PAIR = 0.2
_MOST_INVALID_LINES = 0.01
_MOST_TRUNCATED = 0.2
# The share of capitals among a text's characters up to which its case does not matter.
_FEWEST_CAPITALS = 0.001
# Below this, the share of random or of swapped B may be out of bounds by chance alone.
_FEWEST_INSTANCES = 10
# As many of the sample's words are tokenized, the most frequent ones.
_MOST_WORDS = 5000

_UNKNOWN = "{} of the tokens are [UNK]; usual is below 5%: {}"
_WITHOUT_MASK = "{} of the instances have no mask; usual is none: {}"
_LONG_WORDS = (
    f"words of more than {MAX_CHARACTERS_PER_WORD} characters become [UNK], so separate their "
    "parts by spaces"
)
_RANDOM_NEXT = "{:.1%} of the instances have a random B; usual is about 50%: {}"


def health_lines(
    statistics: Mapping[str, Any],
    options: "GenerateOptions",
    sample: "Sample",
    case: str | None,
) -> list[str]:
    """A line for each share of the training instances, or of the text, that is out of bounds.

    The shares of masks that are drawn while training are those of the eval instances.

    Args:
      statistics: those of the manifest.
      options: how the data set was made.
      sample: a part of the text, which tells what helps.
      case: the result of `case_line`.
    """
    corpus, train = statistics["corpus"], statistics["train"]
    # Masks that the trainer draws are like those of the eval instances.
    masked = train if "masked" in train else statistics.get("eval")
    lines = [
        *_of_text(corpus, sample, options, case),
        *_of_corpora(statistics.get(CORPORA, {})),
        *(_of_masks(masked, options.instances) if masked else []),
        *_of_pairs(corpus, train, sample, options),
    ]
    special = 2 if options.instances.sentence_pairs == SentencePairs.NONE else 3
    if truncated := _share(
        train["tokens_truncated"],
        train["tokens_truncated"] + train["tokens"] - special * num_sequences(train),
        above=_MOST_TRUNCATED,
    ):
        advice = "most sentences are too long, so increase --max_seq_length"
        if _is_running_text(sample):
            advice = "the lines are running text, so give --sentences=split"
        lines.append(f"{truncated} of the tokens are cut off; usual is below 20%: {advice}")
    return lines


def health_of_records(statistics: Mapping[str, Any]) -> list[str]:
    """As `health_lines`, from what records of other software show by themselves."""
    corpus, train = statistics["corpus"], statistics["train"]
    advice = "make the records again, with other options"
    lines = []
    if unknown := _share(corpus["unknown_tokens"], corpus["tokens"], above=_MOST_UNKNOWN):
        lines.append(_UNKNOWN.format(unknown, advice))
    if unmasked := _share(
        train["instances_without_mask"], num_sequences(train), above=_MOST_WITHOUT_MASK
    ):
        lines.append(_WITHOUT_MASK.format(unmasked, advice))
    share = train["random_next"] / num_sequences(train)
    is_usual = _LEAST_RANDOM_NEXT <= share <= _MOST_RANDOM_NEXT
    if num_sequences(train) >= _FEWEST_INSTANCES and not is_usual:
        lines.append(_RANDOM_NEXT.format(share, advice))
    return lines


def case_line(sample: "Sample", options: "GenerateOptions") -> str | None:
    """A line if the vocabulary is of another case than `do_lower_case` makes of the text.

    The text's own words with capitals decide it: whether the vocabulary has them with their
    capitals, or without. So a script without case never gets a line.
    """
    words = [
        (word, n)
        for word, n in sample.words.most_common()
        if word != word.lower() and len(word) <= MAX_CHARACTERS_PER_WORD
    ]
    capitals = sum(n * sum(each != each.lower() for each in word) for word, n in words)
    characters = sum(n * len(word) for word, n in sample.words.items())
    if capitals <= characters * _FEWEST_CAPITALS:
        return None
    kept, lowered = (
        make_tokenizer(options.vocab_file, lower, options.strip_accents, options.pre_tokenizer)
        for lower in (False, True)
    )
    some = words[:_MOST_WORDS]
    total = wrong = 0
    for (_, count), as_it_is, lower in zip(
        some, _encoded(kept, some), _encoded(lowered, some), strict=True
    ):
        num_kept, unknown_kept = as_it_is
        num_lowered, unknown_lowered = lower
        if options.do_lower_case:
            is_wrong = not unknown_kept and (unknown_lowered or num_kept <= num_lowered)
        else:
            is_wrong = unknown_kept and not unknown_lowered
        total += count
        wrong += count * is_wrong
    if 2 * wrong <= total:
        return None
    if options.do_lower_case:
        return (
            f"{wrong / total:.1%} of the words with capitals are in the vocabulary with them, but "
            "are lower-cased; usual is none: the vocabulary is cased, so give --nodo_lower_case"
        )
    return (
        f"{wrong / total:.1%} of the words with capitals are [UNK], but would not be without them; "
        "usual is none: the vocabulary is uncased, so give --do_lower_case"
    )


def _encoded(tokenizer: FullTokenizer, words: list[tuple[str, int]]) -> list[tuple[int, bool]]:
    """For each word: how many pieces it has, and whether one of them is `[UNK]`."""
    ids, lengths = tokenizer.encode_sentences([word for word, _ in words])
    unknown = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(ids == tokenizer.vocabulary.ids["[UNK]"], out=unknown[1:])
    ends = np.cumsum(lengths)
    has_unknown = unknown[ends] > unknown[ends - lengths]
    return list(zip(lengths.tolist(), has_unknown.tolist(), strict=True))


def _of_text(
    corpus: Mapping[str, Any], sample: "Sample", options: "GenerateOptions", case: str | None
) -> Iterator[str]:
    if unknown := _share(corpus["unknown_tokens"], corpus["tokens"], above=_MOST_UNKNOWN):
        yield _UNKNOWN.format(unknown, _what_helps_unknown(sample, options))
    elif line := _long_words_line(sample, options):
        yield line
    if case:
        yield case
    # A corpus that an earlier build has tokenized does not count its lines.
    if invalid := _share(
        corpus["lines_with_invalid_utf8"], corpus.get("lines_read", 0), above=_MOST_INVALID_LINES
    ):
        yield (
            f"{invalid} of the lines have invalid UTF-8, which was dropped; usual is none: give "
            "the text's --encoding, or convert it to UTF-8"
        )


def _of_corpora(corpora: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Lines for corpora of a mixture: those of much `[UNK]`, and those that no pass reads."""
    for name, facts in corpora.items():
        if unknown := _share(facts["unknown_tokens"], facts["tokens"], above=_MOST_UNKNOWN):
            yield (
                f"{unknown} of the tokens of the corpus {name} are [UNK]; usual is below 5%: the "
                "vocabulary is of other text, so give another --vocab_file, or leave this corpus "
                "out"
            )
        if not any(facts["documents_read"]):
            yield (
                f"no pass reads the corpus {name}, because less than half of a document is asked: "
                "raise its share, or leave this corpus out"
            )


def _of_masks(split: Mapping[str, Any], options: "InstanceOptions") -> Iterator[str]:
    if split["masked"] < split["tokens"] * options.masked_lm_prob * _LEAST_OF_MASKED_LM_PROB:
        advice = "the words have too many pieces, so give --nodo_whole_word_mask"
        if options.max_predictions_per_seq < options.default_predictions:
            advice = (
                f"--max_predictions_per_seq={options.max_predictions_per_seq} cuts it, so give "
                f"{options.default_predictions}"
            )
        yield (
            f"{split['share_masked']:.1%} of the tokens are masked; usual is "
            f"{options.masked_lm_prob:.1%}, as --masked_lm_prob says: {advice}"
        )
    if unmasked := _share(
        split["instances_without_mask"], num_sequences(split), above=_MOST_WITHOUT_MASK
    ):
        yield _WITHOUT_MASK.format(
            unmasked, "the words have too many pieces, so give --nodo_whole_word_mask"
        )


def _of_pairs(
    corpus: Mapping[str, Any],
    train: Mapping[str, Any],
    sample: "Sample",
    options: "GenerateOptions",
) -> Iterator[str]:
    match options.instances.sentence_pairs:
        case SentencePairs.NEXT:
            yield from _of_next_sentences(corpus, train, sample, options)
        case SentencePairs.ORDER:
            yield from _of_sentence_order(train, sample)


def _of_sentence_order(train: Mapping[str, Any], sample: "Sample") -> Iterator[str]:
    pairs, dropped = num_sequences(train), train["chunks_without_next"]
    if without := _share(dropped, dropped + pairs, above=_MOST_WITHOUT_PAIR):
        yield (
            f"{without} of the pairs are left out, because their document is a single sentence; "
            f"usual is below 20%: {_single_sentences_advice(sample)}"
        )
    share = train["swapped"] / pairs
    is_usual = _LEAST_RANDOM_NEXT <= share <= _MOST_RANDOM_NEXT
    if pairs >= _FEWEST_INSTANCES and not is_usual:
        yield (
            f"{share:.1%} of the pairs are swapped; usual is about 50%: there are too few, so "
            "give more text"
        )


def _single_sentences_advice(sample: "Sample") -> str:
    if _is_running_text(sample):
        return "the lines are running text, so give --sentences=split"
    return "most documents are one sentence, so remove the blank lines within documents"


def _of_next_sentences(
    corpus: Mapping[str, Any],
    train: Mapping[str, Any],
    sample: "Sample",
    options: "GenerateOptions",
) -> Iterator[str]:
    documents = corpus["documents_tokenized"]
    are_single = corpus["sentences_read"] - corpus["sentences_without_tokens"] == documents
    if num_sequences(train) < _FEWEST_INSTANCES and documents > 1 and not are_single:
        return
    share = train["random_next"] / num_sequences(train)
    if _LEAST_RANDOM_NEXT <= share <= _MOST_RANDOM_NEXT:
        return
    if share > _MOST_RANDOM_NEXT:
        advice = _single_sentences_advice(sample)
    elif options.num_shards and documents < 2 * options.num_shards:
        advice = "most shards have only one document, so decrease --num_shards"
    elif corpus.get("text_files_without_blank_line"):
        advice = "no blank line ends a document, so give --documents=lines if each line is one"
    else:
        advice = "there are too few documents, so give more, in text with blank lines between them"
    yield _RANDOM_NEXT.format(share, advice)


def _what_helps_unknown(sample: "Sample", options: "GenerateOptions") -> str:
    lower, strip = options.do_lower_case, options.strip_accents
    now, by_long_words = _unknown_words(sample, options, lower, strip)
    others = [
        (lower, not (lower if strip is None else strip)),
        (not lower, strip),
        (not lower, lower if strip is None else not strip),
    ]
    if options.pre_tokenizer:  # which keeps accents
        others = [(not lower, strip)]
    unknown = [_unknown_words(sample, options, *other)[0] for other in others]
    if 2 * min(unknown) < now:
        other_lower, other_strip = others[unknown.index(min(unknown))]
        flags = []
        if other_lower != lower:
            flags.append("--do_lower_case" if other_lower else "--nodo_lower_case")
        if other_strip != strip:
            flags.append("--strip_accents" if other_strip else "--nostrip_accents")
        return f"the vocabulary was made with {' '.join(flags)}, so give that"
    if 2 * by_long_words > now and not options.pre_tokenizer:
        return _LONG_WORDS
    return (
        "the vocabulary is of other text, so give another --vocab_file; `clozemill vocab` makes "
        "one of this text"
    )


def _long_words_line(sample: "Sample", options: "GenerateOptions") -> str | None:
    """A line if much of the text becomes `[UNK]` with few words, each too long for any token."""
    words = [word for word in sample.words if len(word) > MAX_CHARACTERS_PER_WORD]
    if not words or options.pre_tokenizer:  # which splits them
        return None
    tokenizer = FullTokenizer(options.vocab_file, options.do_lower_case, options.strip_accents)
    unknown = tokenizer.vocabulary.ids["[UNK]"]
    lost = sum(
        len(word) * sample.words[word] for word in words if unknown in tokenizer.encode(word)
    )
    characters = sum(n * len(word) for word, n in sample.words.items())
    share = _share(lost, characters, above=_MOST_UNKNOWN)
    return (
        f"{share} of the characters are [UNK]; usual is below 5%: {_LONG_WORDS}" if share else None
    )


def _unknown_words(
    sample: "Sample", options: "GenerateOptions", do_lower_case: bool, strip_accents: bool | None
) -> tuple[int, int]:
    """How many words of the sample have an `[UNK]`, and how many of these are too long for any."""
    tokenizer = make_tokenizer(
        options.vocab_file, do_lower_case, strip_accents, options.pre_tokenizer
    )
    unknown = tokenizer.vocabulary.ids["[UNK]"]
    found = [
        (word, count)
        for word, count in sample.words.most_common(_MOST_WORDS)
        if unknown in tokenizer.encode(word)
    ]
    return (
        sum(count for _, count in found),
        sum(count for word, count in found if len(word) > MAX_CHARACTERS_PER_WORD),
    )


def _is_running_text(sample: "Sample") -> bool:
    """Whether the sample's sentences are in fact two or more on average."""
    sentences = [sentence for document in sample.documents for sentence in document.sentences]
    return sum(len(split_sentences(sentence)) for sentence in sentences) >= 2 * len(sentences) > 0


def _share(part: int, whole: int, above: float) -> str:
    """The share as a percentage if it is above a bound; otherwise an empty string."""
    return f"{part / whole:.1%}" if part > above * whole > 0 else ""
