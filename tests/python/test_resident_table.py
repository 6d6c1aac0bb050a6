"""The table of tensors on devices lets go of what the shim has given back."""

from __future__ import annotations

from redisai_py.execution.resident import Residents


class Shim:
    def __init__(self) -> None:
        self.given_back: list[int] = []

    def released(self) -> list[int]:
        given, self.given_back = self.given_back, []
        return given


def test_a_tensor_lives_until_its_number_is_given_back() -> None:
    shim = Shim()
    table = Residents(shim)  # type: ignore[arg-type]
    first, dtype, shape = table.put("tensor", "FLOAT", (2, 3))
    second, _, _ = table.put("other", "FLOAT", ())
    assert (dtype, shape, first != second, table[first]) == ("FLOAT", (2, 3), True, "tensor")
    shim.given_back = [first]
    table.put("third", "FLOAT", ())
    assert len(table) == 2 and table[second] == "other"
