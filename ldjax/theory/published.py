"""The published signatures themselves: what the curves of SFT and DPO look like."""

from typing import Literal, NamedTuple

from ldjax.data.response_types import GROUPS, RESPONSE_TYPES, REWRITTEN
from ldjax.theory.curves import (
    Check,
    D,
    end,
    fall,
    highest,
    lowest,
    on_baseline,
    peak,
    slope,
    start,
    tpeak,
    upfrac,
)

__all__ = ["REGIMES", "SIGNATURES", "Signature"]

REGIMES = {
    "sft": "SFT on chosen",
    "sft_extend": "SFT on chosen and on rejected, each a target of its own",
    "dpo_from_base": "DPO of the pretrained model, at a small learning rate",
    "dpo_from_base_highlr": "the same at a visibly larger learning rate",
    "dpo_after_sft": "DPO after SFT",
    "dpo_after_extend": "DPO after SFT on chosen and on rejected",
    "pair_sft": "a run sft_extend with its baseline, a run sft",
    "pair_dpo": "a run dpo_after_extend with its baseline, a run dpo_after_sft",
}


class Signature(NamedTuple):
    """What is expected of the curves of a run.

    Attributes:
      id: A short name.
      strength: Whether any faithful run must have it (core), or whether it may depend
        on the model, the tokenizer or the learning rate (soft).
      regimes: Of `REGIMES`, those that it is about.
      text: What it says.
      checks: What it says, exactly: all of them.

    Examples:
      >>> SIGNATURES[0].id, SIGNATURES[0].checks[1].label
      ('SFT1_chosen_rises', 'tpeak(chosen) >= 0.95')
    """

    id: str
    strength: Literal["core", "soft"]
    regimes: tuple[str, ...]
    text: str
    checks: tuple[Check, ...]


_SFT = ("sft", "sft_extend")
_DPO = ("dpo_from_base", "dpo_after_sft", "dpo_after_extend")
_NOT_CHOSEN = tuple(k for k in RESPONSE_TYPES if k != "chosen")
_OTHERS = tuple(k for k in _NOT_CHOSEN if k != "rejected")
_OTHER_LANGUAGE = tuple(
    k for k in RESPONSE_TYPES if k != "rejected" and k not in GROUPS["random"]
)
_A_O = tuple(f"A_o:{k}" for k in RESPONSE_TYPES)
_top_of_others = highest("max of D over others", [D(k) for k in _OTHERS])

SIGNATURES: tuple[Signature, ...] = (
    Signature(
        "SFT1_chosen_rises",
        "core",
        _SFT,
        "Chosen rises at nearly every step and is highest at the end.",
        (D("chosen") > 0, tpeak("chosen") >= 0.95, upfrac("chosen") >= 0.9),
    ),
    Signature(
        "SFT2_chosen_is_top",
        "core",
        _SFT,
        "No type gains more than chosen.",
        (
            D("chosen")
            >= highest("max of D but of chosen", [D(k) for k in _NOT_CHOSEN]),
        ),
    ),
    Signature(
        "SFT3_other_prompts_answers_rise",
        "core",
        _SFT,
        "Hallucination: answers trained on other prompts (irr_train) are pulled up "
        "strongly under this one, and more than answers never trained on (irr_test).",
        (
            peak("irr_train") >= 0.2 * D("chosen"),
            D("irr_train") > 0,
            D("irr_train") > D("irr_test"),
        ),
    ),
    Signature(
        "SFT4_unseen_answers_rise_then_fall",
        "core",
        _SFT,
        "Answers never trained on (irr_test) rise at first, peak in the first half, "
        "then fall.",
        (
            peak("irr_test") >= 0.05 * D("chosen"),
            tpeak("irr_test") <= 0.5,
            fall("irr_test") >= 0.05 * D("chosen"),
            slope("irr_test", 0.0, 0.2) > 0,
        ),
    ),
    Signature(
        "SFT5_rephrases_do_not_follow",
        "core",
        _SFT,
        "Rephrases of chosen gain less than a quarter of what chosen gains, the one "
        "that keeps the meaning more than the one that keeps the format.",
        (
            D("chosen_gptsemantic") < 0.25 * D("chosen"),
            D("chosen_gptformat") < 0.25 * D("chosen"),
            D("chosen_gptsemantic") > D("chosen_gptformat"),
        ),
    ),
    Signature(
        "SFT6_unrelated_text_falls",
        "core",
        _SFT,
        "Unrelated text (irr_hum) and shuffled words end lower than they started.",
        tuple(
            D(k) <= -0.05 * D("chosen")
            for k in ("irr_hum", "random_permute", "random_nonhum")
        ),
    ),
    Signature(
        "SFT7_initial_rises_then_falls",
        "soft",
        _SFT,
        "The base model's own answer (chosen_initial) rises early and ends below its "
        "start.",
        (
            peak("chosen_initial") > 0,
            tpeak("chosen_initial") <= 0.4,
            D("chosen_initial") < 0,
        ),
    ),
    Signature(
        "SFT8_greedy_logp_rises",
        "core",
        _SFT,
        "The greedy log-prob rises: predictions sharpen.",
        (D("argmax") >= 0.05 * D("chosen"),),
    ),
    Signature(
        "SFT9_peakiness_rises_everywhere",
        "core",
        ("sft",),
        "The adaptation norm grows on all types, on chosen at least as much as on "
        "rejected.",
        (*(D(k) > 0 for k in _A_O), D("A_o:chosen") >= D("A_o:rejected")),
    ),
    Signature(
        "SFT10_rejected_rises_then_falls",
        "core",
        ("sft",),
        "Rejected, never trained on, is dragged along at first, peaks in the first "
        "half, then falls.",
        (
            peak("rejected") >= 0.05 * D("chosen"),
            tpeak("rejected") <= 0.5,
            fall("rejected") >= 0.05 * D("chosen"),
        ),
    ),
    Signature(
        "SFT11_margin_grows",
        "core",
        ("sft",),
        "SFT on chosen alone widens the margin.",
        (D("margin") > 0,),
    ),
    Signature(
        "SFT12_front_loaded",
        "soft",
        _SFT,
        "Chosen rises faster in the first fifth of training than in the middle one.",
        (slope("chosen", 0.0, 0.2) > slope("chosen", 0.4, 0.6),),
    ),
    Signature(
        "SFTX1_rejected_is_trained_too",
        "core",
        ("sft_extend",),
        "Rejected, now a target, rises to the end and by half of chosen or more.",
        (D("rejected") >= 0.5 * D("chosen"), tpeak("rejected") >= 0.95),
    ),
    Signature(
        "SFTX2_order",
        "core",
        ("sft_extend",),
        "Changes are ordered: chosen, rejected, irr_train, then irr_test and all "
        "rephrases, then irr_hum.",
        (
            D("chosen") > D("rejected"),
            D("rejected") > D("irr_train"),
            D("irr_train") > D("irr_test"),
            D("irr_test") > D("irr_hum"),
            *(D("irr_train") > D(k) for k in REWRITTEN),
            *(D(k) > D("irr_hum") for k in REWRITTEN),
        ),
    ),
    Signature(
        "SFTX3_gpts_above_gptf",
        "soft",
        ("sft_extend",),
        "On both sides, the rephrase that keeps the meaning ends above the one that "
        "keeps the format.",
        (
            D("chosen_gptsemantic") > D("chosen_gptformat"),
            D("reject_gptsemantic") > D("reject_gptformat"),
        ),
    ),
    Signature(
        "DPO1_margin_grows",
        "core",
        _DPO,
        "The margin grows until late in training.",
        (D("margin") > 0, tpeak("margin") >= 0.8),
    ),
    Signature(
        "DPO2_rejected_falls_most",
        "core",
        ("dpo_from_base",),
        "Rejected falls, and more than all other natural language.",
        (
            D("rejected") < 0,
            D("rejected")
            < lowest("min of D over other language", [D(k) for k in _OTHER_LANGUAGE]),
        ),
    ),
    Signature(
        "DPO2b_rejected_falls_more_than_its_rephrases",
        "core",
        _DPO,
        "The push down fades with distance: rejected, its rephrase by meaning, its "
        "rephrase by format, the rephrases of chosen.",
        (
            D("rejected") < D("reject_gptsemantic"),
            D("reject_gptsemantic") < D("reject_gptformat"),
            D("reject_gptformat")
            < lowest(
                "min of D over chosen_gpt*",
                [D("chosen_gptsemantic"), D("chosen_gptformat")],
            ),
        ),
    ),
    Signature(
        "DPO3_chosen_rises_then_falls",
        "core",
        ("dpo_from_base",),
        "Chosen rises, peaks before the last tenth and falls back: the desired answer "
        "too loses when DPO runs long.",
        (
            peak("chosen") >= 0.02 * abs(start("chosen")),
            tpeak("chosen") < 0.9,
            fall("chosen") >= 0.02 * abs(start("chosen")),
        ),
    ),
    Signature(
        "DPO4_everything_else_falls",
        "core",
        _DPO,
        "The ten types that are neither chosen nor rejected end lower than they "
        "started, and lower than chosen.",
        (_top_of_others <= -0.05 * D("margin"), D("chosen") > _top_of_others),
    ),
    Signature(
        "DPO5_squeezing",
        "core",
        _DPO,
        "Squeezing: the greedy log-prob rises while the mean of all types falls.",
        (D("argmax") >= 0.02 * D("margin"), D("all") <= -0.1 * D("margin")),
    ),
    Signature(
        "DPO5b_greedy_rises",
        "core",
        ("dpo_from_base",),
        "The greedy log-prob rises.",
        (D("argmax") > 0,),
    ),
    Signature(
        "DPO6_late_squeeze",
        "core",
        ("dpo_from_base",),
        "In the second half the greedy log-prob still rises while chosen falls.",
        (slope("argmax", 0.5, 1.0) > 0, slope("chosen", 0.5, 1.0) < 0),
    ),
    Signature(
        "DPO7_trained_others_fall_less",
        "core",
        _DPO,
        "Answers chosen for other prompts (irr_train) fall less than answers never "
        "trained on (irr_test).",
        (D("irr_train") > D("irr_test"),),
    ),
    Signature(
        "DPO8_early_pull_up_of_trained_answers",
        "soft",
        ("dpo_from_base",),
        "Before they fall, irr_train and the rephrase of chosen by meaning rise a "
        "little.",
        (
            peak("irr_train") > 0,
            tpeak("irr_train") <= 0.25,
            peak("chosen_gptsemantic") > 0,
            tpeak("chosen_gptsemantic") <= 0.25,
        ),
    ),
    Signature(
        "DPO9_peakiness_more_on_rejected",
        "soft",
        _DPO,
        "The adaptation norm grows on all types, on rejected more than on chosen.",
        (
            lowest("min of D over A_o", [D(k) for k in _A_O]) > 0,
            D("A_o:rejected") > D("A_o:chosen"),
        ),
    ),
    Signature(
        "DPO10_chosen_falls_at_once_if_lr_large",
        "core",
        ("dpo_from_base_highlr",),
        "At a large learning rate chosen falls at once and never comes back.",
        (peak("chosen") <= 0, D("chosen") < 0),
    ),
    Signature(
        "EXT1_sft_stage",
        "core",
        ("pair_sft",),
        "Extending SFT to rejected lifts rejected more and chosen less, and keeps the "
        "margin smaller.",
        (
            D("rejected") > on_baseline(D("rejected")),
            D("chosen") < on_baseline(D("chosen")),
            D("margin") < on_baseline(D("margin")),
        ),
    ),
    Signature(
        "EXT2_dpo_stage_smaller_decay",
        "core",
        ("pair_dpo",),
        "DPO after extended SFT costs chosen, rejected and the mean of all types less.",
        tuple(D(k) > on_baseline(D(k)) for k in ("chosen", "rejected", "all")),
    ),
    Signature(
        "EXT3_dpo_stage_less_peaky",
        "core",
        ("pair_dpo",),
        "DPO after extended SFT ends with a lower greedy log-prob: squeezed less.",
        (end("argmax") < on_baseline(end("argmax")),),
    ),
)
