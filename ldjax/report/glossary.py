"""What the words of a page mean, one sentence each."""

from ldjax.data.response_types import RESPONSE_TYPES
from ldjax.report.words import MEANINGS

__all__ = ["GLOSSARY"]

_TERMS = {
    "nats": "The unit of a log-probability by the natural logarithm: +1 nat makes a "
    "response e = 2.72 times as likely, +0.69 twice.",
    "probe": "A response to a prompt that is watched: its log-prob is measured, "
    "whether it is trained on or not.",
    "tracked": "Probes of a few trained prompts whose change is accounted for at every "
    "update, so that the changes add up to that of the whole run.",
    "trained prompts": "Prompts whose answers the run was trained on.",
    "held-out prompts": "Prompts that the run was never trained on.",
    "y*": "The token that the model finds most likely after each prefix of a response: "
    "what greedy decoding would say there.",
    "margin": "The log-prob of the chosen minus that of the rejected response of the "
    "same prompt: what training on preferences is to widen.",
    "threshold": "The probability of a token below which a step against another token "
    "lowers it too: ‖π‖² - π(y) for small steps. Squeezing is what happens below it.",
    "first order": "The derivative of the log-prob at the start of an update times the "
    "update, the paper's -η·A·K·G.",
    "integrated": "The derivative averaged along the update, times the update: all of "
    "the change, up to the quadrature.",
    "quadrature": "Measured minus integrated: what the few places along each update, "
    "at which the derivative is taken, miss.",
    "remainder": "Measured minus first order: how far an update is from a small step.",
    "rounding floor": "How much the rounding of numbers may make of a change: less "
    "than that says nothing. It is added up over the run.",
    "balance": "The parts of a change that add up to what was measured: gradients of "
    "each side, history, weight decay, and what is left.",
    "history": "What the optimizer's moments hold of earlier updates' gradients and "
    "put into this one.",
    "weight decay": "The part of an update that shrinks the parameters, whatever the "
    "examples are.",
    "signature": "A pattern that was published of such runs, checked by a rule on the "
    "curves of this one.",
    "standard error": "Of a mean over prompts: other prompts would have given another "
    "mean, two times in three within this distance. Bands show two of them.",
    "per token": "Divided by the number of tokens of each response, so that long and "
    "short responses can be compared.",
}
#: By word: the terms of the page, then the types of responses.
GLOSSARY = {
    **_TERMS,
    **{name: f"A response that is {MEANINGS[name]}." for name in RESPONSE_TYPES},
    "greedy": "The tokens y* after each prefix of the chosen response: how their "
    "summed log-prob moves says how peaked the model gets.",
}
