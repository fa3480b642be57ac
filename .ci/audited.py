"""Read what pip-audit found, as JSON from stdin; fail for known faults, and say plainly what could not be looked up."""

from __future__ import annotations

import json
import sys


def main(found: str) -> int:
    """Print what was found, and return the exit status."""
    try:
        packages = json.loads(found)["dependencies"]
    except (ValueError, KeyError):
        print("The list of known faults can't be had here, so no package was looked up.")
        return 0
    skipped = [package for package in packages if "skip_reason" in package]
    faults = [(package, fault) for package in packages for fault in package.get("vulns", ())]
    for package, fault in faults:
        fixed = ", ".join(fault["fix_versions"]) or "nothing yet"
        print(f"{package['name']} {package['version']}: {fault['id']}, mended in {fixed}.")
    print(f"Packages looked up: {len(packages) - len(skipped)}; known faults in them: {len(faults)}.")
    if skipped:
        print(f"Not looked up, for no list of known faults that can be had here names them: {len(skipped)}.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.stdin.read()))
