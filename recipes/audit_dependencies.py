"""Which packages of a folder have known vulnerabilities, asked of PyPI by pip-audit: `make audit-dependencies`.

pip-audit ends well where it could look nothing up, as behind an index of one's own; here that is a failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

# torch's build for processors has a version that PyPI does not know; of a few such packages nothing can be said.
_MOST_SKIPPED = 0.1


def findings(document: Mapping[str, Any]) -> tuple[list[str], bool]:
    """What pip-audit's JSON says, a line each, and whether all is well.

    Args:
        document: `dependencies`, each with `vulns` or with a `skip_reason`.
    """
    packages = document["dependencies"]
    skipped = [package for package in packages if "skip_reason" in package]
    known = [(package, found) for package in packages for found in package.get("vulns", ())]
    lines = [f"{package['name']}: {package['skip_reason']}" for package in skipped]
    for package, found in known:
        mend = f"; mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else ""
        lines.append(f"{package['name']} {package['version']}: {found['id']}{mend}")
    lines.append(f"{len(packages)} packages, {len(known)} known vulnerabilities, {len(skipped)} could not be looked up")
    is_silent = len(skipped) > _MOST_SKIPPED * len(packages)
    if is_silent:
        lines.append("so many could not be looked up that this says nothing; is pypi.org within reach?")
    return lines, not known and not is_silent


def main(arguments: list[str] | None = None) -> int:
    """Ask, print, and return the exit status: 1 where something is known, or too little could be looked up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="site-packages of the environment")
    options, more = parser.parse_known_args(arguments)
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "--skip-editable",
        "--path",
        options.folder,
        "--format",
        "json",
        *more,
    ]
    found = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if not found.stdout:
        return found.returncode or 1  # it has said why
    lines, is_well = findings(json.loads(found.stdout))
    print("\n".join(lines))
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
