# SPDX-License-Identifier: Apache-2.0
"""Kill, starve, corrupt, repeat: ``python tests/endurance [PART…]``.

Without a part all of them run, with the counts of a full run for hours; ``--scale 0.01`` runs a
hundredth of each. Results are a JSON per part, written after every batch; ``--resume`` goes on with
them. The exit status is 1 where a case was lost. ``python tests/endurance/table.py`` then writes
the table of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path

if __name__ == "__main__":
    # As a package: its modules are called like many others.
    here = Path(__file__).parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != here.resolve()]
    sys.path[:0] = [str(here.parents[1]), str(here.parent), str(here.parent / "study")]

from endurance import record

PARTS = (
    "studies",
    "trainings",
    "directories",
    "reader",
    "formats",
    "ops",
    "soak",
    "untrusted",
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/endurance", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full counts")
    parser.add_argument("--minutes", type=float, default=math.inf, help="most of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the results")
    parser.add_argument("--resume", action="store_true", help="go on with the newest results")
    parser.add_argument("--kind", action="append", default=[], help="only this kind of a part")
    parser.add_argument("--case", type=int, help="only this case of one kind; writes nothing")
    parser.add_argument("--list", action="store_true", help="show the parts, kinds and counts")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"expected parts among {', '.join(PARTS)}, got {', '.join(unknown)}")
    if not arguments.scale > 0.0:
        parser.error(f"--scale: expected a share above 0, got {arguments.scale:g}")
    if arguments.case is not None and not len(arguments.parts) == len(arguments.kind) == 1:
        parser.error("--case: expected one part and one --kind beside it")
    if arguments.kind and len(arguments.parts) != 1:
        parser.error("--kind: expected one part beside it")
    return arguments


def load(name: str) -> record.Part:
    """Returns a part by its name."""
    return importlib.import_module(f"endurance.{name}").PART


def main() -> int:
    arguments = _arguments()
    parts = [load(name) for name in arguments.parts or PARTS]
    if arguments.list:
        for part in parts:
            for kind in part.kinds:
                print(f"{part.name}: {kind.name}: {kind.goal:,} {kind.what}")
        return 0
    if arguments.case is not None:
        outcome = record.run_case(parts[0], arguments.kind[0], arguments.case, seed=arguments.seed)
        print(outcome)
        return 1 if outcome.lost else 0
    lost = 0
    try:
        for part in parts:
            content = record.run_part(
                part,
                arguments.out,
                seed=arguments.seed,
                scale=arguments.scale,
                resume=arguments.resume,
                kinds=arguments.kind,
                minutes=arguments.minutes,
            )
            lost += sum(row["lost"] for row in content["kinds"])
    except KeyboardInterrupt:
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
