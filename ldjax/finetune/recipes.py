"""How a small model is finetuned, and how the paper's are."""

import math
from typing import Literal, NamedTuple

import optax

__all__ = [
    "OPTIMIZERS",
    "RECIPES",
    "WITH_MOMENTUM",
    "Recipe",
    "make_clip",
    "make_optimizer",
]

OptimizerName = Literal["adam", "adamw", "rmsprop", "sgd"]


class Recipe(NamedTuple):
    """An optimizer and how much it sees.

    Attributes:
      optimizer: One of `OPTIMIZERS`.
      learning_rate: After the warm-up, constant.
      batch_size: Examples (or pairs) of an update.
      epochs: Passes over the training examples.
      warmup_steps: Updates over which the learning rate rises linearly.
      clip: Largest norm of the gradient; 0 or infinite for none.
    """

    optimizer: OptimizerName
    learning_rate: float
    batch_size: int
    epochs: float
    warmup_steps: int
    clip: float

    def rate(self, step: int) -> float:
        """The learning rate of an update, counted from 0."""
        ramp = self.warmup_steps + 1
        return self.learning_rate * min(step + 1, ramp) / ramp


_PAPER = Recipe("rmsprop", 5e-7, 4, 8.0, 150, 10.0)

#: By name and by what the loss is trained on, responses (as SFT) or pairs (as DPO).
#: "slow": plain gradient descent at a twentieth of the rate, where first order says all
#: there is. "plain": at a rate that moves answers by nats; DPO's pushes are beta / 2 of
#: SFT's, so its rate is higher. "paper": the authors' code.
RECIPES: dict[tuple[str, str], Recipe] = {
    ("small", "sft"): Recipe("adam", 5e-4, 8, 10.0, 0, 10.0),
    ("small", "dpo"): Recipe("adam", 1e-4, 8, 4.0, 0, 10.0),
    ("slow", "sft"): Recipe("sgd", 2.5e-5, 8, 10.0, 0, 10.0),
    ("slow", "dpo"): Recipe("sgd", 5e-6, 8, 4.0, 0, 10.0),
    ("plain", "sft"): Recipe("sgd", 5e-5, 8, 10.0, 0, 10.0),
    ("plain", "dpo"): Recipe("sgd", 1e-3, 8, 4.0, 0, 10.0),
    ("paper", "sft"): _PAPER,
    ("paper", "dpo"): _PAPER,
}

OPTIMIZERS = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    # PyTorch's defaults.
    "rmsprop": lambda rate: optax.rmsprop(
        rate, decay=0.99, eps=1e-8, eps_in_sqrt=False
    ),
    "sgd": optax.sgd,
}
#: Those that remember gradients, and not only their sizes.
WITH_MOMENTUM = frozenset({"adam", "adamw"})


def make_clip(norm: float) -> optax.GradientTransformation:
    """A clip of the gradient at a norm; none at 0 or infinity."""
    # Not a clip at infinity, whose other branch multiplies by it: 0 inf is no number.
    is_none = not norm or math.isinf(norm)
    return optax.identity() if is_none else optax.clip_by_global_norm(norm)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The recipe's optimizer behind its clip, with its warm-up."""
    schedule = optax.linear_schedule(
        recipe.rate(0), recipe.learning_rate, recipe.warmup_steps
    )
    return optax.chain(
        make_clip(recipe.clip),
        OPTIMIZERS[recipe.optimizer](
            schedule if recipe.warmup_steps else recipe.learning_rate
        ),
    )
