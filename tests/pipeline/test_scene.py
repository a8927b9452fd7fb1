from __future__ import annotations

from typing import Any

import pytest

from pipeline.scene import Material, MeshError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["base_color", "emissive", "alpha_cutoff"])
def test_material__of_a_factor_that_is_no_finite_number_is_refused(
    field: str, value: float
) -> None:
    given: dict[str, Any] = {
        "base_color": (1.0, value, 1.0, 1.0),
        "emissive": (0.0, 0.0, value),
        "alpha_cutoff": value,
    }
    with pytest.raises(MeshError, match="NaN or infinity") as error:
        Material(**{field: given[field]})
    assert error.value.kind == "not_finite"
