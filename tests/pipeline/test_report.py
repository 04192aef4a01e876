from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.manifest import Manifest, Shard
from pipeline.records import encode_examples, frame_record
from pipeline.report import write_report
from pipeline.statistics import (
    DROP_REASONS,
    BuildResults,
    InstanceHistograms,
    ShardResults,
    summarize,
)
from pipeline.vocabulary import Vocabulary

NUM_PREDICTIONS = 3
WORDS = ("tea", "##pot", "is", "hot", "<script>", "&", "红", "##s", '"')
CLS, SEP, MASK, FIRST_WORD = 2, 3, 4, 5
VOID_ELEMENTS = ("meta", "br", "link", "img", "hr", "input")


class Page(HTMLParser):
    """The content of a page; all elements of the page must be closed."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.open = Counter(), [], []
        self.cells, self.articles, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        elif tag in ("td", "th"):
            self.cells[-1].append("")
        elif tag == "article":
            self.articles.append({"text": "", "masked": []})
        elif tag == "ruby" and "article" in self.open:
            self.articles[-1]["masked"].append(
                {"class": dict(attrs)["class"], "ruby": "", "rt": ""}
            )

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if "style" not in self.open else ""
        if self.open[-2:] and {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data
        if "article" in self.open and self.open[-1] not in ("rt", "rp"):
            self.articles[-1]["text"] += data
        if "article" in self.open and self.open[-1] in ("ruby", "rt"):
            self.articles[-1]["masked"][-1][self.open[-1]] += data

    def rows(self):
        """Maps the first cell of each row to the other cells."""
        plain = [[" ".join(cell.split()) for cell in row] for row in self.cells]
        return {row[0]: row[1:] for row in plain if row[0]}


def random_instances(count, seq_length, seed=0):
    """Instances of random lengths, each with zero to three masked pieces."""
    rng = np.random.default_rng(seed)
    instances = {
        name: np.zeros((count, seq_length), np.int64)
        for name in ("input_ids", "input_mask", "segment_ids")
    }
    for name in ("masked_lm_positions", "masked_lm_ids"):
        instances[name] = np.zeros((count, NUM_PREDICTIONS), np.int64)
    instances["masked_lm_weights"] = np.zeros((count, NUM_PREDICTIONS), np.float32)
    instances["next_sentence_labels"] = rng.integers(0, 2, (count, 1))
    for row in range(count):
        length = rng.integers(8, seq_length + 1)
        end_of_a = rng.integers(2, length - 2)
        ids = rng.integers(FIRST_WORD, FIRST_WORD + len(WORDS), length)
        ids[0], ids[[end_of_a, -1]] = CLS, SEP
        inner = [place for place in range(length) if ids[place] >= FIRST_WORD]
        num_masked = rng.integers(0, NUM_PREDICTIONS + 1)
        positions = np.sort(rng.choice(inner, num_masked, replace=False))
        instances["masked_lm_positions"][row, :num_masked] = positions
        instances["masked_lm_ids"][row, :num_masked] = ids[positions]
        instances["masked_lm_weights"][row, :num_masked] = 1
        random_ids = rng.integers(FIRST_WORD, FIRST_WORD + len(WORDS), num_masked)
        action = rng.integers(0, 3, num_masked)
        ids[positions] = np.choose(action, [np.full(num_masked, MASK), ids[positions], random_ids])
        instances["input_ids"][row, :length] = ids
        instances["input_mask"][row, :length] = 1
        instances["segment_ids"][row, end_of_a + 1 : length] = 1
    return instances


def write_shard(folder, vocabulary, split, pass_index, instances):
    name = f"{split}-0000{pass_index}-of-00009.tfrecord"
    num_instances, seq_length = instances["input_ids"].shape
    records = encode_examples(instances) if num_instances else []
    content = b"".join(map(frame_record, records))
    (folder / name).write_bytes(content)
    histograms = InstanceHistograms(seq_length, vocabulary)
    histograms.add(instances)
    num_tokens, num_masked = instances["input_mask"].sum(), instances["masked_lm_weights"].sum()
    counts = {
        "instances": num_instances,
        "tokens": int(num_tokens),
        "masked": int(num_masked),
        "random_next": int(instances["next_sentence_labels"].sum()),
        "chunks_without_next": 7,
        "instances_without_mask": 1,
    }
    return ShardResults(
        Shard(
            name, split, pass_index, 1200, num_instances, int(num_tokens), len(content), f"{0:064}"
        ),
        Counter(counts),
        histograms.lengths(),
        histograms.masked_tokens(),
    )


@pytest.fixture
def vocabulary(write_vocabulary):
    return Vocabulary(write_vocabulary(*WORDS))


@pytest.fixture
def make_data_set(tmp_path, vocabulary):
    """Writes one shard of the given instances per pass and returns their manifest."""

    def make(train, evaluation=(), folder=tmp_path):
        results = [
            write_shard(folder, vocabulary, split, pass_index, instances)
            for split, members in (("train", train), ("eval", evaluation))
            for pass_index, instances in enumerate(members)
        ]
        corpus = Counter(
            {
                "input_files": 3,
                "input_bytes": 1234567,
                "documents_read": 1311,
                "sentences_read": 54321,
                "tokens": 2345678,
                "unknown_tokens": 70370,
                "documents_duplicate": 111,
            }
        )
        seq_length = train[0]["input_ids"].shape[1]
        return Manifest(
            max_seq_length=seq_length,
            max_predictions_per_seq=NUM_PREDICTIONS,
            do_lower_case=True,
            vocab_size=len(vocabulary),
            vocab_sha256=vocabulary.sha256,
            options={
                "unicode_version": "14.0.0",
                "masked_lm_prob": 0.15,
                "short_seq_prob": 0.1,
                "random_seed": 12345,
                "text_field": "<b>",
                "word_segmenter": None,
            },
            statistics=summarize(BuildResults(corpus, results), seq_length),
            shards=[result.shard for result in results],
        )

    return make


@pytest.fixture
def report_of(tmp_path, vocabulary):
    def report(manifest, folder=tmp_path):
        write_report(folder, manifest, vocabulary)
        return (folder / "report.html").read_text("utf-8")

    return report


def none_of(instances):
    return {name: values[:0] for name, values in instances.items()}


def test_the_page_has_all_facts(make_data_set, report_of):
    train = [random_instances(2000, 16), random_instances(500, 16, seed=1)]
    manifest = make_data_set(train, [random_instances(30, 16, seed=2)])
    statistics = manifest.statistics["train"]
    # Shares that differ from every other number on the page.
    statistics.update(
        share_random_next=0.5123,
        share_padding=0.0321,
        share_masked=0.1487,
        share_masked_by_mask=0.8012,
        share_masked_kept=0.0004,
        share_masked_by_random=0.0,
    )
    rows = Page(report_of(manifest)).rows()

    assert rows["Input files"] == ["3"]
    assert rows["Input bytes"] == ["1,234,567 (1.2 MB)"]
    assert rows["Documents read"] == ["1,311"]
    assert rows["Sentences read"] == ["54,321"]
    assert rows["Tokens read"] == ["2,345,678"]
    assert rows["Unknown tokens ([UNK])"] == ["70,370"]
    assert rows["Documents"] == ["1,200", "1,200"]
    assert rows["Passes over the documents"] == ["2", "1"]
    assert rows["Instances"] == ["2,500", "30"]
    assert rows["Shards"] == ["2", "1"]
    assert rows["Tokens, without padding"][0] == f"{statistics['tokens']:,}"
    assert rows["Bytes"][0].startswith(f"{sum(s.bytes for s in manifest.shards_of('train')):,} (")

    for name, reason in DROP_REASONS.items():
        assert rows[reason] == ["111" if name == "documents_duplicate" else "0"]
    assert ["14", "7"] in rows.values()  # chunks_without_next
    assert ["2", "1"] in rows.values()  # instances_without_mask

    assert rows["[UNK], share of all tokens read"][0] == "3.0%"
    assert rows["Padding, share of all positions"][0] == "3.2%"
    assert rows["Random B, share of instances"][0] == "51.2%"
    assert rows["Masked, share of tokens"][0] == "14.9%"
    assert rows["Masked, share of tokens"][2].startswith("15.0%")
    assert rows["Masked tokens replaced by [MASK]"][::2] == ["80.1%", "80.0%"]
    assert rows["Masked tokens kept"][::2] == ["<0.1%", "10.0%"]
    assert rows["Masked tokens replaced by a random token"][::2] == ["0.0%", "10.0%"]

    assert rows["max_seq_length"] == ["16"]
    assert rows["do_lower_case"] == ["yes"]
    assert rows["strip_accents"] == rows["word_segmenter"] == ["not given"]
    assert rows["random_seed"] == ["12345"]
    assert rows["Tokens in the vocabulary"] == [str(manifest.vocab_size)]
    assert rows["SHA-256 of the vocabulary"] == [manifest.vocab_sha256]
    assert rows["Unicode version"] == ["14.0.0"]


def test_the_page_shows_the_health_check(make_data_set, report_of):
    manifest = make_data_set([random_instances(30, 16)])
    assert "No share is out of bounds." in Page(report_of(manifest)).text
    line = "6.0% of the tokens are [UNK]; usual is below 5%: <b>"
    page = Page(report_of(replace(manifest, health=[line])))
    assert line in page.text
    assert "No share is out of bounds." not in page.text


def test_the_most_often_masked_tokens_have_counts_and_shares(make_data_set, report_of):
    manifest = make_data_set([random_instances(40, 16)])
    statistics = manifest.statistics["train"]
    text = " ".join(Page(report_of(manifest)).text.split())
    for token, count in statistics["most_masked_tokens"].items():
        assert f" {token} {count} {count / statistics['masked']:.1%} " in text


@pytest.mark.parametrize("seq_length", [8, 16, 30, 512])
def test_the_histogram_has_a_row_for_each_range(seq_length, make_data_set, report_of):
    manifest = make_data_set([random_instances(25, seq_length)])
    rows = Page(report_of(manifest)).rows()
    lengths = manifest.statistics["train"]["instances_by_length"]
    for name, count in lengths.items():
        first, last = name.split("-")
        label = first if first == last else f"{first}–{last}"
        assert rows[label] == ["", str(count), f"{count / 25:.1%}"]


def test_a_missing_eval_split_is_not_mentioned(make_data_set, report_of):
    page = Page(report_of(make_data_set([random_instances(5, 16)])))
    assert "Evaluation" not in page.text
    assert page.rows()["Instances"] == ["5"]


def test_an_eval_split_without_instances_is_shown_as_empty(make_data_set, report_of):
    instances = random_instances(5, 16)
    rows = Page(report_of(make_data_set([instances], [none_of(instances)]))).rows()
    assert rows["Instances"] == ["5", "0"]
    assert rows["Masked, share of tokens"][1] == "–"


def test_ten_examples_show_the_masks_of_the_records(make_data_set, report_of, vocabulary):
    first, second = random_instances(4, 16), random_instances(20, 16, seed=1)
    manifest = make_data_set([none_of(first), first, second])
    articles = Page(report_of(manifest)).articles
    assert len(articles) == 10
    shown = [(first, row, 1) for row in range(4)] + [(second, row, 2) for row in range(6)]
    kinds = set()
    for article, (instances, row, pass_index) in zip(articles, shown, strict=True):
        num_masked = int(instances["masked_lm_weights"][row].sum())
        expected = []
        for slot in range(num_masked):
            label = instances["masked_lm_ids"][row, slot]
            read = instances["input_ids"][row, instances["masked_lm_positions"][row, slot]]
            kind = "kept" if read == label else "mask" if read == MASK else "random"
            above = {"kept": "=", "mask": "[MASK]", "random": f"≠ {vocabulary.tokens[read]}"}[kind]
            expected.append((kind, vocabulary.tokens[label].removeprefix("##"), above))
        masked = [
            (piece["class"], piece["ruby"].removeprefix("##"), piece["rt"])
            for piece in article["masked"]
        ]
        assert masked == expected
        kinds.update(kind for kind, _, _ in masked)
        text = " ".join(article["text"].split())
        assert f"{instances['input_mask'][row].sum()} tokens, {num_masked} of them masked" in text
        assert f"train-0000{pass_index}-of-00009.tfrecord, instance {row}" in text
        is_random = instances["next_sentence_labels"][row, 0]
        assert ("B is random" in text, "B follows A" in text) == (is_random, not is_random)
        assert text.count("[CLS]") == 1
        assert text.count("[SEP]") == 2
    assert kinds == {"mask", "kept", "random"}


def test_pieces_are_joined_into_words(make_data_set, report_of, vocabulary):
    ids = "[CLS] ##s is tea ##pot ##s [SEP] ##pot 红 [SEP]".split()
    instances = random_instances(1, 10)
    instances["input_ids"][0] = [vocabulary.ids[token] for token in ids]
    instances["input_mask"][0] = 1
    instances["segment_ids"][0] = [0] * 7 + [1] * 3
    instances["masked_lm_positions"][0] = [4, 8, 0]
    instances["masked_lm_ids"][0] = [vocabulary.ids["##pot"], vocabulary.ids["hot"], 0]
    instances["masked_lm_weights"][0] = [1, 1, 0]
    page = Page(report_of(make_data_set([instances])))
    text = " ".join(page.articles[0]["text"].split())
    assert "[CLS] ##s is teapots [SEP]" in text
    assert "##pot hot [SEP]" in text


def test_tokens_and_options_are_escaped(make_data_set, report_of):
    html = report_of(make_data_set([random_instances(30, 16)]))
    page = Page(html)
    assert "script" not in page.tags
    assert "<script>" in page.text
    assert "<b>" in page.text
    assert "b" not in page.tags
    assert any("<script>" in article["text"] for article in page.articles)
    assert any("&" in article["text"] for article in page.articles)


def test_the_page_needs_no_other_file(make_data_set, report_of):
    html = report_of(make_data_set([random_instances(12, 16)], [random_instances(3, 16)]))
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not {"src", "href", "srcset", "action", "data"} & {
        name for _, name, _ in page.attributes
    }
    for outside in ("http://", "https://", "//fonts", "url(", "@import"):
        assert outside not in html
    assert ("html", "lang", "en") in page.attributes
    assert page.tags["h1"] == page.tags["main"] == 1


def test_the_same_data_set_gives_the_same_bytes(tmp_path, make_data_set, report_of):
    pages = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        manifest = make_data_set([random_instances(12, 16)], folder=folder)
        pages.append(report_of(manifest, folder))
        assert sorted(path.suffix for path in folder.iterdir()) == [".html", ".tfrecord"]
    assert pages[0] == pages[1]
