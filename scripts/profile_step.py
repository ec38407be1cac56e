"""Shows where the time of a training step goes on a CPU.

python scripts/profile_step.py                      # batch norm
python scripts/profile_step.py --norm ghost --top 20

Profiles one call of the compiled program, and prints the shares of a step's time by kind of work
and by operation: the profiler's own seconds count operations twice. Bind it to one core
(`taskset -c 0`), since those of several are added up.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.profiler import ProfileData

from jax_mnist import config as config_lib
from jax_mnist.runs import compiler, loop
from jax_mnist.runs.run import Run
from jax_mnist.training.step import train_steps

STEPS, BATCH = 26, 128
# The first that is found in the name that JAX gives to an operation; "backward" is autodiff's.
KINDS = {
    "convolutions and pooling, backward": r"transpose\(jvp.*ffi_call",
    "convolutions and pooling": "jvp.*ffi_call",
    "warps of images": "ffi_call",
    "norms and loss, backward": r"transpose\(jvp",
    "norms and loss": "jvp",
    "other augmentation": "vmap",
}


def kind_of(name):
    """The kind of work of an operation, given the name that JAX gives it."""
    return next(
        (kind for kind, text in KINDS.items() if re.search(text, name)), "optimiser, others"
    )


def seconds(program, arguments):
    """Time by operation of the compiled program, in seconds of the profiler."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(program(*arguments))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = ProfileData.from_file(str(file))
    found = collections.Counter()
    for event in (e for plane in data.planes for line in plane.lines for e in line.events):
        name = dict(event.stats).get("hlo_op")
        if name and not re.match("while|call|closed_call|jit_", name):  # they contain others
            found[name] += event.duration_ns / 1e9
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--norm", choices=("batch", "ghost"), default="batch", help="(batch)")
    parser.add_argument("--top", type=int, default=10, help="operations shown one by one (10)")
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: {message}\n")
    arguments = parser.parse_args()
    compiler.configure()
    config = config_lib.base()
    config.update(norm=arguments.norm, train_split=f"train[:{STEPS * BATCH}]")
    made, begin = loop.build([Run("", config, Path())])
    order = np.arange(STEPS * BATCH, dtype=np.int32).reshape(1, STEPS, BATCH)
    program = train_steps.lower(made.recipe, made.hyper, begin.state, made.train, order).compile()
    names = dict(re.findall(r'%(\S+) = .*?op_name="([^"]*)"', program.as_text()))
    state, _ = program(made.hyper, begin.state, made.train, order)  # not counted
    found = seconds(program, (made.hyper, state, made.train, order))
    kinds = collections.Counter()
    for operation, time in found.items():
        kinds[kind_of(names.get(operation, ""))] += time
    print("| kind of work | % |\n| --- | --- |")
    for kind, time in kinds.most_common():
        print(f"| {kind} | {100 * time / kinds.total():.1f} |")
    print()
    for operation, time in found.most_common(arguments.top):
        share = 100 * time / kinds.total()
        print(f"{share:5.1f} %  {operation:32} {names.get(operation, '')[-60:]}")


if __name__ == "__main__":
    main()
