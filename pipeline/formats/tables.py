"""Parquet, CSV and TSV to the lines of their documents, by pyarrow."""

import io
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.compression import BlocksAsFile
from pipeline.errors import UserError
from pipeline.formats.raw_document import RawDocument, Unreadable, lines_of_record, text_and_count
from pipeline.inputs import InputFile, InputFormat, read_at_least
from pipeline.portions import FileRange, check_length_of_document, open_parquet, row_group_ends

_ROWS_PER_BATCH = 64
_LONGEST_ROW_BYTES = 16 << 20
_HEAD_BYTES = 1 << 16
_QUOTED = re.compile(rb'"[^"]*"')
# One thread, because only then pyarrow numbers the rows.
_READING = pyarrow.csv.ReadOptions(use_threads=False, block_size=_LONGEST_ROW_BYTES)
_TEXT_TYPES = (
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
    pa.types.is_fixed_size_binary,
)
_LIST_TYPES = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


def read_parquet(file_range: FileRange, text_field: str) -> Iterator[RawDocument | Unreadable]:
    """Yields the column `text_field` of each row: a text, or a list of texts.

    Raises:
      UserError: there is no such column, or it holds no text.
    """
    file = file_range.file
    with open_parquet(file) as parquet:
        path = _path_of_column(file, parquet.schema_arrow, text_field)
        first_row = start = 0
        for group, end in enumerate(row_group_ends(parquet)):
            num_rows = parquet.metadata.row_group(group).num_rows
            if start >= file_range.start and end <= file_range.end:
                for number, texts in enumerate(_texts_of_row_group(parquet, group, path)):
                    row = first_row + number
                    if texts is None:
                        yield Unreadable(row, f"no text in the column {text_field!r}")
                        continue
                    check_length_of_document(sum(map(len, texts)), file)
                    lines = lines_of_record([text.decode("utf-8", "ignore") for text in texts])
                    before = start + (end - start) * number // num_rows
                    yield RawDocument(file, row, before * file.text_bytes_per_byte, lines)
            first_row, start = first_row + num_rows, end


def read_csv(
    file_range: FileRange, text_field: str, statistics: Counter[str]
) -> Iterator[RawDocument | Unreadable]:
    """Yields the column `text_field` of each row below the header.

    The delimiter is a tab in TSV; in CSV, it is a comma, or a semicolon if the header has no comma.

    It adds to `statistics`: lines_read, lines_with_invalid_utf8, which here are rows.

    Raises:
      UserError: there is no such column, or a row is longer than 16 MiB.
      pa.ArrowException: the file is not CSV.
    """
    file = file_range.file
    bad_rows: list[Unreadable] = []

    def note_bad_row(row: pa.csv.InvalidRow) -> str:
        problem = f"{row.actual_columns} columns, but the header has {row.expected_columns}"
        bad_rows.append(Unreadable(row.number, problem))
        return "skip"

    blocks = file_range.blocks()
    if not (head := read_at_least(blocks, _HEAD_BYTES)).strip():
        return  # an empty file has no header
    is_tsv = file.format == InputFormat.TSV
    header = _QUOTED.sub(b"", head).lstrip().split(b"\n")[0]
    has_semicolons = b"," not in header and b";" in header
    parsing = pyarrow.csv.ParseOptions(
        delimiter="\t" if is_tsv else ";" if has_semicolons else ",",
        newlines_in_values=True,
        invalid_row_handler=note_bad_row,
    )
    _check_name(file, pyarrow.csv.open_csv(io.BytesIO(head), _READING, parsing).schema, text_field)
    bad_rows.clear()
    as_bytes = pyarrow.csv.ConvertOptions(  # since invalid UTF-8 is to be dropped
        include_columns=[text_field], column_types={text_field: pa.binary()}
    )
    # Buffered, because pyarrow takes a short read for the end of a block.
    content = pa.PythonFile(io.BufferedReader(BlocksAsFile(chain([head], blocks))), "r")
    row = text_before = 0
    for batch in _batches(pyarrow.csv.open_csv(content, _READING, parsing, as_bytes), file):
        yield from bad_rows
        bad_rows.clear()
        for encoded in batch.column(0).to_pylist():
            lines = lines_of_record([text_and_count(encoded, statistics)])
            yield RawDocument(file, row, text_before, lines)
            row, text_before = row + 1, text_before + len(encoded)
    yield from bad_rows


def _batches(reader: pa.csv.CSVStreamingReader, file: InputFile) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except pa.ArrowInvalid as error:
        if "straddl" not in str(error):
            raise
        raise UserError(
            f"{file.path} has a row longer than {_LONGEST_ROW_BYTES >> 20} MiB: is a quote missing "
            f"(or is --input_format={file.format} wrong)?"
        ) from error


def _check_name(file: InputFile, schema: pa.Schema, name: str) -> None:
    if schema.names.count(name) != 1:
        raise UserError(
            f"{file.path} has {'two columns' if name in schema.names else 'no column'} {name!r}: "
            f"give --text_field, one of {reprlib.repr(schema.names)}"
        )


def _path_of_column(file: InputFile, schema: pa.Schema, text_field: str) -> list[str]:
    """The name of a column, and those of the fields of its structs that lead to the text."""
    first, *others = [text_field] if text_field in schema.names else text_field.split(".")
    _check_name(file, schema, first if others else text_field)
    column_type = schema.field(first).type
    for number, name in enumerate(others):
        known = [field.name for field in column_type] if pa.types.is_struct(column_type) else []
        if name not in known:
            raise UserError(
                f"the column {'.'.join([first, *others[:number]])!r} of {file.path} has no field "
                f"{name!r}" + (f", only {reprlib.repr(known)}" if known else "")
            )
        column_type = column_type.field(name).type
    _check_type(file, text_field, column_type)
    return [first, *others]


def _check_type(file: InputFile, text_field: str, column_type: pa.DataType) -> None:
    if pa.types.is_struct(column_type):
        fields = [f"{text_field}.{field.name}" for field in column_type]
        raise UserError(
            f"the column {text_field!r} of {file.path} is a struct: give --text_field, one of "
            f"{reprlib.repr(fields)}"
        )
    element_type = column_type.value_type if _is(column_type, _LIST_TYPES) else column_type
    if pa.types.is_dictionary(element_type):
        element_type = element_type.value_type
    if not _is(element_type, _TEXT_TYPES):
        raise UserError(
            f"the column {text_field!r} of {file.path} is of type {column_type}, not text: "
            "give another --text_field"
        )


def _is(column_type: pa.DataType, kinds: tuple[Callable[[pa.DataType], bool], ...]) -> bool:
    return any(is_kind(column_type) for is_kind in kinds)


def _texts_of_row_group(
    parquet: pq.ParquetFile, group: int, path: list[str]
) -> Iterator[list[bytes] | None]:
    """The texts of each row; None if the row or one of its texts is null."""
    for batch in parquet.iter_batches(_ROWS_PER_BATCH, [group], [".".join(path)]):
        column = batch.column(path[0])
        for name in path[1:]:
            column = pc.struct_field(column, name)
        if not _is(column.type, _LIST_TYPES):
            lengths = [1] * len(column)
            texts = iter(_as_bytes(column))
        else:
            lengths = pc.list_value_length(column).fill_null(-1).to_pylist()
            texts = iter(_as_bytes(pc.list_flatten(column)))
        for length in lengths:
            row = list(islice(texts, max(0, length)))
            whole = [text for text in row if text is not None]
            yield whole if len(whole) == length else None


def _as_bytes(column: pa.Array) -> list[bytes | None]:
    """The texts as bytes, since invalid UTF-8 is to be dropped."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pa.types.is_binary(column.type):
        column = column.cast(pa.large_string(), safe=False)
    return column.cast(pa.large_binary()).to_pylist()
