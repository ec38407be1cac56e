"""The profile of a step tells kinds of work apart."""

import modules
import pytest

STEP = "jit(train_steps)/while/body/closed_call/while/body/closed_call/jit(inlined)/"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("jit(augment_batch)/vmap()/div", "augmentation"),
        ("jvp(CNN)/while/body/closed_call/jit(_add_channels)/add", "convolution"),
        ("transpose(jvp(CNN))/while/body/jit(_add_channels)/add", "convolution of gradients"),
        ("transpose(jvp(CNN))/while/body/jit(_add_positions)/add", "kernel gradient, products"),
        ("transpose(jvp(CNN))/while/body/dynamic_slice", "kernel gradient, loop"),
        ("transpose(jvp(CNN))/jit(_pad)/pad", "padding of gradients"),
        ("transpose(jvp(CNN))/select_n", "others, backward"),
        ("jvp(CNN)/norm1/reduce_sum", "reductions"),
        ("add", "others"),
    ],
)
def test_every_operation_has_a_kind(name, kind):
    assert modules.load("scripts/profile_step.py").kind_of(STEP + name) == kind
