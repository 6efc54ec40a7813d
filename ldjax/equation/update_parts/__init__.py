r"""What an optimizer's update is made of: gradient, history, weight decay.

An optax update is rarely linear in the gradient, but it is once its *scale factors*
(Adam's and RMSprop's preconditioner, the clip factor, a schedule, a trust ratio) are
held at the values this step used. Then

    update = scale * (own gradient) + scale' * history + scale'' * parameters

which sums exactly. Which factors are scales is read off the computation itself: the
gradient, the moments of the optimizer's state and the parameters are *linear* inputs;
sums, scalings and selections of linear values stay linear; anything else (a square, a
norm, a root) is a number that this step used, and is frozen. So the split holds for
any chain of transforms, including ones this module has never heard of, and an
optimizer whose update is not of this form is refused by the name of the operation in
the way.

**Monotone functions that are zero at zero** (a sign, a clip by value, a tanh) are
`x * (phi(x) / x)`, the quotient frozen and never negative. A function that loses the
sign measures a size: `|x|` and `x^2` are scales, else second moments would be shares.
A product of two linear numbers is a scale too; so Muon's iterations,
`X <- (a I + b X X' + c (X X')^2) X`, are linear with the left factor frozen, and
`x^3 = x^2 * x` agrees with the rule for functions. Where such a function multiplies
what is linear without it (`sign(m) * g`), it is the scale.

**Moments.** A leaf of the state is history if its *new* value is linear as well, in
the gradient or the parameters through whatever number of leaves, and if it starts at
zero, at another constant or at the parameters. All else is a scale: second moments,
step sizes such as Rprop's, rates and counts. What starts at the parameters (an average
of them, an anchor) counts by its *distance* from where the present parameters would
have started it: that is what earlier steps did, and it is zero at the start. What
is left is the response to the parameters with their copies equal to them,
which is weight decay; nothing, to rounding, where the parameters are only compared with
their copies. (An average of parameters that starts at zero is not seen as one.)

**Accumulation.** A leaf that counts alone switch off in its own next value, in an
update that they switch on, holds the gradients of earlier micro-batches of the very
same update: `"accumulated"`, not history (`optax.MultiSteps`, `optax.apply_every`). The
momentum inside `MultiSteps` goes on from update to update and is history.

Frozen scales are a *convention*: the split says who took part in the step that was
made, in proportion, not what the step would have been without somebody. The scales were
made by all examples together, and a part computed with them (`parts="example"`, token
maps) is exact only given them. For element-wise optimizers without memory the share of
`g_i` is `phi(g) / g * g_i`, the Aumann-Shapley share: the only division of the step
that is complete, linear and symmetric along the straight path from no gradient. With
momentum, norms or matrices it is one convention among others.

Note that `optax.masked(transform, mask)` hands on the *raw gradient* where the mask is
false: in a chain without a rate that is a step uphill, and it is accounted as such.
`optax.partition` with `optax.set_to_zero()` is what leaves parameters as they are.

In this order: `moments` (which leaves of the state carry shares), `linear_step` (what
goes into a step comes out of it as the update and the moments after it),
`frozen` (the parts of one update), `dated` (its history by where it is from).

With less about the code: docs/theory/optimizers.md#parts.
"""

from ldjax.equation.update_parts.frozen import frozen_update
from ldjax.equation.update_parts.linear_step import PARTS, LinearStep, linear_step

__all__ = ["PARTS", "LinearStep", "frozen_update", "linear_step"]
