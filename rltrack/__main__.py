"""``python -m rltrack``, and the program ``rltrack``."""

import sys

from rltrack.hash_seed import fix_hash_seed


def main() -> None:
    """Run the command line and end the process with its exit code."""
    fix_hash_seed(sys.argv[1:])
    from rltrack import cli

    cli.main()


if __name__ == "__main__":
    if not sys.flags.safe_path:  # the current folder comes last: no file there takes the place of a package
        sys.path.append(sys.path.pop(0))
    main()
