"""Processes that start at once; an object store; Japanese; and a line on what tests need."""

import itertools
import multiprocessing.forkserver
import re
import struct
from collections import Counter
from collections.abc import Iterator

import pytest

from pipeline.storage import StoredPath
from tests.object_store import ObjectStore, object_store

MISSING_PACKAGE = re.compile(r"could not import '([\w.]+)'.*", re.DOTALL)


@pytest.fixture(scope="module")
def preload():
    """A function that makes a module's processes forks of one that has imported these modules.

    They are those of `multiprocessing` with its method forkserver.
    """
    yield lambda *modules: multiprocessing.set_forkserver_preload(list(modules))
    # The processes of the next module are forks of another one.
    multiprocessing.forkserver._forkserver._stop()


@pytest.fixture(scope="session")
def records_of_wandb():
    """A function that reads the records of a run's only offline run of Weights & Biases.

    They come in the order of the file, which is a LevelDB log.
    """

    def records(run_dir):
        from wandb.proto.wandb_internal_pb2 import Record

        (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
        content, position, parts = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            if (left := 32768 - position % 32768) < 7:
                position += left
                continue
            _, length, kind = struct.unpack_from("<IHB", content, position)
            parts += content[position + 7 : position + 7 + length]
            position += 7 + length
            if kind in (1, 4):  # the only or the last part of a record
                yield Record.FromString(parts)
                parts = b""

    return records


# Clauses of Japanese, most of them plain. The rest has what normalization changes, or what splits.
_SUBJECTS = (
    "珈琲の木の故郷は|国立図書館の職員は|彼女が昨日買った本は|東京都庁の展望台は|すもももももも|"
    "ＡＢＣ株式会社の２０２５年度の売上は|山田さんのｻｰﾋﾞｽは|㈱水車の㍿は|機械学習のモデルは|"
    "新しいスマートフォンは|あの古い時計台の鐘は|1,234.5キロメートルの道のりは|GPUを八枚積んだ計算機は|"
    "か\u3099か\u3099とした岩は|吉野家（𠮷野家）は|ヴァイオリンの音色は|コンピューターは|é̀caféは|"
    "お客様のご要望は|第2次世界大戦後の経済は|ゼロから作った言語モデルは|ばらばらの欠片は|㌔と㍉は|〆切は"
)
_PLACES = (
    "アフリカの東部で|北海道の小さな駅で|　全角の空白の後で|\t表の中で|朝早くから|"
    "雨が降っているのに|もも のうちで|「静かな部屋」の中で|https://example.org/一覧?q=１で|三十年ぶりに|①番の窓口で|"
    "いいえ、それでも|Ｗｉｎｄｏｗｓ上で|𝔘𝔫𝔦𝔠𝔬𝔡𝔢の表で|😀と笑って|ﾊﾝｶｸのまま|\u200b見えない字の後で|"
    "昭和四十五年の夏に|おとといの夜、|［注１］によれば"
)
_ENDS = (
    "見つかった。|売られています！|食べられなかったらしい。|走り回っているのだろうか？|"
    "印刷されていたはずだ…。|行ってきます|静かに鳴り続けた。|教えてくださいませんか？！|"
    "3.14倍になった。|ΑΣΟΦΟΣと書いてある。|Café au laitを飲んだ。|"
    f"{'ながい' * 40}。|{'x' * 101}を消した。|歩いた。\u3000それから帰った。|"
    "分からない。|なんだって？|使いやすいし安い。|気にしないで！|読み込めませんでした。|"
    "ずっと待っていた——。|100%正しい。"
)


@pytest.fixture(scope="session")
def japanese_sentences() -> list[str]:
    """10,080 sentences of Japanese: each subject, in each place, with each end."""
    parts = [group.split("|") for group in (_SUBJECTS, _PLACES, _ENDS)]
    return ["".join(clauses) for clauses in itertools.product(*parts)]


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    """A server of S3 on loopback, to which the environment leads."""
    with object_store() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture
def bucket(server: ObjectStore) -> StoredPath:
    """An empty bucket of its own for each test."""
    url = server.make_bucket()
    server.reset()
    return StoredPath(url)


def pytest_terminal_summary(terminalreporter):
    # A report's `longrepr` is file, line and reason. A module skipped as a whole is one report.
    counts = Counter(
        MISSING_PACKAGE.sub(r"needs \1", report.longrepr[2].removeprefix("Skipped: "))
        for report in terminalreporter.stats.get("skipped", [])
    )
    if counts:
        parts = [
            f"{number} {reason if number == 1 else re.sub('^needs', 'need', reason)}"
            for reason, number in counts.most_common()
        ]
        terminalreporter.write_line(f"skipped: {', '.join(parts)}")
