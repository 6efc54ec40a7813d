"""Two checkpoints of a model, compared: what changed, and where in the model.

`ldjax.diff` measures by how much the log-prob of every response and token differs, and
divides that by layer and kind of matrix, exactly: along the straight line from one to
the other (docs/guides/diff.md). In this order: `pair` (two models as one architecture
with two sets of parameters), `places` (layers and kinds), `along` (derivatives on the
way), `difference` (their sums), `texts` (what is watched), `folder` (what is written);
then `trainer`, `update` and `next`, the next update of a Trainer's checkpoint.
"""

__all__: list[str] = []
