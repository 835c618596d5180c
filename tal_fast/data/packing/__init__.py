# SPDX-License-Identifier: Apache-2.0
"""The packed store: any features, once converted, as safetensors shards that are read in place."""

from tal_fast.data.packing.pack import PackReport, pack_features
from tal_fast.data.packing.rounding import Rounding
from tal_fast.data.packing.store import verify_store

__all__ = ["PackReport", "Rounding", "pack_features", "verify_store"]
