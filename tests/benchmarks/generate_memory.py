"""How much memory `clozemill generate` needs for 20, 40 and 400 MB of text.

It should not depend on the size of the corpus, so all three use buckets of the same size. Each
figure is a process's peak resident memory. With near-duplicates left out, it is measured on 20 and
80 MB of documents that differ.
"""

import shutil
import tempfile
from pathlib import Path

from harness import (
    CORES,
    MEGABYTE,
    TWO_WORKERS,
    generate_command,
    parser_of,
    pinned,
    read_documents,
    run,
    write_documents,
)

BUCKET_MEGABYTES = 20
LARGEST_RATIO = 1.10
LARGEST_PEAK = 1.5 * 1024**3 / MEGABYTE


def main():
    arguments = parser_of(__doc__).parse_args()
    documents = read_documents(arguments.input_file)
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory), documents, arguments.vocab_file)
        measure_duplicates(Path(directory), documents, arguments.vocab_file)


def measure(directory, documents, vocab_file):
    def peaks_of(megabytes, **flags):
        return peaks_for(directory, vocab_file, megabytes, **flags)

    single = {}
    for megabytes in (20, 40, 400):
        write_documents(directory / "text.txt", documents, megabytes)
        parent, single[megabytes] = peaks_of(megabytes)[:2]
        print(
            f"{megabytes:3} MB of text, one worker process: {single[megabytes]:5,.0f} MB, its "
            f"parent {parent:,.0f} MB",
            flush=True,
        )
    parent, *workers = peaks_of(400, **TWO_WORKERS)[:3]
    two = " and ".join(f"{peak:,.0f}" for peak in workers)
    print(f"400 MB of text, two worker processes: {two} MB, their parent {parent:,.0f} MB")
    print(f"40 MB over 20 MB: {single[40] / single[20]:.3f} (target: at most {LARGEST_RATIO})")
    for name, peak in (("one worker", single[400]), ("each of two workers", max(workers))):
        print(f"400 MB, {name}: {peak / LARGEST_PEAK:.0%} of 1.5 GiB (target: at most 100%)")


def measure_duplicates(directory, documents, vocab_file):
    """The documents, and then the same with each line's words in reverse: no two share shingles."""
    reverse = [
        "\n".join(" ".join(line.split()[::-1]) for line in text.split("\n")) for text in documents
    ]
    peaks = {}
    for megabytes in (20, 80):
        write_documents(directory / "text.txt", [*documents, *reverse], megabytes)
        plain = peaks_for(directory, vocab_file, megabytes)[1]
        peaks[megabytes] = peaks_for(directory, vocab_file, megabytes, drop_near_duplicates=0.8)[1]
        print(
            f"{megabytes:3} MB of text, one worker process: {plain:,.0f} MB; with "
            f"--drop_near_duplicates=0.8: {peaks[megabytes]:,.0f} MB",
            flush=True,
        )
    ratio = peaks[80] / peaks[20]
    print(
        f"80 MB over 20 MB, without near-duplicates: {ratio:.3f} (target: at most {LARGEST_RATIO})"
    )


def peaks_for(directory, vocab_file, megabytes, **flags):
    """The peaks of the parent and of its workers, for the text in the directory."""
    command = generate_command(
        input_file=directory / "text.txt",
        vocab_file=vocab_file,
        output_dir=directory / "data",
        dupe_factor=1,
        num_shards=megabytes // BUCKET_MEGABYTES,
        **flags,
    )
    finished = run(pinned(command, CORES[-2:]), directory / "log.txt")
    shutil.rmtree(directory / "data")
    return finished.peaks


if __name__ == "__main__":
    main()
