"""Write the hash of a draft into its data file: `python -m latent_drift.config.stamp [VERSION] [--release YYYY-MM-DD]`.

For the people who edit `releases/`: change a draft's values, run this, commit. A file that has a
date is released and is never written again. `--release` gives a draft its date, after which only a
new version can change a value.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
from pathlib import Path

from latent_drift.config.catalogue import RELEASES, document_sha256
from latent_drift.errors import ConfigError


def stamp(path: Path, release: datetime.date | None = None) -> str:
    """Write a draft's hash (and date, if it is released now) into its file; returns the hash.

    Raises:
        ConfigError: the file has a date already: its values may not move any more.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["released"] is not None:
        raise ConfigError(f"config {document['version']} was released on {document['released']} and never changes again; make a new version instead")
    if release is not None:
        document["released"] = release.isoformat()
    document["sha256"] = document_sha256(document)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False) + "\n", encoding="utf-8")
    return str(document["sha256"])


def _to_do(path: Path, sha256: str, released: datetime.date) -> str:
    """What a release needs besides its date, ready to paste."""
    file_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {path.stem: {"released": released.isoformat(), "sha256": sha256, "file_sha256": file_sha256}}
    return (
        f"CHANGELOG.md, under Numerics:\n- config {path.stem} ({released.isoformat()}): sha256 {sha256}. WHAT MOVED AND WHY\n"
        f"tests/config/fixtures/released.json:\n{json.dumps(entry, indent=2)}\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Stamp one draft, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m latent_drift.config.stamp", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("version", nargs="?", help="one draft; all drafts if left out")
    parser.add_argument("--release", type=datetime.date.fromisoformat, help="the date of release, which freezes the values")
    options = parser.parse_args(argv)
    if options.release is not None and options.version is None:
        parser.error("--release needs the version that it is for")
    names = [f"{options.version}.json"] if options.version else sorted(path.name for path in RELEASES.glob("*.json"))
    for name in names:
        path = RELEASES / name
        if options.version is None and json.loads(path.read_text(encoding="utf-8"))["released"] is not None:
            continue
        try:
            sha256 = stamp(path, options.release)
        except (ConfigError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            return 2
        sys.stdout.write(f"{path.stem} sha256 {sha256}\n")
        if options.release is not None:
            sys.stdout.write(_to_do(path, sha256, options.release))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
