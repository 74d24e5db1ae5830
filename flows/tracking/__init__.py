"""MLflow as a projection of dvc.lock and the receipts; the only package that imports mlflow.

One parent run per chain, one child run per round. A run is found again by its lineage key, so
deleting the data base loses nothing: `publish` builds it anew.
"""

from flows.tracking.live import Live
from flows.tracking.publish import Published, publish

__all__ = ["Live", "Published", "publish"]
