"""Which files hold data, by their endings; and which names mean files."""

from __future__ import annotations


#: File name endings that can be read, with the builder of ``datasets`` that reads each.
FORMATS = {
    ".jsonl": "json",
    ".json": "json",
    ".jsonl.gz": "json",
    ".json.gz": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".arrow": "arrow",
    ".txt": "text",
    ".txt.gz": "text",
}


def looks_like_path(name: str) -> bool:
    """Whether a name can only be meant as a local path: a Hub id is `name` or `owner/name`, without a file ending."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or name.endswith(tuple(FORMATS))
