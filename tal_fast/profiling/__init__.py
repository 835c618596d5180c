# SPDX-License-Identifier: Apache-2.0
"""What a training costs, in theory and as it runs."""

from tal_fast.profiling.cost import Cost, CostCounter
from tal_fast.profiling.model_cost import LengthCost, ModelCost, model_cost

__all__ = ["Cost", "CostCounter", "LengthCost", "ModelCost", "model_cost"]
