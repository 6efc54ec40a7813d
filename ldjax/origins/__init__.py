"""Where the change of a whole run comes from: every example, side, token and layer.

`account` sweeps backward over a run and divides what each watched response's log-prob
changed by among everything that was trained on. Its result is a `Ledger`.

Derived in docs/theory/ledger.md.
"""

from ldjax.origins.sweep import account
from ldjax.origins.table import Ledger
from ldjax.origins.trajectory import Known, Responses, Training, Trajectory

__all__ = ["Known", "Ledger", "Responses", "Training", "Trajectory", "account"]
