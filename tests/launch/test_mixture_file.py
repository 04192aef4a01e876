import pytest

from launch.mixture_file import read_mixture
from pipeline.documents import BadRecord, Documents, ReadOptions, Sentences
from pipeline.errors import UserError
from pipeline.inputs import InputFormat
from pipeline.mixtures import Corpus, Mixture

pytestmark = pytest.mark.no_backend

FLAGS = ReadOptions(text_field="body", min_document_characters=5)
TWO = """
[[corpus]]
name = "a"
input_file = "a.txt"
{}

[[corpus]]
name = "b"
input_file = "b.txt"
{}
"""


@pytest.fixture
def read(tmp_path):
    """Reads a mixture from the text of a file."""

    def read_text(text, encoding="utf-8"):
        path = tmp_path / "mixture.toml"
        path.write_bytes(text.encode(encoding))
        return read_mixture(str(path), InputFormat.JSONL, FLAGS)

    return read_text


def test_flags_give_the_defaults(read, tmp_path):
    (tmp_path / "list").write_text("c,1.txt\nd.txt\n")
    mixture = read(
        f"""
        [[corpus]]
        name = "b"
        weight = 2
        input_file = ["b/*.txt", "s3://bucket/b,c", "@{tmp_path}/list"]

        [[corpus]]
        name = "a"
        weight = 0.5
        input_file = "a/1.csv,a/2.csv"
        input_format = "text"
        text_field = "content"
        documents = "lines"
        sentences = "split"
        on_bad_record = "skip"
        min_document_characters = 0
        encoding = "latin1"
        """
    )
    reading = ReadOptions(
        "content", Documents.LINES, Sentences.SPLIT, BadRecord.SKIP, 0, "iso8859-1"
    )
    assert mixture == Mixture(
        (
            Corpus("a", ["a/1.csv", "a/2.csv"], InputFormat.TEXT, reading, 0.5),
            Corpus(
                "b",
                ["b/*.txt", "s3://bucket/b,c", "c,1.txt", "d.txt"],
                InputFormat.JSONL,
                FLAGS,
                2.0,
            ),
        )
    )


@pytest.mark.parametrize(
    ("text", "temperatures"),
    [("0.7", (0.7,)), ("1", (1.0,)), ("[0.7, 0.5, 0.3]", (0.7, 0.5, 0.3))],
)
def test_a_temperature_takes_the_place_of_weights(read, text, temperatures):
    assert read(f"temperature = {text}\n" + TWO.format("", "")).temperatures == temperatures


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML: Invalid value"),
        ("", r"a mixture needs a corpus: write a table \[\[corpus\]\] for each"),
        ("corpus = 1", r"corpus must be tables: write \[\[corpus\]\] above the keys of each"),
        ("[corpus]\nname='a'", r"corpus must be tables: write \[\[corpus\]\]"),
        ("weights = 1", "unknown key weights: the known ones are corpus, temperature"),
        ("temprature = 1", "unknown key temprature: did you mean temperature"),
        (TWO.format("wieght=1", ""), "the corpus a: unknown key wieght: did you mean weight"),
        (TWO.format("zzz=1", ""), "the corpus a: unknown key zzz: the known ones are name, i"),
        ("[[corpus]]\ninput_file = 'a'", r"\[\[corpus\]\] number 1: it has no name"),
        ("[[corpus]]\nname = 'a'", "the corpus a: it has no input_file"),
        ("[[corpus]]\nname = 1\ninput_file='a'", r"number 1: name must be text, not 1"),
        (
            "[[corpus]]\nname='a b'\ninput_file='x'\nweight=1",
            "the name 'a b' of a corpus must be letters",
        ),
        (
            "[[corpus]]\nname='a'\ninput_file=''\nweight=1",
            "the corpus a: input_file is empty: give a path",
        ),
        ("[[corpus]]\nname='a'\ninput_file=[]", "the corpus a: input_file is empty"),
        ("[[corpus]]\nname='a'\ninput_file=[1]", "the corpus a: input_file must be text, not 1"),
        (
            "[[corpus]]\nname='a'\ninput_file='@/none/list'",
            "the corpus a: cannot read input_file=@/none/list: No such file",
        ),
        (TWO.format("weight='1'", ""), "the corpus a: weight must be a number, not '1'"),
        (TWO.format("weight=true", ""), "the corpus a: weight must be a number, not True"),
        (TWO.format("weight=0", ""), "the weight 0.0 of the corpus a must be above 0"),
        (TWO.format("weight=nan", ""), "the weight nan of the corpus a must be above 0"),
        (TWO.format("weight=1", ""), "the corpus b has no weight: give each corpus one"),
        (
            "temperature = 0.7" + TWO.format("weight=1", ""),
            "the corpus a has a weight, but the mixture has a temperature: remove one of the two",
        ),
        (
            TWO.format("weight=1", "weight=2").replace('"b"', '"a"'),
            "2 corpora have the name a: give each its own",
        ),
        ("temperature = 5" + TWO.format("", ""), "temperature 5.0 must lie between 0 and 1"),
        ("temperature = []" + TWO.format("", ""), "temperature is empty: give a number"),
        ("temperature = ['a']", "temperature must be a number, not 'a'"),
        (TWO.format("documents='line'", ""), "documents = 'line' must be one of blank_lines, lin"),
        (TWO.format("input_format=1", ""), "the corpus a: input_format must be text, not 1"),
        (
            TWO.format("min_document_characters=1.5", ""),
            "the corpus a: min_document_characters must be a whole number, not 1.5",
        ),
        (
            TWO.format("min_document_characters=-1", ""),
            "the corpus a: --min_document_characters=-1 must not be negative",
        ),
        (TWO.format("encoding='none'", ""), "the corpus a: --encoding=none is unknown"),
    ],
)
def test_each_mistake_is_one_line_with_the_file(read, text, message):
    with pytest.raises(UserError, match=message) as error:
        read(text)
    assert "mixture.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_one_line(read, tmp_path):
    with pytest.raises(UserError, match=r"mixture.toml is not UTF-8 text"):
        read("name = 'ä'", "latin1")
    with pytest.raises(UserError, match=r"cannot read --mixture=.*none.toml: No such file"):
        read_mixture(f"{tmp_path}/none.toml", InputFormat.AUTO, FLAGS)


def test_a_mark_of_the_byte_order_is_no_mistake(read):
    assert read(TWO.format("weight=1", "weight=2"), "utf-8-sig").names == ["a", "b"]


@pytest.mark.parametrize("pattern", ["", "/*", "/**/*.toml", "/mixture.toml"])
def test_a_mixture_is_no_text_of_its_corpora(pattern, read, tmp_path):
    corpus = f"[[corpus]]\nname = 'a'\nweight = 1\ninput_file = '{tmp_path}{pattern}'"
    with pytest.raises(UserError, match=r"also matches .*mixture.toml, of --mixture: keep that"):
        read(corpus)
