"""Every deliberate defect can still be put in, and the tests that it names are there. `make seeded` shows that they notice it."""

from __future__ import annotations

import shutil

import pytest

from seeded.defects import ROOT, TIERS, Defect, apply, defects, missing

ALL = list(defects())


@pytest.mark.parametrize("defect", ALL, ids=lambda d: d.name)
def test_a_defect_can_be_put_in_and_its_tests_are_there(defect: Defect) -> None:
    assert [test for test in defect.tests if missing(test)] == []
    assert all(file.startswith(("shim/", "redisai_py/")) for file in defect.files), "a defect changes the product, not its tests"
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    done = apply(defect, ROOT, "--check")
    assert done.returncode == 0, f"{defect.path.name} no longer applies: make the change anew (see tests/seeded/defects.py)\n{done.stderr}"


def test_every_tier_has_its_defects() -> None:
    assert {defect.tier for defect in ALL} == set(TIERS)


def test_both_halves_and_the_files_that_matter_have_theirs() -> None:
    touched = {file for defect in ALL for file in defect.files}
    wanted = {f"shim/{name}.c" for name in ("runqueue", "job", "persist", "plan", "reply", "tensor", "program", "redis_call")}
    assert wanted | {"redisai_py/execution/worker.py", "redisai_py/execution/loader.py"} <= touched
