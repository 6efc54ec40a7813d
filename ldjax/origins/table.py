"""The ledger of a run: a table that adds up to what was measured, and what it tells."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ldjax.equation.resolution import rounding_of_products
from ldjax.files.whole import read_json_object, whole_file

if TYPE_CHECKING:
    import polars as pl

__all__ = ["COLUMNS", "GRADIENT", "ORIGINS", "Ledger"]

#: One row per number; what they are says `Ledger`.
COLUMNS = ("probe", "type", "step", "origin", "example", "side", "value")

#: Where a change may come from, in the order of a balance.
GRADIENT = "gradient"
ORIGINS = (GRADIENT, "weight_decay", "before", "noise", "rounding", "quadrature")

_TABLE, _ABOUT = "ledger.parquet", "ledger.json"
_LAYERS, _TOKENS = "layers.parquet", "tokens.npz"


class Ledger(NamedTuple):
    r"""Where the change of every watched response over a run came from.

    .. math:: \log\pi_{\theta_T} - \log\pi_{\theta_0} =
              \sum_{t, i} c_{t,i} + \text{weight decay} + \text{before} + \text{noise}
              + \text{rounding} + \text{quadrature}

    Attributes:
      table: One row for each number, in nats: `probe` (the prompt's name), `type`,
        `step` (the update that it comes from), `origin` (of `ORIGINS`), `example` and
        `side` (of a `"gradient"`; null elsewhere, `example` also where examples have
        no names) and `value`. The values of a response sum to its measured change.
      about: `nodes` (the number of nodes along an update), `num_steps`,
        `num_parameters` (of those that are trained), and `probes`: for each response
        its `probe`, `type`, `measured` change, `floor` (what rounding can make of that)
        and `quadrature`, in nats.
      layers: The same sums over the run by layer: `probe`, `type`, `layer`, `side`,
        `origin` (`"gradient"` or `"weight_decay"`), `value`.
      tokens: On request, from tokens to tokens: `map_K[response pos, row, side, pos]`
        of response K (its place in `about["probes"]`), float32, over the scored tokens
        of the response, summed over the run; its `targets_K` and `mask_K`,
        `[response pos]`; `rows` and `sides`, the names of these axes, and `targets` and
        `mask`, `[row, side, pos]`, what was trained on. None otherwise.

    Examples:
      >>> import polars as pl
      >>> rows = [
      ...     ("train/0", "chosen", 0, "gradient", "train/0", "update", 0.5),
      ...     ("train/0", "chosen", 0, "gradient", "train/1", "update", -0.2),
      ...     ("train/0", "chosen", 0, "quadrature", None, None, 0.1),
      ... ]
      >>> probe = {"probe": "train/0", "type": "chosen", "measured": 0.4}
      >>> table = pl.DataFrame(rows, schema=COLUMNS, orient="row")
      >>> ledger = Ledger(table, {"probes": [probe]}, None, None)
      >>> ledger.sum().select("own", "others", "quadrature", "measured").rows()
      [(0.5, -0.2, 0.1, 0.4)]
      >>> ledger.top("train/0", "chosen").rows()
      [('train/0', 0.5), ('train/1', -0.2)]
    """

    table: "pl.DataFrame"
    about: dict[str, Any]
    layers: "pl.DataFrame | None" = None
    tokens: Mapping[str, np.ndarray] | None = None

    def sum(self) -> "pl.DataFrame":
        """The balance of every response, over the run.

        Returns:
          A row for each response: `probe`, `type`; `gradient`, divided into `own` (the
          examples of the response's own prompt) and `others`, and where the updates
          have several sides also by side: `SIDE`, `own SIDE` and `others SIDE`;
          the other `ORIGINS`; `measured`, their sum. `own` and `others` are null where
          the examples have no names.
        """
        import polars as pl

        is_gradient = pl.col("origin") == GRADIENT
        of = lambda which: pl.col("value").filter(which).sum()
        columns = {"gradient": of(is_gradient)} | self._by_whose(is_gradient, "")
        sides = self.table["side"].drop_nulls().unique(maintain_order=True).to_list()
        for side in sides if len(sides) > 1 else ():
            is_side = is_gradient & (pl.col("side") == side)
            columns |= {side: of(is_side)} | self._by_whose(is_side, f" {side}")
        for origin in ORIGINS[1:]:
            columns[origin] = of(pl.col("origin") == origin)
        columns["measured"] = pl.col("value").sum()
        return self.table.group_by("probe", "type", maintain_order=True).agg(**columns)

    def rounding_bounds(self) -> np.ndarray:
        r"""What the origin `rounding` of each response may be, in nats.

        .. math:: f + 2^{-24} \sqrt{n} \sum |c|

        with `f` the floor of the measured change: each contribution `c` is a sum of
        products over the `n` trained parameters (`rounding_of_products`). A share that
        is paid wrongly is in `rounding`, too, since all origins sum to the measured
        change whatever they are: more than this is no rounding.

        Returns:
          `[probe]`, in the order of `about["probes"]`.
        """
        import polars as pl

        is_paid = ~pl.col("origin").is_in(["rounding", "quadrature"])
        size = pl.col("value").filter(is_paid).abs().sum()
        sizes = self.table.group_by("probe", "type", maintain_order=True).agg(size)
        floors = np.array([of["floor"] for of in self.about["probes"]])
        lost = rounding_of_products(self.about["num_parameters"])
        return floors + lost * sizes["value"].to_numpy()

    def _by_whose(self, which: "pl.Expr", suffix: str) -> "dict[str, pl.Expr]":
        import polars as pl

        value, is_own = pl.col("value"), _is_own()
        has_names = pl.col("example").is_not_null().any()
        return {
            f"{name}{suffix}": pl.when(has_names).then(
                value.filter(which & whose).sum()
            )
            for name, whose in (("own", is_own), ("others", ~is_own))
        }

    def by(self, *columns: str) -> "pl.DataFrame":
        """Sums over all else.

        Args:
          *columns: Of the table, or `"whose"`: of a gradient `"own"` or `"others"`.

        Returns:
          The columns and `value`, in the order of the table.

        Raises:
          ValueError: If there is no such column.
        """
        import polars as pl

        known = (*COLUMNS[:-1], "whose")
        if unknown := set(columns) - set(known):
            raise ValueError(
                f"The ledger has no column {sorted(unknown)[0]!r} to sum by, only "
                f"{', '.join(known)}."
            )
        whose = pl.when(_is_own()).then(pl.lit("own")).otherwise(pl.lit("others"))
        has_name = pl.col("example").is_not_null()
        table = self.table.with_columns(pl.when(has_name).then(whose).alias("whose"))
        if not columns:
            return table.select(pl.col("value").sum())
        return table.group_by(columns, maintain_order=True).agg(pl.col("value").sum())

    def top(
        self, probe: str, type: str, *, n: int = 10, step: int | None = None
    ) -> "pl.DataFrame":
        """The examples that lifted a response most, and those that lowered it most.

        Args:
          probe: The prompt's name.
          type: The response's type.
          n: How many of either.
          step: At one update; by default over the run.

        Returns:
          `example` and `value` (the sum over its sides), and where there are several
          sides a column for each, from the most lifted to the most lowered.

        Raises:
          KeyError: If there is no such response.
          ValueError: If the examples have no names.
        """
        import polars as pl

        is_it = (pl.col("probe") == probe) & (pl.col("type") == type)
        found = self.table.filter(is_it)
        if found.is_empty():
            raise KeyError(f"The ledger has no response {type!r} of {probe!r}.")
        found = found.filter(pl.col("origin") == GRADIENT)
        if found["example"].null_count():
            raise ValueError("The examples of this ledger have no names to tell.")
        if step is not None:
            found = found.filter(pl.col("step") == step)
        sides = found["side"].unique(maintain_order=True).to_list()
        columns = {"value": pl.col("value").sum()} | {
            side: pl.col("value").filter(pl.col("side") == side).sum()
            for side in (sides if len(sides) > 1 else ())
        }
        order = found.group_by("example", maintain_order=True).agg(**columns)
        order = order.sort("value", descending=True, maintain_order=True)
        lifted = order.filter(pl.col("value") > 0).head(n)
        return pl.concat([lifted, order.filter(pl.col("value") < 0).tail(n)])

    def write(self, folder: str | Path) -> None:
        """Write the ledger's files, each whole or not at all.

        Args:
          folder: Where: `ledger.parquet`, `ledger.json`, `layers.parquet`,
            `tokens.npz`; the first one is written last.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / _ABOUT) as partial:
            partial.write_text(json.dumps(self.about, indent=1))
        if self.layers is not None:
            with whole_file(folder / _LAYERS) as partial:
                self.layers.write_parquet(partial)
        (folder / _TOKENS).unlink(missing_ok=True)
        if self.tokens is not None:
            with whole_file(folder / _TOKENS) as partial, partial.open("wb") as file:
                np.savez_compressed(file, **self.tokens)  # type: ignore[arg-type]
        with whole_file(folder / _TABLE) as partial:
            self.table.write_parquet(partial)

    @classmethod
    def read(cls, folder: str | Path) -> "Ledger":
        """The ledger in a folder.

        Args:
          folder: Where it was written, such as `RUN/ledger`.

        Raises:
          FileNotFoundError: If there is none.
        """
        import polars as pl

        folder = Path(folder)
        if not (folder / _TABLE).is_file():
            raise FileNotFoundError(
                f"There is no ledger in {folder}. Make it with `ldjax ledger RUN`."
            )
        tokens, layers = folder / _TOKENS, folder / _LAYERS
        return cls(
            pl.read_parquet(folder / _TABLE),
            read_json_object(folder / _ABOUT),
            pl.read_parquet(layers) if layers.is_file() else None,
            dict(np.load(tokens, allow_pickle=False)) if tokens.is_file() else None,
        )


def _is_own() -> "pl.Expr":
    """Whether an example is of the response's own prompt: `PROMPT` or `PROMPT:TYPE`."""
    import polars as pl

    prompt = pl.col("example").str.split(":").list.first()
    return (pl.col("origin") == GRADIENT) & (prompt == pl.col("probe"))
