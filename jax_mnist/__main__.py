"""The commands of `scripts/` by name: `jax-mnist train gbn`, or `python -m jax_mnist train gbn`."""

import runpy
import sys
from importlib import util
from pathlib import Path


def main() -> None:
    """Runs the script that the first argument names with the others."""
    spec = util.find_spec("jax_mnist.scripts")
    folder = next(iter(spec.submodule_search_locations or ())) if spec else ""
    commands = sorted({path.stem for path in Path(folder).glob("*.py")} - {"command_line"})
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in commands:
        print(f"usage: jax-mnist {'|'.join(commands)} …; --help after a command shows its flags")
        sys.exit(0 if name in ("--help", "-h") else 2)
    sys.argv = [f"jax-mnist {name}", *sys.argv[2:]]
    sys.path.insert(0, folder)  # for command_line.py
    runpy.run_path(str(Path(folder, f"{name}.py")), run_name="__main__")


if __name__ == "__main__":
    main()
