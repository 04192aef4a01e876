import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.documents import Documents, ReadOptions
from pipeline.errors import UserError
from pipeline.inputs import InputFormat
from pipeline.mixtures import Corpus, Mixture, match_corpora
from pipeline.options import InstanceOptions


def weighted(**weights):
    return Mixture(tuple(Corpus(name, ["x"], weight=weight) for name, weight in weights.items()))


def tempered(*temperatures, names=("a", "b")):
    return Mixture(tuple(Corpus(name, ["x"]) for name in names), temperatures)


def test_weights_are_relative_and_the_order_of_corpora_has_no_effect():
    mixture = weighted(b=1, a=3)
    assert mixture.names == ["a", "b"]
    assert mixture == weighted(a=3, b=1)
    assert mixture.shares(np.array([5, 5]), 2).tolist() == [[0.75, 0.25], [0.75, 0.25]]
    assert mixture.as_options() == {"weights": {"a": 3, "b": 1}}


def test_weights_may_be_as_large_as_a_number():
    shares = weighted(a=1e308, b=1e308, c=1e-300).shares(np.array([1, 1, 1]), 1)
    assert shares[0] == pytest.approx([0.5, 0.5, 0])


def test_a_temperature_is_the_exponent_of_multilingual_bert():
    """Its example: a language with 1000 times the text of another gets about 100 times as much."""
    ((large, small),) = tempered(0.7).shares(np.array([1000, 1]), 1)
    assert large / small == pytest.approx(1000**0.7)
    assert 100 < large / small < 130
    assert large + small == pytest.approx(1)


def test_each_pass_may_have_its_own_temperature_as_each_phase_of_mmbert():
    tokens = np.array([900, 100])
    shares = tempered(1, 0.5, 0).shares(tokens, 3)
    assert shares[:, 0] == pytest.approx([0.9, 0.75, 0.5])
    assert tempered(0.5).shares(tokens, 3)[:, 0] == pytest.approx([0.75] * 3)
    assert tempered(1, 0.5, 0).as_options() == {"temperature": [1, 0.5, 0]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture(()), r"needs a corpus: write a table \[\[corpus\]\]"),
        (lambda: weighted(a=0), "the weight 0 of the corpus a must be above 0"),
        (lambda: weighted(a=-1.5), "the weight -1.5 of the corpus a must be above 0"),
        (lambda: weighted(a=math.nan), "the weight nan of the corpus a"),
        (lambda: weighted(a=math.inf), "the weight inf of the corpus a must .* finite"),
        (lambda: weighted(a=1, b=None), "the corpus b has no weight: give each corpus one, or"),
        (lambda: tempered(0.5, names="aba"), "2 corpora have the name a"),
        (lambda: tempered(1.5), r"the temperature 1.5 must lie between 0 and 1.*give 1/T"),
        (lambda: tempered(-0.1), "the temperature -0.1 must"),
        (lambda: tempered(math.nan), "the temperature nan must"),
        (
            lambda: Mixture((Corpus("a", ["x"], weight=1.0),), (0.7,)),
            "the corpus a has a weight, but the mixture has a temperature: remove one",
        ),
        (lambda: Corpus("a/b", ["x"]), "the name 'a/b' of a corpus must be letters"),
        (lambda: Corpus("", ["x"]), "the name '' of a corpus must be letters"),
        (lambda: Corpus(".a", ["x"]), "the name '.a' of a corpus"),
        (lambda: Corpus("a\n", ["x"]), "the name 'a.n' of a corpus"),
    ],
)
def test_a_mixture_that_cannot_be_made_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_names_may_be_of_any_script():
    assert weighted(**{"日本語": 1, "de-wiki_2.0": 1}).names == ["de-wiki_2.0", "日本語"]


def test_there_are_as_many_temperatures_as_passes(options):
    instances = InstanceOptions(dupe_factor=3)
    for temperatures in ((0.7,), (0.7, 0.5, 0.3)):
        replace(options, instances=instances, mixture=tempered(*temperatures))
    with pytest.raises(UserError, match="has 2 temperatures, but --dupe_factor=3 passes"):
        replace(options, instances=instances, mixture=tempered(0.7, 0.5))


def test_each_corpus_is_read_in_its_own_way(options):
    of_lines = ReadOptions(documents=Documents.LINES)
    mixture = Mixture((Corpus("a", ["x"], reading=of_lines), Corpus("b", ["x"])), (0.7,))
    mixed = replace(options, mixture=mixture)
    assert mixed.reading_of("a") == of_lines
    assert mixed.reading_of("b") == ReadOptions()
    assert options.reading_of(None) == options.reading


@pytest.fixture
def folders(tmp_path):
    for name in ("a/1.txt", "a/sub/2.txt", "b/1.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}\n")
    (tmp_path / "b" / "2.jsonl").write_text('{"body": "some text"}\n')
    return tmp_path


def test_files_of_corpora_have_names_of_their_own(folders):
    mixture = Mixture(
        (
            Corpus("second", [f"{folders}/b"]),
            Corpus("first", [f"{folders}/a/**"], InputFormat.TEXT),
        ),
        (1.0,),
    )
    files = match_corpora(mixture)
    assert [(file.corpus, file.name, file.format) for file in files] == [
        ("first", "first/1.txt", "text"),
        ("first", "first/sub/2.txt", "text"),
        ("second", "second/1.txt", "text"),
        ("second", "second/2.jsonl", "jsonl"),
    ]
    sizes = [file.size for file in files]
    assert [file.corpus_offset for file in files] == [sum(sizes[:n]) for n in range(4)]


def test_two_corpora_cannot_share_a_file(folders):
    mixture = Mixture((Corpus("a", [f"{folders}/a"]), Corpus("all", [f"{folders}/*/1.txt"])), (1,))
    with pytest.raises(UserError, match=r"/a/1.txt is a file of the corpora a and all: leave"):
        match_corpora(mixture)


def test_what_is_wrong_with_the_files_of_a_corpus_is_told_with_its_name(folders):
    mixture = Mixture((Corpus("a", [f"{folders}/a"]), Corpus("b", [f"{folders}/none*"])), (1,))
    with pytest.raises(UserError, match=r"^the corpus b: no input file matches"):
        match_corpora(mixture)
