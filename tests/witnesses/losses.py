"""The losses and their residuals in decimals of sixty digits, one token at a time.

Nothing here is imported from ldjax. A decimal has any exponent, so nothing overflows,
and what is left of a probability next to 1 is summed from the other labels. Each loss
is its value and the number `push` of every scored token, in `G = push (pi - e_y)`.
"""

import decimal
import math
from decimal import Decimal

import numpy as np

decimal.getcontext().prec = 60
decimal.getcontext().Emin = -(10**9)
decimal.getcontext().Emax = 10**9
_TINY = Decimal("1e-25")  # three terms of a series are sixty digits


def ln1p(x):
    return x - x**2 / 2 + x**3 / 3 if x < _TINY else (1 + x).ln()


def complement(x):
    """`1 - exp(-x)`, for `x` above 0."""
    return x - x**2 / 2 + x**3 / 6 if x < _TINY else 1 - (-x).exp()


def softplus(x):
    return max(x, Decimal(0)) + ln1p((-abs(x)).exp())


def sigmoid(x):
    return 1 / (1 + (-x).exp())


class Token:
    """What is scored at one position."""

    def __init__(self, logits, target):
        weights = [Decimal(float(z)) for z in logits]
        weights = [(z - max(weights)).exp() for z in weights]
        own, total = weights[target], sum(weights)
        others = sum((w for v, w in enumerate(weights) if v != target), Decimal(0))
        self.log_prob = -ln1p(others / own)
        self.log_complement = -ln1p(own / others)
        self.odds = own / others
        self.residual = [w / total for w in weights]
        self.residual[target] = -others / total


class Response:
    """The scored tokens of one row, with what else is known of it."""

    def __init__(self, logits, row):
        self.places = [int(l) for l in np.flatnonzero(row["mask"])]
        self.tokens = [Token(logits[l], int(row["targets"][l])) for l in self.places]
        self.count = max(len(self.tokens), 1)
        self.sum = sum((t.log_prob for t in self.tokens), Decimal(0))
        self.mean = self.sum / self.count
        self.ratio = self.sum - Decimal(float(row.get("reference", 0.0)))
        for name in ("advantages", "old_log_probs"):
            values = row.get(name, np.zeros(row["mask"].shape))
            setattr(self, name, [Decimal(float(values[l])) for l in self.places])

    def all(self, push):
        """The same push on every token."""
        return [push] * len(self.tokens)


def responses(logits, batch):
    """Of all rows: logits `[batch, pos, vocab]`, and the fields of a batch by name."""
    rows = range(len(logits))
    return [Response(logits[b], {k: v[b] for k, v in batch.items()}) for b in rows]


def gradient(rows, pushes, shape):
    """`push (pi - e_y)` of every scored token, zero elsewhere, as Python floats."""
    found = np.zeros(shape)
    for b, (row, numbers) in enumerate(zip(rows, pushes, strict=True)):
        for l, token, push in zip(row.places, row.tokens, numbers, strict=True):
            found[b, l] = [float(push * r) for r in token.residual]
    return found


def _mean(values):
    return sum(values) / len(values)


def sft(rows):
    num = len(rows)
    return _mean([-r.sum for r in rows]), [r.all(Decimal(1) / num) for r in rows]


def gradient_ascent(rows):
    value, pushes = sft(rows)
    return -value, [[-x for x in row] for row in pushes]


def unlikelihood(rows):
    value = _mean([sum(-t.log_complement for t in r.tokens) for r in rows])
    return value, [[-t.odds / len(rows) for t in r.tokens] for r in rows]


def reinforce(rows):
    gains = [
        sum(A * t.log_prob for A, t in zip(r.advantages, r.tokens, strict=True))
        for r in rows
    ]
    return -_mean(gains), [[A / len(rows) for A in r.advantages] for r in rows]


def grpo(epsilon, most):
    """`most` is the largest log-ratio that is told from larger ones."""

    def loss(rows):
        values, pushes = [], []
        for r in rows:
            gain, push = Decimal(0), []
            columns = zip(r.advantages, r.old_log_probs, r.tokens, strict=True)
            for A, old, token in columns:
                ratio = min(token.log_prob - old, Decimal(most)).exp()
                clipped = min(max(ratio, 1 - epsilon), 1 + epsilon)
                gain += min(ratio * A, clipped * A)
                binds = ratio * A > clipped * A
                push.append(0 if binds else ratio * A / r.count / len(rows))
            values.append(gain / r.count)
            pushes.append(push)
        return -_mean(values), pushes

    return loss


def of_margin(margin, value, slope):
    """A loss of one number for each pair; `slope` is minus its derivative."""

    def loss(chosen, rejected):
        pairs = list(zip(chosen, rejected, strict=True))
        margins = [margin(*pair) for pair in pairs]
        slopes = [slope(h) / len(pairs) for h in margins]
        pushes = {
            side: [r.all(sign * x) for r, x in zip(rows, slopes, strict=True)]
            for side, rows, sign in (("chosen", chosen, 1), ("rejected", rejected, -1))
        }
        return _mean([value(h) for h in margins]), pushes

    return loss


def _log_ratio(p, m):
    return p.ratio - m.ratio


def dpo(beta, smoothing=Decimal(0), margin=_log_ratio):
    return of_margin(
        margin,
        lambda h: (
            (1 - smoothing) * softplus(-beta * h) + smoothing * softplus(beta * h)
        ),
        lambda h: (
            beta
            * ((1 - smoothing) * sigmoid(-beta * h) - smoothing * sigmoid(beta * h))
        ),
    )


def reference_free(beta):
    return dpo(beta, margin=lambda p, m: p.sum - m.sum)


def ipo(beta):
    return of_margin(
        _log_ratio,
        lambda h: (h - 1 / (2 * beta)) ** 2,
        lambda h: 2 * (1 / (2 * beta) - h),
    )


def hinge(beta):
    return of_margin(
        _log_ratio, lambda h: max(1 - beta * h, 0), lambda h: beta * (beta * h < 1)
    )


def slic(delta, beta):
    def loss(chosen, rejected):
        value, pushes = of_margin(
            lambda p, m: p.sum - m.sum,
            lambda h: max(delta - h, 0),
            lambda h: Decimal(int(h < delta)),
        )(chosen, rejected)
        anchor, more = sft(chosen)
        pushes["chosen"] = _added(pushes["chosen"], more, beta)
        return value + beta * anchor, pushes

    return loss


def _added(pushes, more, factor):
    return [
        [x + factor * y for x, y in zip(*rows, strict=True)]
        for rows in zip(pushes, more, strict=True)
    ]


def sppo(beta):
    target = 1 / (2 * beta)

    def loss(chosen, rejected):
        num = len(chosen)
        squares = [
            (p.ratio - target) ** 2 + (m.ratio + target) ** 2
            for p, m in zip(chosen, rejected, strict=True)
        ]
        return _mean(squares), {
            "chosen": [p.all(-2 * (p.ratio - target) / num) for p in chosen],
            "rejected": [m.all(-2 * (m.ratio + target) / num) for m in rejected],
        }

    return loss


def simpo(beta, gamma):
    def loss(chosen, rejected):
        value, pushes = of_margin(
            lambda p, m: beta * (p.mean - m.mean) - gamma,
            lambda h: softplus(-h),
            lambda h: beta * sigmoid(-h),
        )(chosen, rejected)
        for side, rows in (("chosen", chosen), ("rejected", rejected)):
            pushes[side] = _per_token(rows, pushes[side])
        return value, pushes

    return loss


def _per_token(rows, pushes):
    return [[x / r.count for x in row] for r, row in zip(rows, pushes, strict=True)]


def likelihood(rows, reduction):
    """Minus the mean log-prob: of responses, or of all tokens of the batch."""
    if reduction == "tokens":
        count = max(sum(len(r.tokens) for r in rows), 1)
        total = sum((r.sum for r in rows), Decimal(0))
        return -total / count, [r.all(Decimal(1) / count) for r in rows]
    value = -_mean([r.mean for r in rows])
    return value, _per_token(rows, [r.all(Decimal(1) / len(rows)) for r in rows])


def rpo(alpha, beta, reduction="responses"):
    def loss(chosen, rejected):
        value, pushes = dpo(beta)(chosen, rejected)
        cost, more = likelihood(chosen, reduction)
        pushes["chosen"] = _added(pushes["chosen"], more, alpha)
        return value + alpha * cost, pushes

    return loss


def orpo(weight, reduction="responses"):
    def loss(chosen, rejected):
        value, pull = likelihood(chosen, reduction)
        pushes = {"chosen": pull, "rejected": [m.all(Decimal(0)) for m in rejected]}
        num = len(chosen)
        for b, (p, m) in enumerate(zip(chosen, rejected, strict=True)):
            if not (p.tokens and m.tokens):
                continue
            rest = [complement(-r.mean) for r in (p, m)]
            odds_ratio = p.mean - rest[0].ln() - m.mean + rest[1].ln()
            value += weight * softplus(-odds_ratio) / num
            push = weight * sigmoid(-odds_ratio) / num
            pushes["chosen"][b] = [
                x + push / rest[0] / p.count for x in pushes["chosen"][b]
            ]
            pushes["rejected"][b] = m.all(-push / rest[1] / m.count)
        return value, pushes

    return loss


def kto(beta, *, reduction="pairs", mismatched=None):
    def loss(chosen, rejected):
        both = [r for r in [*chosen, *rejected] if r.tokens]  # the others are missing
        of_point = both if mismatched is None else mismatched
        z = max(_mean([r.ratio for r in of_point]), Decimal(0))
        num = Decimal(len(both)) / (1 if reduction == "responses" else 2)
        gaps = {
            "chosen": [beta * (r.ratio - z) for r in chosen],
            "rejected": [beta * (z - r.ratio) for r in rejected],
        }
        pairs = zip(
            [*chosen, *rejected], [*gaps["chosen"], *gaps["rejected"]], strict=True
        )
        value = sum(sigmoid(-x) for r, x in pairs if r.tokens) / num
        bell = lambda x: beta * sigmoid(x) * sigmoid(-x) / num
        rows = {"chosen": (chosen, 1), "rejected": (rejected, -1)}
        return value, {
            side: [r.all(sign * bell(x)) for r, x in zip(some, gaps[side], strict=True)]
            for side, (some, sign) in rows.items()
        }

    return loss


def gated_dpo(beta, sharpness, level):
    def loss(chosen, rejected):
        value, pushes = dpo(beta)(chosen, rejected)
        gates = [sigmoid(sharpness * (m.mean.exp() - level)) for m in rejected]
        pushes["rejected"] = [
            [gate * x for x in row]
            for gate, row in zip(gates, pushes["rejected"], strict=True)
        ]
        return value, pushes

    return loss


_TENTH = Decimal("0.1")
#: By the name in the registry, at the default coefficients; `grpo` needs its bound.
BY_NAME = {
    "sft": sft,
    "gradient_ascent": gradient_ascent,
    "unlikelihood": unlikelihood,
    "dpo": dpo(_TENTH),
    "sigmoid": dpo(_TENTH),
    "cdpo": dpo(_TENTH, _TENTH),
    "spin": dpo(_TENTH),
    "reference_free": reference_free(_TENTH),
    "ipo": ipo(_TENTH),
    "hinge": hinge(_TENTH),
    "slic": slic(Decimal(1), _TENTH),
    "sppo_hard": sppo(_TENTH),
    "simpo": simpo(Decimal(2), Decimal(1)),
    "orpo": orpo(_TENTH),
    "rpo": rpo(Decimal(1), _TENTH),
    "kto": kto(_TENTH),
    "gated_dpo": gated_dpo(_TENTH, Decimal(10), _TENTH),
    "reinforce": reinforce,
    "grpo": None,
}


def largest_log_ratio(dtype):
    return math.log(float(np.finfo(dtype).max)) - math.log(1e7)
