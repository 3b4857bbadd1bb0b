"""Where predictions, versions, files, tokens and the rest are kept; the only package with SQL in it."""

from appliance.store.base import RETRY_STORE, Cursor, Delivery, Filter, Progress, Store, VersionRow
from appliance.store.footprints import FootprintRow
from appliance.store.sqlite import SQLiteStore

__all__ = [
    "RETRY_STORE",
    "Cursor",
    "Delivery",
    "Filter",
    "FootprintRow",
    "Progress",
    "SQLiteStore",
    "Store",
    "VersionRow",
]
