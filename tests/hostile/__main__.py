"""Attacks every input path with hostile input, for as long as wanted.

python -m tests.hostile --seconds 3600                       all paths in turn, from a new seed, which it prints
python -m tests.hostile --inputs 5000 --path resp            one path, so many inputs
python -m tests.hostile --path resp --seed 7 --inputs 5000   the same inputs again
python -m tests.hostile --path resp --only 12,345            these inputs alone, as a finding prints them

The status is not 0 after a finding. What a finding was about stays in the scratch directory.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `fixtures`, as pytest does

from .campaign import Campaign, say
from .input_path import find_paths


def main() -> int:
    logging.disable(logging.WARNING)  # of the nodes in this process, which lie
    paths = find_paths()
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=str(__doc__).split("\n")[0])
    parser.add_argument("--inputs", type=int, default=0, help="for each path (2,000, or as many as there is time for)")
    parser.add_argument(
        "--seconds", type=float, default=0, help="for all paths together: rounds until the time is over"
    )
    parser.add_argument("--path", choices=sorted(paths), action="append", help="instead of all")
    parser.add_argument("--seed", type=int, default=0, help="1 or more (a new one)")
    parser.add_argument("--only", type=lambda text: [int(one) for one in text.split(",")], help="these inputs alone")
    parser.add_argument("--scratch", type=Path, help="an empty directory (a new one)")
    given = parser.parse_args()
    seed = given.seed or random.SystemRandom().randrange(1, 1 << 32)
    scratch = given.scratch or Path(tempfile.mkdtemp(prefix="merklekv-hostile-"))
    scratch.mkdir(exist_ok=True)
    say(f"seed {seed}, in {scratch}")
    campaign = Campaign([paths[name] for name in given.path or paths], seed, scratch)
    with campaign, suppress(KeyboardInterrupt):
        if given.only:
            campaign.replay(given.only)
        else:
            campaign.run(given.inputs, given.seconds)
    say(campaign.report())
    return int(bool(campaign.findings))


if __name__ == "__main__":
    raise SystemExit(main())
