import codecs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.encodings import canonical_encoding, likely_encoding, problem_of_text, to_utf8
from pipeline.errors import UserError

GERMAN = "Der Bäcker heißt Müller.\nEr öffnet früh.\n\nDie Straße führt über die Brücke.\n"
FRENCH = "Le garçon a mangé une crème brûlée à l'hôtel près de la forêt.\n"
POLISH = "Zażółć gęślą jaźń. Książka leży na półce obok łóżka, a święty Mikołaj jeździ saniami.\n"
RUSSIAN = "Пекарь рано утром продаёт булочки и пироги. Улица мокрая.\n"
JAPANESE = "パン屋は朝早くパンを売っています。通りは濡れていますが、家の上はきれいです。\n"
CHINESE = "面包师一大早就卖面包和蛋糕。街道是湿的，但是房子上面变得很漂亮。\n"
TAIWANESE = "麵包師一大早就賣麵包和蛋糕。街道是濕的，但是房子上面變得很漂亮。\n"
KOREAN = "빵집 주인은 아침 일찍 빵과 케이크를 팝니다. 거리는 젖었지만 집 위는 아름다워집니다.\n"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "latin-1"),
        (GERMAN, "cp1252"),
        (GERMAN, "utf-16-le"),
        (GERMAN, "utf-16-be"),
        (GERMAN, "utf-32-le"),
        (FRENCH, "latin-1"),
        (POLISH, "cp1250"),
        (POLISH, "iso8859-2"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "utf-16-le"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc-jp"),
        (JAPANESE, "iso2022_jp"),
        (CHINESE, "gb18030"),
        (CHINESE, "gbk"),
        (CHINESE, "utf-16-le"),
        (TAIWANESE, "big5"),
        (KOREAN, "euc-kr"),
    ],
)
def test_the_likely_encoding_reads_the_text(text, encoding):
    head = text.encode(encoding)
    problem = problem_of_text(head, False, None)
    likely = problem.partition("--encoding=")[2].split(";")[0]
    assert head.decode(likely) == text


def test_windows_1252_stands_for_the_encodings_that_give_the_same_text():
    assert likely_encoding(GERMAN.encode("latin-1")) == "cp1252"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(encoding):
    problem = problem_of_text(GERMAN.encode(encoding), False, None)
    assert problem == f"is {encoding.upper()}: give --encoding={encoding}"


def test_utf8_has_no_problem():
    for text in ("", "One.\n", GERMAN, "\ufeff" + CHINESE, "a\0b" + "One.\n" * 50):
        assert problem_of_text(text.encode(), False, None) is None
    cut = CHINESE.encode()[:-2]
    assert problem_of_text(cut, True, None) is None
    assert "--encoding=utf-8 drops" in problem_of_text(cut, False, None)


def test_a_given_encoding_may_have_invalid_lines_but_not_many_nuls():
    assert problem_of_text(b"B\xe4r.\n", False, "utf-8") is None
    assert problem_of_text(b"\x81\n" + JAPANESE.encode("shift_jis"), False, "shift_jis") is None
    head = "One.\n".encode("utf-16-le")
    assert problem_of_text(head, False, "latin-1").startswith("is not text in latin-1: it has many")
    assert "--encoding=utf-16-le" in problem_of_text(head, False, "utf-8")


def test_text_that_is_utf8_is_not_read_as_another_encoding():
    assert "is UTF-8, not cp1252" in problem_of_text(GERMAN.encode() * 2, False, "cp1252")
    assert problem_of_text("Ã¤".encode("cp1252"), False, "cp1252") is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("latin1", "iso8859-1"),
        ("Windows-1252", "cp1252"),
        ("UTF8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("UTF-16", "utf-16"),
        ("shift_jis", "shift_jis"),
    ],
)
def test_an_encoding_has_one_name(name, expected):
    assert canonical_encoding(name) == expected


@pytest.mark.parametrize("name", ["", "nonsense", "rot13", "base64", "zlib", "a\0b", "ü", "idna2"])
def test_an_unknown_encoding_is_an_error(name):
    with pytest.raises(UserError, match="--encoding="):
        canonical_encoding(name)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["cp1252", "utf-16", "utf-16-be", "shift_jis", "gb18030", "iso2022_jp"]),
    st.text(st.sampled_from("aB \n字。")),
    st.integers(1, 9),
)
def test_blocks_may_end_anywhere(encoding, text, block_bytes):
    text = text.replace("字", "").replace("。", "") if encoding == "cp1252" else text
    stored = text.encode(encoding)
    blocks = [stored[i : i + block_bytes] for i in range(0, len(stored), block_bytes)]
    assert b"".join(to_utf8(blocks, encoding)).decode() == text


@pytest.mark.parametrize(
    ("encoding", "stored"),
    [
        ("cp1252", b"a\x81b\n"),
        ("shift_jis", b"a\xffb\n"),
        ("utf-16-le", b"a\0\0\xdcb\0\n\0"),
        ("ascii", b"a\xe4b\n"),
    ],
)
def test_what_is_invalid_stays_invalid_and_is_dropped_with_the_line_counted(encoding, stored):
    (line,) = b"".join(to_utf8([stored], encoding)).splitlines()
    with pytest.raises(UnicodeDecodeError):
        line.decode("utf-8")
    assert line.decode("utf-8", "ignore") == "ab"


def test_utf8_passes_through():
    blocks = [b"a\xff", codecs.BOM_UTF8]
    assert list(to_utf8(blocks, None)) == blocks
