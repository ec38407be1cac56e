"""The profile of a step tells kinds of work apart."""

import modules
import pytest

STEP = "jit(train_steps)/while/body/closed_call/while/body/closed_call/"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("jvp(CNN)/ffi_call", "convolutions and pooling"),
        ("transpose(jvp(CNN))/ffi_call", "convolutions and pooling, backward"),
        ("vmap(vmap())/ffi_call", "warps of images"),
        ("vmap(jit(_uniform))/vmap()/add", "other augmentation"),
        ("jvp(CNN)/norm1.affine/reduce_sum", "norms and loss"),
        ("transpose(jvp(CNN))/norm1.affine/mul", "norms and loss, backward"),
        ("add", "optimiser, others"),
    ],
)
def test_every_operation_has_a_kind(name, kind):
    assert modules.load("scripts/profile_step.py").kind_of(STEP + name) == kind
